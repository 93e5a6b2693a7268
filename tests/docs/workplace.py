"""What the blocks of all pages share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Workplace:
    """Where blocks are run."""

    socket: str  # of the process that runs Python programs
    files: Path  # what every page finds in its folder
    environment: dict[str, str]
