"""Leaving padding out: which tokens of the running forward are real."""

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

    def without(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What layer `name` put out, ``[batch, tokens, ...]``: the same, or the rows of real tokens alone."""
        if not self._running.forwards or x.dim() < 3:
            return x
        rows = self.rows_of(name, *x.shape[:2])
        return x if rows is None else x.flatten(0, 1).index_select(0, rows)

    def rows_of(self, name: str, batch: int, tokens: int) -> torch.Tensor | None:
        """Which rows of layer `name` are real.

        Parameters
        ----------
        name : str
            The layer, which tells whether it is of cross attention.
        batch, tokens : int
            The sequences and the tokens of each that it sees. Of a mask that is longer, those after the
            tokens in the cache; where it is too short for that, the last ones.

        Returns
        -------
        torch.Tensor or None
            int64, indices into the ``batch * tokens`` rows; None where all are.
        """
        if not self._running.forwards:
            return None
        of_decoder = self._has_decoder and not _CROSS_ATTENTION.search(name)
        _, masks = self._running.forwards[-1]
        mask = masks.get(_DECODER_MASK if of_decoder else _ENCODER_MASK)
        return None if mask is None else mask.rows_of(batch, tokens)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(_argument_names(module), args, strict=False)) | kwargs
        forwards = self._running.forwards
        # A module does not run inside of itself, so what is left of it was interrupted.
        while any(other is module for other, _ in forwards):
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
        forwards.append((module, masks))

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
        self._rows: dict[int, torch.Tensor | None] = {}

    def rows_of(self, batch: int, tokens: int) -> torch.Tensor | None:
        sequences, length = self._real.shape
        if sequences != batch or tokens > length:
            return None
        if tokens not in self._rows:
            first = self._past if self._past + tokens <= length else length - tokens
            real = self._real[:, first : first + tokens].flatten()
            rows = real.nonzero().flatten()
            self._rows[tokens] = None if len(rows) == len(real) else rows
        return self._rows[tokens]


class _Running(threading.local):
    """The forwards that run in this thread, the innermost last: (module, its masks by name)."""

    def __init__(self) -> None:
        self.forwards: list[tuple[torch.nn.Module, dict[str, _Mask]]] = []


def _past_tokens(arguments: Iterable[Any]) -> int:
    """The tokens in the cache among the arguments of a forward."""
    return next((int(cache.get_seq_length()) for cache in arguments if is_cache(cache)), 0)


def _mask_arguments(module: torch.nn.Module) -> bool:
    return _ENCODER_MASK in _argument_names(module)


def _argument_names(module: torch.nn.Module) -> Iterable[str]:
    return inspect.signature(module.forward).parameters
