"""Seeing the effect of factors: values as they would read back from an INT8 cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from amct_pytorch._projection import ChannelSlice, channels_last
from amct_pytorch.discovery import find_kv_layers
from amct_pytorch.record import KVFactors, read_record


def fake_quantize(x: torch.Tensor, factors: KVFactors) -> torch.Tensor:
    """Round a tensor to what INT8 storage would give back.

    Parameters
    ----------
    x : torch.Tensor
        Floating point, any shape; the last dimension is the channel.
    factors : KVFactors
        Per tensor (one pair) or per channel (as many pairs as `x` has channels).

    Returns
    -------
    torch.Tensor
        ``(clamp(round(x / scale) + offset, -128, 127) - offset) * scale``, computed in float32; the
        shape, dtype and device of `x`.

    Raises
    ------
    ValueError
        The number of factors fits neither.
    """
    if factors.scale.numel() not in (1, x.shape[-1]):
        raise ValueError(f"{factors.scale.numel()} scales do not fit a tensor of {x.shape[-1]} channels")
    scale = factors.scale.to(x.device)
    offset = factors.offset.to(x.device)
    codes = torch.clamp(torch.round(x.float() / scale) + offset, -128, 127)
    return ((codes - offset) * scale).to(x.dtype)


def load_factors(record: str | os.PathLike[str] | Mapping[str, KVFactors]) -> Mapping[str, KVFactors]:
    """The factors in a record file; a mapping is passed through."""
    return record if isinstance(record, Mapping) else read_record(record)


def refuse_foreign(record: Any, factors: Mapping[str, KVFactors], model: torch.nn.Module) -> None:
    """Raise ValueError where `factors`, read from `record`, name a layer that the model does not have."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    known |= {layer.name for layer in find_kv_layers(model)}
    foreign = [name for name in factors if name not in known]
    if foreign:
        source = "the record" if isinstance(record, Mapping) else f"record '{os.fspath(record)}'"
        raise ValueError(
            f"{source} is of another model: {type(model).__name__} has no layer '{foreign[0]}'"
            + (f" (nor {len(foreign) - 1} others)" if len(foreign) > 1 else "")
        )


@contextlib.contextmanager
def fake_quantized(
    model: torch.nn.Module, record: str | os.PathLike[str] | Mapping[str, KVFactors]
) -> Iterator[torch.nn.Module]:
    """Run a model with the outputs of its recorded layers fake-quantized.

    Parameters
    ----------
    model : torch.nn.Module
        A model that has every layer of the record.
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave.

    Yields
    ------
    torch.nn.Module
        `model`; as it was again when the context ends.

    Raises
    ------
    ValueError
        The record names a layer that the model does not have: it is the record of another model.

    Examples
    --------
    >>> with amct.fake_quantized(model, "record.txt"):
    ...     logits = model(tokens).logits  # doctest: +SKIP
    """
    factors = load_factors(record)
    modules = dict(model.named_modules(remove_duplicate=False))
    refuse_foreign(record, factors, model)
    parts = {layer.name: layer for layer in find_kv_layers(model) if layer.slice is not None}

    def hook_for(layer_factors: KVFactors, part: ChannelSlice | None) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            if part is not None:
                return part.replaced(output, fake_quantize(part.of(output), layer_factors))
            stored = fake_quantize(channels_last(module, output), layer_factors)
            return channels_last(module, stored)  # which turns it back

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer_factors in factors.items():
            part = parts.get(name)
            module = modules[name if part is None else part.module]
            hook = hook_for(layer_factors, None if part is None else part.slice)
            stack.callback(module.register_forward_hook(hook).remove)
        yield model
