"""Leaving tokens out: which of the running forward are real, and not kept by the cache as they are."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Iterable
from typing import Any

import torch

from amct_pytorch._cache_watch import is_cache
from amct_pytorch._graphs import outside_graphs
from amct_pytorch._log import logger
from amct_pytorch._place import Place

# Cross attention reads what the encoder put out, so its keys are padded as the encoder's input is.
_CROSS_ATTENTION = re.compile(
    r"(^|\.)(encoder_attn|EncDecAttention|cross_?attn|cross_?attention)(\.|$)", re.I
)
_ENCODER_MASK, _DECODER_MASK = "attention_mask", "decoder_attention_mask"


class Padding:
    """Knows the attention mask of the forward that runs, from hooks of the model and its body.

    Where the mask has no two dimensions, as one that is made for a compiled model, nothing is known of
    padding, and all tokens count.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._has_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self._running = _Running()
        self._warned = False
        self._hooks: list[Any] = []
        before, after = outside_graphs(self._before), outside_graphs(self._after)
        # A user may call the model without its head.
        for part in {model, getattr(model, "base_model", model)}:
            if isinstance(part, torch.nn.Module) and _mask_arguments(part):
                self._hooks.append(part.register_forward_pre_hook(before, with_kwargs=True))
                self._hooks.append(part.register_forward_hook(after, always_call=True))

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def rows_of(self, place: Place, x: torch.Tensor) -> torch.Tensor | None:
        """Which rows of a layer count: of tokens that are real, and not among the first `sink_tokens`.

        Parameters
        ----------
        place : Place
            The layer, whose name tells whether it is of cross attention.
        x : torch.Tensor
            What it sees, ``[batch, tokens, ...]``; with fewer dimensions all of it counts. Of a mask that is
            longer its tokens are those after the ones in the cache; where it is too short for that, the last
            ones.

        Returns
        -------
        torch.Tensor or None
            int64, indices into the ``batch * tokens`` rows; None where all are.
        """
        if x.dim() < 3:
            return None
        sinks, (batch, tokens) = place.sink_tokens, x.shape[:2]
        if not self._running.forwards:
            return _rows_from(sinks, 0, x)
        of_decoder = self._has_decoder and not _CROSS_ATTENTION.search(place.name)
        _, masks, past = self._running.forwards[-1]
        mask = masks.get(_DECODER_MASK if of_decoder else _ENCODER_MASK)
        if mask is None or not mask.is_of(batch, tokens):
            return _rows_from(sinks, past, x)
        return mask.rows_of(tokens, sinks)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(_argument_names(module), args, strict=False)) | kwargs
        forwards = self._running.forwards
        # A module does not run inside of itself, so what is left of it was interrupted.
        while any(other is module for other, *_ in forwards):
            forwards.pop()
        past = _past_tokens(given.values())
        masks = {}
        for name in (_ENCODER_MASK, _DECODER_MASK):
            mask = given.get(name)
            if isinstance(mask, torch.Tensor) and mask.dim() == 2:
                masks[name] = _Mask(mask, past)
            elif mask is not None and not self._warned:
                self._warned = True
                logger.warning(
                    "the model is called with a mask that does not tell which tokens are padding (%s is not "
                    "of the form [batch, tokens]), so all are calibrated with",
                    name,
                )
        forwards.append((module, masks, past))

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._running.forwards:
            self._running.forwards.pop()


class _Mask:
    """A mask ``[batch, tokens]``, and the rows that follow from it. A device is waited for once a length.

    It may begin with the tokens that are in the cache already, and end with room for ones to come.
    """

    def __init__(self, mask: torch.Tensor, past: int) -> None:
        self._real = mask != 0
        self._past = past
        self._rows: dict[tuple[int, int], torch.Tensor | None] = {}

    def is_of(self, batch: int, tokens: int) -> bool:
        """Whether it tells of so many tokens."""
        sequences, length = self._real.shape
        return sequences == batch and tokens <= length

    def rows_of(self, tokens: int, sinks: int) -> torch.Tensor | None:
        length = self._real.shape[1]
        if (tokens, sinks) not in self._rows:
            first = self._past if self._past + tokens <= length else length - tokens
            counts = self._real
            if sinks > 0:
                counts = counts & (counts.cumsum(dim=1) > sinks)
            counts = counts[:, first : first + tokens].flatten()
            rows = counts.nonzero().flatten()
            self._rows[tokens, sinks] = None if len(rows) == len(counts) else rows
        return self._rows[tokens, sinks]


class _Running(threading.local):
    """The forwards that run in this thread, the innermost last: (module, masks by name, cached tokens)."""

    def __init__(self) -> None:
        self.forwards: list[tuple[torch.nn.Module, dict[str, _Mask], int]] = []


def _rows_from(sinks: int, past: int, x: torch.Tensor) -> torch.Tensor | None:
    """The rows of tokens from position `sinks` on, where `past` positions came before; None where all are."""
    if past >= sinks:
        return None
    batch, tokens = x.shape[:2]
    first = torch.arange(batch, device=x.device)[:, None] * tokens
    return (first + torch.arange(min(sinks - past, tokens), tokens, device=x.device)).flatten()


def _past_tokens(arguments: Iterable[Any]) -> int:
    """The tokens in the cache among the arguments of a forward."""
    return next((int(cache.get_seq_length()) for cache in arguments if is_cache(cache)), 0)


def _mask_arguments(module: torch.nn.Module) -> bool:
    return _ENCODER_MASK in _argument_names(module)


def _argument_names(module: torch.nn.Module) -> Iterable[str]:
    return inspect.signature(module.forward).parameters
