"""Peak memory of a calibration, by how many batches it observes; with 16-bit types it is to be a flat line.

    python bench/memory.py
    python bench/memory.py --batches 1 10 --dtypes bfloat16 --json memory.json

Each figure is the peak of a process of its own, above what it held once the package was loaded, the batch
made and a few rows calibrated: what one layer costs, observing and searching. One batch is filled over and
over, so the data does not grow. `at most` is what issue 4 allows for up to 1,024 channels. Linux counts to
about a quarter MiB.

Exit status: 0, or 1 where a figure could not be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layout import mebibytes, text_table
from measure import (
    DTYPES,
    WORKER,
    BatchSource,
    PeakMemory,
    Progress,
    WorkerError,
    add_common_options,
    machine,
    positive,
    run_worker,
    serve,
    use_threads,
    write_json,
)

if TYPE_CHECKING:
    import torch

GRANULARITIES = ("per_tensor", "per_channel")
WARM_UP_ROWS = 64
# Bytes at any number of batches of a 16-bit type. What float32 may take is the budget of the session.
AT_MOST = {"per_tensor": 1 << 20, "per_channel": 64 << 20}


@dataclass(frozen=True)
class Cell:
    """One measurement: the peak in bytes, or why there is none."""

    granularity: str
    dtype: str
    batches: int
    peak: int | None = None
    error: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    where = machine(options.threads)
    plan = [
        Cell(granularity, dtype, batches)
        for granularity in GRANULARITIES
        for dtype in options.dtypes
        for batches in options.batches
    ]
    progress = Progress(len(plan))
    cells = []
    for cell in plan:
        progress.step(f"{cell.granularity} {cell.dtype}, {cell.batches} batches")
        cells.append(measure(cell, options))
    progress.close()

    print(where)
    print(
        f"Peak MiB of a layer: {options.algorithm}, batches of {options.rows} x {options.channels} values\n"
    )
    numbers = (f"{batches:,} batch{'es' if batches > 1 else ''}" for batches in options.batches)
    header = ("granularity", "dtype", *numbers, "at most")
    print(text_table(header, rows_of(cells), "<<" + ">" * (len(header) - 2), options.markdown))
    failures = [cell for cell in cells if cell.error]
    for cell in failures:
        print(f"{cell.granularity} {cell.dtype}, {cell.batches} batches: {cell.error}")
    if options.json:
        settings = {name: getattr(options, name) for name in ("algorithm", "rows", "channels", "threads")}
        write_json(options.json, {"machine": where, **settings, "cells": [asdict(cell) for cell in cells]})
    return 1 if failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batches",
        type=positive,
        nargs="+",
        default=[1, 10, 100, 1000],
        metavar="N",
        help="numbers of batches (default: 1 10 100 1000)",
    )
    parser.add_argument("--algorithm", default="ifmr", help="the search (default: %(default)s)")
    add_common_options(parser, rows=256, dtypes=DTYPES)
    return parser.parse_args(arguments)


def measure(cell: Cell, options: argparse.Namespace) -> Cell:
    """The cell with its peak, or with why there is none."""
    task = {
        **asdict(cell),
        **{name: getattr(options, name) for name in ("algorithm", "rows", "channels", "threads")},
    }
    try:
        return Cell(cell.granularity, cell.dtype, cell.batches, run_worker(Path(__file__), task)["peak"])
    except WorkerError as error:
        return Cell(cell.granularity, cell.dtype, cell.batches, error=str(error))


def rows_of(cells: Sequence[Cell]) -> list[list[str]]:
    """A row a granularity and dtype, with a column for each number of batches."""
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        row = rows.setdefault((cell.granularity, cell.dtype), [cell.granularity, cell.dtype])
        row.append("failed" if cell.error else mebibytes(cell.peak))
    for (granularity, dtype), row in rows.items():
        row.append("" if dtype == "float32" else mebibytes(AT_MOST[granularity]))
    return list(rows.values())


def work(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: calibrate one layer."""
    use_threads(task["threads"])
    source = BatchSource(task["rows"], task["channels"], task["dtype"])
    batch = source.empty()
    source.fill(batch)
    # The first use loads code and starts threads, which all layers share.
    calibrate([batch[:WARM_UP_ROWS]], task)
    with PeakMemory() as peak:
        calibrate(source.refilled(batch, task["batches"]), task)
    return {"peak": peak.bytes}


def calibrate(batches: Iterable[torch.Tensor], task: dict[str, Any]) -> None:
    """Observe the batches and search."""
    from amct_pytorch import _core

    observer = _core.Observer(per_channel=task["granularity"] == "per_channel")
    for batch in batches:
        observer.observe(batch)
    observer.solve(task["algorithm"])


if __name__ == "__main__":
    sys.exit(serve(work, sys.argv[1:]) if sys.argv[1:2] == [WORKER] else main())
