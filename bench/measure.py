"""What the Python benchmarks measure with: data, int8_mse, peak memory, and processes of their own.

A script that measures calls `run_worker` on itself; its process then calls `serve`. torch is loaded in
workers alone, after `use_threads`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORKER = "--worker"
DTYPES = ("bfloat16", "float16", "float32")


class WorkerError(RuntimeError):
    """A worker that gave no result; the message is one line that says why."""


def run_worker(
    script: Path, task: dict[str, Any], python: str = sys.executable, timeout: float = 600
) -> dict[str, Any]:
    """Run one task in a process of its own.

    Parameters
    ----------
    script : Path
        A script that hands over to `serve` where its first argument is WORKER.
    task : dict
        What to do, in terms of JSON.
    python : str
        The interpreter, which may be that of another virtual environment.
    timeout : float
        Seconds until the process is ended.

    Returns
    -------
    dict
        What the task's function returned.

    Raises
    ------
    WorkerError
        The task raised, its process crashed or took too long.
    """
    # A file carries the result, since libraries print what they like.
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [python, str(script), WORKER, json.dumps(task), str(result)]
        try:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WorkerError(f"took longer than {timeout:g} s") from None
        except OSError as error:
            raise WorkerError(f"cannot start its interpreter: {error.strerror}") from error
        if not result.exists():
            if process.returncode < 0:
                raise WorkerError(f"crashed by {signal.Signals(-process.returncode).name}")
            lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
            raise WorkerError(lines[-1])
        content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in content:
        raise WorkerError(content["error"])
    return content


def serve(work: Callable[[dict[str, Any]], dict[str, Any]], arguments: Sequence[str]) -> int:
    """The worker's side of run_worker: do the task and write the result, or why there is none."""
    _, task, result = arguments
    try:
        content = work(json.loads(task))
    except ModuleNotFoundError as error:
        content = {"error": f"not installed: no module {error.name}"}
    except Exception as error:  # whatever a peer may raise is a result to report
        content = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    Path(result).write_text(json.dumps(content), encoding="utf-8")
    return 0


def use_threads(threads: int) -> None:
    """Let this process, its torch and its oneTBB use that many threads; call before other libraries load."""
    # oneTBB, OpenMP and torch all look at how many processors the process may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def add_common_options(parser: argparse.ArgumentParser, rows: int | None, dtypes: Sequence[str]) -> None:
    """The options that all scripts have that measure, with these defaults; without rows, none of a shape."""
    if rows is not None:
        parser.add_argument(
            "--rows", type=positive, default=rows, help="tokens a batch (default: %(default)s)"
        )
        parser.add_argument("--channels", type=positive, default=1024, help="channels (default: %(default)s)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=dtypes, help=f"default: {' '.join(dtypes)}"
    )
    parser.add_argument("--threads", type=positive, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="write the tables in Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of results, and the folder it goes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class Progress:
    """Says on a terminal, in one line, which of so many measurements is being made."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0

    def step(self, what: str) -> None:
        """Begin the next one."""
        self._step += 1
        self._show(f"{self._step} of {self._steps}: {what}")

    def close(self) -> None:
        """Clear the line."""
        self._show("")

    def _show(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine(threads: int) -> str:
    """The machine in a line: processor, its number, and what else keeps it busy."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} CPUs, {threads} threads used; load at the start {load:.2f}"


class BatchSource:
    """Normal values with 0.1% outliers 20 times as large, the distribution of `bench/support.cc`.

    Its buffers have the size of one batch, so memory does not grow with the number of batches.
    """

    def __init__(self, rows: int, channels: int, dtype: str, seed: int = 1) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        self._values = torch.empty(rows, channels)
        self._factors = torch.empty(rows, channels)
        self._dtype: torch.dtype = getattr(torch, dtype)

    def empty(self) -> torch.Tensor:
        """A batch to fill."""
        import torch

        return torch.zeros(self._values.shape, dtype=self._dtype)

    def fill(self, batch: torch.Tensor) -> None:
        """Overwrite a batch with the next values."""
        self._factors.bernoulli_(0.001, generator=self._generator).mul_(19.0).add_(1.0)
        self._values.normal_(generator=self._generator).mul_(self._factors)
        batch.copy_(self._values)

    def refilled(self, batch: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        """The one batch, `count` times, with other values each time."""
        for _ in range(count):
            self.fill(batch)
            yield batch


def make_batches(count: int, rows: int, channels: int, dtype: str) -> list[torch.Tensor]:
    """Batches of a BatchSource."""
    source = BatchSource(rows, channels, dtype)
    batches = [source.empty() for _ in range(count)]
    for batch in batches:
        source.fill(batch)
    return batches


def int8_mse(batches: Iterable[torch.Tensor], scale: float, zero_point: float) -> float:
    """Mean squared error of all the values stored as INT8, in float64.

    A value x is stored as q = clip(round(x / scale) + zero_point, -128, 127), with halves rounded to even,
    and read back as (q - zero_point) * scale.
    """
    import torch

    total, elements = 0.0, 0
    for batch in batches:
        values = batch.to(torch.float64)
        stored = (values / scale).round_().add_(zero_point).clamp_(-128, 127)
        total += float(stored.sub_(zero_point).mul_(scale).sub_(values).square_().sum())
        elements += batch.numel()
    return total / elements


class PeakMemory:
    """The most memory that the process held inside the block, above what it held when the block began.

    `with PeakMemory() as peak: ...` leaves it in `peak.bytes`, which Linux counts to about a quarter MiB.
    """

    bytes: int

    def __enter__(self) -> PeakMemory:
        gc.collect()
        # What was freed but is still with the allocator would be used again, unseen.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        # The high-water mark falls to what is held now; else loading libraries and making data would hide
        # whatever stays below their own peak.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._baseline = _high_water_mark()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = _high_water_mark() - self._baseline


def _high_water_mark() -> int:
    """Bytes of the largest resident set since the mark was reset."""
    # VmHWM is ru_maxrss without what the parent of this process held when it started it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
