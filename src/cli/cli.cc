#include "cli/cli.h"

#include "amct/core/error.h"

#include <algorithm>
#include <exception>
#include <new>
#include <ostream>
#include <utility>

#include "cli/command.h"

namespace amct::cli {
namespace {

constexpr const char* kFooter =
    "\nExample: amct solve all.counts -o int4.txt --algorithm mse --dst-type INT4\n"
    "Example: amct export int4.txt --to npz -o int4.npz\n\n"
    "Exit codes: 0 done; 1 a file cannot be read, written or used; 2 the command line is wrong;\n"
    "3 the answer is no (diff found differences, verify found a fault).";

/// What is wrong with a command line without a command that exists.
std::string no_command(const CLI::App& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) names.push_back(command->get_name());
  }
  const auto word = std::ranges::find_if(
      arguments, [](const std::string& argument) { return !argument.starts_with('-'); });
  if (word == arguments.end()) return "name a command";
  return "there is no command '" + *word + "'" + suggestion(*word, names);
}

int fail(std::ostream& err, const std::string& message) {
  err << "amct: " << printable(message) << '\n';
  return static_cast<int>(Exit::kError);
}

int wrong_usage(std::ostream& err, const CLI::ParseError& error) {
  err << "amct: " << printable(error.what()) << " (see amct --help)\n";
  return static_cast<int>(Exit::kUsage);
}

}  // namespace

int run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
        bool interactive) {
  Context context{.out = out, .err = err, .interactive = interactive};
  Action action;
  CLI::App program("Work with the records and counts of key/value-cache calibration.", "amct");
  program.set_version_flag("--version", "amct " AMCT_VERSION);
  program.set_help_all_flag("--help-all", "Help of all commands.");
  program.require_subcommand(1);
  program.fallthrough();
  program.footer(kFooter);
  program.add_flag("--json", context.json, "Write JSON.");
  const OnParsed on_parsed = [&](Action parsed) { action = std::move(parsed); };
  add_inspect(program, on_parsed);
  add_solve(program, on_parsed);
  add_merge(program, on_parsed);
  add_diff(program, on_parsed);
  add_export(program, on_parsed);
  add_verify(program, on_parsed);
  add_completion(program, on_parsed);
  add_reference(program, on_parsed);
  try {
    program.parse(
        std::vector<std::string>(arguments.rbegin(), arguments.rend()));  // as CLI11 takes them
  } catch (const CLI::Success& success) {                                 // --help, --version
    program.exit(success, out, err);
    return static_cast<int>(Exit::kOk);
  } catch (const CLI::RequiredError& error) {
    const bool has_command = !program.get_subcommands().empty();
    const std::string what = has_command ? error.what() : no_command(program, arguments);
    err << "amct: " << printable(what) << " (see amct --help)\n";
    return static_cast<int>(Exit::kUsage);
  } catch (const CLI::ParseError& error) {
    return wrong_usage(err, error);
  }
  try {
    const Exit code = action(context);
    out.flush();
    if (!out) return fail(err, "the output cannot be written");
    return static_cast<int>(code);
  } catch (const CLI::ParseError& error) {  // what only a file can tell
    context.end_progress();
    return wrong_usage(err, error);
  } catch (const Error& error) {
    context.end_progress();
    return fail(err, error.what());
  } catch (const std::bad_alloc&) {
    context.end_progress();
    return fail(err, "there is not enough memory");
  } catch (const std::exception& error) {
    context.end_progress();
    return fail(err, std::string("an error of the command itself: ") + error.what());
  }
}

}  // namespace amct::cli
