"""Keeping torch.compile away from code that it should not trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """Keep torch.compile from tracing `function`, whose call then breaks a compiled model's graph.

    Where dynamo is not loaded there is nothing to keep off yet, and loading it for this takes longer than
    loading torch; each call looks whether it is by now.
    """
    if "torch._dynamo" in sys.modules:
        return _disabled(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return _disabled(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def is_recomputing() -> bool:
    """Whether a backward pass runs, which computes again what gradient checkpointing did not keep."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1


def _disabled(function: F) -> F:
    result: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return result
