"""The calls of the interface: make a configuration, put calibration into a model, take it off."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from amct_pytorch import _core
from amct_pytorch._checks import DEFAULT_MEMORY_BUDGET, require_memory_budget, require_path, require_type
from amct_pytorch._log import logger
from amct_pytorch._observe import Recorder
from amct_pytorch._projection import is_projection
from amct_pytorch._tap import EndOfForward, LinearTap, tap_of
from amct_pytorch.discovery import find_kv_layers, find_state_layers
from amct_pytorch.nn.module.quantization.quant_calibration_op import QuantCalibrationOp

# Writing the record takes no more of the time than this, beside the first and the last write of a forward.
_WRITING_SHARE = 1 / 1000
_LAYERS_KEY = "kv_cache_quant_layers"


def create_quant_cali_config(
    config_file: str,
    model: torch.nn.Module,
    quant_layers: dict[str, list[str]] | None = None,
    config_defination: str | None = None,
) -> None:
    """Write the configuration file of a calibration.

    Parameters
    ----------
    config_file : str
        File to write (JSON, mode 640); replaced where it exists. Missing folders are created (mode 750).
    model : torch.nn.Module
        The model to calibrate; not changed.
    quant_layers : dict, optional
        ``{'kv_cache_quant_layers': [names]}``; a name may be a glob pattern for several layers:
        ``"model.layers.*.self_attn.[kv]_proj"``. Without it, and where the definition names no layers
        either, the key and value projections are found in the model (see `find_kv_layers`).
    config_defination : str, optional
        File with the simplified definition (protobuf text of ``AMCTQuantCaliConfig``). Where it names
        layers, they win over `quant_layers`.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        A bad file name; a wrong key in `quant_layers`; a layer that is not in the model, cannot be
        calibrated or is named twice; a pattern that matches no layer; an error in the definition.
    RuntimeError
        There is no layer to calibrate.
    OSError
        A file cannot be read or written.

    Examples
    --------
    >>> amct.create_quant_cali_config("config.json", model)  # doctest: +SKIP
    >>> amct.create_quant_cali_config(  # doctest: +SKIP
    ...     "config.json", model, {"kv_cache_quant_layers": ["layers.0.k_proj", "layers.0.v_proj"]}
    ... )
    """
    config_path = require_path("config_file", config_file)
    require_type("model", model, torch.nn.Module)
    named = _layers_in(quant_layers)
    definition_path = (
        None if config_defination is None else require_path("config_defination", config_defination)
    )
    _core.check_output_path(config_path)

    definition = None if definition_path is None else _core.Definition.read(definition_path)
    source = "quant_layers"
    if definition is not None and definition.layers():
        names, source = definition.layers(), str(definition_path)
    elif named is not None:
        names = named
    else:
        names = _discover(model)
    if not names:
        raise RuntimeError(f"{source}: no layer is named, so there is nothing to quantize")
    layers = _layers_of(model)
    names = _core.expand_layers(names, layers, source)
    _core.check_layers(names, layers, source)
    config = _core.default_config(names) if definition is None else definition.configure(names)
    config.write(config_path)


def create_quant_cali_model(
    config_file: str,
    record_file: str,
    model: torch.nn.Module,
    *,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> torch.nn.Module:
    """Put calibration into a model.

    Every layer that the configuration names gets an operator that passes the layer's output on
    unchanged and observes it. Run ``batch_num`` batches through the returned model: as a layer has seen
    them, its factors are merged into the record file, in the order of the configuration, and its
    operator is taken off. Layers that were not reached are named in a warning when the model is
    released or the program ends.

    Parameters
    ----------
    config_file : str
        Configuration as `create_quant_cali_config` writes it.
    record_file : str
        File for the factors (protobuf text of ``ScaleOffsetRecord``, mode 640). Replaced by an empty
        record now; missing folders are created (mode 750).
    model : torch.nn.Module
        The model, changed in place. Classes, attributes, hooks and state_dict keys stay.
    memory_budget : int
        Bytes that float32 values may take over all layers, 1 GiB unless given. A layer with more values
        than its share is calibrated from counts in log-linear bins, which adds less than 0.1% to the INT8
        error per tensor and 1% per channel; `LayerResult.is_sketch` tells. bfloat16 and float16 values are
        always counted exactly, in memory that does not grow.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        A bad file name; an error in the configuration, or a layer in it that is not in the model or
        cannot be calibrated; a negative `memory_budget`.
    RuntimeError
        The model already holds calibration operators. Later, from the model's forward: NaN or infinite
        values (`NonFiniteError`; on a device with the layer's last batch), an empty batch, or another
        number of channels than before.
    OSError
        A file cannot be read or written.

    Examples
    --------
    >>> model = amct.create_quant_cali_model("config.json", "record.txt", model)  # doctest: +SKIP
    >>> for batch in batches:
    ...     model(batch)  # doctest: +SKIP
    """
    config_path = require_path("config_file", config_file)
    record_path = require_path("record_file", record_file)
    require_type("model", model, torch.nn.Module)
    budget = require_memory_budget(memory_budget)
    _refuse_calibrated(model)
    config = _core.read_config(config_path)
    _core.check_layers(config.layer_names, _layers_of(model), config_path)
    _core.check_output_path(record_path)
    if os.path.realpath(config_path) == os.path.realpath(record_path):
        raise ValueError(f"record_file and config_file are both '{record_path}'; the record would replace it")
    modules = _distinct_modules(model, config.layer_names, config_path)

    if Path(record_path).exists():
        logger.warning("record_file '%s' exists and will be overwritten", record_path)
    _core.write_empty_record(record_path)
    CalibrationRun(config, record_path, model, modules, budget)
    _retrace_compiled_models()
    return model


def remove_quant_cali(model: torch.nn.Module) -> None:
    """Take calibration off a model; layers that are not finished are then never recorded.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `create_quant_cali_model` returned; others are left as they are.
    """
    require_type("model", model, torch.nn.Module)
    for module in model.modules():
        tap = tap_of(module)
        if tap is not None:
            tap.remove(module)
            tap.owner.release()
    _retrace_compiled_models()


def calibration_run(model: torch.nn.Module) -> CalibrationRun:
    """The calibration that a model holds: its results so far, and what is missing.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `create_quant_cali_model` returned.

    Raises
    ------
    RuntimeError
        The model holds no calibration.
    """
    require_type("model", model, torch.nn.Module)
    for module in model.modules():
        tap = tap_of(module)
        if tap is not None and isinstance(tap.owner, CalibrationRun):
            return tap.owner
    raise RuntimeError("the model holds no calibration; create_quant_cali_model puts it in")


class CalibrationRun(Recorder):
    """A calibration in progress. Made by `create_quant_cali_model`; see `calibration_run`."""

    def __init__(
        self,
        config: _core.CalibrationConfig,
        record_file: str,
        model: torch.nn.Module,
        modules: dict[str, torch.nn.Module],
        memory_budget: int,
    ) -> None:
        self._attach(
            _core.Session(config, record_file, memory_budget, _WRITING_SHARE, search_in_background=True)
        )
        # Taps hold the run, so it is released, and reports, when the last of them goes.
        for name, module in modules.items():
            LinearTap(module, name, self._layers, owner=self)
        self._end_of_forward = EndOfForward(model, self)

    def layer_finished(self) -> None:
        """Told by a tap whose layer is finished."""
        if not self._session.unfinished():
            self.release()

    def release(self) -> None:
        """Leave the model alone from now on; taps are taken off one by one."""
        self._end_of_forward.remove()

    def __repr__(self) -> str:
        return (
            f"<CalibrationRun record_file={self.record_file!r} finished={len(self.results())} "
            f"unfinished={len(self.unfinished())}>"
        )


def _layers_in(quant_layers: Any) -> list[str] | None:
    """The names in the argument `quant_layers`, or None where it is None."""
    if quant_layers is None:
        return None
    require_type("quant_layers", quant_layers, dict)
    if set(quant_layers) != {_LAYERS_KEY}:
        keys = ", ".join(repr(key) for key in quant_layers) or "none"
        raise ValueError(f"quant_layers must have the one key '{_LAYERS_KEY}', not {keys}")
    names = quant_layers[_LAYERS_KEY]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"quant_layers['{_LAYERS_KEY}'] must be a list of str")
    return list(names)


def _discover(model: torch.nn.Module) -> list[str]:
    layers = find_kv_layers(model)
    if not layers:
        raise RuntimeError(
            f"no key or value projection was found in {type(model).__name__}; "
            f"name the layers: quant_layers={{'{_LAYERS_KEY}': [...]}}"
        )
    logger.info(
        "%d key and value layers found: %s",
        len(layers),
        ", ".join(f"{layer.name} ({layer.role})" for layer in layers),
    )
    if state_layers := find_state_layers(model):
        logger.info(
            "%d layers keep a state instead of keys and values and are left alone: %s",
            len(state_layers),
            ", ".join(state_layers),
        )
    return [layer.name for layer in layers]


def _layers_of(model: torch.nn.Module) -> list[tuple[str, str, bool]]:
    """(name, type, whether it can be calibrated) of every module; a shared one by all its names."""
    return [
        (name, type(module).__name__, is_projection(module))
        for name, module in model.named_modules(remove_duplicate=False)
        if name
    ]


def _distinct_modules(
    model: torch.nn.Module, names: Iterable[str], source: str
) -> dict[str, torch.nn.Module]:
    """The named modules. Two names of one module would count its output twice."""
    modules: dict[str, torch.nn.Module] = {}
    name_of: dict[torch.nn.Module, str] = {}
    for name in names:
        module = model.get_submodule(name)
        if module in name_of:
            raise ValueError(
                f"{source}: layers '{name_of[module]}' and '{name}' are one module under two names; keep one"
            )
        name_of[module] = name
        modules[name] = module
    return modules


def _retrace_compiled_models() -> None:
    """Make torch.compile see the hooks: its code does not look whether they changed since it was traced."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _refuse_calibrated(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if tap_of(module) is not None or isinstance(module, QuantCalibrationOp):
            raise RuntimeError(
                f"the model already holds a calibration operator at '{name}'; "
                "take calibration off first: amct_pytorch.remove_quant_cali(model)"
            )
