"""Hooks of mkdocs: pages that are made from the programs themselves, and the C++ pages of Doxygen.

reference/amct.md and reference/amct-pytorch.md are what the commands say of themselves; cpp/ is what Doxygen writes
from the public headers (see Doxyfile). Both are made at every build, so they cannot be out of date.
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

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "build" / "docs" / "cpp"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    folder = Path(sys.executable).parent
    files.append(_page(config, "reference/amct.md", _manual_of_amct(folder)))
    files.append(_page(config, "reference/amct-pytorch.md", _manual_of_amct_pytorch()))
    for path in _doxygen():
        name = f"cpp/{path.relative_to(CPP).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _page(config: MkDocsConfig, name: str, content: str) -> File:
    return File.generated(config, name, content=content)


def _manual_of_amct(folder: Path) -> str:
    """What `amct reference` writes; the command is the one that the package installs."""
    program = folder / "amct"
    if not program.exists():
        raise PluginError(f"{program} is not there; `make docs` installs the package first")
    text = _output([str(program), "reference"])
    # Examples of the program as a whole stand in its help as text.
    return re.sub(r"^(Example: .*)$", r"    \1", text, flags=re.MULTILINE) if "```" not in text else text


def _manual_of_amct_pytorch() -> str:
    """What typer writes of the command."""
    words = [sys.executable, "-m", "typer", "amct_pytorch.cli", "utils", "docs", "--name", "amct-pytorch"]
    # Options are shown as `[default: x]`, which Markdown would take for a link.
    return _output(words)


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
