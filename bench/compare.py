"""Compares two results of the C++ benchmarks.

    python bench/compare.py old.json new.json
    python bench/compare.py --threshold 0.05 old.json new.json

A ratio is new to old: below 1 is faster. A benchmark is flagged where its ratio leaves the threshold, by read
passes where both results have them, since those bear a machine that others use, too, and by real time
elsewhere. Results with repetitions (--benchmark_repetitions=5) are compared by their medians.

Exit status: 0 where nothing is slower beyond the threshold, 1 where something is or fails only in the new
result, 2 where a file is no result of a benchmark or the two have no benchmark in common.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from layout import digits, duration, text_table
from results import Benchmark, NotAResultError, Run, read_run

HEADER = ("benchmark", "old", "new", "ratio", "old passes", "new passes", "ratio", "change")


@dataclass(frozen=True)
class Change:
    """One benchmark in two runs; a ratio is new to old."""

    old: Benchmark
    new: Benchmark

    @property
    def time_ratio(self) -> float:
        return _ratio(self.new.real_time, self.old.real_time)

    @property
    def pass_ratio(self) -> float | None:
        if not self.old.read_passes or self.new.read_passes is None:
            return None
        return _ratio(self.new.read_passes, self.old.read_passes)

    def flag(self, threshold: float) -> str:
        """`slower`, `faster` or nothing: the factor 1 + threshold either way is noise."""
        judged = self.time_ratio if self.pass_ratio is None else self.pass_ratio
        if judged > 1 + threshold:
            return "slower"
        return "faster" if judged < 1 / (1 + threshold) else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="JSON file of Google Benchmark")
    parser.add_argument("new", type=Path, help="JSON file of Google Benchmark")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="changes up to this share are noise (default: %(default)s)",
    )
    parser.add_argument("--markdown", action="store_true", help="write the table in Markdown")
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold < math.inf:
        parser.error("--threshold must be a share of at least 0, as 0.1 for 10%")
    try:
        old, new = read_run(options.old), read_run(options.new)
    except NotAResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    changes = changes_of(old, new)
    if not changes:
        print(f"error: {options.old} and {options.new} have no benchmark in common", file=sys.stderr)
        return 2
    rows = [row_of(change, options.threshold) for change in changes]
    rows += [[], summary_of(changes)]
    print(text_table(HEADER, rows, "<>>>>>><", options.markdown))
    broken = [name for name in new.failures if name in old.benchmarks]
    for title, names in (
        ("fails in the new result", broken),
        ("only in the old result", old.benchmarks.keys() - new.benchmarks.keys() - set(broken)),
        ("only in the new result", new.benchmarks.keys() - old.benchmarks.keys()),
    ):
        if names:
            print(f"\n{title}: {', '.join(sorted(names))}")
    slower = sum(change.flag(options.threshold) == "slower" for change in changes)
    faster = sum(change.flag(options.threshold) == "faster" for change in changes)
    print(f"\n{len(changes)} compared; beyond {options.threshold:.0%}: {slower} slower, {faster} faster")
    return 1 if slower or broken else 0


def changes_of(old: Run, new: Run) -> list[Change]:
    """The benchmarks that both runs have, in the order of the new one."""
    return [
        Change(old.benchmarks[name], benchmark)
        for name, benchmark in new.benchmarks.items()
        if name in old.benchmarks
    ]


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """The geometric mean of the ratios that are there; None without any."""
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def row_of(change: Change, threshold: float) -> list[str]:
    """The cells of one benchmark."""
    return [
        change.new.name,
        duration(change.old.real_time),
        duration(change.new.real_time),
        f"{change.time_ratio:.3f}",
        digits(change.old.read_passes),
        digits(change.new.read_passes),
        "-" if change.pass_ratio is None else f"{change.pass_ratio:.3f}",
        change.flag(threshold),
    ]


def summary_of(changes: Sequence[Change]) -> list[str]:
    """The cells of the geometric means."""
    times = geometric_mean(change.time_ratio for change in changes)
    passes = geometric_mean(change.pass_ratio for change in changes)
    means = ["-" if mean is None else f"{mean:.3f}" for mean in (times, passes)]
    return ["geometric mean", "", "", means[0], "", "", means[1], ""]


def _ratio(new: float, old: float) -> float:
    return new / old if old else math.inf


if __name__ == "__main__":
    sys.exit(main())
