"""Objects as JSON can hold them."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amct_pytorch._compat import StrEnum

# Bytes of a file of JSON; the library's kMaxJsonFileSize.
MAX_SIZE = 100 << 20


def read(path: Path) -> Any:
    """What a file of JSON holds.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is larger than 100 MiB, not JSON, or nested more deeply than Python can follow.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError(f"'{path}' is larger than {MAX_SIZE} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"'{path}' is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error


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
