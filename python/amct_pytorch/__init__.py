"""Calibrate the key/value cache of PyTorch models for quantization.

The three calls of the interface::

    import amct_pytorch as amct

    amct.create_quant_cali_config("config.json", model)
    calibration_model = amct.create_quant_cali_model("config.json", "record.txt", model)
    for batch in batches:  # batch_num of them
        calibration_model(batch)  # record.txt holds each layer's factors as it finishes

The factors are those of INT8 storage with a subtracted offset:
``q = clamp(round(x / scale) + offset, -128, 127)`` and ``x' = (q - offset) * scale``.

`StaticQuantizedCache` and `FakeQuantizedCache` are caches for transformers, which is loaded when one of them
is asked for.

Messages go through the logger ``amct_pytorch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amct_pytorch._cache_tap import observe_cache
from amct_pytorch._core import LayerResult, NonFiniteError, __version__
from amct_pytorch._report_model import Report
from amct_pytorch.calibration import (
    CalibrationRun,
    calibrate,
    calibration_run,
    create_quant_cali_config,
    create_quant_cali_model,
    remove_quant_cali,
)
from amct_pytorch.counts import merge_counts, solve_counts
from amct_pytorch.discovery import KVLayer, find_kv_layers
from amct_pytorch.export import (
    ExportReport,
    Unrepresentable,
    VerifyReport,
    export_record,
    runtimes,
    verify_export,
)
from amct_pytorch.fake_quant import fake_quantize, fake_quantized
from amct_pytorch.nn.module.quantization.quant_calibration_op import QuantCalibrationOp
from amct_pytorch.record import KVFactors, read_record
from amct_pytorch.report import report

if TYPE_CHECKING:
    from amct_pytorch.kv_cache import FakeQuantizedCache as FakeQuantizedCache
    from amct_pytorch.static_cache import StaticQuantizedCache as StaticQuantizedCache

# Not in __all__: `from amct_pytorch import *` would load transformers.
_NEEDS_TRANSFORMERS = {
    "FakeQuantizedCache": "amct_pytorch.kv_cache",
    "StaticQuantizedCache": "amct_pytorch.static_cache",
}

__all__ = [
    "CalibrationRun",
    "ExportReport",
    "KVFactors",
    "KVLayer",
    "LayerResult",
    "NonFiniteError",
    "QuantCalibrationOp",
    "Report",
    "Unrepresentable",
    "VerifyReport",
    "__version__",
    "calibrate",
    "calibration_run",
    "create_quant_cali_config",
    "create_quant_cali_model",
    "export_record",
    "fake_quantize",
    "fake_quantized",
    "find_kv_layers",
    "merge_counts",
    "observe_cache",
    "read_record",
    "remove_quant_cali",
    "report",
    "runtimes",
    "solve_counts",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NEEDS_TRANSFORMERS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEEDS_TRANSFORMERS})
