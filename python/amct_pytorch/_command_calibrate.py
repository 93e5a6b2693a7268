"""The commands `amct-pytorch config` and `calibrate`."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from amct_pytorch import _models
from amct_pytorch._command import (
    InputError,
    InterruptedBySignalError,
    UsageError,
    echo_json,
    progress,
    refuse_one_file_for_two,
    table,
    timed,
    with_errors_in_a_line,
)
from amct_pytorch._command_ranks import Distributed, Ranks, ranks_of
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
    refuse_one_file_for_two({"--output": output}, {"--definition": definition})
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
    snapshot: Annotated[
        Path | None,
        typer.Option(help="File for what was seen so far, from which --resume goes on; removed at the end."),
    ] = None,
    snapshot_batches: Annotated[
        int | None, typer.Option(min=1, help="Batches after which the snapshot is saved again.")
    ] = None,
    snapshot_minutes: Annotated[
        float | None, typer.Option(help="Minutes after which it is (default: 10, or as batches say).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the snapshot, if it is there.")
    ] = False,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    distributed: Distributed = False,
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

    Example: amct-pytorch calibrate --model DIR --text book.txt \
      --batches 10000 --snapshot run.snapshot --resume

    Example: torchrun --nproc-per-node 8 --no-python amct-pytorch calibrate \
      --distributed --device cuda --model DIR --text book.txt --batches 10000
    """
    refuse_one_file_for_two(
        {"--record": record, "--counts": counts, "--snapshot": snapshot},
        {
            "--config": config,
            "--definition": definition,
            "--text": text,
            "--jsonl": jsonl,
            "--token-ids": token_ids,
        },
    )
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
    saving = _saving(snapshot, snapshot_batches, snapshot_minutes, resume)
    if config is not None:
        settings.refuse_given("--config has all settings", batches=batches, num_tokens=num_tokens)
    with ranks_of(distributed, device) as ranks, tempfile.TemporaryDirectory() as folder:
        with ranks.together():
            files = _models.find_model(model, gguf)
            _models.check_device(ranks.device)
            without_weights = _models.skeleton(files)
            if config is None:
                config = Path(folder) / "config.json"
                batch_num = settings.write_config(config, without_weights, asked)
            else:
                batch_num = read_config(str(config)).batch_num
            rows = read_windows(source, files, sequence_length, batch_num * batch_size, seed)
            _models.check_token_ids(torch.cat(rows), without_weights)
            _models.warn_of_length(sequence_length, without_weights)
            loaded = _models.load(files, without_weights, dtype.value, ranks.device)
        run = observe(loaded, config, record, counts, rows, batch_size, ranks, **saving)
        if ranks.is_first:
            if not run.results():
                raise InputError(
                    "no layer was reached by a token that counts; give longer windows, or fewer sink tokens"
                )
            _show(run, record, as_json)


def _saving(path: Path | None, batches: int | None, minutes: float | None, resume: bool) -> dict[str, Any]:
    """What `calibrate` takes of snapshots."""
    if path is None:
        given = {"--snapshot-batches": batches, "--snapshot-minutes": minutes, "--resume": resume or None}
        if needless := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{' and '.join(needless)} need --snapshot FILE")
        return {}
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--snapshot-minutes must be > 0, not {minutes:g}")
    return {
        "snapshot_file": str(path),
        "snapshot_batches": batches,
        "snapshot_minutes": minutes,
        "resume": resume,
    }


def observe(
    model: torch.nn.Module,
    config: Path,
    record: Path,
    counts: Path | None,
    rows: list[torch.Tensor],
    batch_size: int,
    ranks: Ranks,
    **saving: Any,
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
    ranks : Ranks
        Who shares the windows, and where the model is.
    saving
        Snapshots; see `amct_pytorch.calibrate`. With them a signal to end saves one after the batch that
        runs.
    """
    saved = None if counts is None else str(counts)
    batches = [torch.cat(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    batches = batches[ranks.share]
    if ranks.group is not None:
        saving["process_group"] = ranks.group
    can_go_on = "snapshot_file" in saving
    if can_go_on:
        saving["snapshot_data"] = _digest(batches, model)
    with (
        timed("calibrated"),
        calibrate_model(model, str(config), str(record), counts_file=saved, **saving) as run,
        torch.inference_mode(),
        _signals(can_go_on) as signals,
        progress("Calibrating", len(batches), ranks.is_first) as done,
    ):
        done(run.batches_done)
        for batch in batches[run.batches_done :]:
            model(**_models.inputs_of(model, batch.to(ranks.device)), **_cache_use(run, model))
            done(1)
            if signals and run.unfinished():
                run.save_snapshot()
                raise InterruptedBySignalError(
                    signals[0],
                    f"interrupted after {run.batches_done} of {len(batches)} batches, which are in "
                    f"'{run.snapshot_file}'; go on with --resume",
                )
    return run


def _digest(batches: list[torch.Tensor], model: torch.nn.Module) -> str:
    """What tells these batches of token ids, shown to this model, from others."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr(tuple(batch.shape)).encode())
        digest.update(batch.contiguous().numpy().tobytes())
    for name, weights in model.named_parameters():
        digest.update(repr((name, tuple(weights.shape), str(weights.dtype))).encode())
        # Enough to tell one training from another, and little to read of a large model.
        some = weights.detach().flatten()[:64].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    return digest.hexdigest()


@contextlib.contextmanager
def _signals(wait: bool) -> Iterator[list[int]]:
    """Signals to end that came, where they are to wait for the end of a batch."""
    came: list[int] = []
    if not wait or threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])  # a second one ends at once

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
