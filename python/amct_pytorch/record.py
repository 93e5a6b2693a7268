"""Reading record files."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from amct_pytorch import _core
from amct_pytorch._checks import require_path


@dataclass(frozen=True)
class KVFactors:
    """The factors of one layer: ``x' = (q - offset) * scale``.

    Attributes
    ----------
    scale : torch.Tensor
        float32, shape ``[1]`` per tensor, ``[channels]`` per channel or ``[heads]`` per head; positive and
        finite.
    offset : torch.Tensor
        int32, the shape of `scale`.
    per_head : bool
        Whether they are per head: of as many neighbouring channels each.
    dst_type : str
        What the cache stores: 'INT8', 'INT4', 'FP8_E4M3', 'FP8_E5M2', 'FP8_E4M3FNUZ', 'FP8_E5M2FNUZ' or
        'HIF8'. The codes of a float format are values themselves, and their offsets 0.
    tap : {'linear', 'cache'}
        Where the values were observed that they are made for.
    role : {'key', 'value'} or None
        What the layer is, where the record or its name says it.
    sink_tokens : int
        First tokens of each sequence that the factors are not for: the cache keeps them as they are.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    per_head: bool = False
    dst_type: str = "INT8"
    tap: str = "linear"
    role: str | None = None
    sink_tokens: int = 0


def read_record(record_file: str | os.PathLike[str]) -> dict[str, KVFactors]:
    """Read the factors of every layer in a record file.

    Parameters
    ----------
    record_file : str
        Protobuf text of a ``ScaleOffsetRecord``.

    Returns
    -------
    dict of str to KVFactors
        By layer name, in file order. Entries that other features wrote are left out.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is not a record, or holds a layer whose factors cannot be used.
    """
    path = require_path("record_file", record_file)
    return {
        layer.name: KVFactors(
            torch.tensor(layer.scales),
            torch.tensor(layer.offsets, dtype=torch.int32),
            layer.per_head,
            layer.dst_type,
            layer.tap,
            layer.role,
            layer.sink_tokens,
        )
        for layer in _core.read_record(path)
    }


def factors_of(result: _core.LayerResult) -> KVFactors:
    """The factors of a calibrated layer, as `read_record` would give them."""
    return KVFactors(
        torch.tensor(result.scales),
        torch.tensor(result.offsets, dtype=torch.int32),
        result.granularity == "per_head",
        result.dst_type,
        result.tap,
        None,
        result.sink_tokens,
    )
