"""Turning cached keys to other positions, as the model's own rotary embedding would have.

A key is calibrated at the position it came at. In channels that turn slowly, other positions have values that
calibration never saw. So each key is also counted at positions spread over all that the model is made for.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from amct_pytorch._graphs import outside_graphs

# Positions that each key is turned to. Neighbouring tokens go to different ones, so that a few hundred tokens
# reach them all.
TURNS = 16
_POSITIONS = "position_ids"
_GOLDEN = 0.6180339887498949
# Keys rounded to bfloat16 differ by less from keys turned in float32; keys turned in a wrong way by more.
_TOLERANCE = 0.03

Pairs = Literal["halves", "neighbours"]
Angles = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, [..., pairs], float32


@dataclass(frozen=True)
class Layout:
    """Which channels of a head are turned together: the first `channels` of it, in pairs."""

    pairs: Pairs
    channels: int

    def turn(self, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Turn keys ``[rows, heads, head_dim]`` by angles ``[rows, pairs]``; float32."""
        turned, rest = keys[..., : self.channels].float(), keys[..., self.channels :].float()
        cos, sin = cos[:, None], sin[:, None]
        if self.pairs == "halves":
            a, b = turned.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
        a, b = turned[..., ::2], turned[..., 1::2]
        return torch.cat(
            (torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2), rest), dim=-1
        )


class RotaryCall:
    """One call of a model's rotary embedding: where its tokens are, and what it would give elsewhere."""

    def __init__(self, module: torch.nn.Module, arguments: dict[str, Any], output: Any) -> None:
        self._module = module
        # The hidden states tell it dtype and device alone, and should not be kept.
        self._arguments = {
            name: value.new_empty(1) if isinstance(value, torch.Tensor) and name != _POSITIONS else value
            for name, value in arguments.items()
        }
        self.output = output
        self._offsets: dict[tuple[int, int], list[Angles]] = {}

    def gave(self, embeddings: Any) -> bool:
        """Whether the embeddings that an attention module was given are from this call."""
        mine, theirs = _parts(self.output), _parts(embeddings)
        if not mine or len(mine) != len(theirs):
            return False
        if all(a is b for a, b in zip(mine, theirs, strict=True)):
            return True
        # Offloading hands copies on.
        return all(a.shape == b.shape and a.cpu().equal(b.cpu()) for a, b in zip(mine, theirs, strict=True))

    def angles(self) -> Angles | None:
        """Cosine and sine of the call itself, ``[batch or 1, tokens, pairs]``."""
        return half_angles(self.output)

    def offsets(self, batch: int, max_position: int) -> Iterator[Angles]:
        """Angles that turn the call's tokens to other positions, ``[batch * tokens, pairs]`` each.

        The angles divide by the scale of the embedding here and multiply by that there (YaRN has one).
        """
        key = (batch, max_position)
        if key not in self._offsets:
            self._offsets[key] = list(self._compute_offsets(batch, max_position))
        yield from self._offsets[key]

    def _compute_offsets(self, batch: int, max_position: int) -> Iterator[Angles]:
        positions: torch.Tensor = self._arguments[_POSITIONS]
        here = half_angles(self.output)
        assert here is not None
        cos, sin = (_rows(part, batch) for part in here)
        scale = cos.square() + sin.square()
        text = positions.reshape(-1, *positions.shape[-2:])[0]  # of several dimensions of space: the first
        text = text.expand(batch, -1).reshape(-1)
        # What depends on the longest position (dynamic NTK) must not see this batch alone, nor change.
        rotary = _copy_without_hooks(self._module)
        for turn in range(TURNS):
            there = turned_positions(text, turn, max_position)
            there = torch.cat((there, there.new_tensor([max_position - 1])))
            where = there.expand(*positions.shape[:-2], 1, -1).to(positions.dtype)
            other = half_angles(rotary(**{**self._arguments, _POSITIONS: where}))
            assert other is not None
            cos_there, sin_there = (_rows(part, 1)[:-1] for part in other)
            yield (
                (cos_there * cos + sin_there * sin) / scale,
                (sin_there * cos - cos_there * sin) / scale,
            )


def turned_positions(positions: torch.Tensor, turn: int, max_position: int) -> torch.Tensor:
    """Where the keys at some positions are turned to in turn `turn` of TURNS.

    The positions up to `max_position` are cut into as many parts as there are turns; in the part of this turn
    the place depends on where the key is alone, and spreads evenly for keys in a row.
    """
    part = max_position / TURNS
    return ((turn + (positions.double() * _GOLDEN).frac()) * part).long()


def rotary_embeddings(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules of a model that are rotary embeddings, as they are called in transformers."""
    return (module for module in model.modules() if "rotary" in type(module).__name__.lower())


class RotaryCalls:
    """Watches the rotary embeddings of a model: its calls in the forward that runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._last = _LastCalls()
        self._hooks = [
            module.register_forward_hook(outside_graphs(self._note), with_kwargs=True)
            for module in rotary_embeddings(model)
            if _POSITIONS in inspect.signature(module.forward).parameters
        ]

    def __bool__(self) -> bool:
        """Whether the model has any."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._last.calls.clear()

    def find(self, embeddings: Any) -> RotaryCall | None:
        """The call that gave these embeddings."""
        return next((call for call in self._last.calls.values() if call.gave(embeddings)), None)

    def _note(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        kinds = tuple(value for value in arguments.values() if isinstance(value, (str, int)))
        key = (id(module), *kinds)
        self._last.calls[key] = RotaryCall(module, arguments, output)


class _LastCalls(threading.local):
    """The last call of each module, and of each type of layer that it is called for, in this thread."""

    def __init__(self) -> None:
        self.calls: dict[tuple[Any, ...], RotaryCall] = {}


def find_layout(before: Iterable[torch.Tensor], keys: torch.Tensor, angles: Angles | None) -> Layout | None:
    """Find how a model turns its keys, by turning what they were before.

    Parameters
    ----------
    before : iterable of torch.Tensor
        What may be the keys before rotary embedding: outputs of the key projection and of norms after it.
    keys : torch.Tensor
        The keys in the cache, ``[batch, tokens, heads, head_dim]``.
    angles : tuple of torch.Tensor or None
        Cosine and sine, ``[batch or 1, tokens, pairs]``; None where they are not known.

    Returns
    -------
    Layout or None
        With 0 channels where the model does not turn these keys. None where no known way gives `keys`.

    Raises
    ------
    LookupError
        Several ways give `keys`, as they do for tokens at position 0; or no token's keys are all finite.
    """
    batch, head_dim = keys.shape[0], keys.shape[-1]
    # What is not finite equals nothing, and must not make all ways look the same.
    finite = keys.detach().isfinite().flatten(2).all(dim=-1).flatten().nonzero().flatten()
    if len(finite) == 0:
        raise LookupError

    def tokens_of(part: torch.Tensor) -> torch.Tensor:
        return part.float() if len(finite) == len(part) else part.float().index_select(0, finite)

    stored = _unit(tokens_of(keys.flatten(0, 1)))
    rows = [
        tokens_of(part) for part in (_heads_last(part, keys.shape) for part in before) if part is not None
    ]

    def error_of(turned: torch.Tensor) -> float:
        # Compared by direction: some models normalize keys afterwards.
        error = float(((_unit(turned) - stored).norm() / stored.norm()).detach())
        return error if math.isfinite(error) else math.inf

    errors = {Layout("halves", 0): min(map(error_of, rows), default=torch.inf)}
    if angles is not None and 2 * angles[0].shape[-1] <= head_dim:
        cos, sin = (tokens_of(_rows(part, batch)) for part in angles)
        channels = 2 * cos.shape[-1]
        halves, neighbours = Layout("halves", channels), Layout("neighbours", channels)
        # Neighbours may be sorted into halves on the way (DeepSeek).
        starts = [*rows, *(_sorted(part, channels) for part in rows)]
        errors[halves] = min((error_of(halves.turn(part, cos, sin)) for part in starts), default=torch.inf)
        if channels > 2:  # else they are the same
            errors[neighbours] = min(
                (error_of(neighbours.turn(part, cos, sin)) for part in rows), default=torch.inf
            )
    best, *others = sorted(errors, key=errors.__getitem__)
    if errors[best] > _TOLERANCE:
        return None
    # Rounding differs from way to way, so the next one must be clearly worse.
    if others and errors[others[0]] <= 2 * errors[best] + 1e-6:
        raise LookupError
    return best


def half_angles(embeddings: Any) -> Angles | None:
    """Cosine and sine of each pair once, ``[..., pairs]``, in float32, of what a rotary embedding gave."""
    parts = _parts(embeddings)
    if len(parts) == 1 and parts[0].is_complex():
        return parts[0].real.float(), parts[0].imag.float()
    if len(parts) != 2 or parts[0].shape != parts[1].shape:
        return None
    cos, sin = (part.float() for part in parts)
    half = cos.shape[-1] // 2
    if (
        cos.shape[-1] % 2 == 0
        and cos[..., :half].equal(cos[..., half:])
        and sin[..., :half].equal(sin[..., half:])
    ):
        return cos[..., :half], sin[..., :half]
    if cos.shape[-1] % 2 == 0 and cos[..., ::2].equal(cos[..., 1::2]) and sin[..., ::2].equal(sin[..., 1::2]):
        return cos[..., ::2], sin[..., ::2]
    return cos, sin


def _copy_without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that nobody watches; hooks would be copied with all that they hold.

    The module keeps its own meanwhile: forwards of other threads run through it.
    """
    hooks = module._forward_hooks
    return copy.deepcopy(module, {id(hooks): type(hooks)()})


def _parts(embeddings: Any) -> list[torch.Tensor]:
    if isinstance(embeddings, torch.Tensor):
        return [embeddings]
    if isinstance(embeddings, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in embeddings):
        return list(embeddings)
    return []


def _rows(part: torch.Tensor, batch: int) -> torch.Tensor:
    """``[batch or 1, tokens, pairs]`` as ``[batch * tokens, pairs]``."""
    return part.reshape(-1, *part.shape[-2:]).expand(batch, -1, -1).flatten(0, 1)


def _heads_last(candidate: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """What may be keys as ``[batch * tokens, heads, head_dim]``, or None where it has other sizes."""
    batch, tokens, heads, head_dim = shape
    if candidate.shape == (batch, heads, tokens, head_dim) and heads != tokens:
        candidate = candidate.transpose(1, 2)
    if candidate.numel() != batch * tokens * heads * head_dim or candidate.shape[:2] != (batch, tokens):
        return None
    return candidate.reshape(batch * tokens, heads, head_dim)


def _sorted(keys: torch.Tensor, channels: int) -> torch.Tensor:
    """Keys with the first `channels` in halves that were in neighbouring pairs."""
    return torch.cat((keys[..., :channels:2], keys[..., 1:channels:2], keys[..., channels:]), dim=-1)


def _unit(keys: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(keys, dim=-1)
