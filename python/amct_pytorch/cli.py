"""The command `amct-pytorch`. What it does with models needs transformers."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from amct_pytorch import _models
from amct_pytorch._command import (
    Algorithm,
    Device,
    Dtype,
    Format,
    Gguf,
    Granularity,
    Json,
    LoadAs,
    Model,
    Tap,
    fail,
    table,
    with_errors_in_a_line,
)
from amct_pytorch._command_quality import evaluate, recommend
from amct_pytorch._command_report import report
from amct_pytorch._core import __version__, read_config
from amct_pytorch.calibration import CalibrationRun, create_quant_cali_config
from amct_pytorch.calibration import calibrate as calibrate_model
from amct_pytorch.discovery import KVLayer, find_kv_layers, find_state_layers
from amct_pytorch.evaluation import windows

app = typer.Typer(
    help="Calibrate the key/value cache of models for quantization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_COLUMNS = ("layer", "role", "heads", "head_dim", "found from")

Folder = Annotated[str, typer.Argument(help="Folder of a transformers model; its weights are not read.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"amct-pytorch {__version__}")
        raise typer.Exit


app.command()(evaluate)
app.command()(recommend)
app.command()(report)


@app.command()
@with_errors_in_a_line
def layers(folder: Folder, gguf: Gguf = None, as_json: Json = False) -> None:
    """List the key and value layers of a model: what is calibrated where no layer is named."""
    model = _models.skeleton(folder, gguf)
    found, state_layers = find_kv_layers(model), find_state_layers(model)
    if as_json:
        content = {"layers": [dataclasses.asdict(layer) for layer in found], "state_layers": state_layers}
        typer.echo(json.dumps(content, indent=2))
        return
    if not found:
        fail(f"no key or value projection was found in {type(model).__name__} of '{folder}'")
    typer.echo(table([_COLUMNS, *map(_row, found)]))
    typer.echo(f"\n{type(model).__name__}: {len(found)} layers")
    if state_layers:
        typer.echo(
            f"{len(state_layers)} layers keep a state instead and are left alone: {', '.join(state_layers)}"
        )


@app.command()
@with_errors_in_a_line
def calibrate(
    model: Model,
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
    dst_type: Annotated[Format, typer.Option(help="What the cache stores.")] = Format.int8,
    sink_tokens: Annotated[
        int, typer.Option(min=0, help="First tokens of windows that are left out: the cache keeps them.")
    ] = 0,
    counts: Annotated[
        Path | None, typer.Option(help="File to save what was seen, for `amct solve` and reports.")
    ] = None,
    max_position: Annotated[
        int | None,
        typer.Option(
            min=0, help="Position that keys per channel at tap cache hold up to (default: the model's)."
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches to observe.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a batch.")] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 512,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Calibrate a model on a text: find its key and value layers, and write their factors.

    Example: amct-pytorch calibrate --model DIR --text book.txt --tap cache --granularity per_channel
    """
    settings = (tap, granularity, algorithm, dst_type, sink_tokens, max_position)
    if config is not None:
        if settings != (Tap.linear, Granularity.per_tensor, Algorithm.ifmr, Format.int8, 0, None):
            fail(
                "--config has all settings; leave out --tap, --granularity, --algorithm, --dst-type, "
                "--sink-tokens and --max-position"
            )
        batches = read_config(str(config)).batch_num
    ids = _models.token_ids(text, token_ids, model, gguf)
    rows = windows(ids, tokens)
    if len(rows) < batches * batch_size:
        fail(
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
                f"batch_num: {batches} kv_cache_quant_config {{ calibration_config {{ "
                f"dst_type: {dst_type.value} sink_tokens: {sink_tokens} {search} }} }}"
            )
            create_quant_cali_config(
                str(config), loaded, None, str(definition), tap=tap.value, max_position=max_position
            )
        saved = None if counts is None else str(counts)
        with (
            calibrate_model(loaded, str(config), str(record), counts_file=saved) as run,
            torch.inference_mode(),
        ):
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
    typer.echo(table([("layer", "tap", "search", "rows", "values", "SQNR dB", "clipped"), *rows]))
    typer.echo(f"\n{record}: {len(results)} layers")


def _row(layer: KVLayer) -> tuple[str, ...]:
    numbers = ("?" if number is None else str(number) for number in (layer.heads, layer.head_dim))
    return (layer.name, layer.role, *numbers, layer.source)
