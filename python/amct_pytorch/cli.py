"""The command `amct-pytorch`. What it does with models needs transformers."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import torch
import typer

from amct_pytorch._core import __version__
from amct_pytorch.discovery import KVLayer, find_kv_layers, find_state_layers

app = typer.Typer(
    help="Calibrate the key/value cache of models for quantization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_COLUMNS = ("layer", "role", "heads", "head_dim", "found from")

Model = Annotated[str, typer.Argument(help="Folder of a transformers model; its weights are not read.")]
Gguf = Annotated[str | None, typer.Option(help="Name of a GGUF file in the folder, where that is the model.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"amct-pytorch {__version__}")
        raise typer.Exit


@app.command()
def layers(model: Model, gguf: Gguf = None, as_json: Json = False) -> None:
    """List the key and value layers of a model: what is calibrated where no layer is named."""
    skeleton = _skeleton(model, gguf)
    found, state_layers = find_kv_layers(skeleton), find_state_layers(skeleton)
    if as_json:
        content = {"layers": [dataclasses.asdict(layer) for layer in found], "state_layers": state_layers}
        typer.echo(json.dumps(content, indent=2))
        return
    if not found:
        _fail(f"no key or value projection was found in {type(skeleton).__name__} of '{model}'")
    typer.echo(_table([_COLUMNS, *map(_row, found)]))
    typer.echo(f"\n{type(skeleton).__name__}: {len(found)} layers")
    if state_layers:
        typer.echo(
            f"{len(state_layers)} layers keep a state instead and are left alone: {', '.join(state_layers)}"
        )


def _row(layer: KVLayer) -> tuple[str, ...]:
    numbers = ("?" if number is None else str(number) for number in (layer.heads, layer.head_dim))
    return (layer.name, layer.role, *numbers, layer.source)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; not cut to the width of a terminal, since names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _skeleton(folder: str, gguf: str | None) -> torch.nn.Module:
    """The model of a folder without its weights."""
    try:
        import transformers
    except ModuleNotFoundError:
        _fail("transformers is not installed: pip install transformers")
    source: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **source)
        known = [name for name in config.architectures or () if hasattr(transformers, name)]
        build = getattr(transformers, known[0]) if known else transformers.AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model: torch.nn.Module = build(config)
    except (OSError, ValueError, ImportError) as error:
        _fail(f"'{folder}' is not a model that transformers can read: {str(error).splitlines()[0]}")
    return model


def _fail(message: str) -> NoReturn:
    typer.echo(f"amct-pytorch: {message}", err=True)
    sys.exit(1)
