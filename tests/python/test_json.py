"""JSON that the package reads by itself, what `evaluate --json` wrote for a report: its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from amct_pytorch import _json

# The library's kMaxJsonDepth.
LEVELS = 64


def written(folder: Path, content: str) -> Path:
    path = folder / "evaluation.json"
    path.write_text(content, "utf-8")
    return path


def nested(levels: int, kind: str) -> str:
    """JSON of so many levels, of lists, objects or both in turn; what stands in a text is no level."""
    pairs = {"lists": ["[]"], "objects": ["{}"], "both": ["[]", "{}"]}[kind]
    levels_of = [pairs[level % len(pairs)] for level in range(levels)]
    begins = "".join('{"a": ' if begin == "{" else begin for begin, _ in levels_of)
    return begins + '"' + "[{" * 100 + '"' + "".join(end for _, end in reversed(levels_of))


@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
def test_as_many_levels_as_are_allowed(kind: str, tmp_path: Path) -> None:
    value, levels = _json.read(written(tmp_path, nested(LEVELS, kind))), 0
    while not isinstance(value, str):
        value, levels = value["a" if isinstance(value, dict) else 0], levels + 1
    assert levels == LEVELS
    wide = "[" + ", ".join([nested(LEVELS - 1, kind)] * 3) + "]"  # side by side they do not add up
    assert len(_json.read(written(tmp_path, wide))) == 3


@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
@pytest.mark.parametrize("levels", [LEVELS + 1, 500, 100_000])
def test_more_levels_are_refused(levels: int, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, nested(levels, kind))
    with pytest.raises(ValueError, match=rf"'{path}'.* nested too deeply"):
        _json.read(path)


def test_a_larger_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _json.MAX_SIZE == 100 << 20
    monkeypatch.setattr(_json, "MAX_SIZE", 100)
    assert len(_json.read(written(tmp_path, '"' + 98 * "x" + '"'))) == 98
    path = written(tmp_path, '"' + 99 * "x" + '"')
    with pytest.raises(ValueError, match=rf"'{path}' is larger than 100 bytes"):
        _json.read(path)


def test_a_file_without_an_end_is_not_read_on(tmp_path: Path) -> None:
    """Sparse: reading all of it would take the memory."""
    path = tmp_path / "evaluation.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger than"):
        _json.read(path)
