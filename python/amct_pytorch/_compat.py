"""What Python 3.10 lacks."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum as StrEnum

    def add_note(error: BaseException, note: str) -> None:
        """Add a line to what a traceback shows below the error."""
        error.add_note(note)

else:
    from enum import Enum

    class StrEnum(str, Enum):
        """Members are text, and print as it."""

        __str__ = str.__str__

    def add_note(error: BaseException, note: str) -> None:
        """Keep a line where PEP 678 has it; tracebacks of Python 3.10 do not show it."""
        vars(error).setdefault("__notes__", []).append(note)
