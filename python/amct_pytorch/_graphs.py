"""Keeping torch.compile away from code that it should not trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """Keep torch.compile from tracing `function`, whose call then breaks a compiled model's graph.

    Where dynamo is not loaded there is nothing to keep off yet, and loading it for this takes longer than
    loading torch: `function` is returned as it is. A model compiled later traces up to what it cannot, a
    call into C++ or of this function, and breaks its graph there.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled
