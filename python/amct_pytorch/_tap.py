"""The calibration operator of a module: a forward hook that shows the module's output to a session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from amct_pytorch._device import DeviceLayers
from amct_pytorch._graphs import is_recomputing, outside_graphs
from amct_pytorch._observe import Source, observe
from amct_pytorch._padding import Padding
from amct_pytorch._place import Place
from amct_pytorch._projection import channels_last
from amct_pytorch._shards import local_part

# Where a module keeps its taps. They live in __dict__ beside the hook, so that neither the module's
# class nor its parameters, children or state_dict change.
_TAPS = "_amct_calibration_taps"


class Owner(Protocol):
    """The run that a tap belongs to."""

    def layer_finished(self, name: str) -> None:
        """Told when a layer of the tap has seen all its batches."""

    def release(self) -> None:
        """Told when the tap is taken off before that."""

    def keeps(self, error: Exception) -> bool:
        """Whether an error of a layer is to be raised later, at the end of the run."""


class Tap:
    """What observes layers of one module: kept by the module, and refusing to be copied while it observes."""

    def __init__(
        self, module: torch.nn.Module, names: Iterable[str], layers: DeviceLayers, owner: Owner
    ) -> None:
        self._layers = layers
        self._observe = outside_graphs(observe)
        self._names = set(names)  # of the layers that are not finished
        self._owner = owner  # the run lives as long as one of its taps
        module.__dict__.setdefault(_TAPS, []).append(self)

    @property
    def owner(self) -> Owner:
        """The CalibrationRun this tap belongs to."""
        return self._owner

    def take_hooks_off(self) -> None:
        """Observe nothing any more."""
        raise NotImplementedError

    def remove(self, module: torch.nn.Module) -> None:
        """Take the tap off its module."""
        self.take_hooks_off()
        taps = module.__dict__[_TAPS]
        taps.remove(self)
        if not taps:
            del module.__dict__[_TAPS]

    def observe(self, name: str, x: Any, source: Source | None = None) -> None:
        """Add a batch of layer `name`; hooks are taken off as the last layer is finished.

        Arguments as of `_observe.observe`.
        """
        if is_recomputing():
            return  # its forward was observed
        finished = False
        try:
            finished = self._observe(self._layers, name, x, source)
        except Exception as error:
            finished = self._layers.session.finished(name)  # then only its record could not be written
            if not self._owner.keeps(error):
                raise
        finally:
            if finished:
                self._names.discard(name)
                if not self._names:
                    self.take_hooks_off()
                self._owner.layer_finished(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # A copy of a finished layer is an ordinary module again.
        self._refuse_unless_finished("copied")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        self._refuse_unless_finished("pickled")
        return (type(None), ())

    def _refuse_unless_finished(self, action: str) -> None:
        for name in sorted(self._names):
            if not self._layers.session.finished(name):
                raise _refusal(name, action)


class LinearTap(Tap):
    """Observes the output of one module until its layer is finished, then takes its hook off.

    A hook rather than a wrapper keeps the module what it is: the same class, attributes, state_dict
    keys and other hooks, and the output is the very tensor the module returned. Of a fused projection
    the place's slice alone is observed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        place: Place,
        layers: DeviceLayers,
        owner: Owner,
        padding: Padding,
    ) -> None:
        super().__init__(module, [place.name], layers, owner)
        self._place = place
        self._padding = padding
        self._hook = module.register_forward_hook(self)

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        source = None
        if isinstance(output, torch.Tensor):
            output = local_part(self._place.name, output)
            tokens = output.numel()
            output = channels_last(module, output)
            if self._place.slice is not None:
                output = self._place.slice.of(output)
            source = Source(output, self._padding.rows_of(self._place, output))
            output = source.counted()
            if output.numel() == 0 and tokens > 0:
                return  # all of it is padding, or kept as it is
        self.observe(self._place.name, output, source)

    def take_hooks_off(self) -> None:
        self._hook.remove()


class Run(Protocol):
    """What a model's forwards are told to."""

    def begin_forward(self) -> None:
        """A forward begins."""

    def end_forward(self, completed: bool) -> None:
        """A forward returned, or failed."""

    def unfinished(self) -> dict[str, tuple[int, int]]:
        """The layers that need more batches."""


def _begin_forward(run: Run) -> None:
    run.begin_forward()


def _end_forward(run: Run, completed: bool) -> None:
    run.end_forward(completed)


class ForwardHooks:
    """Hooks of the whole model that tell a run of its forwards, as long as a layer is not finished.

    The object is one of them itself, so that a copy of the model would be a copy of it, which it refuses.
    """

    def __init__(self, model: torch.nn.Module, run: Run) -> None:
        # The run is held by its taps alone; where they all go, there is nothing left to do here.
        self._run = weakref.ref(run, lambda _: self.remove())
        self._begin_forward = outside_graphs(_begin_forward)
        self._end_forward = outside_graphs(_end_forward)
        self._running = threading.local()
        self._hooks = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        # A model does not run inside of itself: what an exception such as KeyboardInterrupt ends, no hook is
        # told of.
        self._end(completed=False)
        self._running.is_on = True
        if run := self._run():
            self._begin_forward(run)

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._end(completed=True)

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._end(completed=False)  # it failed, else its end was told before

    def _end(self, completed: bool) -> None:
        was_on, self._running.is_on = getattr(self._running, "is_on", False), False
        if was_on and (run := self._run()):
            self._end_forward(run, completed)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        raise _refusal(self._unfinished_layer(), "copied")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        raise _refusal(self._unfinished_layer(), "pickled")

    def _unfinished_layer(self) -> str:
        run = self._run()
        return "" if run is None else next(iter(run.unfinished()))


def _refusal(layer: str, action: str) -> RuntimeError:
    return RuntimeError(
        f"layer '{layer}' is being calibrated, so its model cannot be {action}: both would "
        "write one record. Take calibration off first: amct_pytorch.remove_quant_cali(model); "
        "or save model.state_dict() instead"
    )


def taps_of(module: torch.nn.Module) -> list[Tap]:
    """The taps of a module."""
    # Of a copied module there is nothing left in the places of the taps.
    return [tap for tap in module.__dict__.get(_TAPS, ()) if tap is not None]
