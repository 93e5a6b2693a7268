"""Seeing the effect of factors: values as they would read back from a quantized cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from amct_pytorch._cache_watch import CacheWatch, copies_of_heads, stored_channels
from amct_pytorch._formats import grid_of, rounded
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

    def hook_for(layer_factors: KVFactors, part: ChannelSlice | None) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            if part is not None:
                return part.replaced(output, fake_quantize(part.of(output), layer_factors))
            stored = fake_quantize(channels_last(module, output), layer_factors)
            return channels_last(module, stored)  # which turns it back

        return hook

    with contextlib.ExitStack() as stack:
        if tap == "cache":
            for attention, layers in _by_attention(factors, known).items():
                stack.callback(_quantize_at_cache(model, attention, layers).remove)
            yield model
            return
        for name, layer_factors in factors.items():
            part = parts.get(name)
            module = modules[name if part is None else part.module]
            hook = hook_for(layer_factors, None if part is None else part.slice)
            stack.callback(module.register_forward_hook(hook).remove)
        yield model


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
    model: torch.nn.Module, attention: str, layers: Mapping[str, tuple[KVFactors, KVLayer]]
) -> CacheWatch:
    projections = {role: model.get_submodule(layer.module) for role, (_, layer) in layers.items()}

    def rounded(role: str, states: torch.Tensor) -> torch.Tensor:
        if role not in layers:
            return states
        factors, layer = layers[role]
        channels = stored_channels(projections[role], layer.slice)
        return fake_quantize_states(states, factors, layer.name, channels)

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
