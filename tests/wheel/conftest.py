"""The wheels of `make wheel`, and environments that they are installed in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # wheel_contents, build_wheels

DIST = ROOT / "dist"
WHEELS = sorted(DIST.glob("*.whl"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pythons", default="python3", help="interpreters to install wheels for, as 'python3.11 python3.12'"
    )
    parser.addoption(
        "--without-torch", action="store_true", help="leave out what needs torch, which is large"
    )
    parser.addoption(
        "--sdist", action="store_true", help="install the source distribution, too: compiles for minutes"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "wheel" in metafunc.fixturenames:
        assert WHEELS, "no wheels; run `make wheel`"
        metafunc.parametrize("wheel", WHEELS, ids=[path.stem.split("-")[2] for path in WHEELS], indirect=True)
    if "python" in metafunc.fixturenames:
        metafunc.parametrize("python", metafunc.config.getoption("pythons").split(), scope="session")


@dataclass(frozen=True)
class Wheel:
    path: Path
    files: dict[str, bytes]

    @property
    def tags(self) -> tuple[str, str, str]:
        """Of the interpreter, the ABI and the platform."""
        interpreter, abi, platform = self.path.stem.split("-")[2:]
        return interpreter, abi, platform

    def elf_files(self) -> dict[str, bytes]:
        return {name: content for name, content in self.files.items() if content.startswith(b"\x7fELF")}

    def info(self, name: str) -> str:
        """The text of a file beside the metadata."""
        (content,) = (self.files[path] for path in self.files if path.endswith(f".dist-info/{name}"))
        return content.decode("utf-8")


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest) -> Wheel:
    with zipfile.ZipFile(request.param) as archive:
        return Wheel(
            request.param, {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
        )


@pytest.fixture(scope="session")
def sdist() -> Path:
    (path,) = DIST.glob("*.tar.gz")
    return path


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a wheel, where no compiler is in reach."""

    folder: Path
    with_torch: bool

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, with nothing on PATH but what the environment has."""
        environment = {"PATH": str(self.folder / "bin"), "HOME": str(cwd), "LANG": "C.UTF-8"}
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def pins() -> list[str]:
    """The versions of what wheels run on, as everything else is tested with."""
    return [
        line
        for line in (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
        if re.match(r"\w", line)
    ]


@pytest.fixture(scope="session")
def environment(
    python: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """A new environment of one Python, with its wheel."""
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {python} here")
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([python, "-m", "venv", folder], check=True)
    with_torch = not request.config.getoption("without_torch")
    # pip reads its own settings, but finds nothing to compile with.
    settings = {**os.environ, "PATH": str(folder / "bin")}
    pip = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--quiet",
    ]
    # What the wheel itself needs is installed as for any user, by the package index.
    needs = ["amct-pytorch", *pins(), "protobuf"] if with_torch else ["--no-deps", "amct-pytorch"]
    command = [*pip, "--only-binary=:all:", f"--find-links={DIST}", *needs]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Environment(folder, with_torch)
