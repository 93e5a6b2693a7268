"""Wheels at work: installed where there is no compiler and, of the package, nothing but the wheel."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Environment

HERE = Path(__file__).resolve().parent
CONFIG = ROOT / "tests" / "golden" / "model" / "config.json"
# What a build from sources gives, on every machine.
RECORD = HERE / "record.txt"
ORDERS = list(itertools.permutations(("torch", "amct_pytorch", "google.protobuf")))


def test_no_compiler_is_in_reach(environment: Environment) -> None:
    tools = ("cc", "gcc", "g++", "clang", "c++", "ld", "cmake", "ninja", "make", "protoc")
    assert [tool for tool in tools if shutil.which(tool, path=str(environment.folder / "bin"))] == []


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_calibration_gives_the_bits_of_the_source_build(
    environment: Environment, order: tuple[str, ...], tmp_path: Path
) -> None:
    if not environment.with_torch:
        pytest.skip("without torch")
    done = environment.run("python", "-I", HERE / "use_wheel.py", CONFIG, "record.txt", *order, cwd=tmp_path)
    assert (tmp_path / "record.txt").read_bytes() == RECORD.read_bytes()
    loaded = json.loads(done.stdout)
    ours = [path for path in loaded if "/amct_pytorch" in path]
    assert {Path(path).name.partition("-")[0] for path in ours} >= {"libprotobuf", "libtbb", "libzip"}
    # The same libraries of the system, where it has them, are not used.
    names = ("libprotobuf", "libtbb", "libzip", "libhwy")
    assert [path for path in loaded if Path(path).name.startswith(names) and path not in ours] == []


def test_the_extension_loads_by_itself(environment: Environment, tmp_path: Path) -> None:
    """Without torch there is no package, but the module alone says what it can do."""
    script = (
        "import importlib.util, sysconfig, glob;"
        "path, = glob.glob(sysconfig.get_path('platlib') + '/amct_pytorch/_core.*so');"
        "spec = importlib.util.spec_from_file_location('_core', path);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(module.__version__)"
    )
    done = environment.run("python", "-I", "-c", script, cwd=tmp_path)
    assert done.stdout.strip() == (ROOT / "VERSION").read_text(encoding="utf-8").strip()


def test_the_command_in_cpp(environment: Environment, tmp_path: Path) -> None:
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    assert version in environment.run("amct", "--version", cwd=tmp_path).stdout
    shutil.copy(RECORD, tmp_path / "record.txt")
    shown = environment.run("amct", "inspect", "record.txt", cwd=tmp_path).stdout
    assert "layers.1.k_proj" in shown
    # It writes NumPy's archives by libzip, and reads them back.
    environment.run("amct", "export", "record.txt", "--to", "npz", "--output", "factors.npz", cwd=tmp_path)
    environment.run("amct", "verify", "factors.npz", "--as", "npz", "--record", "record.txt", cwd=tmp_path)


def test_the_command_in_python(environment: Environment, tmp_path: Path) -> None:
    if not environment.with_torch:
        pytest.skip("without torch")
    assert "calibrate" in environment.run("amct-pytorch", "--help", cwd=tmp_path).stdout


def test_the_licences_are_installed(environment: Environment, tmp_path: Path) -> None:
    script = (
        "from importlib.metadata import distribution as d; print(d('amct-pytorch').metadata['License-File'])"
    )
    done = environment.run("python", "-I", "-c", script, cwd=tmp_path)
    assert done.stdout.strip() == "THIRD_PARTY_NOTICES.txt"


def test_the_source_distribution_installs(
    python: str, sdist: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In an empty environment: pip fetches the build's tools itself."""
    if not request.config.getoption("sdist"):
        pytest.skip("takes minutes; --sdist")
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {python} here")
    folder = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    done = subprocess.run(
        [*pip, "--no-deps", sdist], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    environment = Environment(folder, with_torch=False)
    test_the_extension_loads_by_itself(environment, tmp_path)
    test_the_command_in_cpp(environment, tmp_path)


def test_the_page_tells_how_to_check_the_list_of_components(environment: Environment, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    script = page.partition("<<'CHECK'\n")[2].partition("\nCHECK\n")[0]
    lines = environment.run("python", "-I", "-c", script, cwd=tmp_path).stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"protobuf", "libzip", "onetbb"}
    assert {line.split()[-1] for line in lines} == {"True"}
