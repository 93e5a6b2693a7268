"""Transformers caches that quantize by a record what is stored in them. Needs transformers."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache

from amct_pytorch._cache_watch import is_latent, stored_channels
from amct_pytorch._checks import require_tokens
from amct_pytorch._log import logger
from amct_pytorch._rotary import rotary_embeddings
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.fake_quant import fake_quantize_states, load_factors, refuse_foreign
from amct_pytorch.record import KVFactors

Record = str | os.PathLike[str] | Mapping[str, KVFactors]

# Models that it was said of that factors of their keys are from elsewhere. A cache is made for each text.
_told: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class StoredLayer:
    """A layer whose states a cache quantizes.

    Attributes
    ----------
    name : str
        The layer.
    factors : KVFactors
        Its factors.
    channels : int or None
        The channels that it has, where they are known.
    """

    name: str
    factors: KVFactors
    channels: int | None


# What the two arguments of a cache's update are quantized by; None: they stay as they are.
StoredPair = tuple[StoredLayer | None, StoredLayer | None]


def stored_layers(
    record: Record, model: torch.nn.Module, missing: Literal["error", "keep"] = "error"
) -> dict[int, StoredPair]:
    """Match a record with the layers of a model's cache.

    Parameters
    ----------
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave.
    model : torch.nn.Module
        A decoder.
    missing : {'error', 'keep'}
        What layers are that the record does not name: an error, or left as they are.

    Returns
    -------
    dict of int to pair of StoredLayer
        By the index that an attention module has in the cache, what its update is called with: keys and
        values, or the latent and the keys' rotary part.

    Raises
    ------
    ValueError
        The record lacks a layer of the model, or has one that the model does not. The model has no such
        layers, or several attention modules for one index of the cache, as encoder-decoder models do. An
        unknown `missing`.
    """
    if missing not in ("error", "keep"):
        raise ValueError(f"missing must be 'error' or 'keep', not {missing!r}")
    factors = load_factors(record)
    layers = find_kv_layers(model)
    if not layers:
        raise ValueError(f"no key or value projection was found in {type(model).__name__}")
    unknown = [layer.name for layer in layers if layer.name not in factors]
    if unknown and missing == "error":
        raise ValueError(
            f"the record has no factors for {len(unknown)} layers of {type(model).__name__}, the first "
            f"'{unknown[0]}'; calibrate this model"
        )
    refuse_foreign(record, factors, model, layers)
    modules = dict(model.named_modules(remove_duplicate=False))

    def stored(layer: KVLayer) -> StoredLayer | None:
        if layer.name not in factors:
            return None
        channels = stored_channels(modules[layer.module], layer.slice)
        return StoredLayer(layer.name, factors[layer.name], channels)

    result: dict[int, StoredPair] = {}
    owners: dict[int, str] = {}
    for ordinal, (key, value) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        attention = modules[key.attention]
        # Hybrid models number layers that cache nothing, too.
        index = getattr(attention, "layer_idx", None)
        index = index if isinstance(index, int) else ordinal
        if index in owners:
            raise ValueError(
                f"'{owners[index]}' and '{key.attention}' of {type(model).__name__} are one layer of a cache "
                "each, of two caches; use fake_quantized(model, record, tap='cache')"
            )
        owners[index] = key.attention
        pair = stored(key), stored(value)
        result[index] = pair[::-1] if is_latent(attention) else pair
    _warn_of_keys_before_rotary([layer.name for layer in layers[::2]], factors, model)
    return result


def _warn_of_keys_before_rotary(
    keys: list[str], factors: Mapping[str, KVFactors], model: torch.nn.Module
) -> None:
    """Say once of a model that factors of its keys are not of what its cache holds."""
    before = [name for name in keys if name in factors and factors[name].tap == "linear"]
    if before and model not in _told and any(True for _ in rotary_embeddings(model)):
        _told.add(model)
        logger.warning(
            "keys of %d layers were calibrated at tap 'linear', before rotary embedding, and the cache holds "
            "them after it, the first '%s'; calibrate with tap 'cache'",
            len(before),
            before[0],
        )


class RecordedCache(DynamicCache):
    """A `DynamicCache` of a model with the layers of a record."""

    def __init__(
        self,
        record: Record,
        model: torch.nn.Module,
        missing: Literal["error", "keep"],
        sink_tokens: int | None,
    ) -> None:
        if sink_tokens is not None:
            require_tokens("sink_tokens", sink_tokens)
        # Its configuration tells which layers have sliding windows, or a state in place of keys and values.
        options: dict[str, Any] = {}
        if "config" in inspect.signature(DynamicCache.__init__).parameters:
            options["config"] = getattr(model, "config", None)
        super().__init__(**options)
        self._stored = stored_layers(record, model, missing)
        layers = [layer for pair in self._stored.values() for layer in pair if layer is not None]
        recorded = max((layer.factors.sink_tokens for layer in layers), default=0)
        self._sink_tokens = recorded if sink_tokens is None else sink_tokens

    def _sinks_to_come(self, layer_idx: int) -> int:
        """How many of the tokens that a layer stores next are kept as they are."""
        return 0 if self._sink_tokens == 0 else max(self._sink_tokens - self.get_seq_length(layer_idx), 0)


class FakeQuantizedCache(RecordedCache):
    """A `DynamicCache` whose keys and values are fake-quantized by a record as they are stored.

    This is where a runtime quantizes: after rotary embedding, whatever the factors were taken from. Use
    it as ``model(tokens, past_key_values=FakeQuantizedCache("record.txt", model))``. It takes the memory of a
    `DynamicCache`; `StaticQuantizedCache` stores codes.

    Parameters
    ----------
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave, with a key and a value layer for every attention
        layer of the model.
    model : torch.nn.Module
        A decoder whose key and value projections `find_kv_layers` finds in layer order.
    sink_tokens : int, optional
        First tokens of each sequence that stay as they are; without it what the record was calibrated for.
    missing : {'error', 'keep'}
        What layers are that the record does not name: an error, or stored as they are.

    Raises
    ------
    ValueError
        The record lacks a layer of the model, or has one that the model does not: it is the record of
        another model, or not complete. Or the model has no such layers, or caches beside this one. A negative
        `sink_tokens`.
    TypeError
        `sink_tokens` is no int.
    """

    def __init__(
        self,
        record: Record,
        model: torch.nn.Module,
        *,
        sink_tokens: int | None = None,
        missing: Literal["error", "keep"] = "error",
    ) -> None:
        super().__init__(record, model, missing, sink_tokens)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fake-quantize keys and values ``[batch, heads, tokens, head_dim]``, then store them."""
        of_keys, of_values = self._stored[layer_idx]
        exact = self._sinks_to_come(layer_idx)
        keys, values = _rounded(key_states, of_keys, exact), _rounded(value_states, of_values, exact)
        return super().update(keys, values, layer_idx, *args, **kwargs)


def _rounded(states: torch.Tensor, layer: StoredLayer | None, exact: int) -> torch.Tensor:
    """States as they are read back, but for the first `exact` tokens."""
    if layer is None:
        return states
    stored = fake_quantize_states(states, layer.factors, layer.name, layer.channels)
    return stored if exact == 0 else torch.cat([states[:, :, :exact], stored[:, :, exact:]], dim=2)
