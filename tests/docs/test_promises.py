"""Each promise of the READMEs names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from workplace import ROOT

READMES = {"README.md": "What you can rely on", "README.zh.md": "可以放心的几点"}


def named_tests(readme: str) -> list[list[str]]:
    """The tests of each row of its table of promises."""
    text = (ROOT / readme).read_text("utf-8")
    section = text.split(f"## {READMES[readme]}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1]) for row in rows]


def is_there(test: str) -> bool:
    if "::" in test:
        file, function = test.split("::")
        path = ROOT / "tests" / "python" / file
        return path.is_file() and re.search(rf"\bdef {function}\(", path.read_text("utf-8")) is not None
    suite, name = test.split(".")
    sources = Path(ROOT / "tests" / "cpp").rglob("*_test.cc")
    return any(
        re.search(rf"^TEST(_F|_P)?\({suite}, {name}\)", x.read_text("utf-8"), re.MULTILINE) for x in sources
    )


@pytest.mark.parametrize("readme", READMES)
def test_every_promise_has_its_tests(readme: str) -> None:
    rows = named_tests(readme)
    assert len(rows) > 10
    for tests in rows:
        assert tests
        for test in tests:
            assert is_there(test), f"{readme}: there is no test '{test}'"


def test_the_languages_promise_the_same() -> None:
    assert named_tests("README.md") == named_tests("README.zh.md")


def test_notices_name_what_wheels_may_hold() -> None:
    source = (ROOT / "scripts" / "wheel_contents.py").read_text("utf-8")
    licenses = dict(re.findall(r'^    "([a-z0-9-]+)": "([A-Za-z0-9.-]+)",$', source, re.MULTILINE))
    assert len(licenses) > 5
    rows = (ROOT / "THIRD_PARTY_NOTICES.md").read_text("utf-8").splitlines()
    named = {cells[3].strip(): cells[2].strip() for row in rows if len(cells := row.split("|")) == 7}
    assert licenses.items() <= named.items()
