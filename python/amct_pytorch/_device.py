"""Batches on devices (CUDA, NPU, XPU, MPS, ...) are looked at where they are; no call waits for its device.

What a device holds of a layer is handed over to the session when the layer has seen all its batches, and
before that where a bound would be passed:

=====================  ============================  =====================================
layer                  what its device holds         bound
=====================  ============================  =====================================
16 bits, per tensor    a table of counts             512 KiB; 8,192 batches
16 bits, per channel   rows that are not counted     8,192 rows, 16 KiB a channel
float32                rows that are not moved yet   8,192 rows, 32 KiB a channel
min-max, any type      the range of each group       8 bytes a group; 8,192 batches
per head, any type     nothing: moved at once
=====================  ============================  =====================================

So the host waits for the device once in 8,192 rows (or batches) of a layer and never once a call; only a
batch that reaches the bound by itself is handed over as it comes, without a copy on the device. Of 16-bit
types only counts move to the host; of float32 the values do, since the session keeps them, too.

NaN and infinite values are thus found late: their error names the layer, batch, count and index as it would
on the host, but is raised by the call that hands over. Their batch alone is left out.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # public, but named nowhere

from amct_pytorch._compat import add_note
from amct_pytorch._core import NonFiniteError, Session
from amct_pytorch._device_store import HELD, Result, Store, channels_of, store_type, stream_of
from amct_pytorch._graphs import outside_graphs


def counts_on_device(x: torch.Tensor) -> bool:
    """Whether `x` is looked at where it is, and not in the host's memory."""
    return not x.is_cpu


class DeviceLayers:
    """A session, and the batches of its layers that devices hold. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._layers: dict[str, _Layer] = {}

    def observe(self, name: str, x: Any) -> Result:
        """Add a batch in the host's memory. Takes, returns and raises what `Session.observe` does."""
        layer = self._layers.get(name)
        if layer is None:
            result = self.session.observe(name, x)
            layer = self._layers.get(name)
            if layer is not None:  # of another thread, which may not have seen this batch
                result = layer.finish_if_due() if not result[0] else result
        else:
            result = layer.observe(x)
        if layer is not None and result[0]:
            self._layers.pop(name, None)
        return result

    @outside_graphs
    def observe_on_device(self, name: str, x: torch.Tensor) -> Result:
        """Add a batch where it is, on any device. Returns and raises as `Session.observe`."""
        layer = self._layers.get(name)
        if layer is None and self.session.plan(name).per_head:
            return self.observe(name, to_dlpack(x.cpu()))  # heads are counted by the host alone
        if layer is None:  # threads that meet here agree on one
            layer = self._layers.setdefault(name, _Layer(self.session, name))
        finished, overwritten = layer.observe_on_device(x)
        if finished:
            self._layers.pop(name, None)
        return finished, overwritten

    def unfinished(self) -> list[tuple[str, int, int]]:
        """The layers that need more batches: (name, batches seen, batches needed).

        Batches on devices are seen, whatever they hold.
        """
        result = []
        for name, seen, needed in self.session.unfinished():
            layer = self._layers.get(name)
            result.append((name, seen + (0 if layer is None else layer.batches), needed))
        return result

    def hand_over(self) -> None:
        """Give the session all that devices hold. Raises as `observe_on_device`, after all is given."""
        errors: list[NonFiniteError] = []
        for layer in list(self._layers.values()):
            errors += layer.hand_over()
        _raise_first(errors)


class _Batch(NamedTuple):
    shape: torch.Size
    store: Store


class _Layer:
    """The batches of one layer that devices hold."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._plan = session.plan(name)
        self._lock = threading.Lock()  # guards what follows
        self._batches: list[_Batch] = []  # in the order they came
        self._stores: dict[tuple[Any, ...], Store] = {}

    @property
    def batches(self) -> int:
        return len(self._batches)

    def observe_on_device(self, x: torch.Tensor) -> Result:
        # What is kept is made in inference mode and changed in it, whatever mode the caller is in.
        with self._lock, torch.inference_mode():
            held = len(self._batches)
            channels = channels_of(self._batches[0].shape) if held else 0
            seen = self._session.check(self._name, x.shape, held, channels)
            if seen is None:
                return True, []
            store = self._store_for(x)
            rows = x.numel() // channels_of(x.shape)
            due = seen + held + 1 >= self._plan.batch_num or held + 1 >= HELD or store.is_full_with(rows)
            store.add(x, due)
            self._batches.append(_Batch(x.shape, store))
            if not due:
                return False, []
            result, errors = self._hand_over()
        _raise_first(errors)
        return result

    def observe(self, x: Any) -> Result:
        """Add a batch in the host's memory, after those that came before it."""
        errors: list[NonFiniteError] = []
        with self._lock:
            if self._batches:
                with torch.inference_mode():
                    _, errors = self._hand_over()
            try:
                return self._session.observe(self._name, x)
            finally:
                _raise_first(errors)

    def finish_if_due(self) -> Result:
        """Hand over if the layer has seen all its batches, some of them in the host's memory."""
        with self._lock, torch.inference_mode():
            if not self._batches:
                return False, []
            seen = self._session.check(self._name, self._batches[0].shape, 0, 0)
            if seen is None or seen + len(self._batches) < self._plan.batch_num:
                return seen is None, []
            result, errors = self._hand_over()
        _raise_first(errors)
        return result

    def hand_over(self) -> list[NonFiniteError]:
        """Give the session what is held; the errors of batches that are left out."""
        with self._lock, torch.inference_mode():
            return self._hand_over()[1] if self._batches else []

    def _store_for(self, x: torch.Tensor) -> Store:
        # Streams run at the same time, so each has memory of its own.
        stream = stream_of(x.device)
        key = (x.device, x.dtype, None if stream is None else stream.stream_id)
        store = self._stores.get(key)
        if store is None:
            store = self._stores[key] = store_type(self._plan, x.dtype)(self._plan, x, stream)
        return store

    def _hand_over(self) -> tuple[Result, list[NonFiniteError]]:
        """Give the session all that is held; also the errors of batches that are left out."""
        batches, self._batches = self._batches, []
        stores, self._stores = self._stores, {}
        for store in stores.values():
            store.wait()
        errors = [] if self._plan.skips_non_finite else self._refused(batches)
        result: Result = (False, [])
        for store in stores.values():
            result = store.hand_over(self._session, self._name) or result
        return result, errors

    def _refused(self, batches: list[_Batch]) -> list[NonFiniteError]:
        """The errors of the batches that hold NaN or infinite values."""
        reports = {store: iter(store.reports()) for store in {batch.store for batch in batches}}
        errors: list[NonFiniteError] = []
        for i, batch in enumerate(batches):
            count, first = next(reports[batch.store])
            if count == 0:
                continue
            try:
                # Its number is the one it has on the host, where batches that were refused do not count.
                self._session.check(self._name, batch.shape, i - len(errors), 0, count, first)
            except NonFiniteError as error:
                errors.append(error)
        return errors


def _raise_first(errors: list[NonFiniteError]) -> None:
    if not errors:
        return
    for other in errors[1:]:
        add_note(errors[0], f"Another batch was left out, too: {other}")
    raise errors[0]
