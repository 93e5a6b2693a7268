"""Layers that several processes share (tensor parallelism): what this one has of them."""

from __future__ import annotations

import re
import sys
import weakref
from typing import Any

import torch

# Projections whose weights are shared, but whose output each process has whole.
_gathering: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def note_plan(model: torch.nn.Module) -> None:
    """Look up in the tensor parallel plan of a model of transformers which outputs are gathered."""
    plan = getattr(model, "tp_plan", None)
    if not isinstance(plan, dict):
        return
    gathered = {name for name, style in plan.items() if style in ("colwise_gather_output", "colwise_rep")}
    for name, module in model.named_modules() if gathered else ():
        if name in gathered or re.sub(r"\d+", "*", name) in gathered:
            _gathering.add(module)


def own_features(module: torch.nn.Module, declared: int | None) -> int | None:
    """The channels that a projection puts out in this process, of those that it is `declared` to have."""
    if declared is None or module in _gathering:
        return declared
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return declared
    if is_dtensor(weight):
        spread: Any = weight
        weight = spread.to_local()
    # Other kinds of weights (packed, transposed) do not have the inputs as their columns.
    is_shard = isinstance(module, torch.nn.Linear) and weight.shape[1] == module.in_features
    return int(weight.shape[0]) if is_shard else declared


def is_dtensor(x: Any) -> bool:
    """Whether a tensor is spread over processes."""
    library = sys.modules.get("torch.distributed.tensor")  # else nobody has one
    return library is not None and isinstance(x, library.DTensor)


def local_part(name: str, x: Any) -> Any:
    """What this process has of an output of layer `name`: all tokens of some channels, which lie last.

    Tensors of this process alone are left as they are. Raises RuntimeError for one that is spread over
    processes in another way.
    """
    return _local_along(name, x, -1)


def local_heads(name: str, states: Any) -> Any:
    """The same for ``[batch, heads, tokens, head_dim]``, of which a process has some heads."""
    return _local_along(name, states, 1)


def _local_along(name: str, x: Any, dim: int) -> Any:
    if not is_dtensor(x):
        return x
    if not all(placement.is_replicate() or placement.is_shard(dim % x.dim()) for placement in x.placements):
        raise RuntimeError(
            f"layer '{name}': a tensor of shape {tuple(x.shape)} is spread over processes as {x.placements}; "
            "they may share its channels, and nothing else"
        )
    return x.to_local()
