"""Scripts that complete the words of a command line in a shell.

They are made from the parsers, as `amct completion` makes its own, and hold all words: typer's own scripts
start the program at every press of the key, and it takes seconds to import torch.
"""

from __future__ import annotations

import shlex
from typing import Any

import typer
import typer.core

PROGRAM = "amct-pytorch"


def bash(program: Any) -> str:
    """A script for bash, in words that zsh understands as well.

    Parameters
    ----------
    program : typer.core.TyperGroup
        The commands.
    """
    commands = " ".join(program.commands)
    of_commands = "".join(
        f'      {name}) command={name} words="{_words(command)}" arguments="{_arguments(command)}"\n'
        "        break ;;\n"
        for name, command in program.commands.items()
    )
    of_options = "".join(
        f'    "{name} {flag}") words="{" ".join(_choices(option))}" ;;\n'
        for name, command in program.commands.items()
        for option in command.params
        if _takes_value(option)
        for flag in option.opts
    )
    return f"""\
_amct_pytorch() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local word command="" arguments="" words="{commands} {_words(program)}"
  if [[ $previous == = ]]; then previous=${{COMP_WORDS[COMP_CWORD-2]}}; fi  # --option=value
  if [[ $current == = ]]; then current=""; fi
  for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD-1))}}"; do
    case $word in
{of_commands}    esac
  done
  case "$command $previous" in
{of_options}    *) if [[ $command && $current != -* ]]; then words=$arguments; fi ;;
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -F _amct_pytorch {PROGRAM}
"""


def zsh(program: Any) -> str:
    """A script for zsh, which runs that of bash; see `bash`."""
    # As a file of $fpath it is the body of a function, which is to complete as well when it is first called.
    return (
        f"#compdef {PROGRAM}\nautoload -U +X bashcompinit && bashcompinit\n{bash(program)}"
        f"[[ $funcstack[1] == _{PROGRAM} ]] && _bash_complete -o default -F _amct_pytorch\n"
    )


def fish(program: Any) -> str:
    """A script for fish; see `bash`."""
    lines = []
    for name, command in program.commands.items():
        summary = shlex.quote(command.get_short_help_str(limit=100))
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {summary}")
        for option in command.params:
            words = [f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}'"]
            if not _flags(option) and not _choices(option):
                continue  # a file, which fish offers by itself
            for flag in _flags(option):
                words += ["-l" if flag.startswith("--") else "-s", flag.lstrip("-")]
            if _choices(option):
                words.append(f"-x -a '{' '.join(_choices(option))}'")
            elif _takes_value(option):
                words.append("-r")
            lines.append(f"{' '.join(words)} -d {shlex.quote(option.help or '')}")
    return "\n".join(lines) + "\n"


def _words(command: Any) -> str:
    """The flags of a command."""
    return " ".join([*(flag for option in command.params for flag in _flags(option)), "--help"])


def _arguments(command: Any) -> str:
    """The words that the arguments of a command may be."""
    return " ".join(word for option in command.params if not _flags(option) for word in _choices(option))


def _flags(option: Any) -> list[str]:
    """The flags of an option; none of an argument."""
    return [flag for flag in [*option.opts, *option.secondary_opts] if flag.startswith("-")]


def _takes_value(option: Any) -> bool:
    return option.param_type_name == "option" and not option.is_flag


def _choices(option: Any) -> list[str]:
    """The words that a value may be, where they are known."""
    items = option.shell_complete(typer.Context(typer.core.TyperCommand("")), "")
    return [item.value for item in items if item.type == "plain"]
