"""What a device holds of a layer's batches; see `_device` for when it is handed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from amct_pytorch._core import LayerPlan, Session

# Rows, or batches, of a layer that a device holds at most: as many rows as the host stages (ChannelCounts).
HELD = 8192
# Elements looked at together, which bounds temporary memory: 16 MiB for their patterns.
PART = 1 << 22
# Channels counted together: 16 MiB of counters.
TILE = 32
PATTERNS = 1 << 16

Result = tuple[bool, list[str]]  # whether the layer is finished, layers overwritten in the record
Report = tuple[int, int]  # how many values of a batch are NaN or infinite, flat index of the first


class Store:
    """What one stream of a device holds of a layer's batches of one dtype."""

    def __init__(self, plan: LayerPlan, like: torch.Tensor, stream: Any) -> None:
        self._plan = plan
        self._stream = stream
        self._device = like.device
        self._dtype = like.dtype
        self._channels = channels_of(like.shape)
        self._rows: list[int] = []  # of each batch

    def is_full_with(self, rows: int) -> bool:
        """Whether it is to be handed over once it has a batch of so many rows, too."""
        return False

    def add(self, x: torch.Tensor, due: bool) -> None:
        """Add a batch; `due`: it is handed over before the call ends. All of it, or nothing on an error."""
        raise NotImplementedError

    def reports(self) -> list[Report]:
        """What is not finite in each batch. Waits for the device."""
        raise NotImplementedError

    def hand_over(self, session: Session, name: str) -> Result | None:
        """Give the session the batches that are not refused; None without any. Waits for the device."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait for the stream, whose results are then seen by all."""
        if self._stream is not None:
            self._stream.synchronize()

    def _accepted(self) -> list[bool]:
        """For each batch, whether the session gets it."""
        if self._plan.skips_non_finite:
            return [True] * len(self._rows)
        return [count == 0 for count, _ in self.reports()]

    def _accepted_rows(self) -> list[int]:
        return [rows for rows, accepted in zip(self._rows, self._accepted(), strict=True) if accepted]


class _Summary(Store):
    """A store that keeps no rows, and so has to know at once which batches to leave out.

    It cannot ask: it multiplies. What a batch adds is weighted by a number on the device, 1 or 0.
    """

    def __init__(self, plan: LayerPlan, like: torch.Tensor, stream: Any) -> None:
        super().__init__(plan, like, stream)
        self._found: list[torch.Tensor] = []  # int64 [2] of each batch: a Report
        self._reports: list[Report] | None = None

    def reports(self) -> list[Report]:
        if self._reports is None:
            self._reports = [(count, first) for count, first in torch.stack(self._found).tolist()]
        return self._reports


class _TensorCounts(_Summary):
    """Counts of the patterns of a 16-bit type, per tensor."""

    def __init__(self, plan: LayerPlan, like: torch.Tensor, stream: Any) -> None:
        super().__init__(plan, like, stream)
        self._counts = torch.zeros(PATTERNS, dtype=torch.int64, device=like.device)
        self._one = torch.ones((), dtype=torch.int64, device=like.device)

    def add(self, x: torch.Tensor, due: bool) -> None:
        weight = self._one
        if not self._plan.skips_non_finite:
            found = _find_non_finite(x)
            self._found.append(found)
            weight = (found[0] == 0).to(torch.int64)
        for part, _ in _parts(x):
            patterns = _patterns(part).view(-1)
            # Not bincount: it makes the host wait for the largest pattern, to know how long its result is.
            self._counts.index_add_(0, patterns, weight.expand(patterns.numel()))
        self._rows.append(x.numel() // self._channels)

    def hand_over(self, session: Session, name: str) -> Result | None:
        rows = self._accepted_rows()
        if not rows:
            return None
        counts = self._counts.cpu()
        patterns = counts.nonzero().view(-1)
        return session.observe_counts(
            name,
            self._dtype == torch.bfloat16,
            self._channels,
            sum(rows),
            len(rows),
            torch.tensor([0, patterns.numel()], device="cpu"),
            patterns.to(torch.int16),
            counts[patterns],
        )


class _Ranges(_Summary):
    """The smallest and largest value of each group."""

    def __init__(self, plan: LayerPlan, like: torch.Tensor, stream: Any) -> None:
        super().__init__(plan, like, stream)
        groups = (self._channels,) if plan.per_channel else (1,)
        self._min = torch.full(groups, torch.inf, dtype=torch.float32, device=like.device)
        self._max = torch.full(groups, -torch.inf, dtype=torch.float32, device=like.device)

    def add(self, x: torch.Tensor, due: bool) -> None:
        x = x if x.dim() > 1 else x.view(1, self._channels)
        found = _find_non_finite(x)
        for part, _ in _parts(x, whole=1):
            kept = _finite(part) if self._plan.skips_non_finite else found[0] == 0
            dims = tuple(range(x.dim() - 1 if self._plan.per_channel else x.dim()))
            smallest = torch.where(kept, part, torch.inf).amin(dims)
            largest = torch.where(kept, part, -torch.inf).amax(dims)
            torch.minimum(self._min, smallest.to(torch.float32), out=self._min)
            torch.maximum(self._max, largest.to(torch.float32), out=self._max)
        self._found.append(found)
        self._rows.append(x.numel() // self._channels)

    def hand_over(self, session: Session, name: str) -> Result | None:
        rows = self._accepted_rows()
        if not rows:
            return None
        skipped = sum(count for count, _ in self.reports()) if self._plan.skips_non_finite else 0
        return session.observe_ranges(
            name, self._channels, sum(rows), len(rows), skipped, self._min.cpu(), self._max.cpu()
        )


class _Rows(Store):
    """Rows as they came, in memory that grows to what is needed."""

    def __init__(self, plan: LayerPlan, like: torch.Tensor, stream: Any) -> None:
        super().__init__(plan, like, stream)
        self._memory = torch.empty(0, self._channels, dtype=like.dtype, device=like.device)
        self._held = 0

    def is_full_with(self, rows: int) -> bool:
        return self._held + rows >= HELD

    def add(self, x: torch.Tensor, due: bool) -> None:
        rows = x.numel() // self._channels
        if due and self._held == 0:
            self._memory = x.reshape(rows, self._channels)  # nobody changes it before it is handed over
        else:
            self._grow_to(self._held + rows)
            self._memory[self._held : self._held + rows].view(x.shape).copy_(x)
        self._held += rows
        self._rows.append(rows)

    def _grow_to(self, rows: int) -> None:
        if rows <= len(self._memory):
            return
        # Doubling keeps the cost of many small batches linear.
        size = max(rows, min(2 * len(self._memory), HELD))
        memory = torch.empty(size, self._channels, dtype=self._dtype, device=self._device)
        memory[: self._held].copy_(self._memory[: self._held])
        self._memory = memory

    def reports(self) -> list[Report]:
        held = self._memory[: self._held]
        by_row = torch.cat([_finite(part).logical_not_().sum(1) for part, _ in _parts(held, whole=1)]).cpu()
        if not by_row.any():
            return [(0, -1)] * len(self._rows)
        reports = []
        begin = 0
        for counts in by_row.split_with_sizes(self._rows):
            row = int(counts.ne(0).to(torch.uint8).argmax())  # the first with any
            index = int(_find_non_finite(held[begin + row])[1])
            reports.append((int(counts.sum()), row * self._channels + index))
            begin += len(counts)
        return reports


class _ChannelCounts(_Rows):
    """Rows of a 16-bit type, which are counted per channel when they are handed over."""

    def hand_over(self, session: Session, name: str) -> Result | None:
        accepted = self._accepted()
        pieces = self._memory[: self._held].split_with_sizes(self._rows)
        kept = [piece for piece, keep in zip(pieces, accepted, strict=True) if keep]
        if not kept:
            return None
        rows = self._memory[: self._held] if all(accepted) else torch.cat(kept)
        tiles = [_count_channels(tile) for tile in torch.split(rows, TILE, dim=1)]
        sizes = torch.cat([size for size, _, _ in tiles])
        return session.observe_counts(
            name,
            self._dtype == torch.bfloat16,
            self._channels,
            len(rows),
            len(kept),
            torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
            torch.cat([patterns for _, patterns, _ in tiles]),
            torch.cat([counts for _, _, counts in tiles]),
        )


class _Samples(_Rows):
    """Rows of float32, which the session keeps or sketches."""

    def hand_over(self, session: Session, name: str) -> Result | None:
        result = None
        pieces = self._memory[: self._held].cpu().split_with_sizes(self._rows)
        for piece, accepted in zip(pieces, self._accepted(), strict=True):
            if accepted:
                result = session.observe(name, piece)
        return result


def store_type(plan: LayerPlan, dtype: torch.dtype) -> type[Store]:
    if plan.range_only:
        return _Ranges
    if dtype == torch.float32:
        return _Samples
    return _ChannelCounts if plan.per_channel else _TensorCounts


def channels_of(shape: torch.Size) -> int:
    return shape[-1] if shape else 1


def stream_of(device: torch.device) -> Any:
    """The stream that work of this thread goes to; None on devices without any."""
    if device.type == "cpu":
        return None
    current = getattr(getattr(torch, device.type, None), "current_stream", None)
    return None if current is None else current(device)


def _parts(x: torch.Tensor, whole: int = 0) -> Iterator[tuple[torch.Tensor, int]]:
    """Cut `x` into views of at most PART elements; with the flat index of their first ones.

    The views are runs of the row-major order, one after the other. The last `whole` dimensions are not cut.
    """
    if x.numel() <= PART or x.dim() <= whole:
        yield x, 0
        return
    step = x[0].numel()
    length = max(1, PART // step)
    for begin in range(0, x.shape[0], length):
        if length > 1 or x.dim() == 1:
            yield x[begin : begin + length], begin * step
            continue
        for part, offset in _parts(x[begin], whole):  # a dimension less
            yield part.unsqueeze(0), begin * step + offset


def _patterns(x: torch.Tensor) -> torch.Tensor:
    """The bit patterns of a 16-bit type, 0 to 65,535, as int32, contiguous."""
    # Any strides can be viewed so. The conversion writes whatever they are in row-major order.
    bits = x.view(torch.int16).to(torch.int32, memory_format=torch.contiguous_format)
    return bits.bitwise_and_(0xFFFF)


def _find_non_finite(x: torch.Tensor) -> torch.Tensor:
    """How many values are NaN or infinite, and the flat row-major index of the first.

    int64 [2] on the device. The index means nothing where there is none.
    """
    found = None
    for part, offset in _parts(x):
        bad = _finite(part).logical_not_().reshape(-1)
        # Of several largest values argmax gives the first.
        count, first = bad.sum(), bad.view(torch.uint8).argmax() + offset
        if found is not None:
            count, first = found[0] + count, torch.where(found[0] > 0, found[1], first)
        found = torch.stack((count, first))
    assert found is not None  # there is at least one part
    return found


def _finite(x: torch.Tensor) -> torch.Tensor:
    """Like `torch.isfinite`, which makes more work for a device: NaN is not less than anything."""
    return x.abs().lt(torch.inf)


def _count_channels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count the patterns of each channel of [rows, channels]. Waits for the device.

    Returns, on the host, the number of patterns of each channel (int64), the patterns (int16) of channel
    after channel, ascending as unsigned integers, and their counts (int64).
    """
    channels = rows.shape[1]
    counts = torch.zeros(channels * PATTERNS, dtype=torch.int64, device=rows.device)
    one = torch.ones((), dtype=torch.int64, device=rows.device)
    begin = torch.arange(channels, dtype=torch.int32, device=rows.device) * PATTERNS
    for part in torch.split(rows, HELD):
        index = _patterns(part).add_(begin).view(-1)
        counts.index_add_(0, index, one.expand(index.numel()))
    entries = counts.nonzero().view(-1)
    sizes = counts.view(channels, PATTERNS).ne(0).sum(1)
    # -1 is 65,535: the upper bits are the channel's and are cut off.
    return sizes.cpu(), entries.to(torch.int16).cpu(), counts[entries].cpu()
