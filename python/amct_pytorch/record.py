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
    """

    scale: torch.Tensor
    offset: torch.Tensor
    per_head: bool = False


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
        name: KVFactors(torch.tensor(scales), torch.tensor(offsets, dtype=torch.int32), per_head)
        for name, scales, offsets, per_head in _core.read_record(path)
    }
