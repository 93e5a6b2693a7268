"""Every command block of the documentation is run, and prints what the page shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import amct_pytorch
import pytest
from blocks import RUN, SHOWN, Block, blocks_of, commands_of, difference, elided, same
from preloaded import Session
from workplace import ROOT, Workplace

REFERENCE = ROOT / "docs" / "reference" / "python.md"
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
# Blocks that need what is not here, a GPU for the most part. They must parse, and each is counted.
NOT_RUN = {
    "README.md": 1,
    "README.zh.md": 1,
    "docs/how-to/command-line.md": 1,
    "docs/how-to/cpp.md": 1,
    "docs/how-to/index.md": 1,
    "docs/how-to/install.md": 3,
    "docs/how-to/int4.md": 1,
    "docs/how-to/lmdeploy.md": 1,
    "docs/how-to/many-processes.md": 1,
    "docs/how-to/sglang.md": 2,
    "docs/how-to/vllm-ascend.md": 1,
    "docs/how-to/vllm.md": 1,
    "docs/index.md": 1,
    "docs/tutorial.md": 2,
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks_of(page):
        known = ", ".join(sorted(RUN | SHOWN))
        assert block.language in RUN | SHOWN, f"{block.where}: '{block.language}' is not one of {known}"
        assert block.language in RUN or not any(line.startswith("$ ") for line in block.lines), (
            f"{block.where}: a command is shown in a block of {block.language}; make it one of console"
        )
        if block.skipped:
            assert "title" in block.options, f"{block.where}: say in a title where the block is run"


def test_every_skipped_block_is_counted() -> None:
    skipped = Counter(name_of(page) for page in PAGES for block in blocks_of(page) if block.skipped)
    assert dict(skipped) == NOT_RUN


def test_every_public_name_is_in_the_reference() -> None:
    named = set(re.findall(r"^::: ([\w.]+)$", REFERENCE.read_text("utf-8"), re.MULTILINE))
    names = {f"amct_pytorch.{name}" for name in amct_pytorch.__all__ if not name.startswith("__")}
    errors = {"amct_pytorch.NonFiniteError"}  # in the page's table
    assert names - named - errors == set()


def test_both_readmes_have_the_same_blocks() -> None:
    english, chinese = (
        [block.text for block in blocks_of(ROOT / name) if block.language != "python"]
        for name in ("README.md", "README.zh.md")
    )
    assert english == chinese


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.skipped for b in blocks_of(page))], ids=name_of
)
def test_skipped_blocks_parse(page: Path) -> None:
    for block in blocks_of(page):
        if not block.skipped:
            continue
        if block.language == "python":
            ast.parse(block.text, block.where)
        else:
            script = block.text if block.language == "bash" else "\n".join(c.text for c in commands_of(block))
            parsed = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
            assert parsed.returncode == 0, f"{block.where}: {parsed.stderr}"


class Page:
    """Runs the blocks of a page in order, in one folder and one interpreter."""

    def __init__(self, page: Path, folder: Path, workplace: Workplace, update: bool) -> None:
        self._blocks = blocks_of(page)
        self._page = page
        self._folder = folder
        self._workplace = workplace
        self._update = update
        self._session: Session | None = None
        self._changes: list[tuple[int, int, list[str]]] = []  # lines of the page, and what becomes of them

    def run(self) -> None:
        try:
            for number, block in enumerate(self._blocks):
                after = self._blocks[number + 1] if number + 1 < len(self._blocks) else None
                self._run(block, after if after is not None and after.is_output else None)
        finally:
            if self._session is not None:
                self._session.close()
            self._write_changes()

    def _run(self, block: Block, output: Block | None) -> None:
        if block.file is not None:
            target = self._folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
            return
        if block.skipped or block.language not in RUN:
            return
        if block.language == "console":
            for command in commands_of(block):
                printed = self._shell(command.text, f"{block.path.name}:{block.line + command.line + 1}")
                first = block.line + command.first
                self._compare(command.shown, printed, block, first, f"$ {command.text}")
            return
        run = self._shell if block.language == "bash" else self._python
        printed = run(block.text, block.where)
        if output is not None:
            self._compare(output.lines, printed, output, output.line, block.where)

    def _shell(self, script: str, where: str) -> str:
        """What a script prints. A page says itself where a command is to fail: `|| echo "exit code $?"`."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._folder,
            env=self._workplace.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        messages = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{where} exits with {done.returncode}:\n{script}\n{messages}"
        return done.stdout

    def _python(self, code: str, where: str) -> str:
        if self._session is None:
            environment = self._workplace.environment
            self._session = Session(self._workplace.socket, str(self._folder), environment)
        printed, error = self._session.run(code, where)
        assert not error, f"{where} fails:\n{error}"
        return printed

    def _compare(self, shown: list[str], printed: str, block: Block, first: int, what: str) -> None:
        lines = printed.replace(f"{self._folder}/", "").splitlines()
        if not shown or same(shown, lines):
            return
        if self._update:
            lines = [block.indent + line if line else line for line in elided(shown, lines)]
            self._changes.append((first, first + len(shown), lines))
            return
        pytest.fail(f"{block.where}: {what}\n{difference(shown, lines)}", pytrace=False)

    def _write_changes(self) -> None:
        if not self._changes:
            return
        lines = self._page.read_text("utf-8").splitlines()
        for begin, end, content in reversed(self._changes):
            lines[begin:end] = content
        self._page.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.language in RUN and not b.skipped for b in blocks_of(page))],
    ids=name_of,
)
def test_page(page: Path, page_folder: Path, workplace: Workplace) -> None:
    Page(page, page_folder, workplace, update=os.environ.get("UPDATE_DOCS") == "1").run()
