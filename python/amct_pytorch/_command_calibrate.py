"""The commands `amct-pytorch config` and `calibrate`."""

from __future__ import annotations

import inspect
import math
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from amct_pytorch import _models
from amct_pytorch._command import InputError, echo_json, progress, table, timed, with_errors_in_a_line
from amct_pytorch._core import read_config
from amct_pytorch._data import Source, read_windows, windows_asked
from amct_pytorch._options import (
    AlgorithmOption,
    BatchSize,
    Definition,
    Device,
    Dtype,
    FormatOption,
    Gguf,
    GranularityOption,
    Json,
    Jsonl,
    LoadAs,
    MaxPosition,
    Model,
    QueryWeighted,
    Seed,
    SequenceLength,
    SinkTokens,
    Symmetric,
    TapOption,
    Text,
    TokenIds,
    Verbose,
)
from amct_pytorch._settings import Settings
from amct_pytorch.calibration import CalibrationRun
from amct_pytorch.calibration import calibrate as calibrate_model

Batches = Annotated[
    int | None, typer.Option(min=1, help="Batches to observe (default: 16, or what a definition says).")
]


@with_errors_in_a_line
def config(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("config.json"),
    gguf: Gguf = None,
    definition: Definition = None,
    algorithm: AlgorithmOption = None,
    granularity: GranularityOption = None,
    dst_type: FormatOption = None,
    symmetric: Symmetric = None,
    tap: TapOption = None,
    sink_tokens: SinkTokens = None,
    max_position: MaxPosition = None,
    query_weighted: QueryWeighted = None,
    batches: Batches = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    r"""Write a model's configuration, to be edited.

    Layers are found as `layers` shows them; weights are not read. `calibrate --config` takes the file.

    Example: amct-pytorch config --model DIR --tap cache \
      --granularity per_channel -o config.json
    """
    settings = Settings(
        definition,
        algorithm,
        granularity,
        dst_type,
        symmetric,
        tap,
        sink_tokens,
        max_position,
        query_weighted,
    )
    files = _models.find_model(model, gguf)
    batch_num = settings.write_config(output, _models.skeleton(files), batches)
    names = read_config(str(output)).layer_names
    if as_json:
        echo_json({"config": str(output), "batch_num": batch_num, "layers": names})
        return
    typer.echo(f"{output}: {len(names)} layers, {batch_num} batches")


@with_errors_in_a_line
def calibrate(
    model: Model,
    text: Text = None,
    jsonl: Jsonl = None,
    token_ids: TokenIds = None,
    record: Annotated[Path, typer.Option(help="File for the factors.")] = Path("record.txt"),
    counts: Annotated[
        Path | None, typer.Option(help="File to save what was seen, for `amct solve` and reports.")
    ] = None,
    gguf: Gguf = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration, with all settings and the number of batches (see `config`)."),
    ] = None,
    definition: Definition = None,
    algorithm: AlgorithmOption = None,
    granularity: GranularityOption = None,
    dst_type: FormatOption = None,
    symmetric: Symmetric = None,
    tap: TapOption = None,
    sink_tokens: SinkTokens = None,
    max_position: MaxPosition = None,
    query_weighted: QueryWeighted = None,
    batches: Batches = None,
    batch_size: BatchSize = 1,
    sequence_length: SequenceLength = 512,
    num_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to observe, up to whole batches, in place of --batches."),
    ] = None,
    seed: Seed = None,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    r"""Calibrate a model, and write its factors.

    The key and value layers are found, unless a configuration or a definition names layers.

    Example: amct-pytorch calibrate --model DIR --text book.txt \
      --tap cache --granularity per_channel

    Example: amct-pytorch calibrate --model DIR --jsonl chats.jsonl \
      --seed 1 --num-tokens 100000 --tap cache --record record.txt

    Example: amct-pytorch calibrate --model DIR --text book.txt \
      --config config.json
    """
    source = Source(text, jsonl, token_ids)
    settings = Settings(
        definition,
        algorithm,
        granularity,
        dst_type,
        symmetric,
        tap,
        sink_tokens,
        max_position,
        query_weighted,
    )
    asked = windows_asked(batches, num_tokens, batch_size * sequence_length, "--batches")
    if config is not None:
        settings.refuse_given("--config has all settings", batches=batches, num_tokens=num_tokens)
    files = _models.find_model(model, gguf)
    _models.check_device(device)
    with tempfile.TemporaryDirectory() as folder:
        without_weights = _models.skeleton(files)
        if config is None:
            config = Path(folder) / "config.json"
            batch_num = settings.write_config(config, without_weights, asked)
        else:
            batch_num = read_config(str(config)).batch_num
        rows = read_windows(source, files, sequence_length, batch_num * batch_size, seed)
        _models.check_token_ids(torch.cat(rows), without_weights)
        _models.warn_of_length(sequence_length, without_weights)
        loaded = _models.load(files, without_weights, dtype.value, device)
        run = observe(loaded, config, record, counts, rows, batch_size, device)
    if not run.results():
        raise InputError(
            "no layer was reached by a token that counts; give longer windows, or fewer sink tokens"
        )
    _show(run, record, as_json)


def observe(
    model: torch.nn.Module,
    config: Path,
    record: Path,
    counts: Path | None,
    rows: list[torch.Tensor],
    batch_size: int,
    device: str,
) -> CalibrationRun:
    """Calibrate a model on windows.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    config, record, counts : Path
        Files of the calibration.
    rows : list of torch.Tensor
        The windows.
    batch_size : int
        Windows in a batch.
    device : str
        Where the model is.
    """
    saved = None if counts is None else str(counts)
    with (
        timed("calibrated"),
        calibrate_model(model, str(config), str(record), counts_file=saved) as run,
        torch.inference_mode(),
        progress("Calibrating", math.ceil(len(rows) / batch_size)) as done,
    ):
        for start in range(0, len(rows), batch_size):
            batch = torch.cat(rows[start : start + batch_size]).to(device)
            model(**_models.inputs_of(model, batch), **_cache_use(run, model))
            done()
    return run


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
        echo_json({"record": str(record), "layers": layers, "unfinished": list(run.unfinished())})
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
