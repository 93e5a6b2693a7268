"""The command `amct-pytorch`. What it does with models needs transformers."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import torch
import typer

from amct_pytorch import _models
from amct_pytorch._core import __version__, read_config
from amct_pytorch.calibration import CalibrationRun, create_quant_cali_config
from amct_pytorch.calibration import calibrate as calibrate_model
from amct_pytorch.discovery import KVLayer, find_kv_layers, find_state_layers
from amct_pytorch.evaluation import windows

P = ParamSpec("P")

app = typer.Typer(
    help="Calibrate the key/value cache of models for quantization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Tap(enum.StrEnum):
    """Where layers are observed."""

    linear = "linear"
    cache = "cache"


class Granularity(enum.StrEnum):
    """What shares factors."""

    per_tensor = "per_tensor"
    per_channel = "per_channel"
    per_head = "per_head"


class Algorithm(enum.StrEnum):
    """How factors are searched."""

    ifmr = "ifmr"
    hfmg = "hfmg"
    minmax = "minmax"
    percentile = "percentile"
    mse = "mse"


class Dtype(enum.StrEnum):
    """What weights are loaded as."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


_COLUMNS = ("layer", "role", "heads", "head_dim", "found from")

Folder = Annotated[str, typer.Argument(help="Folder of a transformers model; its weights are not read.")]
Gguf = Annotated[str | None, typer.Option(help="Name of a GGUF file in the folder, where that is the model.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]


def main() -> None:
    """Run the command line."""
    app()


def _with_errors_in_a_line(command: Callable[P, None]) -> Callable[P, None]:
    """Say what went wrong without a traceback, and exit with 1."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (_models.InputError, OSError, ValueError, RuntimeError) as error:
            _fail(str(error))

    return call


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"amct-pytorch {__version__}")
        raise typer.Exit


@app.command()
@_with_errors_in_a_line
def layers(folder: Folder, gguf: Gguf = None, as_json: Json = False) -> None:
    """List the key and value layers of a model: what is calibrated where no layer is named."""
    model = _models.skeleton(folder, gguf)
    found, state_layers = find_kv_layers(model), find_state_layers(model)
    if as_json:
        content = {"layers": [dataclasses.asdict(layer) for layer in found], "state_layers": state_layers}
        typer.echo(json.dumps(content, indent=2))
        return
    if not found:
        _fail(f"no key or value projection was found in {type(model).__name__} of '{folder}'")
    typer.echo(_table([_COLUMNS, *map(_row, found)]))
    typer.echo(f"\n{type(model).__name__}: {len(found)} layers")
    if state_layers:
        typer.echo(
            f"{len(state_layers)} layers keep a state instead and are left alone: {', '.join(state_layers)}"
        )


@app.command()
@_with_errors_in_a_line
def calibrate(
    model: Annotated[str, typer.Option(help="Folder of a transformers model.")],
    text: Annotated[Path | None, typer.Option(help="Text file to calibrate on.")] = None,
    token_ids: Annotated[
        Path | None, typer.Option(help="JSON list of token ids to calibrate on, in place of a text.")
    ] = None,
    record: Annotated[Path, typer.Option(help="File for the factors.")] = Path("record.txt"),
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration to use, with all settings and the number of batches."),
    ] = None,
    gguf: Gguf = None,
    tap: Annotated[Tap, typer.Option(help="Observe projections, or what goes into the cache.")] = Tap.linear,
    granularity: Annotated[Granularity, typer.Option()] = Granularity.per_tensor,
    algorithm: Annotated[Algorithm, typer.Option()] = Algorithm.ifmr,
    max_position: Annotated[
        int | None,
        typer.Option(
            min=0, help="Position that keys per channel at tap cache hold up to (default: the model's)."
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches to observe.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a batch.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 512,
    dtype: Annotated[Dtype, typer.Option(help="Type to load the weights as.")] = Dtype.auto,
    device: Annotated[str, typer.Option(help="Device to run on.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Calibrate a model on a text: find its key and value layers, and write their factors.

    Example: amct-pytorch calibrate --model DIR --text book.txt --tap cache --granularity per_channel
    """
    settings = (tap, granularity, algorithm, max_position)
    if config is not None:
        if settings != (Tap.linear, Granularity.per_tensor, Algorithm.ifmr, None):
            _fail("--config has all settings; leave out --tap, --granularity, --algorithm and --max-position")
        batches = read_config(str(config)).batch_num
    ids = _models.token_ids(text, token_ids, model, gguf)
    rows = windows(ids, tokens)
    if len(rows) < batches * batch_size:
        _fail(
            f"the text has {len(ids)} tokens, fewer than {batches} batches of {batch_size} x {tokens}; "
            "give a longer one, or ask for less"
        )
    loaded = _models.load(model, gguf, dtype.value, device)
    _models.check_token_ids(ids, loaded)
    with tempfile.TemporaryDirectory() as folder:
        if config is None:
            config = Path(folder) / "config.json"
            definition = Path(folder) / "definition.cfg"
            search = f"{algorithm.value}_quantize {{ quant_granularity: {granularity.value} }}"
            definition.write_text(
                f"batch_num: {batches} kv_cache_quant_config {{ calibration_config {{ {search} }} }}"
            )
            create_quant_cali_config(
                str(config), loaded, None, str(definition), tap=tap.value, max_position=max_position
            )
        with calibrate_model(loaded, str(config), str(record)) as run, torch.inference_mode():
            there = range(0, batches * batch_size, batch_size)
            with typer.progressbar(there, label="Calibrating", file=sys.stderr) as progress:
                for start in progress:
                    batch = torch.cat(rows[start : start + batch_size]).to(device)
                    loaded(**_models.inputs_of(loaded, batch), **_cache_use(run, loaded))
    _show(run, record, as_json)


def _cache_use(run: CalibrationRun, model: torch.nn.Module) -> dict[str, bool]:
    """Models keep a cache only where that is what is calibrated; encoders have none."""
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return {}
    return {"use_cache": run.observes_cache}


def _show(run: CalibrationRun, record: Path, as_json: bool) -> None:
    results = run.results()
    if as_json:
        layers = [
            {
                "layer": layer.name,
                "tap": layer.tap,
                "algorithm": layer.algorithm,
                "granularity": layer.granularity,
                "batches": layer.batches,
                "rows": layer.rows,
                "channels": layer.channels,
                "sqnr_db": layer.sqnr_db,
                "clipped_fraction": layer.clipped_fraction,
            }
            for layer in results
        ]
        content = {"record": str(record), "layers": layers, "unfinished": list(run.unfinished())}
        typer.echo(json.dumps(content, indent=2))
        return
    rows = [
        (
            layer.name,
            layer.tap,
            f"{layer.algorithm} {layer.granularity}",
            str(layer.rows),
            f"{layer.min:.4g} to {layer.max:.4g}",
            "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
            "-" if layer.clipped_fraction is None else f"{layer.clipped_fraction * 100:.3g}%",
        )
        for layer in results
    ]
    typer.echo(_table([("layer", "tap", "search", "rows", "values", "SQNR dB", "clipped"), *rows]))
    typer.echo(f"\n{record}: {len(results)} layers")


def _row(layer: KVLayer) -> tuple[str, ...]:
    numbers = ("?" if number is None else str(number) for number in (layer.heads, layer.head_dim))
    return (layer.name, layer.role, *numbers, layer.source)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; not cut to the width of a terminal, since names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _fail(message: str) -> NoReturn:
    typer.echo(f"amct-pytorch: {message}", err=True)
    sys.exit(1)
