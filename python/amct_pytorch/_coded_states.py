"""Keys and values as codes, in the place of the tensors that transformers' cache layers hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from amct_pytorch._cache_watch import copies_of_heads
from amct_pytorch._core import Codec as Kernels
from amct_pytorch._formats import decoded, encoded, grid_of
from amct_pytorch.record import KVFactors

# Room for tokens to come that a buffer gets when it must be copied: a share of its tokens, but so many.
_SHARE_OF_ROOM = 16
_LEAST_ROOM = 64
_KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class StatesCodec:
    """The number format and factors of one layer: makes codes of states, and states of codes.

    Parameters
    ----------
    name : str
        The layer.
    factors : KVFactors
        Its factors.
    channels : int or None
        The channels that it has, see `stored_channels`.
    recent_tokens : int
        How many tokens, up to the last, are kept as they are.
    """

    def __init__(self, name: str, factors: KVFactors, channels: int | None, recent_tokens: int = 0) -> None:
        self.name = name
        self.recent_tokens = recent_tokens
        self._channels = channels
        self._factors = factors
        self._grid = grid_of(factors.dst_type)
        count = factors.scale.numel()
        self._granularity = "per_head" if factors.per_head else "per_tensor" if count == 1 else "per_channel"
        self._kernels = Kernels(
            factors.dst_type, factors.scale.tolist(), factors.offset.tolist(), self._granularity
        )
        self._on_device: dict[tuple[torch.device, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> StatesCodec:
        return self  # nothing of it changes

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of the codes of a token in a head."""
        return self._kernels.row_bytes(head_dim)

    @property
    def code_type(self) -> torch.dtype:
        """int8 for INT8; uint8 for two codes a byte, and for those that are no integers."""
        return torch.int8 if self._grid.name == "INT8" else torch.uint8

    def coded(self, states: torch.Tensor, exact: int = 0) -> CodedStates:
        """States as codes.

        Parameters
        ----------
        states : torch.Tensor
            ``[batch, heads, tokens, head_dim]``, floating point.
        exact : int
            How many tokens, from the first, are kept as they are, beside the last `recent_tokens`.

        Raises
        ------
        ValueError
            The number of factors does not fit.
        RuntimeError
            The states are not those of the layer.
        """
        states = states.detach()
        copies = copies_of_heads(states, self.name, self._channels)
        # A step of decoding takes about as long as these few calls, so those that do nothing are left out.
        heads = states if copies == 1 else states[:, ::copies]
        batch, count, tokens, head_dim = heads.shape
        self._check(count, head_dim)
        exact = min(exact, tokens)
        last = tokens - min(self.recent_tokens, tokens - exact)
        rest = heads if (exact, last) == (0, tokens) else heads[:, :, exact:last]
        buffer = _Buffer.empty(self, rest)
        self.encode(rest, buffer.codes)
        none = heads.new_empty((batch, count, 0, head_dim))
        # No views: they would keep the memory of all states.
        first = none if exact == 0 else heads[:, :, :exact].clone()
        recent = none if last == tokens else heads[:, :, last:].clone()
        return CodedStates(self, first, recent, copies, buffer, 0, last - exact)

    def decode(self, codes: torch.Tensor, out: torch.Tensor) -> None:
        """Write what codes ``[batch, heads, tokens, bytes]`` stand for.

        `out` is ``[batch, heads, tokens, head_dim]`` and has the type of the states.
        """
        if _has_kernels(out):
            self._kernels.dequantize(codes, out)
            return
        factors = self._broadcast(out)
        out.copy_(decoded(codes, *factors, self._grid, out.shape[3]))

    def encode(self, states: torch.Tensor, codes: torch.Tensor) -> None:
        """Write the codes of states ``[batch, heads, tokens, head_dim]``, the inverse of `decode`."""
        if _has_kernels(states):
            self._kernels.quantize(states, codes)
            return
        factors = self._broadcast(states)
        codes.copy_(encoded(states.float(), *factors, self._grid).view(codes.dtype))

    def _check(self, heads: int, head_dim: int) -> None:
        count = self._factors.scale.numel()
        wanted = {"per_tensor": 1, "per_head": heads, "per_channel": heads * head_dim}[self._granularity]
        if count != wanted:
            raise ValueError(
                f"layer '{self.name}': {count} scales do not fit {heads * head_dim} channels in {heads} heads"
            )

    def _broadcast(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors that broadcast with ``[batch, heads, tokens, head_dim]``."""
        key = states.device, states.shape[1]
        if key not in self._on_device:
            heads = 1 if self._granularity == "per_tensor" else states.shape[1]
            scale, offset = (
                part.to(states.device).view(heads, 1, -1)
                for part in (self._factors.scale, self._factors.offset)
            )
            self._on_device[key] = scale, offset
        return self._on_device[key]


def _has_kernels(states: torch.Tensor) -> bool:
    """Whether the C++ kernels take a tensor; others go through torch's operations, to the same codes."""
    return states.device.type == "cpu" and states.dtype in _KERNEL_TYPES


class _Buffer:
    """Codes ``[batch, heads, tokens, bytes]`` with room for more tokens, of which `CodedStates` are parts."""

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes
        self.parts: weakref.WeakSet[CodedStates] = weakref.WeakSet()

    @classmethod
    def empty(cls, codec: StatesCodec, states: torch.Tensor) -> _Buffer:
        """A buffer for as many codes as there are states."""
        batch, heads, tokens, head_dim = states.shape
        with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
            return cls(
                torch.empty(
                    (batch, heads, tokens, codec.row_bytes(head_dim)),
                    dtype=codec.code_type,
                    device=states.device,
                )
            )

    def with_room(self, begin: int, end: int, more: int) -> _Buffer:
        """A copy of tokens `begin` to `end` with room for `more` and those to come."""
        used = end - begin + more
        capacity = used + max(used // _SHARE_OF_ROOM, _LEAST_ROOM)
        batch, heads, _, size = self.codes.shape
        with torch.inference_mode(False):
            codes = self.codes.new_empty((batch, heads, capacity, size))
            codes[:, :, : end - begin] = self.codes[:, :, begin:end]
        return _Buffer(codes)

    def is_free_from(self, end: int, but: CodedStates) -> bool:
        """Whether no part other than `but` has tokens from `end` on."""
        return all(part is but or part.end <= end for part in self.parts)


class CodedStates:
    """Keys or values of a layer as codes, which stand for ``[batch, heads, tokens, head_dim]``.

    A cache layer of transformers handles them as it does the tensor: they are concatenated, sliced by tokens,
    and sequences are selected and repeated. Like a slice of a list in Go, a part of a buffer grows in place
    where nobody else has the tokens behind it. Whatever else is done with them is done with the tensor that
    they stand for.

    Parameters
    ----------
    codec : StatesCodec
        What they are coded by.
    exact : torch.Tensor
        The first tokens, as they are.
    recent : torch.Tensor
        The last tokens, as they are. They become codes as others follow.
    copies : int
        How often each head is there; stored is one of them.
    buffer : _Buffer
        Where the codes are.
    begin, end : int
        Which of the buffer's tokens they are.
    """

    def __init__(
        self,
        codec: StatesCodec,
        exact: torch.Tensor,
        recent: torch.Tensor,
        copies: int,
        buffer: _Buffer,
        begin: int,
        end: int,
    ) -> None:
        self.codec, self.exact, self.recent, self.copies = codec, exact, recent, copies
        self.buffer, self.begin, self.end = buffer, begin, end
        buffer.parts.add(self)

    @property
    def codes(self) -> torch.Tensor:
        """The codes ``[batch, heads, tokens, bytes]`` of the tokens that are coded: a view of the buffer."""
        return self.buffer.codes[:, :, self.begin : self.end]

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor they stand for."""
        batch, heads, exact, head_dim = self.exact.shape
        tokens = exact + self.end - self.begin + self.recent.shape[2]
        return torch.Size((batch, heads * self.copies, tokens, head_dim))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor they stand for."""
        return self.exact.dtype

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.buffer.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, and of the tokens that are kept as they are."""
        return self.codes.nbytes + self.exact.nbytes + self.recent.nbytes

    @property
    def allocated(self) -> int:
        """The same with the room of the buffer."""
        tensors = (self.buffer.codes, self.exact, self.recent)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def numel(self) -> int:
        """Elements of the tensor they stand for."""
        return self.shape.numel()

    def dequantize(self) -> torch.Tensor:
        """The tensor they stand for, newly made."""
        batch, heads, exact, head_dim = self.exact.shape
        coded, recent = self.end - self.begin, self.recent.shape[2]
        tokens = exact + coded + recent
        if self.copies == 1 and tokens == coded:
            out = torch.empty((batch, heads, tokens, head_dim), dtype=self.dtype, device=self.device)
            self.codec.decode(self.codes, out)
            return out
        out = torch.empty((batch, heads, self.copies, tokens, head_dim), dtype=self.dtype, device=self.device)
        for copy in out.unbind(2):
            if exact > 0:
                copy[:, :, :exact] = self.exact
            self.codec.decode(self.codes, copy[:, :, exact : exact + coded])
            if recent > 0:
                copy[:, :, exact + coded :] = self.recent
        return out.flatten(1, 2)

    def index_select(self, dim: int, index: torch.Tensor) -> Any:
        """The sequences of the batch with these indices, with the room that these have."""
        if dim != 0:
            return self.dequantize().index_select(dim, index)
        with torch.inference_mode(False):
            codes = self.buffer.codes[:, :, self.begin :].index_select(0, index.clone())
        exact, recent = (part.index_select(0, index) for part in (self.exact, self.recent))
        return self._part(exact, recent, _Buffer(codes), 0, self.end - self.begin)

    def repeat_interleave(self, repeats: Any, dim: int | None = None) -> Any:
        """Each sequence of the batch so many times."""
        if dim != 0:
            return self.dequantize().repeat_interleave(repeats, dim)
        index = torch.arange(self.shape[0], device=self.device).repeat_interleave(repeats)
        return self.index_select(0, index)

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if isinstance(parts[0], torch.Tensor) and all(part is Ellipsis for part in parts[1:]):
            index = parts[0].nonzero()[:, 0] if parts[0].dtype == torch.bool else parts[0]
            if index.dim() == 1:
                return self.index_select(0, index.to(self.device))
        tokens = _slice_of_tokens(parts)
        if tokens is None:
            return self.dequantize()[key]
        begin, end, _ = tokens.indices(self.shape[2])
        end = max(begin, end)
        exact, coded = self.exact.shape[2], self.end - self.begin
        first, last = (min(max(at - exact, 0), coded) for at in (begin, end))
        after = exact + coded
        return self._part(
            self.exact[:, :, begin:end],
            self.recent[:, :, max(begin - after, 0) : max(end - after, 0)],
            self.buffer,
            self.begin + first,
            self.begin + last,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedStates:
        with torch.inference_mode(False):
            exact, recent = self.exact.clone(), self.recent.clone()
            return self._part(exact, recent, _Buffer(self.codes.clone()), 0, self.end - self.begin)

    def __getattr__(self, name: str) -> Any:
        # In place, operations would change a copy.
        if name.endswith("_"):
            raise AttributeError(f"stored codes have no attribute '{name}'; use dequantize()")
        return getattr(self.dequantize(), name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.codec.name!r}, {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.cat:
            tensors, dim = _arguments_of_cat(*args, **kwargs)
            # An empty tensor of one dimension is what layers begin with.
            parts = [part for part in tensors if isinstance(part, CodedStates) or part.dim() == 4]
            if dim in (2, -2) and isinstance(parts[0], CodedStates):
                result = parts[0]
                for part in parts[1:]:
                    result = result._appended(part)
                return result
        args, kwargs = tree_map_only(CodedStates, CodedStates.dequantize, (args, kwargs))
        return function(*args, **kwargs)

    def _appended(self, other: CodedStates | torch.Tensor) -> CodedStates:
        """These tokens, then others."""
        if not isinstance(other, CodedStates):
            other = self.codec.coded(other)
        if self.begin == self.end and self.recent.shape[2] == 0:
            exact = torch.cat([self.exact, other.exact], dim=2)
            return self._part(exact, other.recent, other.buffer, other.begin, other.end)
        if other.exact.shape[2] > 0 or other.codec is not self.codec:
            other = self.codec.coded(other.dequantize())
        aged, recent = self.recent, other.recent
        if self.codec.recent_tokens > 0:
            # None of these are recent where others have enough, or codes, which are of tokens between.
            room = 0 if other.begin < other.end else self.codec.recent_tokens - recent.shape[2]
            count = max(aged.shape[2] - room, 0)
            recent = torch.cat([aged[:, :, count:], recent], dim=2)
            aged = aged[:, :, :count]
        return self._with_codes(aged, other, recent)

    def _with_codes(self, aged: torch.Tensor, other: CodedStates, recent: torch.Tensor) -> CodedStates:
        """These codes, then those of tokens that were recent, then the codes of others."""
        middle = aged.shape[2]
        more = middle + other.end - other.begin
        if more == 0:
            return self._part(self.exact, recent, self.buffer, self.begin, self.end)
        buffer, begin, end = self.buffer, self.begin, self.end
        if end + more > buffer.codes.shape[2] or not buffer.is_free_from(end, but=self):
            buffer = buffer.with_room(begin, end, more)
            begin, end = 0, end - begin
        if middle > 0:
            self.codec.encode(aged, buffer.codes[:, :, end : end + middle])
        if more > middle:
            buffer.codes[:, :, end + middle : end + more] = other.codes
        return self._part(self.exact, recent, buffer, begin, end + more)

    def _part(
        self, exact: torch.Tensor, recent: torch.Tensor, buffer: _Buffer, begin: int, end: int
    ) -> CodedStates:
        return CodedStates(self.codec, exact, recent, self.copies, buffer, begin, end)


def _arguments_of_cat(tensors: Any, dim: int = 0, *, out: Any = None) -> tuple[list[Any], int]:
    return list(tensors), dim


def _slice_of_tokens(parts: tuple[Any, ...]) -> slice | None:
    """The slice of the third dimension of four where it is all that an index asks for; else None."""
    ellipses = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(ellipses) == 1:
        before = ellipses[0]
        parts = (*parts[:before], *[slice(None)] * (5 - len(parts)), *parts[before + 1 :])
    if len(parts) < 3 or not all(isinstance(part, slice) for part in parts):
        return None
    if any(part != slice(None) for part in (*parts[:2], *parts[3:])) or parts[2].step not in (None, 1):
        return None
    tokens: slice = parts[2]
    return tokens
