"""Argument checks that give the errors the interface promises."""

from __future__ import annotations

import os
from typing import Any, TypeVar

T = TypeVar("T")

# Bytes that float32 values may take over all layers of a calibration.
DEFAULT_MEMORY_BUDGET = 1 << 30


def require_type(name: str, value: Any, expected: type[T]) -> T:
    """Return `value`, or raise TypeError unless it is an instance of `expected`."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be a {expected.__name__}, not {type(value).__name__}")
    return value


def require_path(name: str, value: Any) -> str:
    """Return `value` as str, or raise TypeError unless it is a str or a path object."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a str, not {type(path).__name__}")
    return require_utf8(name, path)


def require_utf8(name: str, value: str) -> str:
    """Return `value`, or raise ValueError where it holds surrogates: what UTF-8 cannot say."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} cannot be written in UTF-8: {value[:256]!a}") from error
    return value


def require_tokens(name: str, value: Any) -> int:
    """Return `value`, or raise TypeError unless it is an int, ValueError unless it is a number of tokens."""
    count = require_type(name, value, int)
    if isinstance(value, bool) or count < 0:
        raise ValueError(f"{name} must be a number of tokens, 0 or more, not {value}")
    return count


def require_memory_budget(value: Any) -> int:
    """Return `value`, or raise TypeError unless it is an int, ValueError unless it is a number of bytes."""
    if isinstance(value, bool):
        raise TypeError("memory_budget must be an int, not bool")
    budget = require_type("memory_budget", value, int)
    if not 0 <= budget < 2**63:
        raise ValueError(f"memory_budget must be a number of bytes, 0 or more, not {budget}")
    return budget
