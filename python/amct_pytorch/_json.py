"""Objects as JSON can hold them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from amct_pytorch._compat import StrEnum


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
