"""Argument checks that give the errors the interface promises."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
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


def require_other_files(written: Mapping[str, str | None], read: Mapping[str, str | None]) -> None:
    """Raise ValueError where a file that is to be written is another one of them, by whatever name.

    Parameters
    ----------
    written, read : mapping
        Paths by argument; None or an empty one: there is no such file.
    """
    files = [(name, path, name in written) for name, path in {**written, **read}.items() if path]
    for (name, path, is_written), (other, same, other_is_written) in itertools.combinations(files, 2):
        if (is_written or other_is_written) and _is_one_file(path, same):
            raise ValueError(f"{name} and {other} are both '{path}'; one would replace the other")


def _is_one_file(path: str, other: str) -> bool:
    """Whether two paths lead to one file, which need not be there."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    with contextlib.suppress(OSError, ValueError):  # one of them is not there
        return Path(path).samefile(other)
    return False


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
