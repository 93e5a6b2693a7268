"""When a run's snapshots are saved, and where."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amct_pytorch import _core
from amct_pytorch._checks import require_path, require_type
from amct_pytorch._device import DeviceLayers
from amct_pytorch._log import logger

DEFAULT_MINUTES = 10.0


class Snapshots:
    """The snapshot file of a run, and how often it is saved.

    Parameters
    ----------
    path : str
        The file.
    batches : int or None
        Forwards after which it is saved again.
    minutes : float or None
        Minutes after which it is; whichever comes first.
    data : str
        What names the batches that are shown.
    """

    def __init__(self, path: str, batches: int | None, minutes: float | None, data: str) -> None:
        self.path = path
        self.data = data
        self.batches = batches
        self.minutes = minutes
        self.saved_batch = 0  # forwards that the file has
        self._saved_time = time.monotonic()

    def restore(self, session: _core.Session) -> int:
        """Go on from the file, if there is one; return the forwards that are done."""
        if not Path(self.path).exists():
            logger.info("there is no '%s' to go on from, so the calibration begins", self.path)
            return 0
        return self._read(session, self.path)

    def _read(self, session: _core.Session, path: str) -> int:
        done = session.restore(path, self.data)
        self.saved_batch = done
        logger.info("'%s': going on after %d batches", path, done)
        return done

    def is_time(self, batches_done: int) -> bool:
        """Whether it is time to save again."""
        if self.batches is not None and batches_done - self.saved_batch >= self.batches:
            return True
        return self.minutes is not None and time.monotonic() - self._saved_time >= 60 * self.minutes

    def is_due(self, batches_done: int, ready: bool) -> bool:
        """Whether it is time to save again, and all that was seen can be."""
        return ready and self.is_time(batches_done)

    def save(self, layers: DeviceLayers, batches_done: int, obstacle: Exception | None = None) -> None:
        """Save what was seen, on devices as well; or raise what keeps this process from it."""
        if obstacle is not None:
            raise obstacle
        self._write(layers, self.path, batches_done)
        self._note(batches_done)

    def _write(self, layers: DeviceLayers, path: str, batches_done: int) -> None:
        layers.hand_over()
        layers.session.save(path, batches_done, self.data)

    def _note(self, batches_done: int) -> None:
        self.saved_batch = batches_done
        self._saved_time = time.monotonic()

    def remove(self) -> None:
        """Take the file away: the record holds all there is to know."""
        with contextlib.suppress(OSError):
            Path(self.path).unlink(missing_ok=True)


class Forwards:
    """Counts forwards that are done, and acts between two of them. Thread-safe.

    Parameters
    ----------
    done : int
        Forwards before these.
    """

    # How long forwards wait for others to end. One that was interrupted, and whose thread calls the model no
    # more, never ends.
    _PATIENCE_SECONDS = 60.0

    def __init__(self, done: int) -> None:
        self.done = done
        self._running = 0
        self._begun = 0
        self._numbers: dict[int, int] = {}  # of forwards that run, by thread
        self._failed = 0  # forwards that had begun when one failed
        self._is_torn = False
        self._is_held = False
        self._changed = threading.Condition(threading.RLock())

    @property
    def is_torn(self) -> bool:
        """Whether layers may have seen different batches: one runs, or failed and none came after it."""
        with self._changed:
            return self._is_torn or self._running > 0

    def begin(self) -> None:
        """A forward begins; waits while something is done, or to be done, between two."""
        with self._changed:
            if self._is_held and not self._changed.wait_for(
                lambda: not self._is_held, self._PATIENCE_SECONDS
            ):
                self._is_held = False
            self._running += 1
            self._begun += 1
            self._numbers[threading.get_ident()] = self._begun

    def end(self, completed: bool, is_time: Callable[[int], bool], between: Callable[[int], None]) -> None:
        """A forward ends; one that failed is not counted.

        Parameters
        ----------
        completed : bool
            Whether it did not fail.
        is_time : callable
            Takes the number of forwards that are done; whether there is something to do between two. Where
            forwards of several threads overlap, new ones then wait until all have ended.
        between : callable
            Takes the number of forwards that are done; called while no other runs, and not before one is done
            that began after the last that failed.
        """
        with self._changed:
            self._running = max(self._running - 1, 0)  # it may have begun before the run
            self.done += completed
            number = self._numbers.pop(threading.get_ident(), 0)
            if not completed:
                self._is_torn, self._failed = True, self._begun
            elif number > self._failed:  # whoever calls the model went on after it
                self._is_torn = False
            try:
                if self._running == 0 and completed and not self._is_torn:
                    between(self.done)
            finally:
                self._is_held = self._running > 0 and is_time(self.done)
                self._changed.notify_all()

    def end_all(self) -> None:
        """Nothing more is told: a forward that runs, and made the last layer finish, counts as done."""
        with self._changed:
            self.done += self._running
            self._running = 0
            self._is_held = False
            self._changed.notify_all()


def header_of(path: str) -> tuple[int, str]:
    """The batches that a snapshot is of, and what names them; see ``proto/snapshot.proto``.

    Raises ValueError for a file that is no snapshot, or that was damaged.
    """
    with Path(path).open("rb") as file:
        start = file.read(20)
        if start[:8] != b"AMCTsnp\x01":
            raise ValueError(f"{path}: this is not a snapshot, or one of another version")
        size = min(int.from_bytes(start[8:16], "little"), Path(path).stat().st_size)
        content = file.read(size)
    if len(start) < 20 or len(content) < size or zlib.crc32(content) != int.from_bytes(start[16:], "little"):
        raise ValueError(f"{path}: the snapshot is damaged; remove it, and calibrate from the start")
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        fields[key >> 3], at = _varint(content, at)
        if key & 7 == 2:  # that was the length of what follows
            length = int(fields[key >> 3])
            fields[key >> 3] = content[at : at + length]
            at += length
    data = fields.get(6, b"")
    return int(fields.get(3, 0)), data.decode() if isinstance(data, bytes) else ""


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf, and where it ends."""
    number = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return number, at


def snapshots_of(
    snapshot_file: Any, snapshot_batches: Any, snapshot_minutes: Any, snapshot_data: Any, resume: Any
) -> Snapshots | None:
    """What the arguments of a call say.

    Raises TypeError for one of a wrong type, and ValueError for an interval that is none, or without a file.
    """
    require_type("resume", resume, bool)
    for name, value, kinds in (
        ("snapshot_batches", snapshot_batches, int),
        ("snapshot_minutes", snapshot_minutes, (int, float)),
    ):
        if value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not value > 0:
            raise ValueError(f"{name} must be > 0, not {value}")
    if snapshot_file is None:
        if resume or any(value is not None for value in (snapshot_batches, snapshot_minutes, snapshot_data)):
            raise ValueError(
                "resume, snapshot_batches, snapshot_minutes and snapshot_data need a snapshot_file"
            )
        return None
    path = require_path("snapshot_file", snapshot_file)
    _core.check_output_path(path)
    if snapshot_batches is None and snapshot_minutes is None:
        snapshot_minutes = DEFAULT_MINUTES
    data = "" if snapshot_data is None else require_type("snapshot_data", snapshot_data, str)
    return Snapshots(path, snapshot_batches, snapshot_minutes, data)
