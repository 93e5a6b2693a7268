"""Objects as JSON can hold them."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amct_pytorch._compat import StrEnum

# Bytes of a file of JSON, and its levels; the library's kMaxJsonFileSize and kMaxJsonDepth.
MAX_SIZE = 100 << 20
MAX_DEPTH = 64


def read(path: Path) -> Any:
    """What a file of JSON holds.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is larger than 100 MiB, not JSON, or has more than 64 levels.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError(f"'{path}' is larger than {MAX_SIZE} bytes")
    return parse(content, f"'{path}'")


def parse(content: str | bytes, where: str) -> Any:
    """What a text of JSON says.

    Raises
    ------
    ValueError
        It is not JSON, or has more than 64 levels; `where` says in the message what it is.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        value = None
    except ValueError as error:  # also of a number with too many digits
        raise ValueError(f"{where} is not JSON: {error}") from error
    else:
        if _is_within(value, MAX_DEPTH):
            return value
    raise ValueError(f"{where} is nested too deeply: more than {MAX_DEPTH} levels")


def _is_within(value: Any, levels: int) -> bool:
    """Whether lists and objects are in each other no more than `levels` times."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, (list, dict))]
        if not level:
            return True
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return False


def plain(value: Any) -> Any:
    """Only what JSON has: numbers that are not finite become None, other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)
