"""Time, peak memory and int8_mse of our searches and of other projects' calibrators, on the same data.

    make bench-peers
    python bench/peers.py --filter 'amct|HistogramObserver' --dtypes bfloat16 --processes 5

Data: 4 batches of 2048 x 1024 normal values with 0.1% outliers 20 times as large. A figure is for all that
a calibration does: a new observer sees each batch, then gives its scale and zero point for INT8.

ns/element  the median of several processes, of each the median of several runs after one that is not timed.
            The contenders take turns, so that whatever else the machine does meets each of them.
best        the fastest run of all, in ns an element. Ratios hold our median against the best of a peer.
peak MiB    of a process of its own, above what it held with the data made and its libraries loaded and used
int8_mse    mean squared error of all the data stored as INT8 with the answer

Peers live in a virtual environment of their own (requirements/bench-peers.txt). One that is not there, fails
or crashes is reported in the table. With all of them a run takes about ten minutes on two cores.

Exit status: 0, or 1 where one of ours failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import CONTENDERS, Answer, Contender
from layout import digits, mebibytes, text_table
from measure import (
    WORKER,
    PeakMemory,
    Progress,
    WorkerError,
    add_common_options,
    int8_mse,
    machine,
    make_batches,
    positive,
    run_worker,
    serve,
    use_threads,
    write_json,
)

if TYPE_CHECKING:
    import torch

RUNS = 5  # that are timed in a process
SECONDS = 3.0  # after which no further run begins in it
WARM_UP_ROWS = 64  # before memory is measured
PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers/bin/python"
# What each of ours is held against, and how many times faster issue 4 wants it: 16-bit types, float32.
AGAINST: dict[str, dict[str, tuple[float, float] | None]] = {
    "search": {"histogram": (20, 4), "mse": (80, 80)},
    "minmax": {"minmax": None},
}


@dataclass
class Result:
    """What was measured of a contender: seconds of each process's runs, bytes, or why there is nothing."""

    contender: Contender
    dtype: str
    elements: int
    version: str = ""
    runs: list[list[float]] = field(default_factory=list)
    peak: int | None = None
    answer: Answer | None = None
    int8_mse: float | None = None
    error: str = ""

    @property
    def median_ns(self) -> float | None:
        """Per element; the median of the processes."""
        if not self.runs:
            return None
        return statistics.median(map(statistics.median, self.runs)) / self.elements * 1e9

    @property
    def best_ns(self) -> float | None:
        """Per element; the fastest run of all processes."""
        return min(map(min, self.runs)) / self.elements * 1e9 if self.runs else None

    def to_json(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "name": self.contender.name,
            "kind": self.contender.kind,
            "package": self.contender.package,
            "version": self.version,
            "dtype": self.dtype,
            "ns_per_element": self.median_ns,
            "best_ns_per_element": self.best_ns,
            "peak_bytes": self.peak,
            "scale": answer and _finite(answer.scale),
            "zero_point": answer and _finite(answer.zero_point),
            "int8_mse": self.int8_mse,
            "error": self.error,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    where = machine(options.threads)
    results = [
        Result(contender, dtype, options.batches * options.rows * options.channels)
        for dtype in options.dtypes
        for contender in CONTENDERS
        if dtype in contender.dtypes and re.search(options.filter, contender.name)
    ]
    measure(results, options)

    print(where)
    print(
        f"{options.batches} batches of {options.rows} x {options.channels}, {options.processes} processes\n"
    )
    print(result_table(results, options.markdown))
    speeds, errors = speed_table(results, options.markdown), error_table(results, options.markdown)
    if speeds:
        print(f"\nOur median against the best figure of the fastest peer of a kind\n\n{speeds}")
    if errors:
        print(f"\nOur int8_mse against the lowest of the peers\n\n{errors}")
    if options.json:
        names = ("batches", "rows", "channels", "threads", "processes")
        settings = {name: getattr(options, name) for name in names}
        results_json = [result.to_json() for result in results]
        write_json(options.json, {"machine": where, **settings, "results": results_json})
    return 1 if any(result.error for result in results if result.contender.ours) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter", default="", metavar="REGEX", help="contenders whose name it matches")
    parser.add_argument("--processes", type=positive, default=3, help="timed for each (default: %(default)s)")
    parser.add_argument("--batches", type=positive, default=4, help="batches (default: %(default)s)")
    add_common_options(parser, rows=2048, dtypes=("float32", "bfloat16"))
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=PEERS_PYTHON,
        metavar="FILE",
        help="the Python that the peers are installed for (default: of .venv-peers)",
    )
    options = parser.parse_args(arguments)
    try:
        chosen = [contender for contender in CONTENDERS if re.search(options.filter, contender.name)]
    except re.error as error:
        parser.error(f"--filter is no regular expression: {error}")
    if not chosen:
        parser.error(f"--filter matches none of: {', '.join(contender.name for contender in CONTENDERS)}")
    return options


def measure(results: Sequence[Result], options: argparse.Namespace) -> None:
    """Fill in the results: memory and error once, then time in as many processes as asked for."""
    progress = Progress(len(results) * (1 + options.processes))
    for turn in range(1 + options.processes):
        for result in results:
            progress.step(f"{result.contender.name}, {result.dtype}")
            if result.error:
                continue
            try:
                add(result, run(result, "time" if turn else "memory", options))
            except WorkerError as error:
                result.error = str(error)
    progress.close()


def run(result: Result, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Have a worker measure the time or memory of a contender."""
    contender = result.contender
    python = sys.executable
    if not contender.ours:
        if options.peers_python.exists():
            python = str(options.peers_python)
        elif contender.package != "torch":
            raise WorkerError("not installed: make bench-peers installs it")
    task = {
        "what": what,
        "contender": contender.name,
        "dtype": result.dtype,
        **{name: getattr(options, name) for name in ("batches", "rows", "channels", "threads")},
    }
    return run_worker(Path(__file__), task, python)


def add(result: Result, measured: dict[str, Any]) -> None:
    """Put what a worker measured into a result."""
    result.version = measured["version"]
    if "runs" in measured:
        result.runs.append(measured["runs"])
        return
    result.peak = measured["peak"]
    result.answer = Answer(measured["scale"], measured["zero_point"])
    result.int8_mse = _finite(measured["int8_mse"])


def result_table(results: Sequence[Result], markdown: bool) -> str:
    """Everything that was measured, a gap between dtypes."""
    rows: list[list[str]] = []
    for before, result in zip((None, *results), results, strict=False):
        if before is not None and before.dtype != result.dtype:
            rows.append([])
        answer = result.answer
        odd = answer is not None and not (0 < answer.scale < math.inf and math.isfinite(answer.zero_point))
        rows.append(
            [
                result.dtype,
                result.contender.name,
                result.version,
                digits(result.median_ns),
                digits(result.best_ns),
                mebibytes(result.peak),
                digits(result.int8_mse, 4),
                result.error or (f"its answer is {answer}" if odd else result.contender.note),
            ]
        )
    header = ("dtype", "calibrator", "version", "ns/element", "best", "peak MiB", "int8_mse", "note")
    return text_table(header, rows, "<<<>>>><", markdown)


def speed_table(results: Sequence[Result], markdown: bool) -> str:
    """How many times faster each of ours is than the fastest peer of a kind; empty without two to compare."""
    rows = []
    for ours in (result for result in results if result.contender.ours):
        for kind, targets in AGAINST[ours.contender.kind].items():
            peers = [
                (peer.best_ns, peer.contender.name)
                for peer in _peers(results, ours.dtype)
                if peer.contender.kind == kind and peer.best_ns is not None
            ]
            if not peers or ours.median_ns is None:
                continue
            best, fastest = min(peers)
            ratio = best / ours.median_ns
            target = targets and targets[ours.dtype == "float32"]
            rows.append(
                [
                    ours.dtype,
                    ours.contender.name,
                    digits(ours.median_ns),
                    kind,
                    fastest,
                    digits(best),
                    f"{digits(ratio)}x",
                    f"{target:g}x" if target else "",
                    ("met" if ratio >= target else "missed") if target else "",
                ]
            )
    header = ("dtype", "ours", "ns/element", "kind", "its fastest", "best", "faster", "target", "verdict")
    return text_table(header, rows, "<<><<>>><", markdown) if rows else ""


def error_table(results: Sequence[Result], markdown: bool) -> str:
    """The int8_mse of each of our searches against the lowest of a peer; empty without two to compare."""
    rows = []
    for ours in results:
        peers = [
            (peer.int8_mse, peer.contender.name)
            for peer in _peers(results, ours.dtype)
            if peer.int8_mse is not None
        ]
        if not peers or ours.contender.kind != "search" or ours.int8_mse is None:
            continue
        lowest, name = min(peers)
        rows.append(
            [
                ours.dtype,
                ours.contender.name,
                digits(ours.int8_mse, 5),
                name,
                digits(lowest, 5),
                f"{ours.int8_mse / lowest:.4f}" if lowest else "-",
                "met" if ours.int8_mse <= lowest else "missed",
            ]
        )
    header = ("dtype", "ours", "int8_mse", "lowest of a peer", "int8_mse", "ratio", "at most 1")
    return text_table(header, rows, "<<><>><", markdown) if rows else ""


def _peers(results: Sequence[Result], dtype: str) -> list[Result]:
    return [result for result in results if result.dtype == dtype and not result.contender.ours]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def work(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: measure the time or the memory of one contender."""
    use_threads(task["threads"])
    (contender,) = (contender for contender in CONTENDERS if contender.name == task["contender"])
    batches = make_batches(task["batches"], task["rows"], task["channels"], task["dtype"])
    measured = times_of if task["what"] == "time" else memory_of
    # The first use loads libraries, so the version is known after it.
    return {**measured(contender, batches), "version": importlib.metadata.version(contender.package)}


def times_of(contender: Contender, batches: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The seconds of several runs after a first one."""
    contender.calibrate(batches)
    runs: list[float] = []
    end = time.perf_counter() + SECONDS
    while not runs or (len(runs) < RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        contender.calibrate(batches)
        runs.append(time.perf_counter() - start)
    return {"runs": runs}


def memory_of(contender: Contender, batches: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The peak memory in bytes, the answer, and the answer's error."""
    contender.calibrate([batch[:WARM_UP_ROWS] for batch in batches])
    with PeakMemory() as peak:
        answer = contender.calibrate(batches)
    error = int8_mse(batches, answer.scale, answer.zero_point)
    return {
        "peak": peak.bytes,
        "scale": answer.scale,
        "zero_point": answer.zero_point,
        "int8_mse": error,
    }


if __name__ == "__main__":
    sys.exit(serve(work, sys.argv[1:]) if sys.argv[1:2] == [WORKER] else main())
