"""A transformers cache that stores what an INT8 cache would give back. Needs transformers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache

from amct_pytorch._cache_watch import is_latent
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.fake_quant import fake_quantize_states, load_factors, refuse_foreign
from amct_pytorch.record import KVFactors


class FakeQuantizedCache(DynamicCache):
    """A `DynamicCache` whose keys and values are fake-quantized by a record as they are stored.

    This is where a runtime quantizes: after rotary embedding, whatever the factors were taken from. Use
    it as ``model(tokens, past_key_values=FakeQuantizedCache("record.txt", model))``.

    Parameters
    ----------
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave, with a key and a value layer for every attention
        layer of the model.
    model : torch.nn.Module
        A decoder whose key and value projections `find_kv_layers` finds in layer order.

    Raises
    ------
    ValueError
        The record lacks a layer of the model, or has one that the model does not: it is the record of
        another model, or not complete. Or the model has no such layers.
    """

    def __init__(
        self, record: str | os.PathLike[str] | Mapping[str, KVFactors], model: torch.nn.Module
    ) -> None:
        # Its configuration tells which layers have sliding windows, or a state in place of keys and values.
        options: dict[str, Any] = {}
        if "config" in inspect.signature(DynamicCache.__init__).parameters:
            options["config"] = getattr(model, "config", None)
        super().__init__(**options)
        factors = load_factors(record)
        layers = find_kv_layers(model)
        if not layers:
            raise ValueError(f"no key or value projection was found in {type(model).__name__}")
        missing = [layer.name for layer in layers if layer.name not in factors]
        if missing:
            raise ValueError(
                f"the record has no factors for {len(missing)} layers of {type(model).__name__}, the first "
                f"'{missing[0]}'; calibrate this model"
            )
        refuse_foreign(record, factors, model, layers)
        modules = dict(model.named_modules(remove_duplicate=False))
        self._layers: dict[int, list[tuple[KVFactors, KVLayer, torch.nn.Module]]] = {}
        for ordinal, pair in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            attention = modules[pair[0].attention]
            # Hybrid models number layers that cache nothing, too.
            index = getattr(attention, "layer_idx", None)
            stored = [(factors[layer.name], layer, modules[layer.module]) for layer in pair]
            self._layers[index if isinstance(index, int) else ordinal] = (
                stored[::-1] if is_latent(attention) else stored
            )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fake-quantize keys and values ``[batch, heads, tokens, head_dim]``, then store them."""
        of_keys, of_values = self._layers[layer_idx]
        return super().update(
            fake_quantize_states(key_states, *of_keys),
            fake_quantize_states(value_states, *of_values),
            layer_idx,
            *args,
            **kwargs,
        )
