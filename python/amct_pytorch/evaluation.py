"""How good a model is with its cache quantized. Needs transformers for `perplexity` of a cache."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F


def windows(token_ids: torch.Tensor, length: int) -> list[torch.Tensor]:
    """Cut a text into windows for the model.

    Parameters
    ----------
    token_ids : torch.Tensor
        int64, shape ``[tokens]``.
    length : int
        Tokens a window, > 1.

    Returns
    -------
    list of torch.Tensor
        int64, shape ``[1, length]`` each, without overlap; a shorter rest is left out.

    Raises
    ------
    ValueError
        The text is shorter than one window.
    """
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(f"the text has {len(token_ids)} tokens, fewer than one window of {length}")
    return list(token_ids[: count * length].view(count, 1, length))


def perplexity(
    model: torch.nn.Module,
    batches: Iterable[torch.Tensor],
    make_cache: Callable[[], Any] | None = None,
) -> float:
    """Perplexity of a causal language model: exp of the mean negative log-likelihood of a token.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers causal language model.
    batches : iterable of torch.Tensor
        Token ids, int64, shape ``[batch, tokens]``; every token but the first of a row is predicted.
    make_cache : callable, optional
        Makes the cache of a batch, `FakeQuantizedCache` for instance. Without it the model uses none.

    Returns
    -------
    float
        At least 1.
    """
    # Newer transformers call it cache and warn of the old name.
    renamed = "cache" in inspect.signature(model.forward).parameters
    argument = "cache" if renamed else "past_key_values"
    total, count = 0.0, 0
    with torch.inference_mode():
        for tokens in batches:
            cache = {"use_cache": False} if make_cache is None else {argument: make_cache()}
            logits = model(tokens, **cache).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
            total += losses.item()
            count += tokens[:, 1:].numel()
    return math.exp(total / count)
