"""Seeing the effect of factors: values as they would read back from a quantized cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from amct_pytorch._cache_watch import CacheWatch, copies_of_heads, stored_channels
from amct_pytorch._formats import grid_of, rounded
from amct_pytorch._padding import Padding
from amct_pytorch._place import Place
from amct_pytorch._projection import ChannelSlice, channels_last
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.record import KVFactors, read_record


def fake_quantize(x: torch.Tensor, factors: KVFactors) -> torch.Tensor:
    """Round a tensor to what quantized storage would give back.

    Parameters
    ----------
    x : torch.Tensor
        Floating point, any shape; the last dimension is the channel.
    factors : KVFactors
        Per tensor (one pair), per channel (as many pairs as `x` has channels), or per head.

    Returns
    -------
    torch.Tensor
        ``(clamp(round(x / scale) + offset, qmin, qmax) - offset) * scale`` with the codes of the factors'
        number format (-128 and 127 for INT8), or the nearest value of a float format to ``x / scale``, times
        `scale`; computed in float32. The shape, dtype and device of `x`.

    Raises
    ------
    ValueError
        The number of factors fits neither.
    """
    count, channels = factors.scale.numel(), x.shape[-1]
    if count not in (1, channels) and not (factors.per_head and channels % count == 0):
        raise ValueError(f"{count} scales do not fit a tensor of {channels} channels")
    scale = factors.scale.to(x.device)
    offset = factors.offset.to(x.device)
    if factors.per_head:
        scale, offset = (part.repeat_interleave(channels // count) for part in (scale, offset))
    return rounded(x.float(), scale, offset, grid_of(factors.dst_type)).to(x.dtype)


def fake_quantize_states(
    states: torch.Tensor, factors: KVFactors, name: str, channels: int | None
) -> torch.Tensor:
    """Round what goes into a cache.

    Parameters
    ----------
    states : torch.Tensor
        ``[batch, heads, tokens, head_dim]``.
    factors : KVFactors
        Per tensor, or per channel of the layer.
    name : str
        The layer they are of.
    channels : int or None
        The channels that it has, see `stored_channels`.

    Returns
    -------
    torch.Tensor
        See `fake_quantize`.

    Raises
    ------
    ValueError
        The number of factors does not fit.
    RuntimeError
        The states are not those of the layer.
    """
    copies = copies_of_heads(states, name, channels)
    tokens_first = states[:, ::copies].transpose(1, 2)
    stored = fake_quantize(tokens_first.flatten(2), factors).view(tokens_first.shape).transpose(1, 2)
    return stored if copies == 1 else stored.repeat_interleave(copies, dim=1)


def load_factors(record: str | os.PathLike[str] | Mapping[str, KVFactors]) -> Mapping[str, KVFactors]:
    """The factors in a record file; a mapping is passed through."""
    return record if isinstance(record, Mapping) else read_record(record)


def refuse_foreign(
    record: Any, factors: Mapping[str, KVFactors], model: torch.nn.Module, layers: Iterable[KVLayer]
) -> None:
    """Raise ValueError where `factors`, read from `record`, name what is no module of the model.

    Nor one of its `layers`, as parts of fused projections are.
    """
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    known |= {layer.name for layer in layers}
    foreign = [name for name in factors if name not in known]
    if foreign:
        source = "the record" if isinstance(record, Mapping) else f"record '{os.fspath(record)}'"
        raise ValueError(
            f"{source} is of another model: {type(model).__name__} has no layer '{foreign[0]}'"
            + (f" (nor {len(foreign) - 1} others)" if len(foreign) > 1 else "")
        )


@contextlib.contextmanager
def fake_quantized(
    model: torch.nn.Module,
    record: str | os.PathLike[str] | Mapping[str, KVFactors],
    *,
    tap: str = "linear",
) -> Iterator[torch.nn.Module]:
    """Run a model with its recorded layers fake-quantized.

    First tokens of sequences that the record's calibration left out (``sink_tokens``) stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        A model that has every layer of the record.
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave.
    tap : {'linear', 'cache'}
        What is rounded: the outputs of the projections, or what goes into the cache, as most runtimes do.
        For 'cache' the model is called with ``use_cache=True``.

    Yields
    ------
    torch.nn.Module
        `model`; as it was again when the context ends.

    Raises
    ------
    ValueError
        The record names a layer that the model does not have: it is the record of another model. An unknown
        tap, or tap 'cache' and a layer that is not found to be a key or value layer.
    RuntimeError
        From the model's forward at tap 'cache': it was called without a cache.

    Examples
    --------
    >>> with amct.fake_quantized(model, "record.txt"):
    ...     logits = model(tokens).logits  # doctest: +SKIP
    """
    factors = load_factors(record)
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {layer.name: layer for layer in find_kv_layers(model)}
    refuse_foreign(record, factors, model, known.values())
    if tap not in ("linear", "cache"):
        raise ValueError(f"tap must be 'linear' or 'cache', not {tap!r}")
    parts = {name: layer for name, layer in known.items() if layer.slice is not None}

    def hook_for(name: str, layer_factors: KVFactors, part: ChannelSlice | None, sinks: _Sinks) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            x = channels_last(module, output) if part is None else part.of(output)
            stored = sinks.kept(name, layer_factors, x, fake_quantize(x, layer_factors))
            # channels_last turns it back.
            return channels_last(module, stored) if part is None else part.replaced(output, stored)

        return hook

    with contextlib.ExitStack() as stack:
        sinks = _Sinks(model, factors)
        stack.callback(sinks.remove)
        if tap == "cache":
            for attention, layers in _by_attention(factors, known).items():
                stack.callback(_quantize_at_cache(model, attention, layers, sinks).remove)
            yield model
            return
        for name, layer_factors in factors.items():
            part = parts.get(name)
            module = modules[name if part is None else part.module]
            hook = hook_for(name, layer_factors, None if part is None else part.slice, sinks)
            stack.callback(module.register_forward_hook(hook).remove)
        yield model


class _Sinks:
    """Keeps the first tokens of sequences, where the factors are not for them."""

    def __init__(self, model: torch.nn.Module, factors: Mapping[str, KVFactors]) -> None:
        has_some = any(of_one.sink_tokens > 0 for of_one in factors.values())
        self._padding = Padding(model) if has_some else None

    def remove(self) -> None:
        """Leave the model alone."""
        if self._padding is not None:
            self._padding.remove()

    def kept(self, name: str, factors: KVFactors, x: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """`stored` with the first tokens of `x`, both ``[batch, tokens, ...]``; padding is as it was, too."""
        if self._padding is None or factors.sink_tokens == 0 or x.dim() < 3:
            return stored
        place = Place(name, "linear", None, None, None, factors.sink_tokens)
        rows = self._padding.rows_of(place, x)
        if rows is None:
            return stored
        result = x.flatten(0, 1).clone()
        result[rows] = stored.flatten(0, 1)[rows]
        return result.view(x.shape)


def _by_attention(
    factors: Mapping[str, KVFactors], known: Mapping[str, KVLayer]
) -> dict[str, dict[str, tuple[KVFactors, KVLayer]]]:
    """The layers of each attention module by role, with their factors."""
    result: dict[str, dict[str, tuple[KVFactors, KVLayer]]] = {}
    for name, layer_factors in factors.items():
        if name not in known:
            raise ValueError(f"layer '{name}' is not found to be a key or value layer; use tap 'linear'")
        layer = known[name]
        result.setdefault(layer.attention, {})[layer.role] = layer_factors, layer
    return result


def _quantize_at_cache(
    model: torch.nn.Module,
    attention: str,
    layers: Mapping[str, tuple[KVFactors, KVLayer]],
    sinks: _Sinks,
) -> CacheWatch:
    projections = {role: model.get_submodule(layer.module) for role, (_, layer) in layers.items()}

    def rounded(role: str, states: torch.Tensor) -> torch.Tensor:
        if role not in layers:
            return states
        factors, layer = layers[role]
        channels = stored_channels(projections[role], layer.slice)
        stored = fake_quantize_states(states, factors, layer.name, channels)
        by_token = (part.transpose(1, 2) for part in (states, stored))
        return sinks.kept(layer.name, factors, *by_token).transpose(1, 2)

    def check(had_cache: bool) -> None:
        if not had_cache:
            raise RuntimeError(
                f"attention '{attention}' was called without a cache, so nothing is rounded at tap 'cache': "
                "call the model with use_cache=True, or use tap 'linear'"
            )

    return CacheWatch(
        model.get_submodule(attention),
        lambda keys, values: (rounded("key", keys), rounded("value", values)),
        on_end=check,
    )
