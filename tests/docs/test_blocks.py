"""What counts as the same output, and how blocks are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks import blocks_of, commands_of, elided, same


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("scale 0.071777", "scale 0.071778"),
        ("loss +0.10%", "loss -0.20%"),
        ("offset 25, scale 0.07", "offset 26, scale 0.07"),
        ("took 3.2 s", "took 41.0 s"),
        ("a   b", "a b"),
        ("first\n...\nlast", "first\nx\ny\nlast"),
        ("first\n...", "first"),
        ("...\nlast", "x\nlast"),
        ("a\n...\nm\n...\nz", "a\nb\nm\nn\nz"),
    ],
)
def test_same(shown: str, printed: str) -> None:
    assert same(shown.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("60 layers", "61 layers"),
        ("scale 0.07", "scale 0.08"),
        ("loss +0.10%", "loss +2.10%"),
        ("OK", "NOT OK"),
        ("one\ntwo", "one"),
        ("one", "one\ntwo"),
        ("first\n...\nlast", "first\nlast one"),
        ("layer 1", "layer one"),
    ],
)
def test_not_same(shown: str, printed: str) -> None:
    assert not same(shown.splitlines(), printed.splitlines())


def test_an_update_leaves_out_what_the_page_left_out() -> None:
    shown = ["old head", "old first", "...", "old last"]
    printed = ["head", "first", "second", "third", "last"]
    assert elided(shown, printed) == ["head", "first", "...", "last"]
    assert elided(["old"], printed) == printed


def test_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run: python\nx = 1\n-->\n"
        "```console\n$ one \\\n    two\nprinted\n$ three\n```\n\n- in a list\n\n"
        '  ```bash title="there" skip\n  four\n  ```\n\n```json title="a.json"\n{}\n```\n'
    )
    hidden, console, skipped, file = blocks_of(page)
    assert (hidden.language, hidden.text, hidden.hidden) == ("python", "x = 1\n", True)
    assert [(c.text, c.shown) for c in commands_of(console)] == [("one     two", ["printed"]), ("three", [])]
    assert (skipped.text, skipped.skipped) == ("four\n", True)
    assert (file.file, file.text) == ("a.json", "{}\n")


def test_a_block_that_is_not_closed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\ntrue\n")
    with pytest.raises(ValueError, match=r"page\.md:1: the block is not closed"):
        blocks_of(page)
