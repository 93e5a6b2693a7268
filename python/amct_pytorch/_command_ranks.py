"""A command that torchrun started several times: its processes share the batches."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from amct_pytorch import _models
from amct_pytorch._command import InputError, QuietError, UsageError, is_verbose
from amct_pytorch._distributed import OthersFailedError, Processes
from amct_pytorch._log import logger

# Processes wait for each other as long as the slowest takes. One that is gone is known by its connection, or
# torchrun ends all.
_PATIENCE = datetime.timedelta(days=365)

Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Share the batches with the other processes that torchrun started; the first one writes.",
    ),
]


@dataclass(frozen=True)
class Ranks:
    """The processes of a command, and which of them this is.

    Attributes
    ----------
    device : str
        That of this process.
    processes : Processes or None
        All of them; None: it is alone.
    """

    device: str
    processes: Processes | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and shows what comes out."""
        return self.processes is None or self.processes.rank == 0

    @property
    def group(self) -> Any:
        """The process group, or None."""
        return None if self.processes is None else dist.group.WORLD

    @property
    def share(self) -> slice:
        """Which of all batches are those of this process."""
        return (
            slice(None) if self.processes is None else slice(self.processes.rank, None, self.processes.size)
        )

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Something that all do; where one fails, all raise."""
        return contextlib.nullcontext() if self.processes is None else self.processes.together()


@contextlib.contextmanager
def ranks_of(distributed: bool, device: str) -> Iterator[Ranks]:
    """The processes of a command. All end with one exit code; those that another one made fail say nothing.

    Parameters
    ----------
    distributed : bool
        Whether they are to share the batches.
    device : str
        Where each runs; without a number that of the process on its machine is taken.

    Raises
    ------
    UsageError
        torchrun started several processes that are not to share, or none that are.
    """
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    started = all(number.isdecimal() for number in told)
    if not distributed:
        if started and int(told[1]) > 1:
            raise UsageError(
                f"this is one of {told[1]} processes, which would all do the same; give --distributed, "
                "so that they share the batches"
            )
        yield Ranks(device)
        return
    if not started:
        raise UsageError(
            "--distributed is for processes that torchrun starts: "
            "torchrun --nproc-per-node 2 --no-python amct-pytorch calibrate --distributed ..."
        )
    if device != "cpu" and ":" not in device:
        device = f"{device}:{told[2]}"
    _models.check_device(device)
    where = torch.device(device)
    if where.index is not None:
        torch.accelerator.set_device_index(where.index)
    dist.init_process_group(dist.get_default_backend_for_device(where), timeout=_PATIENCE)
    try:
        processes = Processes(dist.group.WORLD)
        if processes.rank > 0 and not is_verbose():
            logger.setLevel(logging.ERROR)  # the first one warns of the same
        with _one_exit_code(processes):
            yield Ranks(device, processes)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _one_exit_code(processes: Processes) -> Iterator[None]:
    error: Exception | None = None
    try:
        yield
    except (InputError, ImportError, OSError, ValueError, RuntimeError) as cause:
        error = cause
    own = 0 if error is None else int(getattr(error, "exit_code", 1))
    try:
        told = processes.tell_all(None if isinstance(error, OthersFailedError) else own)
    except RuntimeError as broken:  # another one is gone
        raise error or broken from broken
    code = max((other for other in told if other is not None), default=1)
    if error is not None and told.index(code) == processes.rank:
        raise error
    if code != 0:
        raise QuietError(code) from error
