"""Runs clang-tidy on a source file, unless the same text has passed before.

    tidy.py CLANG_TIDY BUILD_FOLDER SOURCE [OPTION...]

What a file says after preprocessing (comments and macros included, for NOLINT and the checks of macros), the
language it is in, the checks, the options and the version of clang-tidy decide what is found. Their digest is
kept in the user's cache once nothing was found, so that fresh clones and changes elsewhere cost a second a
file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def preprocessed(build: Path, source: Path) -> bytes:
    """A source file as the compiler sees it, after the options that say what language it is in."""
    commands = json.loads((build / "compile_commands.json").read_text())
    entry = next(entry for entry in commands if Path(entry["file"]).resolve() == source)
    command = shlex.split(entry["command"])
    at = command.index("-o")
    del command[at : at + 2]
    command[command.index("-c")] = "-E"
    language = [option for option in command if option.startswith(("-std", "-W"))]
    text = subprocess.run(
        [*command, "-C", "-P", "-dD"], cwd=entry["directory"], stdout=subprocess.PIPE, check=True
    ).stdout
    return " ".join(language).encode() + text


def main() -> int:
    tidy, folder, name, *options = sys.argv[1:]
    build, source = Path(folder), Path(name).resolve()
    version = subprocess.run([tidy, "--version"], stdout=subprocess.PIPE, check=True).stdout
    parts = [
        version,
        (ROOT / ".clang-tidy").read_bytes(),
        "\n".join(options).encode(),
        preprocessed(build, source),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\n".encode() + part)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amct-tidy"
    passed = cache / digest.hexdigest()
    if passed.exists():
        passed.touch()
        return 0
    print(f"clang-tidy {name}", flush=True)
    status = subprocess.run([tidy, "--quiet", "-p", folder, *options, name], check=False).returncode
    if status == 0:
        cache.mkdir(parents=True, exist_ok=True)
        passed.touch()
    return status


if __name__ == "__main__":
    sys.exit(main())
