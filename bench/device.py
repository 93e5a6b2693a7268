"""What calibration costs where the tensors are on a GPU: the time of its calls, and on the whole.

    make bench-device
    python bench/device.py --dtypes bfloat16 --device cuda:1

Each layer observes batches that are on the device already. All figures are ns an element, the least of
several runs after one that is not timed.

forward  how long the calls of forward hold their thread: work is handed to the device, nothing waits for it
total    until the factors are found, the search on the host included
host     the same with each batch copied to the host first, which is what a tool without a device path does
read     one pass over the batches on the device (their sum)

Exit status: 0, also where there is no such device, which is said.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layout import digits, text_table
from measure import (
    DTYPES,
    WORKER,
    add_common_options,
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

RUNS = 5
GRANULARITIES = ("per_tensor", "per_channel")
HEADER = ("granularity", "dtype", "algorithm", "forward", "total", "host", "read")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    import torch

    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        print(f"skipped: there is no device '{options.device}' here ({str(error).splitlines()[0]})")
        return 0
    shape = {name: getattr(options, name) for name in ("device", "threads", "batches", "rows", "channels")}
    figures = [
        run_worker(
            Path(__file__), {**shape, "granularity": granularity, "dtype": dtype, "algorithm": algorithm}
        )
        for granularity in GRANULARITIES
        for dtype in options.dtypes
        for algorithm in options.algorithms
    ]
    where = machine(options.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{where}; {name}")
    print(f"ns an element of {options.batches} batches of {options.rows} x {options.channels}\n")
    rows = [
        [str(row[key]) for key in HEADER[:3]] + [digits(float(row[key])) for key in HEADER[3:]]
        for row in figures
    ]
    print(text_table(HEADER, rows, "<<<>>>>", options.markdown))
    if options.json:
        write_json(options.json, {"machine": where, "device": name, "figures": figures})
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="where the tensors are (default: %(default)s)")
    parser.add_argument("--batches", type=positive, default=4, help="batches (default: %(default)s)")
    parser.add_argument(
        "--algorithms", nargs="+", default=["ifmr", "minmax"], metavar="NAME", help="default: ifmr minmax"
    )
    add_common_options(parser, rows=2048, dtypes=DTYPES)
    return parser.parse_args(arguments)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: one row of the table."""
    use_threads(task["threads"])
    import torch

    device = torch.device(task["device"])
    granularity, dtype, algorithm = task["granularity"], task["dtype"], task["algorithm"]
    batches = [
        batch.to(device) for batch in make_batches(task["batches"], task["rows"], task["channels"], dtype)
    ]
    params = {"batch_num": len(batches), "act_algo": algorithm, "quant_granularity": granularity}
    waits = synchronize_of(device)

    def read() -> None:
        for batch in batches:
            batch.sum()
        waits()

    forward: list[float] = []

    def calibrate(on_device: bool) -> None:
        import amct_pytorch as amct

        with tempfile.TemporaryDirectory() as folder:
            op = amct.QuantCalibrationOp(str(Path(folder) / "record.txt"), params)
            layers = op._layers  # the device path also for the host's memory, so that it can be tried
            start = time.perf_counter()
            for i, batch in enumerate(batches):
                if i == len(batches) - 1:
                    forward.append(time.perf_counter() - start)
                if on_device:
                    layers.observe_on_device("layer", batch)
                else:
                    op("layer", batch.cpu())

    elements = sum(batch.numel() for batch in batches)
    total = least_seconds(lambda: calibrate(True), waits)
    # The last call waits, since it searches.
    calls = min(forward[1:]) * len(batches) / max(1, len(batches) - 1)
    return {
        "granularity": granularity,
        "dtype": dtype,
        "algorithm": algorithm,
        "forward": calls / elements * 1e9,
        "total": total / elements * 1e9,
        "host": least_seconds(lambda: calibrate(False), waits) / elements * 1e9,
        "read": least_seconds(read, waits) / elements * 1e9,
    }


def synchronize_of(device: torch.device) -> Callable[[], None]:
    """What waits until a device is idle."""
    import torch

    module = getattr(torch, device.type, None)
    if device.type == "cpu" or module is None:
        return contextlib.nullcontext().__enter__
    return lambda: module.synchronize(device)


def least_seconds(work: Callable[[], None], waits: Callable[[], None]) -> float:
    """The shortest of RUNS runs after one that is not timed."""
    times = []
    for _ in range(1 + RUNS):
        waits()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    sys.exit(serve(work, sys.argv[1:]) if sys.argv[1:2] == [WORKER] else main())
