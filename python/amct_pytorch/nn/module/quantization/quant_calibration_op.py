"""A calibration operator for use inside one's own forward()."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from amct_pytorch import _core
from amct_pytorch._checks import (
    DEFAULT_MEMORY_BUDGET,
    require_memory_budget,
    require_path,
    require_type,
    require_utf8,
)
from amct_pytorch._observe import Recorder, observe


class QuantCalibrationOp(Recorder, torch.nn.Module):
    """Calibrates the tensors that are passed through it, layer by layer.

    Several layers may go through one operator, and several operators may share one record file: each
    layer is merged into the file as it finishes, and everything else in the file stays. Layers that did
    not see all their batches are named in a warning when the operator is released or the program ends.

    Parameters
    ----------
    record_file : str
        File for the factors (protobuf text of ``ScaleOffsetRecord``, mode 640). Missing folders are
        created (mode 750). A layer that it already holds is overwritten, with a warning.
    quant_algo_params : dict, optional
        ======================  ========================================================  ==============
        key                     values                                                    default
        ======================  ========================================================  ==============
        act_algo                'ifmr', 'hfmg', 'minmax', 'percentile', 'mse'             'ifmr'
        num_bits                8                                                         8
        batch_num               int > 0                                                   1
        asymmetric              bool; wins over with_offset                               True
        with_offset             bool                                                      True
        quant_granularity       'per_tensor', 'per_channel', 'per_head'; '0', '1', '2'    'per_tensor'
        head_num                int > 0, per head only
        max_percentile          float in (0.5, 1], ifmr only                              0.999999
        min_percentile          float in (0.5, 1], ifmr only                              0.999999
        search_range            [start, end], 0 < start < end, ifmr only                  [0.7, 1.3]
        search_step             float in (0, end - start], ifmr only                      0.01
        num_of_bins             1024, 2048, 4096 or 8192, hfmg only                       4096
        percentile              float in (0.5, 1], percentile only                        0.9999
        nonfinite               'raise', or 'skip' to leave NaN and infinities out        'raise'
        ======================  ========================================================  ==============
    quant_method : str
        'kv_cache_quant', the only one.
    memory_budget : int
        Bytes that float32 values may take over all layers; see `create_quant_cali_model`.

    Raises
    ------
    TypeError
        An argument or parameter has a wrong type.
    ValueError
        `record_file` cannot be the name of a file, or is there and is not a record.
    RuntimeError
        A parameter is unknown, out of range, or one of another algorithm; an unknown `quant_method`.

    Examples
    --------
    >>> op = QuantCalibrationOp("record.txt", {"act_algo": "hfmg", "batch_num": 2})  # doctest: +SKIP
    >>> keys = op("layers.0.k_proj", keys)  # doctest: +SKIP
    """

    def __init__(
        self,
        record_file: str,
        quant_algo_params: dict[str, Any] | None = None,
        quant_method: str = "kv_cache_quant",
        *,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        super().__init__()
        path = require_path("record_file", record_file)
        params = require_type(
            "quant_algo_params", {} if quant_algo_params is None else quant_algo_params, dict
        )
        for key, value in params.items():
            require_utf8("a key of quant_algo_params", require_type("a key of quant_algo_params", key, str))
            if isinstance(value, str):
                require_utf8(key, value)
        if require_type("quant_method", quant_method, str) != "kv_cache_quant":
            raise RuntimeError(f"quant_method must be 'kv_cache_quant', not '{quant_method}'")
        budget = require_memory_budget(memory_budget)
        self._attach(_core.Session.for_operator(params, path, budget))

    def forward(self, layer_name: str, x: torch.Tensor) -> torch.Tensor:
        """Observe `x` as a batch of a layer, and return it.

        Parameters
        ----------
        layer_name : str
            The layer's name in the record.
        x : torch.Tensor
            float32, float16 or bfloat16, of any shape and on any device; the last dimension is the channel.
            On a device other than the CPU it is looked at there, without waiting.

        Returns
        -------
        torch.Tensor
            `x` itself.

        Raises
        ------
        TypeError
            `layer_name` is not a str, or `x` not a tensor of one of these dtypes.
        RuntimeError
            `x` holds NaN or infinite values (`NonFiniteError`), is empty, or has another number of
            channels than the batches before. On a device NaN and infinite values are found when the layer
            has seen all its batches: the error then names the batch that holds them.
        OSError
            The record file cannot be written.
        """
        observe(self._layers, require_utf8("layer_name", require_type("layer_name", layer_name, str)), x)
        return x

    def extra_repr(self) -> str:
        """The record file, for ``repr(model)``."""
        return f"record_file={self.record_file!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise RuntimeError("a QuantCalibrationOp cannot be copied: both would write one record; make another")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError("a QuantCalibrationOp cannot be pickled: it holds observations; save state_dict()")
