"""Hooks of mkdocs: pages that are made from the programs themselves, the C++ pages of Doxygen, and pictures.

reference/amct.md and reference/amct-pytorch.md are what the commands say of themselves; cpp/ is what Doxygen
writes from the public headers (see Doxyfile). Both are made at every build, so they cannot be out of date.

Pictures of docs/images are put into the pages, where they take the colours of the page's scheme.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "build" / "docs" / "cpp"
_CODE_OR_BRACKET = re.compile(r"```.*?```|`[^`\n]*`|\[", re.DOTALL)
_FOR_TESTS = re.compile(r'(?<=") skip$|^<!-- run: .*?^-->\n', re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r'<p><img [^>]*src="[^"]*images/(?P<name>[\w-]+\.svg)"[^>]*></p>')
_STANDALONE = re.compile(r"<style data-standalone.*?</style>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    folder = Path(sys.executable).parent
    files.append(_page(config, "reference/amct.md", _manual_of_amct(folder)))
    files.append(_page(config, "reference/amct-pytorch.md", _manual_of_amct_pytorch()))
    for path in _doxygen():
        name = f"cpp/{path.relative_to(CPP).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out what is said to the tests alone: `skip` of a block, and hidden blocks."""
    return _FOR_TESTS.sub("", markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put pictures into the page."""
    return _PICTURE.sub(_inline, html)


def _inline(match: re.Match[str]) -> str:
    picture = (ROOT / "docs" / "images" / match["name"]).read_text("utf-8")
    # Colours of the picture by itself, for those who look at it elsewhere.
    return f'<div class="picture">{_STANDALONE.sub("", picture)}</div>'


def _page(config: MkDocsConfig, name: str, content: str) -> File:
    return File.generated(config, name, content=content)


def _manual_of_amct(folder: Path) -> str:
    """What `amct reference` writes; the command is the one that the package installs."""
    program = folder / "amct"
    if not program.exists():
        raise PluginError(f"{program} is not there; `make docs` installs the package first")
    text = _output([str(program), "reference"])
    # The help of the program as a whole is text in lines.
    head, commands, rest = text.partition("\n## ")
    head = re.sub(r"^(?=(Example|Exit codes|3 the))", "    ", head, flags=re.MULTILINE)
    return head + commands + rest


def _manual_of_amct_pytorch() -> str:
    """What typer writes of the command."""
    text = _output(
        [sys.executable, "-m", "typer", "amct_pytorch.cli", "utils", "docs", "--name", "amct-pytorch"]
    )
    # An example, which a help shows as it is written, as the character before it says.
    example = re.compile(r"\x08\nExample: (.*?)\n\n", re.DOTALL)
    text = example.sub(r'```console title="Example"\n$ \1\n```\n\n', text)
    # Brackets of a help text would be taken for links; those of code would not.
    return _CODE_OR_BRACKET.sub(lambda match: r"\[" if match[0] == "[" else match[0], text)


def _doxygen() -> list[Path]:
    if shutil.which("doxygen") is None:
        raise PluginError("doxygen is not installed; `make docs` installs it, or: apt-get install doxygen")
    shutil.rmtree(CPP, ignore_errors=True)
    CPP.parent.mkdir(parents=True, exist_ok=True)
    _output(["doxygen", "Doxyfile"])
    return [path for path in sorted(CPP.rglob("*")) if path.is_file()]


def _output(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PluginError(f"'{' '.join(words)}' exits with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
