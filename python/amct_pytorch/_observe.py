"""Handing tensors to a session."""

from __future__ import annotations

from typing import Any

import torch

from amct_pytorch._core import Session
from amct_pytorch._log import logger


@torch.compiler.disable  # a compiled model breaks its graph here instead of tracing into C++
def observe(session: Session, name: str, x: Any) -> bool:
    """Add a batch of layer `name`; return whether the layer is finished.

    Parameters
    ----------
    session : Session
        The run.
    name : str
        The layer.
    x : torch.Tensor
        float32, float16 or bfloat16, of any shape and strides; the last dimension is the channel. It is
        neither changed nor kept.

    Raises
    ------
    TypeError
        `x` is not a tensor, or of another dtype.
    RuntimeError
        The batch holds NaN or infinite values, is empty, or has another number of channels than the
        batches before.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"layer '{name}': a tensor is needed, not {type(x).__name__}; name a module that returns one tensor"
        )
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"layer '{name}': a dense tensor is needed, not {x.layout} {x.dtype}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(
            f"layer '{name}': a tensor of {x.dtype} cannot be calibrated; "
            "torch.float32, torch.float16 or torch.bfloat16 is needed"
        )
    finished, overwritten = session.observe(name, x.detach().cpu())
    for layer in overwritten:
        logger.warning("layer '%s' was already in '%s' and will be overwritten", layer, session.record_file)
    return finished
