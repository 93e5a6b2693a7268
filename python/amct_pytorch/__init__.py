"""Calibrate the key/value cache of PyTorch models for quantization.

The three calls of the interface::

    import amct_pytorch as amct

    amct.create_quant_cali_config("config.json", model)
    calibration_model = amct.create_quant_cali_model("config.json", "record.txt", model)
    for batch in batches:  # batch_num of them
        calibration_model(batch)  # record.txt holds each layer's factors as it finishes

The factors are those of INT8 storage with a subtracted offset:
``q = clamp(round(x / scale) + offset, -128, 127)`` and ``x' = (q - offset) * scale``.

Messages go through the logger ``amct_pytorch``.
"""

from amct_pytorch._cache_tap import observe_cache
from amct_pytorch._core import LayerResult, NonFiniteError, __version__
from amct_pytorch.calibration import (
    CalibrationRun,
    calibrate,
    calibration_run,
    create_quant_cali_config,
    create_quant_cali_model,
    remove_quant_cali,
)
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

__all__ = [
    "CalibrationRun",
    "ExportReport",
    "KVFactors",
    "KVLayer",
    "LayerResult",
    "NonFiniteError",
    "QuantCalibrationOp",
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
    "observe_cache",
    "read_record",
    "remove_quant_cali",
    "runtimes",
    "verify_export",
]
