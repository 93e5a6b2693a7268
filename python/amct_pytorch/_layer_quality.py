"""What quantizing a cache does to each layer and head."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from amct_pytorch._cache_watch import CacheWatch, copies_of_heads, stored_channels
from amct_pytorch._formats import grid_of
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.fake_quant import fake_quantize
from amct_pytorch.record import KVFactors

# Names of the projection that follows attention, which sees the heads' outputs side by side.
_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "o", "wo")


@dataclass(frozen=True)
class LayerQuality:
    """What a layer, or one head of it, loses.

    Attributes
    ----------
    layer : str
        The key or value layer; of `attention_error` the attention module.
    head : int or None
        The head, from 0: of the cache for keys and values, of the queries for attention; None for all.
    sqnr_db : float or None
        Signal to quantization noise ratio of what is stored, in dB.
    max_error : float or None
        Largest difference of a stored value and what is read back.
    clipped_fraction : float or None
        Share of stored values beyond the grid, 0 to 1.
    attention_error : float or None
        Error of the attention module's output (of one head: of what the output projection gets of it), as a
        share of its root mean square: what the layers before it did included.
    """

    layer: str
    head: int | None
    sqnr_db: float | None = None
    max_error: float | None = None
    clipped_fraction: float | None = None
    attention_error: float | None = None


class _Sums:
    """Sums over values, one a head."""

    def __init__(self) -> None:
        self.signal: torch.Tensor | float = 0.0
        self.noise: torch.Tensor | float = 0.0
        self.clipped: torch.Tensor | float = 0.0
        self.largest: torch.Tensor | None = None
        self.count = 0  # values of a head

    def add(self, full: torch.Tensor, found: torch.Tensor, clipped: torch.Tensor | None = None) -> None:
        """Add values ``[rows, heads, channels]``."""
        difference = found.double() - full.double()
        self.signal = self.signal + full.double().square().sum((0, 2))
        self.noise = self.noise + difference.square().sum((0, 2))
        largest = difference.abs().amax((0, 2))
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if clipped is not None:
            self.clipped = self.clipped + clipped.double().sum((0, 2))
        self.count += full.shape[0] * full.shape[2]


class LayerProbe:
    """Looks at the layers of a model while it runs, in full precision and quantized.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder.
    factors : mapping of str to KVFactors
        A record of it.
    sink_tokens : int or None
        First tokens of a window that are stored as they are; None: as many as the record says.
    """

    def __init__(
        self, model: torch.nn.Module, factors: Mapping[str, KVFactors], sink_tokens: int | None = None
    ) -> None:
        self._model = model
        self._factors = factors
        recorded = max((of_one.sink_tokens for of_one in factors.values()), default=0)
        self._sink_tokens = recorded if sink_tokens is None else sink_tokens
        self._layers = find_kv_layers(model)
        self._stored: dict[str, _Sums] = {}
        self._attention: dict[str, _Sums] = {}
        self._heads: dict[str, _Sums] = {}

    @contextlib.contextmanager
    def full_precision(self) -> Iterator[_Seen]:
        """Notes what a forward in full precision stores and gives out."""
        seen = _Seen()
        with contextlib.ExitStack() as stack:
            for attention, roles in self._by_attention().items():
                module = self._model.get_submodule(attention)

                def note(
                    keys: torch.Tensor, values: torch.Tensor, roles: dict[str, KVLayer] = roles
                ) -> tuple[torch.Tensor, torch.Tensor]:
                    for role, states in (("key", keys), ("value", values)):
                        if role in roles:
                            seen.states.add(roles[role].name, states)
                    return keys, values

                stack.callback(CacheWatch(module, note).remove)
            self._watch_outputs(stack, seen.outputs, seen.heads)
            yield seen

    @contextlib.contextmanager
    def quantized(self, seen: _Seen) -> Iterator[None]:
        """Compares a forward with the quantized cache to the one in full precision."""
        outputs, heads = _Parts(), _Parts()
        with contextlib.ExitStack() as stack:
            self._watch_outputs(stack, outputs, heads)
            yield
        for name, states in seen.states.whole():
            if name in self._factors:
                self._add_stored(name, states)
        full_outputs, full_heads = dict(seen.outputs.whole()), dict(seen.heads.whole())
        for name, output in outputs.whole():
            rows = [tensor.flatten(0, -2).unsqueeze(1) for tensor in (full_outputs[name], output)]
            self._attention.setdefault(name, _Sums()).add(*rows)
        for name, inputs in heads.whole():
            count = self._query_heads(name)
            if count is None or inputs.shape[-1] % count != 0:
                continue
            split = [
                tensor.reshape(-1, count, tensor.shape[-1] // count) for tensor in (full_heads[name], inputs)
            ]
            self._heads.setdefault(name, _Sums()).add(*split)

    def result(self) -> list[LayerQuality]:
        """By layer: the whole, then its heads; keys and values, then attention modules."""
        found: list[LayerQuality] = []
        for name, sums in self._stored.items():
            found.append(_of_stored(name, None, _total(sums), sums.count * _heads_of(sums)))
            found.extend(
                _of_stored(name, head, _part(sums, head), sums.count) for head in range(_heads_of(sums))
            )
        for name, sums in self._attention.items():
            found.append(LayerQuality(name, None, attention_error=_relative(*_total(sums)[:2])))
            for head in range(_heads_of(self._heads[name]) if name in self._heads else 0):
                signal, noise, *_ = _part(self._heads[name], head)
                found.append(LayerQuality(name, head, attention_error=_relative(signal, noise)))
        return found

    def _add_stored(self, name: str, states: torch.Tensor) -> None:
        layer = next(layer for layer in self._layers if layer.name == name)
        channels = stored_channels(self._model.get_submodule(layer.module), layer.slice)
        copies = copies_of_heads(states, name, channels)
        coded = states[:, ::copies, self._sink_tokens :]
        if coded.numel() == 0:
            return
        tokens_first = coded.transpose(1, 2)  # [batch, tokens, heads, head_dim]
        rows, factors = tokens_first.flatten(0, 1), self._factors[name]
        flat = rows.flatten(1)
        stored = fake_quantize(flat.float(), factors).view(rows.shape)
        clipped = clips(flat.float(), factors).view(rows.shape)
        self._stored.setdefault(name, _Sums()).add(rows, stored, clipped)

    def _by_attention(self) -> dict[str, dict[str, KVLayer]]:
        result: dict[str, dict[str, KVLayer]] = {}
        for layer in self._layers:
            result.setdefault(layer.attention, {})[layer.role] = layer
        return result

    def _query_heads(self, attention: str) -> int | None:
        module = self._model.get_submodule(attention)
        for owner in (module, getattr(module, "config", None), getattr(self._model, "config", None)):
            for name in ("num_attention_heads", "num_heads", "n_head"):
                number = getattr(owner, name, None)
                if isinstance(number, int):
                    return number
        return None

    def _watch_outputs(self, stack: contextlib.ExitStack, outputs: _Parts, heads: _Parts) -> None:
        for attention in self._by_attention():
            module = self._model.get_submodule(attention)

            def note_output(_module: Any, _args: Any, output: Any, name: str = attention) -> None:
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, torch.Tensor):
                    outputs.add(name, first)

            stack.callback(module.register_forward_hook(note_output).remove)
            projection = next(
                (child for name, child in module.named_children() if name in _OUTPUT_PROJECTIONS), None
            )
            if projection is None:
                continue

            def note_heads(_module: Any, args: Any, name: str = attention) -> None:
                if args and isinstance(args[0], torch.Tensor):
                    heads.add(name, args[0])

            stack.callback(projection.register_forward_pre_hook(note_heads).remove)


class _Parts:
    """Tensors ``[..., tokens, channels]`` by name, in as many parts as a window goes through the model in."""

    def __init__(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, part: torch.Tensor) -> None:
        """Add the next tokens."""
        self._parts.setdefault(name, []).append(part)

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parts of each name, joined."""
        for name, parts in self._parts.items():
            yield name, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


class _Seen:
    """What a forward in full precision stored and gave out, by name."""

    def __init__(self) -> None:
        self.states, self.outputs, self.heads = _Parts(), _Parts(), _Parts()


def clips(x: torch.Tensor, factors: KVFactors) -> torch.Tensor:
    """Which values lie outside of the grid, by more than rounding.

    Parameters
    ----------
    x : torch.Tensor
        float32; the last dimension is the channel.
    factors : KVFactors
        They must fit `x`.

    Returns
    -------
    torch.Tensor
        bool, the shape of `x`.
    """
    grid = grid_of(factors.dst_type)
    scale, offset = factors.scale.to(x.device), factors.offset.to(x.device)
    if factors.per_head:
        repeats = x.shape[-1] // scale.numel()
        scale, offset = scale.repeat_interleave(repeats), offset.repeat_interleave(repeats)
    if grid.is_float:
        before, last = grid.magnitudes[-2:]
        return (x / scale).abs() > last + (last - before) / 2
    codes = torch.round(x / scale) + offset
    return (codes < grid.qmin) | (codes > grid.qmax)


def _heads_of(sums: _Sums) -> int:
    assert isinstance(sums.signal, torch.Tensor)
    return sums.signal.numel()


def _part(sums: _Sums, head: int) -> tuple[float, float, float, float]:
    """Signal, noise, clipped values and largest error of one head."""
    parts = (sums.signal, sums.noise, sums.clipped, sums.largest)
    return tuple(float(part[head]) if isinstance(part, torch.Tensor) else 0.0 for part in parts)  # type: ignore[return-value]


def _total(sums: _Sums) -> tuple[float, float, float, float]:
    assert sums.largest is not None
    totals = [float(torch.as_tensor(part).sum()) for part in (sums.signal, sums.noise, sums.clipped)]
    return totals[0], totals[1], totals[2], float(sums.largest.max())


def _of_stored(
    name: str, head: int | None, sums: tuple[float, float, float, float], count: int
) -> LayerQuality:
    signal, noise, clipped, largest = sums
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    return LayerQuality(name, head, sqnr, largest, clipped / count)


def _relative(signal: float, noise: float) -> float:
    if signal == 0:
        return 0.0 if noise == 0 else math.inf
    return math.sqrt(noise / signal)
