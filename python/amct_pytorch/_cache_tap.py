"""The calibration operator of an attention module: it shows what the module caches to a session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # public, but named nowhere

from amct_pytorch._cache_watch import LATENT_NORM, CacheWatch, copies_of_heads, stored_channels
from amct_pytorch._device import DeviceLayers
from amct_pytorch._graphs import is_recomputing, outside_graphs
from amct_pytorch._log import logger
from amct_pytorch._observe import Source
from amct_pytorch._padding import Padding
from amct_pytorch._place import Place
from amct_pytorch._queries import QueryWatch, squares_of
from amct_pytorch._rotary import Layout, RotaryCall, RotaryCalls, find_layout
from amct_pytorch._shards import local_heads, local_part
from amct_pytorch._tap import Owner, Tap

# The taps that observe, for observe_cache().
_active: weakref.WeakSet[CacheTap] = weakref.WeakSet()


def observe_cache(
    name: str,
    key_states: torch.Tensor,
    value_states: torch.Tensor,
    query_states: torch.Tensor | None = None,
) -> None:
    """Show what an attention module stores in its cache to the calibration that runs, if one does.

    For models whose cache is none of transformers; call it where keys and values are stored, inside of the
    module's forward.

    Parameters
    ----------
    name : str
        Path of the attention module in the model: ``"model.layers.0.self_attn"``.
    key_states, value_states : torch.Tensor
        What is stored of the forward's tokens, ``[batch, heads, tokens, head_dim]``.
    query_states : torch.Tensor, optional
        The queries that meet the keys, ``[batch, query heads, tokens, head_dim]``: needed where channels of
        keys are weighed by them (``query_weighted``).

    Raises
    ------
    RuntimeError, TypeError, OSError
        As `create_quant_cali_model` says of the model's forward. RuntimeError also where several models are
        calibrated that have such a module, and the call comes from none of their forwards.
    """
    named = [tap for tap in list(_active) if tap.attention_name == name]
    running = [tap for tap in named if tap.is_running]
    if len(running or named) > 1:
        raise RuntimeError(
            f"several models that are being calibrated have an attention module '{name}', and none of them "
            "runs: call observe_cache() inside of the module's forward"
        )
    for tap in running or named:
        tap.observe_states(key_states, value_states)
        if query_states is not None:
            tap.observe_queries(query_states)


class _Forward(threading.local):
    """What is known of the forward of an attention module that runs in this thread."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know nothing: no forward runs."""
        self.is_running = False
        self.seen = False
        self.embeddings: Any = None
        self.before: list[torch.Tensor] = []  # what may be keys before they were turned
        self.unweighed: _Unweighed | None = None  # keys that wait for their queries


class _Batch(NamedTuple):
    """A batch of keys ``[batch, tokens, heads, head_dim]``, its real rows, and the call that turned it."""

    keys: torch.Tensor
    rows: torch.Tensor | None
    call: RotaryCall | None

    @property
    def source(self) -> Source:
        """What is stored of it, ``[batch, tokens, channels]``."""
        return Source(self.keys.flatten(2), self.rows)


class _Unweighed(NamedTuple):
    """Keys ``[batch, tokens, heads, head_dim]`` that wait for their queries, and their real rows."""

    place: Place
    keys: torch.Tensor
    rows: torch.Tensor | None


class CacheTap(Tap):
    """Observes the keys and values that one attention module caches, until both are finished.

    Parameters
    ----------
    attention : torch.nn.Module
        The module that holds the projections.
    places : dict of Place to torch.nn.Module
        Its key and value layers, or one of them, and their projections.
    turned : dict of str to int
        By name of layer: the position that its keys are turned up to (exclusive). Of other layers only what
        is stored is counted.
    layers, owner, padding, rotary
        The run's.
    """

    def __init__(
        self,
        attention: torch.nn.Module,
        places: Mapping[Place, torch.nn.Module],
        turned: Mapping[str, int],
        layers: DeviceLayers,
        owner: Owner,
        padding: Padding,
        rotary: RotaryCalls,
    ) -> None:
        super().__init__(attention, [place.name for place in places], layers, owner)
        self.attention_name = next(iter(places)).attention
        self._places = places
        self._turned = turned
        self._padding = padding
        self._rotary = rotary
        self._layout: Layout | None = None
        self._can_turn = True
        self._said_not_turned = False
        self._waiting: list[_Batch] = []  # keys of batches that did not tell how they are turned
        self._lock = threading.Lock()
        self._forward = _Forward()
        self._watch = CacheWatch(attention, self.observe_states, self._begin, self._end)
        self._hooks = [
            module.register_forward_hook(outside_graphs(self._note_before))
            for module in (self._sources(attention) if turned else ())
        ]
        self._weighed = {name for name in self._names if layers.session.plan(name).weighs_channels}
        self._queries = QueryWatch(attention, self.observe_queries) if self._weighed else None
        _active.add(self)

    def take_hooks_off(self) -> None:
        self._watch.remove()
        for hook in self._hooks:
            hook.remove()
        if self._queries is not None:
            self._queries.remove()
        _active.discard(self)

    def observe_states(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Observe what is stored, ``[batch, heads, tokens, head_dim]`` each; return it."""
        self._forward.seen = True
        for place in self._places:
            if place.name in self._names:
                self._observe_layer(place, key_states if place.role == "key" else value_states)
        return key_states, value_states

    def _observe_layer(self, place: Place, states: Any) -> None:
        if not isinstance(states, torch.Tensor) or states.dim() != 4:
            shape = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
            raise TypeError(
                f"layer '{place.name}': what goes into the cache must be a tensor of 4 dimensions "
                f"(batch, heads, tokens, head_dim), not {shape}"
            )
        states = local_heads(place.name, states)
        copies = copies_of_heads(states, place.name, stored_channels(self._places[place], place.slice))
        keys = states[:, ::copies].transpose(1, 2)
        rows = self._padding.rows_of(place, keys)
        if rows is not None and len(rows) == 0:
            return  # all of it is padding, or kept as it is
        if place.name in self._weighed:
            self._forward.unweighed = _Unweighed(place, keys, rows)
        else:
            self._count(place, keys, rows)

    def observe_queries(self, query_states: torch.Tensor) -> None:
        """Weigh the channels of the keys that were stored last by the queries that meet them, and count them.

        The queries are ``[batch, query heads, tokens, head_dim]``.
        """
        waiting, self._forward.unweighed = self._forward.unweighed, None
        if waiting is None or is_recomputing() or waiting.place.name not in self._names:
            return
        place, keys, rows = waiting
        query_states = local_heads(place.name, query_states)
        batch, tokens, heads, head_dim = keys.shape
        if query_states.dim() != 4 or (
            query_states.shape[0],
            query_states.shape[1] % heads,
            *query_states.shape[2:],
        ) != (batch, 0, tokens, head_dim):
            raise RuntimeError(
                f"layer '{place.name}': queries of shape {tuple(query_states.shape)} cannot weigh keys of "
                f"{tokens} tokens, {heads} heads and {head_dim} channels; leave query_weighted out"
            )
        weights = squares_of(query_states, heads, rows)
        self._layers.session.add_channel_weights(place.name, to_dlpack(weights))
        self._count(place, keys, rows)

    def _count(self, place: Place, keys: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Count keys or values ``[batch, tokens, heads, head_dim]``, or their `rows`."""
        batch = _Batch(keys, rows, None)
        if place.name not in self._turned:
            self.observe(place.name, batch.source.counted(), batch.source)
            return
        try:
            batch = batch._replace(call=self._rotary_call(place, keys))
        except LookupError:
            if not self._layers.session.plan(place.name).skips_non_finite and not keys.isfinite().all():
                self.observe(place.name, batch.source.counted(), batch.source)  # raises
            else:
                self._wait(place, batch._replace(keys=keys.clone(), call=self._call()))
            return
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for each in (*waiting, batch):
            if place.name in self._names:
                self.observe(place.name, self._with_turned(each, self._turned[place.name]), each.source)

    def _wait(self, place: Place, batch: _Batch) -> None:
        """Keep a batch until a later one tells how its keys are to be turned."""
        with self._lock:
            if not self._waiting:
                logger.warning(
                    "layer '%s': tokens at the first position alone do not tell how keys are turned; they "
                    "are counted when a longer batch has come",
                    place.name,
                )
            self._waiting.append(batch)

    def _with_turned(self, batch: _Batch, max_position: int) -> torch.Tensor:
        """What is counted of a batch: its keys, and where they are turned those at other positions."""
        x = batch.source.counted()
        if batch.call is None or self._layout is None or self._layout.channels == 0:
            return x
        turned = self._turn(batch.keys, batch.rows, batch.call, max_position)
        return torch.cat((x.reshape(-1, x.shape[-1]), *turned))

    def _turn(
        self, keys: torch.Tensor, rows: torch.Tensor | None, call: RotaryCall, max_position: int
    ) -> Iterator[torch.Tensor]:
        """The keys at other positions, ``[rows, channels]`` each."""
        assert self._layout is not None
        flat = keys.flatten(0, 1)
        flat = flat if rows is None else flat.index_select(0, rows)
        for cos, sin in call.offsets(keys.shape[0], max_position):
            if rows is not None:
                cos, sin = cos.index_select(0, rows), sin.index_select(0, rows)
            yield self._layout.turn(flat, cos, sin).to(keys.dtype).flatten(1)

    def _rotary_call(self, place: Place, keys: torch.Tensor) -> RotaryCall | None:
        """The call whose angles the keys were turned by; None where they were not, or it is not known.

        Raises LookupError where the batch does not tell.
        """
        if not self._can_turn:
            return None
        call = self._call()
        angles = None if call is None else call.angles()
        if self._layout is None:
            self._layout = find_layout(self._forward.before, keys, angles)
            if self._layout is None:
                self._can_turn = False
                self._say_not_turned(place)
                return None
        if not self._layout.channels:
            return None
        if call is None:
            self._say_not_turned(place)
        return call

    def _say_not_turned(self, place: Place) -> None:
        if not self._said_not_turned:
            self._said_not_turned = True
            logger.warning(
                "layer '%s': how its keys are turned to their positions is not known, so its factors "
                "hold for the positions of the calibration alone",
                place.name,
            )

    def _call(self) -> RotaryCall | None:
        embeddings = self._forward.embeddings
        return None if embeddings is None else self._rotary.find(embeddings)

    @property
    def is_waiting(self) -> bool:
        """Whether keys wait for a batch that tells how they are turned."""
        return bool(self._waiting)

    @property
    def is_running(self) -> bool:
        """Whether the attention module's forward runs in this thread."""
        return self._forward.is_running

    def _sources(self, attention: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """Modules whose outputs may be the keys before they are turned."""
        for place, module in self._places.items():
            if place.role == "key":
                yield module
        for name, module in attention.named_children():
            if name.startswith("k") and "norm" in name and name != LATENT_NORM:
                yield module

    def _note_before(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._layout is not None or not isinstance(output, torch.Tensor):
            return
        output = local_part(self.attention_name, output)
        for place, projection in self._places.items():
            if place.role == "key" and module is projection and place.slice is not None:
                output = place.slice.of(output)
        self._forward.before.append(output)

    def _begin(self, kwargs: Mapping[str, Any]) -> None:
        self._forward.clear()  # of one that was interrupted
        self._forward.is_running = True
        self._forward.embeddings = kwargs.get("position_embeddings")

    def _end(self, had_cache: bool) -> None:
        seen, unweighed = self._forward.seen, self._forward.unweighed
        self._forward.clear()
        if unweighed is not None:
            raise RuntimeError(
                f"attention '{self.attention_name}' does not compute with transformers' attention functions, "
                "so its queries are not seen: leave query_weighted out, or show them by "
                "amct_pytorch.observe_cache()"
            )
        if not (had_cache or seen):
            raise RuntimeError(
                f"attention '{self.attention_name}' was called without a cache, and tap 'cache' observes "
                "what goes into one: call the model with use_cache=True, or show it by "
                "amct_pytorch.observe_cache(), or calibrate with tap 'linear'"
            )
