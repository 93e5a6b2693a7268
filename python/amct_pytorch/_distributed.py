"""One calibration by the processes of a torch.distributed group: what they saw is added up at its end."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from amct_pytorch import _core
from amct_pytorch._core import LayerResult
from amct_pytorch._log import logger
from amct_pytorch.discovery import find_kv_layers

# More batches than anybody shows: no process may finish a layer by itself.
_NO_END = 2**32 - 1
# Channels of a layer and of a head (0: not known), and its slice of a fused projection.
Whole = tuple[int, int, tuple[int, int, int] | None]
# Bytes in one message.
_PIECE = 1 << 28


class OthersFailedError(RuntimeError):
    """Other processes failed, and this one did not."""


# Seconds that others may take to let go of a tensor that was sent.
_RELEASE = 0.2
# Seconds between two looks at whether another one has failed.
_LOOK = 1.0
# Tells the calibrations of a process apart, which all processes begin in the same order.
_numbers = itertools.count()


class Processes:
    """The processes of a group.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        A group that this process is of.

    Attributes
    ----------
    rank, size : int
        In the group.
    team : list of int
        The ranks that share the layers of this one, in the order of their shards; itself alone unless
        `share_layers` says otherwise.
    """

    def __init__(self, group: Any) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not of the process_group")
        self._group = group
        self._members = dist.get_process_group_ranks(group)  # of all processes
        self._device = _device_of(group)
        self._failed_key = f"amct_pytorch/{'_'.join(map(str, self._members))}/{next(_numbers)}/failed"
        self._looked = time.monotonic()
        self.team = [self.rank]
        self._team_group: Any = None
        self._leaders = list(range(self.size))  # the first rank of each team

    def share_layers(self, tensor_parallel_group: Any) -> None:
        """Say which processes have shards of the same layers; all of them must call it.

        Parameters
        ----------
        tensor_parallel_group : torch.distributed.ProcessGroup or None
            Those of this process; None: it has its layers whole.

        Raises
        ------
        ValueError
            The group has processes that the other group has not, or not for all of them the same ones.
        """
        with self.together():
            if tensor_parallel_group is not None:
                self.team = self._ranks_of(tensor_parallel_group)
                self._team_group = tensor_parallel_group
        teams = self.tell_all(self.team)
        for rank, team in enumerate(teams):
            if rank not in team or any(teams[other] != team for other in team):
                raise ValueError(
                    f"tensor_parallel_group: rank {rank} says that ranks {team} share layers, and others of "
                    "them do not; give all of them one group"
                )
        self._leaders = sorted({min(team) for team in teams})

    def _ranks_of(self, subgroup: Any) -> list[int]:
        if dist.get_rank(subgroup) < 0:
            raise ValueError("this process is not of the tensor_parallel_group")
        ranks = {other: rank for rank, other in enumerate(self._members)}
        members = dist.get_process_group_ranks(subgroup)
        if outside := [member for member in members if member not in ranks]:
            raise ValueError(f"processes {outside} of the tensor_parallel_group are not of the process_group")
        return [ranks[member] for member in members]

    def tell_all(self, what: Any) -> list[Any]:
        """What each process tells (what JSON can say), in the order of ranks; all of them must call it.

        As tensors, since objects would be pickled.
        """
        return _told(what, self._group, self._device)

    def tell_team(self, what: Any) -> list[Any]:
        """As `tell_all`, of those that share layers, in the order of `team`; all of these must call it."""
        return _told(what, self._team_group, _device_of(self._team_group))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do something that all processes do; where one fails, all raise. All of them must come here."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as cause:
            error = cause
        is_own = error is not None and not isinstance(error, OthersFailedError)
        if is_own:
            self._say_failed()
        told: list[Any] = []
        try:
            told = self.tell_all(f"{type(error).__name__}: {error}" if is_own else None)
        except RuntimeError as broken:
            if error is None:
                raise RuntimeError(
                    "another process is gone, or did not come as far as this one within the timeout of the "
                    f"group (init_process_group takes a longer one): {broken}"
                ) from broken
        failed = [f"rank {rank}: {failure}" for rank, failure in enumerate(told) if failure is not None]
        if failed and not is_own:
            raise OthersFailedError(
                f"another process failed, so there is no record: {'; '.join(failed)}"
            ) from error
        if error is not None:
            raise error

    def _say_failed(self) -> None:
        """Let others know that it is of no use to go on."""
        with contextlib.suppress(RuntimeError):
            dist.distributed_c10d._get_default_store().set(self._failed_key, str(self.rank))

    def look_at_others(self) -> None:
        """Raise OthersFailedError where another one has failed, and waits; looks once a second."""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        has_failed = False
        with contextlib.suppress(RuntimeError):
            has_failed = dist.distributed_c10d._get_default_store().check([self._failed_key])
        if has_failed:
            raise OthersFailedError("another process failed, so there will be no record")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Make sure that a layer is calibrated in one way everywhere; all of them must call it.

        Parameters
        ----------
        settings : mapping
            By layer, and what holds for all of them; see `settings_of`.

        Raises
        ------
        ValueError
            Two processes have other settings.
        """
        known: dict[str, tuple[int, Any]] = {}
        for rank, told in enumerate(self.tell_all(dict(settings))):
            for where, value in told.items():
                first, before = known.setdefault(where, (rank, value))
                if value == before:
                    continue
                name, was, is_now = where, before, value
                if isinstance(value, dict):
                    key = next(key for key in {**before, **value} if before.get(key) != value.get(key))
                    name, was, is_now = f"layer '{where}': {key}", before.get(key), value.get(key)
                raise ValueError(
                    f"{name} is {was} for rank {first} and {is_now} for rank {rank}; all need one"
                )

    def send(self, path: Path, to: int) -> None:
        """Send a file to another rank; something also where it cannot be read, since that one waits."""
        error: Exception | None = None
        size = 0
        try:
            size = path.stat().st_size
            host, moved = self._room(min(_PIECE, size))
        except (OSError, MemoryError, RuntimeError) as cause:  # torch's are RuntimeErrors
            error, size = cause, 0
        self._tell(size, to)
        if size > 0 and self._told(to):
            for begin in range(0, size, _PIECE):
                length = min(_PIECE, size - begin)
                try:
                    with path.open("rb") as file:
                        file.seek(begin)
                        file.readinto(host[:length].numpy().data)
                except OSError as cause:
                    error = cause
                if moved is not host:
                    moved[:length].copy_(host[:length])
                dist.send(moved[:length], group=self._group, group_dst=to)
        if error is not None:
            raise error

    def receive(self, path: Path, source: int) -> bool:
        """Receive a file of another rank, all of it, also where it cannot be written; return if there is one.

        There is none where the other rank cannot send it, as it will say itself.
        """
        error: Exception | None = None
        size = self._told(source)
        if size == 0:
            return False
        try:
            host, moved = self._room(min(_PIECE, size))
        except (MemoryError, RuntimeError) as cause:
            error = cause
        self._tell(error is None, source)
        if error is not None:
            raise error
        for begin in range(0, size, _PIECE):
            length = min(_PIECE, size - begin)
            dist.recv(moved[:length], group=self._group, group_src=source)
            if moved is not host:
                host[:length].copy_(moved[:length])
            try:
                with path.open("ab" if begin else "wb") as file:
                    file.write(host[:length].numpy().data)
            except OSError as cause:
                error = cause
        if error is not None:
            raise error
        return True

    def _room(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes of the host, and those that the group moves: the same ones where it can."""
        host = torch.empty(size, dtype=torch.uint8)
        on_host = self._device.type == "cpu"
        return host, host if on_host else torch.empty(size, dtype=torch.uint8, device=self._device)

    def _tell(self, number: int, to: int) -> None:
        x = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.send(x, group=self._group, group_dst=to)

    def _told(self, source: int) -> int:
        x = torch.empty(1, dtype=torch.int64, device=self._device)
        dist.recv(x, group=self._group, group_src=source)
        return int(x)

    def merge(self, counts: Path, whole: Mapping[str, Whole]) -> None:
        """Add up the counts files of all ranks into that of rank 0.

        Shards are put side by side first, at the first rank that shares them; then the first ranks add up in
        pairs. A process holds the counts of two at a time, or one layer of all shards, and there are as many
        steps as the number of first ranks has binary digits. Where one cannot, it goes on with what it has,
        so that nobody waits for it in vain, and all raise at the end.

        Parameters
        ----------
        counts : Path
            The file of this rank.
        whole : dict
            By name, what is known of the layers that are shared; see `whole_layers`.
        """
        errors: list[Exception] = []
        self._join(counts, whole, errors)
        if self.rank in self._leaders:
            self._add_up(counts, errors)
        with self.together():
            if errors:
                raise errors[0]

    def _join(self, counts: Path, whole: Mapping[str, Whole], errors: list[Exception]) -> None:
        """Put the shards of a team side by side at its first rank."""
        leader = min(self.team)
        if len(self.team) == 1:
            return
        if self.rank != leader:
            with _noting(errors):
                self.send(counts, leader)
            return
        shards = [counts if rank == leader else counts.with_suffix(f".shard{rank}") for rank in self.team]
        are_there = [True]
        for rank, shard in zip(self.team, shards, strict=True):
            if rank != leader:
                with _noting(errors):
                    are_there.append(self.receive(shard, rank))
        both = counts.with_suffix(".sum")
        if are_there == [True] * len(shards):
            with _noting(errors):
                _core.join_counts([str(shard) for shard in shards], str(both), whole)
                both.replace(counts)
        for shard in shards:
            if shard != counts:
                shard.unlink(missing_ok=True)

    def _add_up(self, counts: Path, errors: list[Exception]) -> None:
        """Add up the files of the first ranks, in pairs."""
        me, size = self._leaders.index(self.rank), len(self._leaders)
        step = 1
        while step < size:
            if me % (2 * step) == step:
                with _noting(errors):
                    self.send(counts, self._leaders[me - step])
                return
            if me + step < size:
                other, both = counts.with_suffix(f".{step}"), counts.with_suffix(".sum")
                with _noting(errors):
                    if self.receive(other, self._leaders[me + step]):
                        _core.merge_counts([str(counts), str(other)], str(both))
                        both.replace(counts)
                other.unlink(missing_ok=True)
            step *= 2


def _device_of(group: Any) -> torch.device:
    """Where the tensors are that a group moves."""
    # Others than gloo and MPI move what is on their devices alone.
    on_host = any(name in dist.get_backend(group) for name in ("gloo", "mpi"))
    device = None if on_host else torch.accelerator.current_accelerator()
    return torch.device("cpu") if device is None else device


def _told(what: Any, group: Any, device: torch.device) -> list[Any]:
    mine = torch.frombuffer(bytearray(json.dumps(what).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in _gathered(torch.tensor([len(mine)]), group, device)]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(mine)] = mine
    told = _gathered(padded, group, device)
    return [json.loads(x[:size].numpy().tobytes().decode()) for x, size in zip(told, sizes, strict=True)]


def _gathered(x: torch.Tensor, group: Any, device: torch.device) -> list[torch.Tensor]:
    """The tensors of one shape that all ranks of a group have."""
    mine = x.to(device)
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    with _released([mine, *everyones]):
        dist.all_gather(everyones, mine, group=group)
    return [other.cpu() for other in everyones]


@contextlib.contextmanager
def _noting(errors: list[Exception]) -> Iterator[None]:
    """Go on after an error, which is kept."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        errors.append(error)


def whole_layers(model: torch.nn.Module) -> dict[str, Whole]:
    """What a model says of its key and value layers as they are in all processes that share them."""
    return {
        layer.name: (
            (layer.total_heads or 0) * (layer.head_dim or 0),
            layer.head_dim or 0,
            layer.total_slice,
        )
        for layer in find_kv_layers(model)
    }


def settings_of(config_file: str, folder: Path) -> dict[str, Any]:
    """The settings in a configuration file that must be the same in all processes, by layer."""
    path = folder / "settings.json"
    _core.read_config(config_file).write(str(path))  # with all defaults, in one form
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del content["batch_num"]  # each has as many as it likes
    of_a_shard = ("head_num", "slice", "slice_groups")
    return {
        name: {
            key: setting for key, setting in value["kv_data_quant_config"].items() if key not in of_a_shard
        }
        if isinstance(value, dict)
        else value
        for name, value in content.items()
    }


def endless_config(config_file: str, folder: Path) -> str:
    """A configuration file that asks for more batches than there are, for a session of one process."""
    content = json.loads(Path(config_file).read_text(encoding="utf-8"))
    path = folder / "config.json"
    path.write_text(json.dumps(content | {"batch_num": _NO_END}), encoding="utf-8")
    return str(path)


def add_up(
    processes: Processes,
    session: _core.Session,
    names: list[str],
    whole: Mapping[str, Whole],
    record_file: str,
    counts_file: str | None,
    folder: Path,
) -> list[LayerResult]:
    """Search the factors of what all processes saw, and write the record; all of them must call it.

    Parameters
    ----------
    processes : Processes
        All of them.
    session : Session
        What this one saw.
    names : list of str
        The layers of all configurations, those of the first ranks first; some several times.
    whole : dict
        What is known of the layers that are shared.
    record_file, counts_file : str
        What rank 0 writes.
    folder : Path
        For files of this process.

    Returns
    -------
    list of LayerResult
        On rank 0, in the order of the configuration, those of the first ranks first. Empty elsewhere.

    Raises
    ------
    RuntimeError
        Another process failed.
    """
    counts = folder / "seen.counts"
    with processes.together():
        session.save_counts(str(counts))
    processes.merge(counts, whole)
    results: list[LayerResult] = []
    with processes.together():
        if processes.rank == 0:
            if counts_file is not None:  # before the record, which is there when all is done
                _core.merge_counts([str(counts)], counts_file)
            results = _solved(counts, names, record_file)
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


@contextlib.contextmanager
def _released(tensors: list[torch.Tensor]) -> Iterator[None]:
    """Wait at the end until nobody else holds the tensors any more, but not for long.

    A thread of gloo lets go of them a moment after the operation ended, for which it takes Python's lock.
    Where the interpreter is ending by then, the process aborts ("terminate called without an active
    exception").
    """

    def holders() -> int:
        return sum(sys.getrefcount(tensor) for tensor in tensors)

    before = holders()
    yield
    deadline = time.monotonic() + _RELEASE
    while holders() > before and time.monotonic() < deadline:
        time.sleep(0.0005)
