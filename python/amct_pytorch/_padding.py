"""Leaving padding out: which tokens of the running forward are real."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch

from amct_pytorch._graphs import outside_graphs

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
        self._masks: list[dict[str, _Mask]] = []  # of the forwards that run, the innermost last
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
        if not self._masks or x.dim() < 3:
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
            The sequences and the tokens of each that it sees; of a mask that is longer, the last ones.

        Returns
        -------
        torch.Tensor or None
            int64, indices into the ``batch * tokens`` rows; None where all are.
        """
        if not self._masks:
            return None
        of_decoder = self._has_decoder and not _CROSS_ATTENTION.search(name)
        mask = self._masks[-1].get(_DECODER_MASK if of_decoder else _ENCODER_MASK)
        return None if mask is None else mask.rows_of(batch, tokens)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(_argument_names(module), args, strict=False)) | kwargs
        masks = ((name, given.get(name)) for name in (_ENCODER_MASK, _DECODER_MASK))
        self._masks.append(
            {name: _Mask(mask) for name, mask in masks if isinstance(mask, torch.Tensor) and mask.dim() == 2}
        )

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._masks.pop()


class _Mask:
    """A mask ``[batch, tokens]``, and the rows that follow from it. A device is waited for once a length."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._real = mask != 0
        self._rows: dict[int, torch.Tensor | None] = {}

    def rows_of(self, batch: int, tokens: int) -> torch.Tensor | None:
        sequences, length = self._real.shape
        if sequences != batch or tokens > length:
            return None
        if tokens not in self._rows:
            real = self._real[:, length - tokens :].flatten()
            rows = real.nonzero().flatten()
            self._rows[tokens] = None if len(rows) == len(real) else rows
        return self._rows[tokens]


def _mask_arguments(module: torch.nn.Module) -> bool:
    return _ENCODER_MASK in _argument_names(module)


def _argument_names(module: torch.nn.Module) -> Iterable[str]:
    return inspect.signature(module.forward).parameters
