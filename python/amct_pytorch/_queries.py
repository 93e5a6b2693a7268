"""The queries of attention modules of transformers, as they meet the keys: after rotary embedding."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from amct_pytorch._graphs import outside_graphs

# Weights are sums of squares in whole steps, up to a bound: no order of batches changes such sums.
_STEPS = 2.0**16
_MOST = 2.0**40


class QueryWatch:
    """Calls back with the queries of an attention module, while it is there.

    Modules of transformers ask one place for the function that computes attention. While somebody watches,
    what that place gives shows the queries first.

    Parameters
    ----------
    attention : torch.nn.Module
        The module.
    on_queries : callable
        Takes the queries ``[batch, heads, tokens, head_dim]`` of each forward.
    """

    def __init__(self, attention: torch.nn.Module, on_queries: Callable[[torch.Tensor], None]) -> None:
        self._attention = attention
        _watched.add(attention, outside_graphs(on_queries))

    def remove(self) -> None:
        """Watch no more."""
        _watched.remove(self._attention)


class _Watched:
    """The modules that are watched; transformers' own is changed while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: weakref.WeakKeyDictionary[torch.nn.Module, Callable[[torch.Tensor], None]] = (
            weakref.WeakKeyDictionary()
        )
        self._functions: Any = None

    def add(self, module: torch.nn.Module, callback: Callable[[torch.Tensor], None]) -> None:
        with self._lock:
            if self._functions is None:
                from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

                functions: Any = ALL_ATTENTION_FUNCTIONS
                functions.get_interface = functools.partial(self._watching, functions.get_interface)
                self._functions = functions
            self._callbacks[module] = callback

    def remove(self, module: torch.nn.Module) -> None:
        with self._lock:
            self._callbacks.pop(module, None)
            if self._functions is not None and not self._callbacks:
                del self._functions.get_interface
                self._functions = None

    def _watching(self, get_interface: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        function = get_interface(*args, **kwargs)

        @functools.wraps(function)
        def attention(module: torch.nn.Module, query: torch.Tensor, *more: Any, **others: Any) -> Any:
            callback = self._callbacks.get(module)
            if callback is not None:
                callback(query)
            return function(module, query, *more, **others)

        return attention


_watched = _Watched()


def squares_of(queries: torch.Tensor, heads: int, rows: torch.Tensor | None) -> torch.Tensor:
    """How much queries weigh the channels of the keys that they meet.

    Parameters
    ----------
    queries : torch.Tensor
        ``[batch, query heads, tokens, head_dim]``; neighbouring query heads share a head of keys.
    heads : int
        Heads of keys.
    rows : torch.Tensor or None
        Which of ``batch * tokens`` count; None: all.

    Returns
    -------
    torch.Tensor
        int64 on the CPU, ``[heads * head_dim]``: sums of squares. NaN counts as 0.
    """
    batch, query_heads, tokens, head_dim = queries.shape
    squares = queries.detach().float().square().mul_(_STEPS).nan_to_num_(0.0, _MOST).clamp_(max=_MOST)
    by_row = squares.round_().to(torch.int64).transpose(1, 2).reshape(batch * tokens, query_heads, head_dim)
    if rows is not None:
        by_row = by_row.index_select(0, rows)
    return by_row.sum(0).view(heads, query_heads // heads, head_dim).sum(1).flatten().cpu()
