"""A transformers cache that stores codes with static factors. Needs transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from amct_pytorch._checks import require_tokens
from amct_pytorch._coded_states import CodedStates, StatesCodec
from amct_pytorch._graphs import outside_graphs
from amct_pytorch.kv_cache import Record, RecordedCache, StoredLayer


@dataclass(frozen=True)
class CacheMemory:
    """Memory that the keys and values of a cache take, in bytes.

    Attributes
    ----------
    stored : int
        Codes, and tokens and layers that are kept as they are.
    allocated : int
        The same with the room that is held for tokens to come.
    unquantized : int
        What a `DynamicCache` of the same tokens stores.
    """

    stored: int
    allocated: int
    unquantized: int


class StaticQuantizedCache(RecordedCache):
    """A `DynamicCache` that stores the codes of keys and values, by the factors of a record.

    Codes take a byte an element, those of INT4 half a byte; where a head has an odd number of channels, the
    last one of each token takes a byte. An update stores the codes of the new tokens and returns the tensors
    that all codes stand for, in the type of the states. Attention is computed from these, so a step takes
    their memory for one layer at a time. On the CPU the kernels of the C++ core make and read the codes,
    elsewhere torch's operations do, to the same bits. No gradients flow through it.

    Whatever takes a `DynamicCache` takes it, as `generate` with every way of decoding: greedy, sampling, beam
    search, assisted decoding and prompt lookup, chunks of a prompt, an earlier cache. Each layer is of the
    kind that the model's own cache has, for sliding windows and for the states of hybrid models.
    ``cache.layers[i].keys`` is a `CodedStates` in the place of a tensor: `codes` is a view of its codes,
    ``dequantize()`` the tensor.

    Parameters
    ----------
    record : str or mapping of str to KVFactors
        A record file, or what `read_record` gave; formats and granularities may differ from layer to layer.
    model : torch.nn.Module
        A decoder whose key and value projections `find_kv_layers` finds in layer order.
    sink_tokens : int, optional
        How many tokens of each sequence are stored as they are; without it what the record was calibrated
        for, the most of its layers. They are the first ones, which attention looks at
        whatever they say ("Efficient Streaming Language Models with Attention Sinks", Xiao et al., 2023).
        They are the first that are stored, which are padding where a batch is padded on the left. Where a
        window has slid beyond them they are gone, as they are from the model's own cache.
    recent_tokens : int
        How many tokens of each sequence, up to the last, are stored as they are, and become codes as others
        follow: attention looks most at what is near ("KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV
        Cache", Liu et al., 2024). With it, the tokens of an update see each other, and the recent tokens
        before them, as they are, so that a prompt is read in full precision but for what came before it.
    missing : {'error', 'keep'}
        What layers are that the record does not name: an error, or stored as they are.

    Raises
    ------
    ValueError
        The record lacks a layer of the model, or has one that the model does not: it is the record of
        another model, or not complete. Or the model has no such layers, or caches beside this one. A negative
        `sink_tokens` or `recent_tokens`, an unknown `missing`.
    TypeError
        `sink_tokens` or `recent_tokens` is no int.

    Examples
    --------
    >>> cache = amct.StaticQuantizedCache("record.txt", model)  # doctest: +SKIP
    >>> model.generate(tokens, past_key_values=cache)  # doctest: +SKIP
    >>> cache.memory().unquantized / cache.memory().stored  # doctest: +SKIP
    2.0
    """

    def __init__(
        self,
        record: Record,
        model: torch.nn.Module,
        *,
        sink_tokens: int | None = None,
        recent_tokens: int = 0,
        missing: Literal["error", "keep"] = "error",
    ) -> None:
        require_tokens("recent_tokens", recent_tokens)
        super().__init__(record, model, missing, sink_tokens)
        self._codecs = {
            index: (_codec_of(first, recent_tokens), _codec_of(second, recent_tokens))
            for index, (first, second) in self._stored.items()
        }

    @outside_graphs
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the codes of keys and values ``[batch, heads, tokens, head_dim]``; what all stand for."""
        of_keys, of_values = self._codecs[layer_idx]
        sinks = self._sinks_to_come(layer_idx)
        keys: Any = key_states if of_keys is None else of_keys.coded(key_states, sinks)
        values: Any = value_states if of_values is None else of_values.coded(value_states, sinks)
        past_keys, past_values = self._past(layer_idx)
        keys, values = super().update(keys, values, layer_idx, *args, **kwargs)
        return _read(keys, past_keys, key_states), _read(values, past_values, value_states)

    def _past(self, layer_idx: int) -> tuple[Any, Any]:
        """The keys and values of a layer so far."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        return getattr(layer, "keys", None), getattr(layer, "values", None)

    def memory(self) -> CacheMemory:
        """What the keys and values take, and would take unquantized; recurrent states are left out."""
        stored = allocated = unquantized = 0
        for layer in self.layers:
            for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if isinstance(states, CodedStates):
                    stored += states.nbytes
                    allocated += states.allocated
                    unquantized += states.numel() * states.dtype.itemsize
                elif isinstance(states, torch.Tensor):
                    stored += states.nbytes
                    allocated += states.untyped_storage().nbytes()
                    unquantized += states.nbytes
        return CacheMemory(stored, allocated, unquantized)


def _codec_of(layer: StoredLayer | None, recent_tokens: int) -> StatesCodec | None:
    return None if layer is None else StatesCodec(layer.name, layer.factors, layer.channels, recent_tokens)


def _read(states: Any, past: Any, new: torch.Tensor) -> torch.Tensor:
    """What attention sees of stored states, of which `new` are the last and `past` was stored before."""
    if not isinstance(states, CodedStates):
        tensor: torch.Tensor = states
        return tensor
    tensor = states.dequantize()
    if states.codec.recent_tokens > 0:
        # Those that are beyond the recent ones now were not when these came.
        middle = tensor.shape[2] - new.shape[2]
        tensor[:, :, middle:] = new.detach()
        if isinstance(past, CodedStates):
            recent = past.recent.repeat_interleave(past.copies, 1)
            tensor[:, :, middle - recent.shape[2] : middle] = recent
    return tensor
