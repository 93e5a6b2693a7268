"""Ours and the peers: how each is asked for the scale and zero point of some batches.

A calibrator's library is loaded when it is used, so that a missing one is the trouble of its own process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from measure import DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answer:
    """Factors for INT8: x is stored as clip(round(x / scale) + zero_point, -128, 127)."""

    scale: float
    zero_point: float


@dataclass(frozen=True)
class Contender:
    """One way to calibrate.

    `package` is the distribution whose version the table shows. `kind` of a peer is `histogram` (it searches
    a histogram), `mse` (it tries ranges on the values themselves) or `minmax`; of ours, `search` or `minmax`.
    """

    name: str
    package: str
    kind: str
    calibrate: Callable[[Sequence[torch.Tensor]], Answer]
    note: str = ""
    dtypes: tuple[str, ...] = DTYPES

    @property
    def ours(self) -> bool:
        return self.package == "amct-pytorch"


def amct(algorithm: str, batches: Sequence[torch.Tensor]) -> Answer:
    from amct_pytorch import _core

    # What a session makes of the configuration.
    observer = _core.Observer(range_only=algorithm == "minmax", expected_batches=len(batches))
    for batch in batches:
        observer.observe(batch)
    ((scale, offset),) = observer.solve(algorithm)
    return Answer(scale, offset)


def modelopt(method: str, batches: Iterable[torch.Tensor]) -> Answer:
    from modelopt.torch.quantization.calib import HistogramCalibrator

    calibrator = HistogramCalibrator(num_bits=8, axis=None, unsigned=False)
    for batch in batches:
        calibrator.collect(batch)
    return Answer(float(calibrator.compute_amax(method)) / 127, 0)


def llm_compressor(kind: str, batches: Iterable[torch.Tensor]) -> Answer:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.observers import Observer

    args = QuantizationArgs(num_bits=8, type="int", symmetric=False, strategy="tensor", observer=kind)
    observer = Observer.load_from_registry(kind, base_name="output", args=args)
    for batch in batches:
        observer(batch)
    factors = observer.get_qparams()
    return Answer(float(factors["scale"]), float(factors["zero_point"]))


def histogram_observer(module: str, batches: Iterable[torch.Tensor], as_float32: bool = False) -> Answer:
    import torch

    make = importlib.import_module(module).HistogramObserver
    observer = make(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    for batch in batches:
        observer(batch.float() if as_float32 else batch)
    return Answer(*map(float, observer.calculate_qparams()))


def torchao_mse(batches: Iterable[torch.Tensor]) -> Answer:
    import torch
    from torchao.quantization import PerTensor
    from torchao.quantization.observer import AffineQuantizedMSEObserver
    from torchao.quantization.quant_primitives import MappingType

    observer = AffineQuantizedMSEObserver(MappingType.SYMMETRIC, torch.int8, PerTensor())
    for batch in batches:
        observer(batch)
    return Answer(*map(float, observer.calculate_qparams()))


CONTENDERS = (
    *(
        Contender(f"amct {algorithm}", "amct-pytorch", "search", partial(amct, algorithm))
        for algorithm in ("ifmr", "hfmg", "percentile", "mse")
    ),
    Contender("amct minmax", "amct-pytorch", "minmax", partial(amct, "minmax")),
    Contender(
        "torch.ao HistogramObserver",
        "torch",
        "histogram",
        partial(histogram_observer, "torch.ao.quantization"),
        note="counts in the dtype of the values",
    ),
    Contender(
        "torch.ao HistogramObserver, float",
        "torch",
        "histogram",
        partial(histogram_observer, "torch.ao.quantization", as_float32=True),
        note="given x.float()",
        dtypes=("bfloat16", "float16"),
    ),
    Contender(
        "torchao HistogramObserver",
        "torchao",
        "histogram",
        partial(histogram_observer, "torchao.quantization.pt2e"),
        note="counts in the dtype of the values",
    ),
    *(
        Contender(
            f"modelopt {method}",
            "nvidia-modelopt",
            "histogram",
            partial(modelopt, method),
            note="symmetric; takes x.float() itself",
        )
        for method in ("percentile", "mse", "entropy")
    ),
    Contender(
        "llm-compressor mse", "llmcompressor", "mse", partial(llm_compressor, "mse"), note="moving average"
    ),
    Contender("torchao mse", "torchao", "mse", torchao_mse, note="symmetric; keeps the last batch's answer"),
    Contender(
        "llm-compressor minmax",
        "llmcompressor",
        "minmax",
        partial(llm_compressor, "minmax"),
        note="moving average",
    ),
    Contender(
        "llm-compressor static_minmax", "llmcompressor", "minmax", partial(llm_compressor, "static_minmax")
    ),
)
