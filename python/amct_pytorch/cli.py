"""The command `amct-pytorch`. What it does with models needs transformers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from amct_pytorch import _completion, _models
from amct_pytorch._command import (
    InputError,
    UsageError,
    be_verbose,
    echo_json,
    ending_as_by_keyboard,
    say_error,
    table,
    with_errors_in_a_line,
)
from amct_pytorch._command_calibrate import calibrate, config
from amct_pytorch._command_quality import evaluate, recommend
from amct_pytorch._command_report import report
from amct_pytorch._compat import StrEnum
from amct_pytorch._core import __version__
from amct_pytorch._options import Gguf, Json, Verbose
from amct_pytorch._report_names import printable
from amct_pytorch.discovery import KVLayer, find_kv_layers, find_state_layers

# What a command line that is wrong raises; typer exports only this class of its kind.
_CommandLineError: type[Any] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """Says in a line what is wrong with a command line, as other errors are said."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            with ending_as_by_keyboard():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except _CommandLineError as error:
            context = "amct-pytorch" if error.ctx is None else error.ctx.command_path
            message = error.format_message().replace("Value error, ", "").rstrip(".")
            say_error(f"{message} (see {context} --help)")
            code = 2
        raise SystemExit(code or 0)


app = typer.Typer(
    cls=_Commands,
    help="Calibrate the key/value cache of models for quantization.",
    epilog="Exit codes: 0 done; 1 a file, a model or a device cannot be used; 2 the command line is wrong; "
    "3 the answer is no (evaluate --max-loss found a larger loss).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes leave a third of a terminal's width for words
)

_COLUMNS = ("layer", "role", "heads", "head_dim", "found from")

Folder = Annotated[
    str | None,
    typer.Argument(
        metavar="FOLDER", help="Folder of a transformers model, or a GGUF file; weights are not read."
    ),
]
FolderAsOption = Annotated[
    str | None, typer.Option("--model", help="The same, named as the other commands name it.")
]


class Shell(StrEnum):
    """What reads a script for completion."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def main() -> None:
    """Run the command line."""
    app(prog_name="amct-pytorch")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    verbose: Verbose = False,
) -> None:
    be_verbose(verbose)
    if version:
        typer.echo(f"amct-pytorch {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command()
@with_errors_in_a_line
def layers(
    folder: Folder = None,
    model: FolderAsOption = None,
    gguf: Gguf = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the key and value layers of a model.

    They are what is calibrated where no layer is named.

    Example: amct-pytorch layers DIR
    """
    if (folder is None) == (model is None):
        raise UsageError("name one model: amct-pytorch layers FOLDER")
    path = folder or model or ""
    built = _models.skeleton(_models.find_model(path, gguf))
    found, state_layers = find_kv_layers(built), find_state_layers(built)
    if as_json:
        echo_json({"layers": [dataclasses.asdict(layer) for layer in found], "state_layers": state_layers})
        return
    if not found:
        raise InputError(f"no key or value projection was found in {type(built).__name__} of '{path}'")
    typer.echo(table([_COLUMNS, *map(_row, found)]))
    typer.echo(f"\n{type(built).__name__}: {len(found)} layers")
    if state_layers:
        typer.echo(
            f"{len(state_layers)} layers keep a state instead and are left alone: "
            + printable(", ".join(state_layers))
        )


app.command()(config)
app.command()(calibrate)
app.command()(evaluate)
app.command()(recommend)
app.command()(report)


@app.command()
@with_errors_in_a_line
def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    r"""Write a script that completes commands in a shell.

    Example: amct-pytorch completion bash \
      > ~/.local/share/bash-completion/completions/amct-pytorch
    """
    assert context.parent is not None
    write = {Shell.bash: _completion.bash, Shell.zsh: _completion.zsh, Shell.fish: _completion.fish}[shell]
    typer.echo(write(context.parent.command), nl=False)


def _row(layer: KVLayer) -> tuple[str, ...]:
    numbers = ("?" if number is None else str(number) for number in (layer.heads, layer.head_dim))
    return (layer.name, layer.role, *numbers, layer.source)


if __name__ == "__main__":  # torchrun -m amct_pytorch.cli
    main()
