"""What the pages find: models to calibrate, a text, and the commands on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workplace import ROOT, Workplace


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("docs")
    commands = folder / "bin"
    commands.mkdir()
    with tempfile.TemporaryDirectory() as place:  # the path of a socket is short
        socket = str(Path(place) / "socket")
        for name in ("amct-pytorch", "python"):
            _write_program(commands / name, socket, name)
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home folder
            "COLUMNS": "120",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        server = [sys.executable, str(Path(__file__).with_name("preloaded.py")), socket]
        with subprocess.Popen(server, env=environment) as process:
            try:
                _wait_for(Path(socket), process)
                files = folder / "files"
                files.mkdir()
                program = [str(commands / "python"), str(ROOT / "examples" / "tiny_checkpoint.py"), "model"]
                subprocess.run(program, cwd=files, env=environment, check=True, capture_output=True)
                yield Workplace(socket, files, environment)
            finally:
                process.terminate()


@pytest.fixture
def page_folder(workplace: Workplace, tmp_path: Path) -> Path:
    """A folder of its own for a page."""
    shutil.copytree(workplace.files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def _write_program(path: Path, socket: str, name: str) -> None:
    preloaded = Path(__file__).with_name("preloaded.py")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{preloaded}" "{socket}" {name} "$@"\n')
    path.chmod(0o755)


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if socket.exists():
            return
        assert process.poll() is None, "the process that runs Python programs died"
        time.sleep(0.1)
    raise AssertionError("the process that runs Python programs does not start")
