"""The commands `amct-pytorch evaluate` and `recommend`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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
from amct_pytorch._command import Device, Dtype, Gguf, Json, LoadAs, Model, fail, table, with_errors_in_a_line
from amct_pytorch.calibration import calibrate, create_quant_cali_config
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.evaluation import Evaluation, Quality, windows
from amct_pytorch.evaluation import evaluate as evaluate_model
from amct_pytorch.recommend import DEFAULT_CANDIDATES
from amct_pytorch.recommend import recommend as recommend_for
from amct_pytorch.record import factors_of, read_record

Text = Annotated[Path | None, typer.Option(help="Text file to evaluate on.")]
TokenIds = Annotated[
    Path | None, typer.Option(help="JSON list of token ids to evaluate on, in place of a text.")
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(help="Text file to calibrate on; without it the windows before the evaluated ones."),
]
Counts = Annotated[
    Path | None,
    typer.Option(help="Counts file of a calibration per channel, in place of calibrating."),
]
Windows = Annotated[int, typer.Option(min=1, help="Windows to evaluate on.")]
CalibrationWindows = Annotated[int, typer.Option(min=1, help="Windows to calibrate on.")]
Tokens = Annotated[int, typer.Option(min=2, help="Tokens in a window.")]
SinkTokens = Annotated[
    int | None, typer.Option(min=0, help="First tokens of each window that stay unquantized.")
]
MaxPosition = Annotated[
    int | None, typer.Option(min=0, help="Position that keys are to hold up to (default: the model's).")
]


@with_errors_in_a_line
def evaluate(
    model: Model,
    text: Text = None,
    token_ids: TokenIds = None,
    record: Annotated[list[Path] | None, typer.Option(help="Record to evaluate; may be repeated.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Settings to compare, from one calibration: FORMAT[:GRANULARITY][:SEARCH][:symmetric],... "
            "A format may be KEYS+VALUES."
        ),
    ] = None,
    calibration_text: CalibrationText = None,
    counts: Counts = None,
    gguf: Gguf = None,
    tokens: Tokens = 512,
    windows_: Annotated[int, typer.Option("--windows", min=1, help="Windows to evaluate on.")] = 8,
    calibration_windows: CalibrationWindows = 8,
    sink_tokens: SinkTokens = None,
    max_position: MaxPosition = None,
    layers: Annotated[bool, typer.Option("--layers", help="Look at layers and heads, too.")] = False,
    max_loss: Annotated[
        float | None, typer.Option(help="Exit with 3 where the first candidate loses more, in percent.")
    ] = None,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Perplexity with the cache in full precision and quantized, on the same text.

    Example: amct-pytorch evaluate --model DIR --text book.txt --record record.txt

    Example: amct-pytorch evaluate --model DIR --text book.txt
    --compare int8:per_channel:minmax,int4+int8:mse,fp8_e4m3:per_tensor
    """
    if not record and compare is None:
        fail("name what to evaluate: --record FILE, or --compare SETTINGS")
    wanted = [] if compare is None else [parse_candidate(part) for part in compare.split(",")]
    inputs = _Inputs(model, text, token_ids, calibration_text, gguf, tokens, device)
    needs = calibration_windows if wanted and counts is None else 0
    rows, calibration = inputs.rows(windows_, needs)
    loaded = _models.load(model, gguf, dtype.value, device)
    inputs.check(loaded)
    candidates: dict[str, Any] = {str(path): read_record(path) for path in record or ()}
    with _counts_of(loaded, counts, calibration, sink_tokens, max_position, bool(wanted)) as seen:
        for candidate in wanted:
            candidates[candidate.name] = _solved(candidate, seen, find_kv_layers(loaded))
    with _bar("Evaluating", len(rows) * len(candidates)) as bar:
        found = evaluate_model(
            loaded, rows, candidates, sink_tokens=sink_tokens, missing="keep", layers=layers, progress=bar
        )
    _show(found, as_json, layers)
    if max_loss is not None and not found.candidates[0].loss * 100 <= max_loss:
        sys.exit(3)


@with_errors_in_a_line
def recommend(
    model: Model,
    text: Text = None,
    token_ids: TokenIds = None,
    record: Annotated[Path, typer.Option(help="File for the factors.")] = Path("record.txt"),
    max_loss: Annotated[float, typer.Option(help="Loss of perplexity that is allowed, in percent.")] = 0.1,
    candidates: Annotated[
        str, typer.Option(help="Settings, from the cheapest to the dearest (see `evaluate`).")
    ] = ",".join(DEFAULT_CANDIDATES),
    calibration_text: CalibrationText = None,
    counts: Counts = None,
    gguf: Gguf = None,
    tokens: Tokens = 512,
    windows_: Annotated[int, typer.Option("--windows", min=1, help="Windows to evaluate on.")] = 8,
    calibration_windows: CalibrationWindows = 8,
    sink_tokens: SinkTokens = None,
    max_position: MaxPosition = None,
    dtype: LoadAs = Dtype.auto,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the cheapest setting within a loss, mixed over layers by how much each one matters.

    Example: amct-pytorch recommend --model DIR --text book.txt --max-loss 0.5 --sink-tokens 4
    """
    parsed = [parse_candidate(part).name for part in candidates.split(",")]
    inputs = _Inputs(model, text, token_ids, calibration_text, gguf, tokens, device)
    rows, calibration = inputs.rows(windows_, calibration_windows if counts is None else 0)
    loaded = _models.load(model, gguf, dtype.value, device)
    inputs.check(loaded)

    def say(what: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[Kmeasuring {what}", nl=False, err=True)

    with _counts_of(loaded, counts, calibration, sink_tokens, max_position, True) as seen:
        found = recommend_for(
            loaded,
            rows,
            seen,
            max_loss=max_loss / 100,
            candidates=parsed,
            sink_tokens=sink_tokens,
            progress=say,
        )
    if sys.stderr.isatty():
        typer.echo("\r\x1b[K", nl=False, err=True)
    found.write(record)
    if as_json:
        content = {
            "record": str(record),
            "settings": found.settings,
            "sensitivity": found.sensitivity,
            "quality": None if found.quality is None else _json_of(found.quality),
            "tried": [_json_of(quality) for quality in found.tried],
        }
        typer.echo(json.dumps(content, indent=2))
        return
    typer.echo(table([_HEADER, *(_row(quality) for quality in found.tried)]))
    counted: dict[str, int] = {}
    for setting in found.settings.values():
        counted[setting] = counted.get(setting, 0) + 1
    mixture = ", ".join(f"{count} layers {setting}" for setting, count in counted.items())
    typer.echo(f"\nRecommended: {mixture}")
    typer.echo(f"{record}: {len(found.results)} layers")


class _Inputs:
    """The texts that a command was given."""

    def __init__(
        self,
        model: str,
        text: Path | None,
        token_ids: Path | None,
        calibration_text: Path | None,
        gguf: str | None,
        tokens: int,
        device: str,
    ) -> None:
        self._tokens, self._device = tokens, device
        self._ids = _models.token_ids(text, token_ids, model, gguf)
        self._calibration = (
            None if calibration_text is None else _models.token_ids(calibration_text, None, model, gguf)
        )

    def rows(self, count: int, calibration: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Windows to evaluate and to calibrate on, none of them both."""
        of_text = windows(self._ids, self._tokens)
        if self._calibration is not None:
            first, rows = windows(self._calibration, self._tokens)[:calibration], of_text
            if len(first) < calibration:
                fail(
                    f"the calibration text has {len(first)} windows of {self._tokens} tokens, fewer than "
                    f"{calibration}"
                )
        else:
            first, rows = of_text[:calibration], of_text[calibration:]
        if len(rows) < count:
            fail(
                f"the text has {len(self._ids)} tokens, fewer than {count + len(of_text) - len(rows)} "
                f"windows of {self._tokens}; give a longer one, or ask for less"
            )
        return [row.to(self._device) for row in rows[:count]], [row.to(self._device) for row in first]

    def check(self, model: torch.nn.Module) -> None:
        """Raise where the model does not know a token."""
        _models.check_token_ids(self._ids, model)
        if self._calibration is not None:
            _models.check_token_ids(self._calibration, model)


@contextlib.contextmanager
def _counts_of(
    model: torch.nn.Module,
    counts: Path | None,
    rows: list[torch.Tensor],
    sink_tokens: int | None,
    max_position: int | None,
    needed: bool,
) -> Iterator[str]:
    """A counts file: the one that is given, or one of a calibration per channel at the cache."""
    if counts is not None or not needed:
        yield "" if counts is None else str(counts)
        return
    with tempfile.TemporaryDirectory() as folder:
        definition, config, path = (
            str(Path(folder) / name) for name in ("definition.cfg", "config.json", "counts")
        )
        Path(definition).write_text(
            f"batch_num: {len(rows)} kv_cache_quant_config {{ calibration_config {{ "
            "minmax_quantize { quant_granularity: per_channel } } }"
        )
        create_quant_cali_config(
            config, model, None, definition, tap="cache", max_position=max_position, sink_tokens=sink_tokens
        )
        record = str(Path(folder) / "record.txt")
        with (
            calibrate(model, config, record, counts_file=path),
            torch.inference_mode(),
            _bar("Calibrating", len(rows)) as bar,
        ):
            for row in rows:
                model(**_models.inputs_of(model, row), use_cache=True)
                bar()
        yield path


def _solved(candidate: Candidate, counts: str, layers: list[KVLayer]) -> dict[str, Any]:
    roles = {layer.name: layer.role for layer in layers}
    heads = next((layer.heads for layer in layers), None)
    return {result.name: factors_of(result) for result in candidate.solve(counts, roles, heads)}


@contextlib.contextmanager
def _bar(label: str, length: int) -> Iterator[Any]:
    with typer.progressbar(length=length, label=label, file=sys.stderr) as progress:
        yield lambda: progress.update(1)


_HEADER = ("setting", "perplexity", "loss", "+-", "KL", "+-", "top-1", "bytes/token")


def _show(found: Evaluation, as_json: bool, layers: bool) -> None:
    ranked = sorted(found.candidates, key=lambda quality: quality.kl)
    if as_json:
        content = {
            "perplexity": found.perplexity,
            "bytes_per_token": found.bytes_per_token,
            "tokens": found.tokens,
            "candidates": [_json_of(quality) for quality in ranked],
        }
        typer.echo(json.dumps(content, indent=2))
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


def _json_of(quality: Quality) -> dict[str, Any]:
    """JSON has no NaN nor infinity."""
    content = dataclasses.asdict(quality)

    def cleaned(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items()}
        if isinstance(value, list):
            return [cleaned(part) for part in value]
        return value

    result: dict[str, Any] = cleaned(content)
    return result
