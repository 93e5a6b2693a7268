// amct completion: scripts for shells, and amct reference: the manual page, both from the parser.
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "cli/command.h"

namespace amct::cli {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& program) {
  std::vector<const CLI::App*> commands;
  for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) commands.push_back(command);  // others are hidden
  }
  return commands;
}

/// "--record" and "-o" of an option; none of an argument.
std::vector<std::string> flags_of(const CLI::Option& option) {
  std::vector<std::string> flags;
  for (const std::string& name : option.get_lnames()) flags.push_back(fmt::format("--{}", name));
  for (const std::string& name : option.get_snames()) flags.push_back(fmt::format("-{}", name));
  return flags;
}

std::string joined(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, " "));
}

std::string words_of(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& flag : flags_of(*option)) words.push_back(flag);
  }
  return joined(words);
}

bool takes_value(const CLI::Option& option) {
  return !flags_of(option).empty() && option.get_items_expected_max() > 0;
}

/// The words that the arguments of a command may be.
std::string arguments_of(const CLI::App& command) {
  std::vector<std::string> words;
  for (const CLI::Option* option : command.get_options()) {
    if (!flags_of(*option).empty()) continue;
    for (const std::string& word : words_taken_by(*option)) words.push_back(word);
  }
  return joined(words);
}

/// In words that zsh understands as well. The first word that is a command is the command: a file
/// may be called as another is. Where nothing is known to complete, the shell offers files.
std::string bash(const CLI::App& program) {
  std::vector<std::string> commands;
  std::string of_commands;
  std::string of_options;
  for (const CLI::App* command : commands_of(program)) {
    const std::string& name = command->get_name();
    commands.push_back(name);
    of_commands += fmt::format("      {0}) command={0} words=\"{1}\" arguments=\"{2}\"; break ;;\n",
                               name, words_of(*command), arguments_of(*command));
    for (const CLI::Option* option : command->get_options()) {
      if (!takes_value(*option)) continue;
      const std::string words = joined(words_taken_by(*option));
      for (const std::string& flag : flags_of(*option)) {
        of_options += fmt::format("    \"{} {}\") words=\"{}\" ;;\n", name, flag, words);
      }
    }
  }
  return fmt::format(
      "_amct_bash() {{\n"
      "  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}\n"
      "  local word command=\"\" arguments=\"\" before=\"\" words=\"{} {}\"\n"
      "  # --option=value: bash takes it apart, zsh does not.\n"
      "  if [[ $previous == = ]]; then previous=${{COMP_WORDS[COMP_CWORD-2]}}; fi\n"
      "  if [[ $current == = ]]; then current=\"\"; fi\n"
      "  if [[ $current == --*=* ]]; then\n"
      "    previous=${{current%%=*}} before=${{current%%=*}}= current=${{current#*=}}\n"
      "  fi\n"
      "  for word in \"${{COMP_WORDS[@]:1:$((COMP_CWORD-1))}}\"; do\n"
      "    case $word in\n{}    esac\n"
      "  done\n"
      "  case \"$command $previous\" in\n{}"
      "    *) if [[ $command && $current != -* ]]; then words=$arguments; fi ;;\n"
      "  esac\n"
      "  COMPREPLY=( $(compgen -P \"$before\" -W \"$words\" -- \"$current\") )\n"
      "}}\n"
      "complete -o default -F _amct_bash amct\n",
      joined(commands), words_of(program), of_commands, of_options);
}

/// As a file of $fpath it is the body of a function, which is to complete as well when it is first
/// called.
std::string zsh(const CLI::App& program) {
  return fmt::format(
      "#compdef amct\nautoload -U +X bashcompinit && bashcompinit\n{}"
      "[[ $funcstack[1] == _amct ]] && _bash_complete -o default -F _amct_bash\n",
      bash(program));
}

std::string fish(const CLI::App& program) {
  const auto quoted = [](const std::string& text) {
    std::string escaped;
    for (const char c : text) {
      if (c == '\'') escaped += '\\';
      escaped += c;
    }
    return fmt::format("'{}'", escaped);
  };
  std::string script;
  for (const CLI::App* command : commands_of(program)) {
    script += fmt::format("complete -c amct -n __fish_use_subcommand -a {} -d {}\n",
                          command->get_name(), quoted(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      std::string flags;
      for (const std::string& name : option->get_lnames()) flags += fmt::format(" -l {}", name);
      for (const std::string& name : option->get_snames()) flags += fmt::format(" -s {}", name);
      const std::vector<std::string> words = words_taken_by(*option);
      if (!words.empty()) {
        flags += fmt::format(" -x -a '{}'", joined(words));
      } else if (takes_value(*option)) {
        flags += " -r";
      }
      if (flags.empty()) continue;  // a file, which fish offers by itself
      script += fmt::format("complete -c amct -n '__fish_seen_subcommand_from {}'{} -d {}\n",
                            command->get_name(), flags, quoted(option->get_description()));
    }
  }
  return script;
}

void append_options(std::string& page, const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::vector<std::string> flags = flags_of(*option);
    const std::string names =
        flags.empty() ? option->get_name() : fmt::format("{}", fmt::join(flags, ", "));
    page += fmt::format("| `{}` | {}", names, option->get_description());
    const std::vector<std::string> words = words_taken_by(*option);
    if (!words.empty()) page += fmt::format(" One of {}.", fmt::join(words, ", "));
    page += " |\n";
  }
}

/// A page of Markdown for the documentation.
std::string reference(const CLI::App& program) {
  std::string page = fmt::format("# `amct`\n\n{}\n\n| option of all commands | |\n|---|---|\n",
                                 program.get_description());
  append_options(page, program);
  page += fmt::format("\n{}\n", program.get_footer());
  for (const CLI::App* command : commands_of(program)) {
    page +=
        fmt::format("\n## `amct {}`\n\n{}\n\n", command->get_name(), command->get_description());
    page += "| argument or option | |\n|---|---|\n";
    append_options(page, *command);
    if (!command->get_footer().empty())
      page += fmt::format("\n```\n{}\n```\n", command->get_footer().substr(1));
  }
  return page;
}

}  // namespace

void add_completion(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command =
      *program.add_subcommand("completion", "Write a script that completes commands in a shell.");
  command.footer(
      "\nExample: amct completion bash > ~/.local/share/bash-completion/completions/amct");
  const auto shell = std::make_shared<std::string>();
  command.add_option("SHELL", *shell, "The shell.")
      ->required()
      ->transform(one_of({"bash", "zsh", "fish"}));
  command.callback([&program, shell, on_parsed] {
    on_parsed([&program, shell = *shell](const Context& context) {
      if (shell == "bash") context.out << bash(program);
      if (shell == "zsh") context.out << zsh(program);
      if (shell == "fish") context.out << fish(program);
      return Exit::kOk;
    });
  });
}

void add_reference(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command = *program.add_subcommand("reference", "Write the manual page as Markdown.");
  command.group("");
  command.callback([&program, on_parsed] {
    on_parsed([&program](const Context& context) {
      context.out << reference(program);
      return Exit::kOk;
    });
  });
}

}  // namespace amct::cli
