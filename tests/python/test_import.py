"""Loading the package beside others, and what is installed with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import shutil
import subprocess
from pathlib import Path

import amct_pytorch as amct
import pytest
from amct_pytorch import proto
from helpers import run_python

USE = """
import torch, amct_pytorch as amct
op = amct.QuantCalibrationOp("r.txt")
op("layer", torch.arange(8.0).reshape(2, 4))
assert amct.read_record("r.txt")["layer"].offset.tolist() == [-128]
try:
    amct.read_record("none.txt")
except FileNotFoundError as error:
    assert error.filename == "none.txt"
try:
    op("other", torch.tensor([float("nan")]))
except amct.NonFiniteError as error:
    assert error.count == 1
op("other", torch.ones(1))
"""
PROTOBUF = """
from google.protobuf import descriptor_pb2, text_format
assert text_format.Parse("name: 'x'", descriptor_pb2.FileDescriptorProto()).name == "x"
"""


@pytest.mark.parametrize("order", list(itertools.permutations(("torch", "amct_pytorch"))), ids="-".join)
def test_order(order: tuple[str, ...], tmp_path: Path) -> None:
    result = run_python("\n".join(f"import {name}" for name in order) + USE, cwd=tmp_path)
    assert result.stderr == ""


@pytest.mark.parametrize(
    "order",
    list(itertools.permutations(("torch", "amct_pytorch", "google.protobuf.text_format"))),
    ids="-".join,
)
def test_beside_the_python_runtime_of_protobuf(order: tuple[str, ...], tmp_path: Path) -> None:
    """Two copies of protobuf, of other versions, live in one process."""
    pytest.importorskip("google.protobuf")
    result = run_python("\n".join(f"import {name}" for name in order) + USE + PROTOBUF, cwd=tmp_path)
    assert result.stderr == ""


@pytest.mark.parametrize("first", ["transformers", "amct_pytorch"])
def test_beside_transformers(first: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    script = (
        f"import {first}\nimport transformers\n{USE}\nfrom amct_pytorch.kv_cache import FakeQuantizedCache"
    )
    run_python(script, cwd=tmp_path, HF_HUB_OFFLINE="1")


def test_loads_nothing_it_does_not_need() -> None:
    """transformers is for one module alone, and torch's compiler takes longer to load than torch."""
    run_python(
        """
        import sys
        import amct_pytorch
        loaded = {"transformers", "google.protobuf", "torch._dynamo", "numpy.testing"} & set(sys.modules)
        assert not loaded, loaded
        """
    )


def test_in_a_thread_and_a_child_process(tmp_path: Path) -> None:
    run_python(
        f"""
        import os, threading
        thread = threading.Thread(target=lambda: exec({USE!r}, {{}}))
        thread.start()
        thread.join()
        assert os.path.exists("r.txt")
        os.unlink("r.txt")
        import torch, amct_pytorch as amct
        pid = os.fork()
        if pid == 0:
            amct.QuantCalibrationOp("child.txt")("layer", torch.ones(2))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert list(amct.read_record("child.txt")) == ["layer"]
        """,
        cwd=tmp_path,
    )


def test_what_is_installed() -> None:
    files = importlib.metadata.files("amct-pytorch")
    assert files is not None
    names = {str(file) for file in files}
    for name in (
        "py.typed",
        "_core.pyi",
        "proto/basic_info.proto",
        "proto/quant_calibration_config_pytorch.proto",
        "proto/scale_offset_record_pytorch.proto",
        "proto/snapshot.proto",
        "proto/value_counts.proto",
        "nn/module/quantization/quant_calibration_op.py",
    ):
        assert f"amct_pytorch/{name}" in names
        assert (Path(amct.__path__[0]) / name).is_file()
    assert {path.name for path in Path(proto.__path__[0]).glob("*.proto")} == {
        "basic_info.proto",
        "quant_calibration_config_pytorch.proto",
        "scale_offset_record_pytorch.proto",
        "snapshot.proto",
        "value_counts.proto",
    }
    # The core is inside the extension module; no library of ours or protobuf's is strewn about.
    assert not [name for name in names if name.endswith((".a", ".h")) or "bin/protoc" in name]


def test_version() -> None:
    version = (Path(__file__).parents[2] / "VERSION").read_text().strip()
    assert amct.__version__ == version
    assert importlib.metadata.version("amct-pytorch") == version


def test_everything_promised_is_there() -> None:
    for name in amct.__all__:
        assert getattr(amct, name).__doc__, name
    assert set(amct.__all__) >= {"create_quant_cali_config", "create_quant_cali_model", "QuantCalibrationOp"}
    assert issubclass(amct.NonFiniteError, RuntimeError)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_the_extension_module_shows_nothing_but_itself() -> None:
    """Another libamct or libstdc++ in the process must not be mixed up with what is inside."""
    extension = importlib.util.find_spec("amct_pytorch._core")
    assert extension is not None
    assert extension.origin is not None
    command = ["nm", "--dynamic", "--defined-only", extension.origin]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in listed.splitlines()] == ["PyInit__core"]
