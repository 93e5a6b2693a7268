"""Standing between an attention module and its cache."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from amct_pytorch._graphs import outside_graphs
from amct_pytorch._projection import ChannelSlice, out_features

# The norm of multi-head latent attention, whose output is cached in the place of keys.
LATENT_NORM = "kv_a_layernorm"

States = tuple[torch.Tensor, torch.Tensor]


class CacheWatch:
    """Calls back with what an attention module stores in its cache.

    While the module's forward runs, the cache that it was given has another `update`, which shows the states
    to `on_states` and gives what that returns to the cache's own. So it works with any cache of transformers
    and those derived from it.

    Parameters
    ----------
    attention : torch.nn.Module
        The module.
    on_states : callable
        Takes the two states ``[batch, heads, tokens, head_dim]`` of an update: keys and values, or the keys'
        rotary part and the latent. Returns what is to be stored.
    on_begin : callable, optional
        Takes the keyword arguments of each forward before it runs.
    on_end : callable, optional
        Takes whether the forward was given a cache, after it ran.
    """

    def __init__(
        self,
        attention: torch.nn.Module,
        on_states: Callable[[torch.Tensor, torch.Tensor], States],
        on_begin: Callable[[Mapping[str, Any]], None] = lambda _: None,
        on_end: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._on_states = outside_graphs(on_states)
        self._on_begin, self._on_end = on_begin, on_end
        self._latent_first = is_latent(attention)
        self._forward = _Forward()
        self._is_removed = False
        self._hooks = [
            attention.register_forward_pre_hook(outside_graphs(self._begin), with_kwargs=True),
            attention.register_forward_hook(outside_graphs(self._end), always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off; a forward that runs is left alone from now on."""
        self._is_removed = True
        for hook in self._hooks:
            hook.remove()

    def in_order(self, first: torch.Tensor, second: torch.Tensor) -> States:
        """Keys and values, of the arguments of an update; or those arguments, of keys and values."""
        return (second, first) if self._latent_first else (first, second)

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self._restore()  # of a forward that was interrupted
        self._on_begin(kwargs)
        for cache in _caches(args, kwargs):
            watched = _Watched(cache, cache.__dict__.get("update"), cache.update)
            cache.__dict__["update"] = functools.partial(self._update, watched)
            self._forward.watched.append(watched)
        self._forward.had_cache = bool(self._forward.watched)

    def _end(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._restore()
        if output is not None:  # else the forward failed
            self._on_end(self._forward.had_cache)

    def _restore(self) -> None:
        while self._forward.watched:
            self._forward.watched.pop().restore()

    def _update(
        self, watched: _Watched, key_states: Any, value_states: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # A forward stores once. Hooks may be gone when it ends, and an interrupt lets no hook run.
        watched.restore()
        if not self._is_removed:
            states = self._on_states(*self.in_order(key_states, value_states))
            key_states, value_states = self.in_order(*states)
        return watched.update(key_states, value_states, *args, **kwargs)


class _Watched:
    """A cache whose `update` is another for now."""

    def __init__(self, cache: Any, own: Any, update: Any) -> None:
        self._cache = cache
        self._own = own  # what a user put there
        self.update = update

    def restore(self) -> None:
        """Give the cache what it had."""
        if self._own is None:
            self._cache.__dict__.pop("update", None)
        else:
            self._cache.__dict__["update"] = self._own


class _Forward(threading.local):
    """What is known of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.watched: list[_Watched] = []
        self.had_cache = False


def is_latent(attention: torch.nn.Module) -> bool:
    """Whether a module is latent attention, which stores the latent, then the keys' rotary part."""
    return isinstance(getattr(attention, LATENT_NORM, None), torch.nn.Module)


def stored_channels(module: torch.nn.Module, part: ChannelSlice | None) -> int | None:
    """The channels of a layer, its projection `module` or the `part` of it, where they are known."""
    return part.channels if part is not None else out_features(module)


def copies_of_heads(states: torch.Tensor, name: str, channels: int | None) -> int:
    """How often a cache holds each head of a layer: Falcon stores a head once for each of its queries.

    Parameters
    ----------
    states : torch.Tensor
        What is stored, ``[batch, heads, tokens, head_dim]``; copies of a head lie side by side.
    name : str
        The layer.
    channels : int or None
        The channels that it has, see `stored_channels`.

    Raises
    ------
    RuntimeError
        What is stored is not what the projection puts out.
    """
    stored = states.shape[1] * states.shape[3]
    if channels is None:
        return 1
    if stored % channels != 0 or states.shape[1] % (stored // channels) != 0:
        raise RuntimeError(
            f"layer '{name}': {stored} channels go into the cache, but its projection puts out {channels}; "
            "use tap 'linear'"
        )
    return stored // channels


def _caches(args: Any, kwargs: Any) -> Iterator[Any]:
    """The caches among the arguments of an attention module, and those inside of them."""
    for value in (*args, *kwargs.values()):
        if is_cache(value):
            inner = [getattr(value, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
            found = [cache for cache in inner if is_cache(cache)]
            yield from found or [value]


def is_cache(value: Any) -> bool:
    """Whether a value is a cache, of transformers or like them."""
    return callable(getattr(value, "update", None)) and callable(getattr(value, "get_seq_length", None))
