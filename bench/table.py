"""Prints a result of the C++ benchmarks as one table.

    build/bench/bench/amct_bench --benchmark_out=run.json --benchmark_out_format=json
    python bench/table.py run.json

The console of Google Benchmark writes the counters in seconds; here `ns/element` is in ns. `read passes` is
the multiple of the time that one core took to read the same bytes in the same run: it says more than ns on a
machine that others use, too. Of `quantize` and `dequantize` it is the multiple of a copy by all threads that
reads and writes as many bytes. `target` is that of issue 4 (ns an element to calibrate, ms to search).

Exit status: 0, or 2 where the file is no result of a benchmark.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from layout import digits, duration, text_table
from results import Benchmark, NotAResultError, Run, read_run, target_of, work_of

HEADER = ("benchmark", "time", "ns/element", "read passes", "target", "verdict")
_CONSOLE_ROW = re.compile(r"(\S+)\s+[\d.e+-]+ (?:ns|us|ms|s)\s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="JSON file of Google Benchmark")
    parser.add_argument("--markdown", action="store_true", help="write the table in Markdown")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="first read the running benchmark's console output from standard input, and show what it is at",
    )
    options = parser.parse_args(arguments)
    if options.follow:
        follow(sys.stdin)
    try:
        run = read_run(options.result)
    except NotAResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(describe(run))
    print()
    print(text_table(HEADER, rows_of(run), "<>>>><", options.markdown))
    return 0


def follow(lines: Iterable[str]) -> None:
    """Show on a terminal which benchmark was finished last; elsewhere only read to the end."""
    terminal = sys.stderr.isatty()
    done = 0
    for line in lines:
        row = _CONSOLE_ROW.match(line)
        if row and terminal:
            done += 1
            print(f"\r\033[K{done} done: {row[1]}", end="", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def describe(run: Run) -> str:
    """When and on what the benchmarks ran."""
    context = run.context
    caches = {
        cache.get("level"): cache.get("size", 0)
        for cache in context.get("caches", [])
        if cache.get("type") != "Instruction"
    }
    parts = [f"{context.get('num_cpus', '?')} CPUs at {context.get('mhz_per_cpu', '?')} MHz"]
    parts += [f"L{level} {size // 1024:,} KiB" for level, size in caches.items()]
    if context.get("load_avg"):
        parts.append(f"load at the start {context['load_avg'][0]:.2f}")
    return f"{context.get('date', 'no date')}: {', '.join(parts)}"


def rows_of(run: Run) -> list[list[str]]:
    """A row a benchmark, kind after kind with a gap between."""
    kinds: dict[str, list[list[str]]] = {}
    for benchmark in run.benchmarks.values():
        work = work_of(benchmark.name)
        kinds.setdefault("kernel" if work is None else work.kind, []).append(
            [
                benchmark.name,
                duration(benchmark.real_time),
                digits(benchmark.ns_per_element),
                digits(benchmark.read_passes),
                *against_target(benchmark),
            ]
        )
    if run.failures:
        kinds["failed"] = [
            [name, "-", "-", "-", "", f"failed: {reason}"] for name, reason in run.failures.items()
        ]
    return [row for rows in kinds.values() for row in ([], *rows)][1:]


def against_target(benchmark: Benchmark) -> tuple[str, str]:
    """The target, and whether it was met; both empty where there is none."""
    work = work_of(benchmark.name)
    target = None if work is None else target_of(work)
    if work is None or target is None:
        return "", ""
    if work.kind == "search":
        reached, unit = benchmark.real_time / 1e6, "ms"
    elif benchmark.ns_per_element is None:
        return "", ""
    else:
        reached, unit = benchmark.ns_per_element, "ns"
    verdict = "met" if reached <= target else f"missed by {reached / target:.2f}x"
    return f"{target:g} {unit}", verdict


if __name__ == "__main__":
    sys.exit(main())
