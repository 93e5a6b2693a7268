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


# Where an attention module keeps what is called back: whoever drops the module drops the rest with it.
_ON_QUERIES = "_amct_on_queries"


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
        self._attention = weakref.ref(attention)
        attention.__dict__[_ON_QUERIES] = outside_graphs(on_queries)
        _watchers.begin()
        # Also where the module goes without the watch being removed.
        self._at_end = weakref.finalize(attention, _watchers.end)

    def remove(self) -> None:
        """Watch no more."""
        attention = self._attention()
        if attention is not None:
            attention.__dict__.pop(_ON_QUERIES, None)
        self._at_end()


class _Watchers:
    """How many watches there are; transformers' own is changed while there are any."""

    def __init__(self) -> None:
        # The end of a module may come wherever memory is taken, in this class, too.
        self._lock = threading.RLock()
        self._count = 0
        self._functions: Any = None

    def begin(self) -> None:
        with self._lock:
            self._count += 1
            if self._functions is None:
                from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

                functions: Any = ALL_ATTENTION_FUNCTIONS
                functions.get_interface = functools.partial(_watched, functions.get_interface)
                self._functions = functions

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                del self._functions.get_interface
                self._functions = None


_watchers = _Watchers()


def _watched(get_interface: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function of attention that transformers' own `get_interface` gives, which shows queries first."""
    function = get_interface(*args, **kwargs)

    @functools.wraps(function)
    def attention(module: torch.nn.Module, query: torch.Tensor, *more: Any, **others: Any) -> Any:
        on_queries = module.__dict__.get(_ON_QUERIES)
        if on_queries is not None:
            on_queries(query)
        return function(module, query, *more, **others)

    return attention


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
