"""Snapshots of processes that calibrate together; those that share layers save in step."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from amct_pytorch import _core
from amct_pytorch._device import DeviceLayers
from amct_pytorch._distributed import OthersFailedError, Processes, of_rank
from amct_pytorch._log import logger
from amct_pytorch._snapshots import Snapshots, header_of


class RankSnapshots(Snapshots):
    """The snapshots of one of several processes, which say which one it is.

    Those that share layers (a team) decide together after each forward whether to save, by the clock of the
    first of them, so that all save the same batch. A new snapshot is ``NAME.rankN.next`` until all of them
    have it: whenever they end, there is a batch that all have.

    Parameters
    ----------
    saved : Snapshots
        As one process has them; its path is what all are given.
    processes : Processes
        All of them.
    """

    def __init__(self, saved: Snapshots, processes: Processes) -> None:
        self._processes = processes
        self._named = saved.path
        self._layout = {"rank": processes.rank, "size": processes.size, "team": processes.team}
        super().__init__(
            of_rank(saved.path, processes.rank),
            saved.batches,
            saved.minutes,
            json.dumps({"processes": self._layout, "data": saved.data}),
        )
        self._next = f"{self.path}.next"
        self._is_shared = len(processes.team) > 1
        self._found: dict[int, str] = {}  # by batches
        self._chosen = 0

    def find(self) -> dict[str, Any]:
        """What there is to go on from, for the others to know.

        Raises
        ------
        ValueError
            A snapshot is none, or of another process, or of another number of them.
        """
        if self._processes.rank == 0:
            self._warn_of_others()
        for path in (self._next, self.path) if self._is_shared else (self.path,):
            if Path(path).exists():
                batches, data = header_of(path)
                self._check_layout(path, data)
                self._found[batches] = path
        return {"batches": sorted(self._found), "had": Path(self.path).exists()}

    def choose(self, told: list[dict[str, Any]]) -> None:
        """Choose the newest batch that all who share layers have, from what the ranks found.

        Raises
        ------
        ValueError
            There is none, and it is not that none was ever saved.
        """
        team = {rank: told[rank] for rank in self._processes.team}
        common = set.intersection(*(set(found["batches"]) for found in team.values()))
        self._chosen = max(common, default=0)
        if common or not any(found["had"] for found in team.values()):
            return
        if not self._is_shared:
            return
        have = "; ".join(
            f"rank {rank} has {' and '.join(map(str, found['batches'])) or 'none'}"
            for rank, found in team.items()
        )
        raise ValueError(
            f"'{self._named}': ranks that share layers go on from the same batch, and there is none that all "
            f"have a snapshot of (batches: {have}); bring back what is missing, or remove them to begin anew"
        )

    def restore(self, session: _core.Session) -> int:
        """Go on from what was chosen."""
        if self._chosen == 0:
            logger.info("there is no '%s' to go on from, so the calibration begins", self.path)
            return 0
        path = self._found[self._chosen]
        done = self._read(session, path)
        # All of the team have this one, so that the other one is of no use any more.
        if path == self._next:
            Path(path).replace(self.path)
        else:
            Path(self._next).unlink(missing_ok=True)
        return done

    def is_due(self, batches_done: int, ready: bool) -> bool:
        """Whether it is time to save again: as the first rank of those that share layers says."""
        due = super().is_due(batches_done, ready)
        if not self._is_shared:
            return due
        # Of all whether they are ready, of the first one whether it wants to.
        told = self._tell(batches_done, due=self.is_time(batches_done), ready=ready)
        return bool(told[0]["due"]) and all(other["ready"] for other in told)

    def save(self, layers: DeviceLayers, batches_done: int, obstacle: Exception | None = None) -> None:
        """Save what was seen; all that share layers must call it, after the same batch."""
        if not self._is_shared:
            super().save(layers, batches_done, obstacle)
            return
        error = obstacle
        try:
            if error is None:
                self._write(layers, self._next, batches_done)
        except Exception as cause:  # the others wait to hear of it
            error = cause
        told = self._tell(batches_done, saved=error is None)
        if error is not None:
            raise error
        if failed := [
            rank for rank, other in zip(self._processes.team, told, strict=True) if not other["saved"]
        ]:
            raise OthersFailedError(f"rank {failed[0]} could not save its snapshot")
        Path(self._next).replace(self.path)
        self._note(batches_done)

    def remove(self) -> None:
        """Take the files away."""
        super().remove()
        with contextlib.suppress(OSError):
            Path(self._next).unlink(missing_ok=True)

    def _tell(self, batches_done: int, **what: Any) -> list[dict[str, Any]]:
        """What those that share layers tell, which are at the same batch."""
        told = self._processes.tell_team({"batches": batches_done, **what})
        at = [other["batches"] if isinstance(other, dict) else None for other in told]
        if any(batches != batches_done for batches in at) or any(
            what.keys() - other.keys() for other in told
        ):
            ranks = "; ".join(
                f"rank {rank} {'is at its end' if batches is None else f'saw {batches}'}"
                for rank, batches in zip(self._processes.team, at, strict=True)
            )
            raise RuntimeError(f"ranks that share layers were shown different batches: {ranks}")
        return told

    def _check_layout(self, path: str, data: str) -> None:
        was: dict[str, Any] = {}
        with contextlib.suppress(ValueError, TypeError, KeyError):
            was = json.loads(data)["processes"]
        if was == self._layout:
            return
        remedy = "; go on with as many processes as before, or remove the snapshots"
        if set(was) != set(self._layout):
            raise ValueError(f"{path}: the snapshot is of a calibration by one process alone{remedy}")
        rank, size, team = self._processes.rank, self._processes.size, self._processes.team
        if (was["rank"], was["size"]) != (rank, size):
            raise ValueError(
                f"{path}: the snapshot is of rank {was['rank']} of {was['size']} processes, and this is rank "
                f"{rank} of {size}{remedy}"
            )
        raise ValueError(
            f"{path}: the snapshot is of a rank that shared layers with ranks {was['team']}, and now they "
            f"are {team} (tensor_parallel_group){remedy}"
        )

    def _warn_of_others(self) -> None:
        """Say so where there are files of ranks that are not there now."""
        named = Path(self._named)
        pattern = re.compile(rf"{re.escape(named.name)}\.rank(\d+)")
        with contextlib.suppress(OSError):
            left = [
                path.name
                for path in named.parent.iterdir()
                if (found := pattern.fullmatch(path.name)) and int(found[1]) >= self._processes.size
            ]
            if left:
                logger.warning(
                    "%s of an earlier calibration by more processes are left alone: there are %d now",
                    ", ".join(sorted(left)),
                    self._processes.size,
                )
