"""One calibration by the processes of a torch.distributed group: what they saw is added up at its end."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from amct_pytorch import _core
from amct_pytorch._core import LayerResult
from amct_pytorch._log import logger

# More batches than anybody shows: no process may finish a layer by itself.
_NO_END = 2**32 - 1
# Bytes in one message.
_PIECE = 1 << 28


class Processes:
    """The processes of a group.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        A group that this process is of.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not of the process_group")
        # Others than gloo and MPI move what is on their devices alone.
        on_host = any(name in dist.get_backend(group) for name in ("gloo", "mpi"))
        device = None if on_host else torch.accelerator.current_accelerator()
        self._device = torch.device("cpu") if device is None else device

    def tell_all(self, what: Any) -> list[Any]:
        """What each process tells (what JSON can say), in the order of ranks; all of them must call it.

        As tensors, since objects would be pickled.
        """
        mine = torch.frombuffer(bytearray(json.dumps(what).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self._gather(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        told = self._gather(padded)
        return [json.loads(x[:size].numpy().tobytes().decode()) for x, size in zip(told, sizes, strict=True)]

    def _gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of one shape that all ranks have."""
        mine = x.to(self._device)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyones, mine, group=self._group)
        return [other.cpu() for other in everyones]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do something that all processes do; where one fails, all raise. All of them must come here."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as cause:
            error = cause
        told = self.tell_all(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [f"rank {rank}: {failure}" for rank, failure in enumerate(told) if failure is not None]
        if failed:
            raise RuntimeError(f"another process failed, so there is no record: {'; '.join(failed)}")

    def send(self, path: Path, to: int) -> None:
        """Send a file to another rank."""
        content = bytearray(path.read_bytes())
        self._send(torch.tensor([len(content)], dtype=torch.int64), to)
        whole = torch.frombuffer(content, dtype=torch.uint8)
        for begin in range(0, len(whole), _PIECE):
            self._send(whole[begin : begin + _PIECE], to)

    def receive(self, path: Path, source: int) -> None:
        """Receive a file of another rank; all of it, also where it cannot be written."""
        size = int(self._receive(1, torch.int64, source))
        error: OSError | None = None
        with path.open("wb") as file:
            for begin in range(0, size, _PIECE):
                piece = self._receive(min(_PIECE, size - begin), torch.uint8, source)
                try:
                    file.write(piece.numpy().tobytes())
                except OSError as cause:
                    error = cause
        if error is not None:
            raise error

    def _send(self, x: torch.Tensor, to: int) -> None:
        dist.send(x.to(self._device), group=self._group, group_dst=to)

    def _receive(self, size: int, dtype: torch.dtype, source: int) -> torch.Tensor:
        x = torch.empty(size, dtype=dtype, device=self._device)
        dist.recv(x, group=self._group, group_src=source)
        return x.cpu()

    def merge(self, counts: Path) -> None:
        """Add up the counts files of all ranks into that of rank 0, in pairs.

        A process holds the counts of two at a time, and there are as many steps as the number of ranks has
        binary digits. Where one cannot add up, it goes on with what it has, so that nobody waits for it in
        vain, and all raise at the end.
        """
        error: Exception | None = None
        step = 1
        while step < self.size:
            if self.rank % (2 * step) == step:
                self.send(counts, self.rank - step)
                break
            if self.rank + step < self.size:
                other = counts.with_suffix(f".{step}")
                try:
                    self.receive(other, self.rank + step)
                    _core.merge_counts([str(counts), str(other)], str(counts))
                    other.unlink()
                except (OSError, RuntimeError, ValueError) as cause:
                    error = cause
            step *= 2
        with self.together():
            if error is not None:
                raise error


def endless_config(config_file: str, folder: Path) -> str:
    """A configuration file that asks for more batches than there are, for a session of one process."""
    content = json.loads(Path(config_file).read_text())
    path = folder / "config.json"
    path.write_text(json.dumps(content | {"batch_num": _NO_END}))
    return str(path)


def add_up(
    processes: Processes,
    session: _core.Session,
    names: list[str],
    record_file: str,
    counts_file: str | None,
) -> list[LayerResult]:
    """Search the factors of what all processes saw, and write the record; all of them must call it.

    Parameters
    ----------
    processes : Processes
        All of them.
    session : Session
        What this one saw.
    names : list of str
        The layers of its configuration.
    record_file, counts_file : str
        What rank 0 writes.

    Returns
    -------
    list of LayerResult
        On rank 0, in the order of the configuration, those of the first ranks first. Empty elsewhere.

    Raises
    ------
    RuntimeError
        Another process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "seen.counts"
        with processes.together():
            session.save_counts(str(counts))
        told = processes.tell_all(names)
        processes.merge(counts)
        results: list[LayerResult] = []
        with processes.together():
            if processes.rank == 0:
                results = _solved(counts, [name for names in told for name in names], record_file)
                if counts_file is not None:
                    _core.merge_counts([str(counts)], counts_file)
        return results


def _solved(counts: Path, names: list[str], record_file: str) -> list[LayerResult]:
    order = {name: i for i, name in reversed(list(enumerate(names)))}
    results = sorted(_core.solve_counts(str(counts), {}), key=lambda result: order[result.name])
    _core.write_record(record_file, results)
    reached = {result.name for result in results}
    missing = [name for name in order if name not in reached]
    if missing:
        logger.warning(
            "%d layers were not reached by any process and have no factors: %s",
            len(missing),
            ", ".join(sorted(missing, key=order.__getitem__)),
        )
    return results


def of_rank(path: str, rank: int) -> str:
    """The file of one process, where all are given one name."""
    base = Path(path)
    return str(base.with_name(f"{base.name}.rank{rank}"))
