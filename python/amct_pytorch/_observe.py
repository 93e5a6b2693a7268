"""Handing tensors to a session, and asking it for what came out."""

from __future__ import annotations

import os
import weakref
from typing import Any, NamedTuple

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # public, but named nowhere

from amct_pytorch._core import LayerResult, NonFiniteError, Session
from amct_pytorch._device import DeviceLayers, counts_on_device
from amct_pytorch._log import logger


class Source(NamedTuple):
    """What a module put out, ``[batch, tokens, ...]``, and which rows of its tokens count, if not all do."""

    x: torch.Tensor
    rows: torch.Tensor | None

    def counted(self) -> torch.Tensor:
        """The rows that count, ``[rows, ...]``, or all as it was put out."""
        return self.x if self.rows is None else self.x.flatten(0, 1).index_select(0, self.rows)

    def is_counted_finite(self) -> torch.Tensor:
        """Which values are finite, or do not count; as flat as `x` is."""
        finite = self.x.isfinite()
        if self.rows is not None:
            left_out = torch.ones(finite.shape[:2], dtype=torch.bool, device=finite.device).flatten()
            left_out[self.rows] = False
            finite |= left_out.view(*finite.shape[:2], *(1 for _ in finite.shape[2:]))
        return finite.flatten()


def observe(layers: DeviceLayers, name: str, x: Any, source: Source | None = None) -> bool:
    """Add a batch of layer `name`; return whether the layer is finished.

    Parameters
    ----------
    layers : DeviceLayers
        The run.
    name : str
        The layer.
    x : torch.Tensor
        float32, float16 or bfloat16, of any shape and strides, on any device; the last dimension is the
        channel. It is neither changed nor kept.
    source : Source, optional
        What `x` was made of, by leaving out rows or adding turned ones: errors in the host's memory tell
        where in it a value is not finite.

    Raises
    ------
    TypeError
        `x` is not a tensor, of another dtype, or without memory (on the device 'meta').
    RuntimeError
        The batch is empty, or has another number of channels than the batches before; it holds NaN or
        infinite values, or one before it did that came on a device (see `_device`).
    OSError
        The record file cannot be written; the factors are kept for `write_record`.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"layer '{name}': a tensor is needed, not {type(x).__name__}; "
            "name a module that returns one tensor"
        )
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"layer '{name}': a dense tensor is needed, not {x.layout} {x.dtype}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(
            f"layer '{name}': a tensor of {x.dtype} cannot be calibrated; "
            "torch.float32, torch.float16 or torch.bfloat16 is needed"
        )
    if x.is_meta:
        raise TypeError(f"layer '{name}': a tensor on the device 'meta' has no values to calibrate with")
    # Of a lazily negated tensor the opposite numbers would be read.
    x = x.detach().resolve_neg() if x.is_neg() or x.requires_grad else x
    try:
        if counts_on_device(x):
            finished, overwritten = layers.observe_on_device(name, x)
        else:
            # A tensor's own __dlpack__ is Python code, which takes as long as all the rest of a small call.
            finished, overwritten = layers.observe(name, to_dlpack(x))
    except OSError as error:
        raise kept_back(error, f"layer '{name}': its factors are", layers.session) from error
    except NonFiniteError:
        if source is not None and x.is_cpu:
            _check_finite(layers.session, name, source)
        raise
    _warn_overwritten(layers.session, overwritten)
    return finished


def _check_finite(session: Session, name: str, source: Source) -> None:
    """Raise NonFiniteError, in terms of what the module put out, where that is not finite."""
    wrong = ~source.is_counted_finite()
    if count := int(wrong.sum()):
        session.check(name, source.x.shape, 0, 0, count, int(wrong.nonzero()[0]))


def kept_back(error: OSError, what: str, session: Session) -> OSError:
    """An error of the record or counts file, with what to do about it."""
    remedy = f"{what} kept; mend this, then call write_record()"
    if session.counts_file and error.filename == session.counts_file:
        remedy = "what layers were seen to hold is lost; mend this, and go on from a snapshot or begin anew"
    return OSError(error.errno, f"{error.strerror} ({remedy})", error.filename)


class Recorder:
    """What a run and an operator have in common: a session, and what can be asked of it.

    Layers that did not see all their batches are named in a warning when the recorder is released or the
    program ends.
    """

    _session: Session
    _layers: DeviceLayers

    def _attach(self, session: Session) -> None:
        """Take a session over."""
        self._session = session
        self._layers = DeviceLayers(session)
        self._at_release = weakref.finalize(self, _report_lost, self._layers, os.getpid())

    @property
    def record_file(self) -> str:
        """The file the factors go to."""
        return self._session.record_file

    def results(self) -> list[LayerResult]:
        """The finished layers, in the order of the configuration; without one, as they finished."""
        return self._session.results()

    def unfinished(self) -> dict[str, tuple[int, int]]:
        """The layers that need more batches: (batches seen, batches needed) by name."""
        return {name: (seen, needed) for name, seen, needed in self._layers.unfinished()}

    def finish(self) -> None:
        """Finish layers that saw fewer batches than configured, with what they saw, and write the record.

        For layers that not every batch reaches, as those of experts. They are named in a warning, and so
        are layers that no batch reached: these get no factors, and wait for more batches.

        Raises
        ------
        RuntimeError
            A layer has no finite value (`nonfinite` is 'skip'), or a device held NaN or infinite ones.
            The other layers are finished all the same.
        OSError
            The file cannot be written; the factors are kept for `write_record`.
        """
        early = self.unfinished()
        try:
            self._layers.hand_over()
        finally:
            try:
                _warn_overwritten(self._session, self._session.finish())
            finally:
                rows = {layer.name: layer.rows for layer in self.results() if layer.name in early}
                _warn_of(
                    [f"{name} ({early[name][0]} of {early[name][1]}, {rows[name]} tokens)" for name in rows],
                    "were finished with fewer batches than configured",
                )
                _warn_of(
                    [name for name, (seen, _) in self.unfinished().items() if seen == 0],
                    "were not reached and have no factors",
                )

    def write_record(self) -> None:
        """Write factors that are not in the record file yet.

        They are kept from it by an error, a full disk for instance; or, until the model's forward returns,
        because writing so soon again would take too much of the time.

        Raises
        ------
        OSError
            The file still cannot be written.
        """
        _warn_overwritten(self._session, self._session.write_record())


def _report_lost(layers: DeviceLayers, process: int) -> None:
    """Write what there is, and name the layers that have no factors in the record file, in a warning."""
    if os.getpid() != process:
        return  # a fork of it, which ends
    try:
        layers.session.write_record()
    except (OSError, ValueError) as error:
        logger.warning("'%s' could not be written: %s", layers.session.record_file, error)
    unfinished = layers.unfinished()
    if unfinished:
        lines = ", ".join(f"{name} ({seen} of {needed} batches)" for name, seen, needed in unfinished)
        logger.warning(
            "%d layers have no factors in '%s', since they did not see all their batches: %s",
            len(unfinished),
            layers.session.record_file,
            lines,
        )


def _warn_of(layers: list[str], what: str) -> None:
    if layers:
        logger.warning("%d layers %s: %s", len(layers), what, ", ".join(layers))


def _warn_overwritten(session: Session, layers: list[str]) -> None:
    for layer in layers:
        logger.warning("layer '%s' was already in '%s' and will be overwritten", layer, session.record_file)
