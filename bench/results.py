"""Reads what Google Benchmark writes with `--benchmark_out=FILE --benchmark_out_format=json`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
# How a benchmark was run, which Google Benchmark adds to its name; two runs of it may differ in that.
_SETTINGS = re.compile(
    r"/(?:(?:real|process|manual)_time|(?:iterations|repeats|min_time|min_warmup_time):[^/]+)(?=/|$)"
)
_WORK = re.compile(
    r"(?P<kind>\w+)/(?P<granularity>per_tensor|per_channel)/(?P<dtype>bfloat16|float16|float32)/(?P<what>\w+)"
)


class NotAResultError(ValueError):
    """A file that Google Benchmark did not write, or did not write to its end."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; of several repetitions, the median.

    `real_time` is that of one iteration in ns, `ns_per_element` is real time, too, and `read_passes` is
    the multiple of the time that one core needs to read the same bytes once, or, for codes, that all cores
    need to copy as many.
    """

    name: str
    real_time: float
    ns_per_element: float | None = None
    read_passes: float | None = None


@dataclass(frozen=True)
class Run:
    """A result file: its benchmarks by name in the order of the file, and why others failed."""

    path: Path
    context: Mapping[str, Any]
    benchmarks: Mapping[str, Benchmark]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What the name of a calibration benchmark says, as `calibrate/per_tensor/bfloat16/ifmr`."""

    kind: str
    granularity: str
    dtype: str
    what: str


def work_of(name: str) -> Work | None:
    """The parts of a benchmark's name; None for the names of kernels."""
    match = _WORK.fullmatch(name)
    return Work(**match.groupdict()) if match else None


def target_of(work: Work) -> float | None:
    """The time that issue 4 sets for 4 batches of 2048 x 1024 on 2 threads; None where it sets none.

    In ns an element for the kind `calibrate`, and in ms for one tensor or 1,024 channels for `search`.
    """
    per_tensor = work.granularity == "per_tensor"
    if work.kind == "search":
        return 1.0 if per_tensor else 30.0
    if work.kind != "calibrate":
        return None
    # For the 16-bit types, and for float32.
    targets = {
        ("per_tensor", "minmax"): (0.1, 0.15),
        ("per_tensor", "ifmr"): (0.3, 1.0),
        ("per_tensor", "hfmg"): (0.3, 1.0),
        ("per_tensor", "percentile"): (0.3, 1.0),
        ("per_tensor", "mse"): (0.3, 1.0),
        ("per_channel", "ifmr"): (2.0, 3.0),
        ("per_channel", "mse"): (2.0, 3.0),
        ("per_channel", "hfmg"): (6.0, 10.0),
    }
    pair = targets.get((work.granularity, work.what))
    return None if pair is None else pair[work.dtype == "float32"]


def read_run(path: Path) -> Run:
    """Read a result file; raises NotAResultError with what is wrong and how to mend it."""
    how = "write one with --benchmark_out=FILE --benchmark_out_format=json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotAResultError(f"cannot read {path}: {error.strerror}; {how}") from error
    except UnicodeDecodeError as error:
        raise NotAResultError(f"{path} is no text; {how}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        reason = "is empty" if not text.strip() else f"is not complete JSON ({error})"
        raise NotAResultError(
            f"{path} {reason}: the benchmark was stopped, or did not write it; {how}"
        ) from error
    entries = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise NotAResultError(f"{path} is no result of Google Benchmark: it has no list 'benchmarks'; {how}")
    try:
        run = _run_of(path, content.get("context", {}), entries)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotAResultError(
            f"{path} has an entry that Google Benchmark does not write: {error!r}; {how}"
        ) from error
    if not run.benchmarks and not run.failures:
        raise NotAResultError(f"{path} holds no benchmark: does --benchmark_filter match any?")
    return run


def _run_of(path: Path, context: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> Run:
    runs: dict[str, list[Benchmark]] = {}
    medians: dict[str, Benchmark] = {}
    failures: dict[str, str] = {}
    for entry in entries:
        # The name of an aggregate ends in `_median`; run_name is the benchmark's own.
        name = _SETTINGS.sub("", entry.get("run_name", entry["name"]))
        if entry.get("error_occurred") or entry.get("skipped"):
            failures[name] = entry.get("error_message") or entry.get("skip_message") or "gives no reason"
            continue
        aggregate = entry.get("aggregate_name")
        if aggregate in (None, "median"):
            benchmark = Benchmark(
                name,
                float(entry["real_time"]) * _NANOSECONDS[entry["time_unit"]],
                entry.get("ns_per_element"),
                entry.get("read_passes"),
            )
            if aggregate is None:
                runs.setdefault(name, []).append(benchmark)
            else:
                medians[name] = benchmark
    names = dict.fromkeys((*runs, *medians))
    benchmarks = {name: medians[name] if name in medians else _median(runs[name]) for name in names}
    return Run(path, context, benchmarks, failures)


def _median(runs: list[Benchmark]) -> Benchmark:
    def median(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    return Benchmark(
        runs[0].name,
        statistics.median(run.real_time for run in runs),
        median(run.ns_per_element for run in runs),
        median(run.read_passes for run in runs),
    )
