"""The commands `amct-pytorch evaluate` and `recommend`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from amct_pytorch import _models
from amct_pytorch._candidates import Candidate, parse_candidate
from amct_pytorch._command import (
    InputError,
    UsageError,
    echo_json,
    progress,
    refuse_one_file_for_two,
    say_error,
    table,
    timed,
    with_errors_in_a_line,
)
from amct_pytorch._command_calibrate import observe
from amct_pytorch._command_ranks import Ranks
from amct_pytorch._data import Source, read_apart, windows_asked
from amct_pytorch._log import logger
from amct_pytorch._options import (
    Algorithm,
    BatchSize,
    Device,
    Dtype,
    Gguf,
    Granularity,
    Json,
    Jsonl,
    LoadAs,
    Model,
    Seed,
    SequenceLength,
    Tap,
    Text,
    TokenIds,
    Verbose,
)
from amct_pytorch._settings import Settings
from amct_pytorch.discovery import find_kv_layers
from amct_pytorch.evaluation import Evaluation, Quality
from amct_pytorch.evaluation import evaluate as evaluate_model
from amct_pytorch.recommend import DEFAULT_CANDIDATES, Recommendation
from amct_pytorch.recommend import recommend as recommend_for
from amct_pytorch.record import KVFactors, factors_of, read_record

CalibrationText = Annotated[
    Path | None,
    typer.Option(help="Text file to calibrate on; without it the windows before the evaluated ones."),
]
CalibrationJsonl = Annotated[
    Path | None, typer.Option(help="File of JSON lines to calibrate on, in place of a text.")
]
Counts = Annotated[
    Path | None,
    typer.Option(help="Counts file of a calibration per channel, in place of calibrating."),
]
Windows = Annotated[int | None, typer.Option("--windows", min=1, help="Windows to evaluate on (default: 8).")]
NumTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens to evaluate on, up to whole windows, in place of --windows.")
]
CalibrationWindows = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Windows to calibrate on (default: 8). Where nothing is calibrated: first windows of the text "
        "that are left out, since `calibrate` took them (default: 0).",
    ),
]
SinkTokens = Annotated[
    int | None, typer.Option(min=0, help="First tokens of each window that stay unquantized.")
]
RecentTokens = Annotated[
    int, typer.Option(min=0, help="Last tokens before each position that stay unquantized.")
]
MaxPosition = Annotated[
    int | None, typer.Option(min=0, help="Position that keys are to hold up to (default: the model's).")
]
DEFAULT_WINDOWS = 8


@with_errors_in_a_line
def evaluate(
    model: Model,
    text: Text = None,
    jsonl: Jsonl = None,
    token_ids: TokenIds = None,
    record: Annotated[
        list[Path] | None, typer.Option(metavar="<path>", help="Record to evaluate; may be repeated.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Settings to compare, with commas between, from one calibration: "
            "FORMAT[:GRANULARITY][:SEARCH][:symmetric][:query_weighted] A format may be KEYS+VALUES."
        ),
    ] = None,
    gguf: Gguf = None,
    windows: Windows = None,
    sequence_length: SequenceLength = 512,
    num_tokens: NumTokens = None,
    seed: Seed = None,
    calibration_text: CalibrationText = None,
    calibration_jsonl: CalibrationJsonl = None,
    calibration_windows: CalibrationWindows = None,
    batch_size: BatchSize = 1,
    counts: Counts = None,
    sink_tokens: SinkTokens = None,
    recent_tokens: RecentTokens = 0,
    max_position: MaxPosition = None,
    layers: Annotated[bool, typer.Option("--layers", help="Look at layers and heads, too.")] = False,
    max_loss: Annotated[
        float | None, typer.Option(help="Exit with 3 where the first candidate loses more, in percent.")
    ] = None,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    r"""Measure what a quantized cache costs.

    Perplexity, and how far predictions move, with the cache in full precision and quantized, on the same
    text.

    Example: amct-pytorch evaluate --model DIR --text book.txt \
      --record record.txt --max-loss 0.5

    Example: amct-pytorch evaluate --model DIR --text book.txt \
      --compare int8:per_channel:minmax,int4+int8:mse,fp8_e4m3:per_tensor
    """
    if not record and compare is None:
        raise UsageError("name what to evaluate: --record FILE, or --compare SETTINGS")
    wanted = [] if compare is None else _candidates_in(compare)
    inputs = _Inputs(
        source=Source(text, jsonl, token_ids),
        calibration=_calibration_source(calibration_text, calibration_jsonl),
        windows=windows_asked(windows, num_tokens, sequence_length, "--windows"),
        calibration_windows=calibration_windows,
        calibrates=bool(wanted) and counts is None,
        batch_size=batch_size,
        max_position=max_position,
    )
    loaded, rows, calibration = inputs.read(model, gguf, sequence_length, seed, dtype, device)
    candidates: dict[str, Any] = {str(path): _factors_in(path, loaded) for path in record or ()}
    weighted = any(candidate.query_weighted for candidate in wanted)
    with _counts_of(
        loaded, counts, calibration, batch_size, sink_tokens, max_position, weighted, device
    ) as seen:
        for candidate in wanted:
            solved = candidate.solve(seen, find_kv_layers(loaded))
            candidates[candidate.name] = {result.name: factors_of(result) for result in solved}
    with timed("evaluated"), progress("Evaluating", len(rows) * len(candidates)) as done:
        found = evaluate_model(
            loaded,
            rows,
            candidates,
            sink_tokens=sink_tokens,
            recent_tokens=recent_tokens,
            missing="keep",
            layers=layers,
            progress=lambda: done(1),
        )
    _show(found, as_json, layers)
    if max_loss is not None and not found.candidates[0].loss * 100 <= max_loss:
        raise typer.Exit(3)


@with_errors_in_a_line
def recommend(
    model: Model,
    text: Text = None,
    jsonl: Jsonl = None,
    token_ids: TokenIds = None,
    record: Annotated[Path, typer.Option(help="File for the factors.")] = Path("record.txt"),
    max_loss: Annotated[float, typer.Option(help="Loss of perplexity that is allowed, in percent.")] = 0.1,
    candidates: Annotated[
        str, typer.Option(help="Settings, from the cheapest to the dearest (see `evaluate`).")
    ] = ",".join(DEFAULT_CANDIDATES),
    gguf: Gguf = None,
    windows: Windows = None,
    sequence_length: SequenceLength = 512,
    num_tokens: NumTokens = None,
    seed: Seed = None,
    calibration_text: CalibrationText = None,
    calibration_jsonl: CalibrationJsonl = None,
    calibration_windows: CalibrationWindows = None,
    batch_size: BatchSize = 1,
    counts: Counts = None,
    sink_tokens: SinkTokens = None,
    recent_tokens: RecentTokens = 0,
    max_position: MaxPosition = None,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    r"""Find the cheapest setting within a loss.

    Settings may be mixed over layers, by how much each layer matters.

    Example: amct-pytorch recommend --model DIR --text book.txt \
      --max-loss 0.5 --sink-tokens 4
    """
    if not 0 <= max_loss < math.inf:
        raise UsageError(f"--max-loss must be a percentage, 0 or more, not {max_loss}")
    refuse_one_file_for_two(
        {"--record": record},
        {
            "--counts": counts,
            "--text": text,
            "--jsonl": jsonl,
            "--token-ids": token_ids,
            "--calibration-text": calibration_text,
            "--calibration-jsonl": calibration_jsonl,
        },
    )
    wanted = _candidates_in(candidates)
    weighted = any(candidate.query_weighted for candidate in wanted)
    inputs = _Inputs(
        source=Source(text, jsonl, token_ids),
        calibration=_calibration_source(calibration_text, calibration_jsonl),
        windows=windows_asked(windows, num_tokens, sequence_length, "--windows"),
        calibration_windows=calibration_windows,
        calibrates=counts is None,
        batch_size=batch_size,
        max_position=max_position,
    )
    loaded, rows, calibration = inputs.read(model, gguf, sequence_length, seed, dtype, device)

    def say(what: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[Kmeasuring {what}", nl=False, err=True)

    with (
        timed("recommended"),
        _counts_of(
            loaded, counts, calibration, batch_size, sink_tokens, max_position, weighted, device
        ) as seen,
    ):
        found = recommend_for(
            loaded,
            rows,
            seen,
            max_loss=max_loss / 100,
            candidates=[candidate.name for candidate in wanted],
            sink_tokens=sink_tokens,
            recent_tokens=recent_tokens,
            progress=say,
        )
    if sys.stderr.isatty():
        typer.echo("\r\x1b[K", nl=False, err=True)
    found.write(record)
    if as_json:
        echo_json(
            {
                "record": record,
                "settings": found.settings,
                "sensitivity": found.sensitivity,
                "quality": None if found.quality is None else dataclasses.asdict(found.quality),
                "tried": [dataclasses.asdict(quality) for quality in found.tried],
            }
        )
    else:
        _show_recommendation(found, record, recent_tokens)
    if found.quality is None:
        say_error(f"no setting keeps the loss of {max_loss:g}%; all layers stay as they are")
        raise typer.Exit(3)


def _show_recommendation(found: Recommendation, record: Path, recent_tokens: int) -> None:
    typer.echo(table([_HEADER, *(_row(quality) for quality in found.tried)]))
    counted: dict[str, int] = {}
    for setting in found.settings.values():
        counted[setting] = counted.get(setting, 0) + 1
    mixture = ", ".join(f"{count} layers {setting}" for setting, count in counted.items())
    typer.echo(f"\nRecommended: {mixture}")
    typer.echo(f"{record}: {len(found.results)} layers")
    if recent_tokens > 0:
        typer.echo(
            f"The cache must keep the tokens that no record can tell of: recent_tokens={recent_tokens}"
        )


def _candidates_in(text: str) -> list[Candidate]:
    """The settings between commas."""
    try:
        return [parse_candidate(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _factors_in(record: Path, model: torch.nn.Module) -> dict[str, KVFactors]:
    """The factors of a record, which may leave layers of the model unquantized, but not all."""
    factors = read_record(record)
    layers = [layer.name for layer in find_kv_layers(model)]
    missing = [name for name in layers if name not in factors]
    if len(missing) == len(layers):
        raise InputError(f"'{record}' has no factors of this model's layers; calibrate it")
    if missing:
        logger.warning(
            "'%s' has no factors of %d of %d layers, which stay unquantized, the first '%s'",
            record,
            len(missing),
            len(layers),
            missing[0],
        )
    return factors


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What a command is to read.

    Attributes
    ----------
    source, calibration : Source
        What is evaluated on; what is calibrated on, where it is another file.
    windows, calibration_windows : int or None
        How many windows were asked for.
    calibrates : bool
        Whether there is something to calibrate.
    batch_size, max_position : int
        Of the calibration.
    """

    source: Source
    calibration: Source | None
    windows: int | None
    calibration_windows: int | None
    calibrates: bool
    batch_size: int
    max_position: int | None

    def __post_init__(self) -> None:
        if self.calibrates:
            return
        given = {
            "--calibration-text": self.calibration is not None and self.calibration.text,
            "--calibration-jsonl": self.calibration is not None and self.calibration.jsonl,
            "--max-position": self.max_position is not None,
            "--batch-size": self.batch_size != 1,
        }
        if needless := [option for option, is_there in given.items() if is_there]:
            raise UsageError(
                "nothing is calibrated here, since factors or counts are given; leave out "
                + " and ".join(needless)
            )

    def read(
        self, model: str, gguf: str | None, length: int, seed: int | None, dtype: Dtype, device: str
    ) -> tuple[torch.nn.Module, list[torch.Tensor], list[torch.Tensor]]:
        """The model, and windows to evaluate and to calibrate on."""
        files = _models.find_model(model, gguf)
        _models.check_device(device)
        first = self.calibration_windows
        if first is None:
            first = DEFAULT_WINDOWS if self.calibrates else 0
        calibration, rows = read_apart(
            self.source, self.calibration, files, length, (first, self.windows or DEFAULT_WINDOWS), seed
        )
        if self.calibrates and not calibration:
            raise UsageError("the calibration needs windows: --calibration-windows 1 or more")
        without_weights = _models.skeleton(files)
        _models.check_token_ids(torch.cat([*calibration, *rows]), without_weights)
        _models.warn_of_length(length, without_weights)
        loaded = _models.load(files, without_weights, dtype.value, device)
        return loaded, [row.to(device) for row in rows], calibration if self.calibrates else []


def _calibration_source(text: Path | None, jsonl: Path | None) -> Source | None:
    if text is not None and jsonl is not None:
        raise UsageError("--calibration-text and --calibration-jsonl do not go together; leave one out")
    return None if text is None and jsonl is None else Source(text, jsonl)


@contextlib.contextmanager
def _counts_of(
    model: torch.nn.Module,
    counts: Path | None,
    rows: list[torch.Tensor],
    batch_size: int,
    sink_tokens: int | None,
    max_position: int | None,
    query_weighted: bool,
    device: str,
) -> Iterator[str]:
    """A counts file: the one that is given, or one of a calibration per channel at the cache, if any."""
    if not rows:
        yield "" if counts is None else str(counts)
        return
    settings = Settings(
        algorithm=Algorithm.minmax,
        granularity=Granularity.per_channel,
        tap=Tap.cache,
        sink_tokens=sink_tokens,
        max_position=max_position,
        query_weighted=query_weighted,
    )
    with tempfile.TemporaryDirectory() as folder:
        config, record, path = (Path(folder) / name for name in ("config.json", "record.txt", "counts"))
        settings.write_config(config, model, math.ceil(len(rows) / batch_size))
        observe(model, config, record, path, rows, batch_size, Ranks(device))
        yield str(path)


_HEADER = ("setting", "perplexity", "loss", "+-", "KL", "+-", "top-1", "bytes/token")


def _show(found: Evaluation, as_json: bool, layers: bool) -> None:
    ranked = sorted(found.candidates, key=lambda quality: quality.kl)
    if as_json:
        echo_json(dataclasses.replace(found, candidates=ranked).to_dict())
        return
    full = ("full precision", f"{found.perplexity:.4f}", "", "", "", "", "", f"{found.bytes_per_token:.0f}")
    typer.echo(table([_HEADER, full, *(_row(quality) for quality in ranked)]))
    typer.echo(
        f"\n{found.tokens} tokens. Loss of perplexity and KL in percent, each with its standard error."
    )
    if not layers:
        return
    for quality in ranked:
        typer.echo(f"\n{quality.name}")
        rows = [("layer", "head", "SQNR dB", "largest error", "clipped", "attention error")]
        rows.extend(
            (
                layer.layer,
                "all" if layer.head is None else str(layer.head),
                _number(layer.sqnr_db, ".1f"),
                _number(layer.max_error, ".4g"),
                "" if layer.clipped_fraction is None else f"{layer.clipped_fraction * 100:.3g}%",
                "" if layer.attention_error is None else f"{layer.attention_error * 100:.2f}%",
            )
            for layer in quality.layers
        )
        typer.echo(table(rows))


def _row(quality: Quality) -> tuple[str, ...]:
    return (
        quality.name,
        f"{quality.perplexity:.4f}",
        f"{quality.loss * 100:+.3f}%",
        f"{quality.loss_error * 100:.3f}",
        f"{quality.kl * 100:.3f}%",
        f"{quality.kl_error * 100:.3f}",
        f"{quality.top1_agreement * 100:.2f}%",
        f"{quality.bytes_per_token:.0f}",
    )


def _number(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
