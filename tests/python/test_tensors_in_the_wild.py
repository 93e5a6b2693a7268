"""Tensors as models make them: single tokens, views of fused projections, other modes and memory formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import _observe
from helpers import DTYPES, record_of, run_python
from torch.utils._python_dispatch import TorchDispatchMode

GRANULARITIES = ("per_tensor", "per_channel")
ALGORITHMS = ("ifmr", "hfmg", "minmax", "percentile", "mse")


@pytest.fixture(params=["host", "device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tensors are counted; CPU tensors stand for those of a device."""
    if request.param == "device":
        monkeypatch.setattr(_observe, "counts_on_device", lambda x: True)
    return str(request.param)


class Operations(TorchDispatchMode):
    """Lists what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class FusedAttention(torch.nn.Module):
    """Keys and values are slices of one projection, turned so that heads come first."""

    def __init__(self, record_file: Path, **params: Any) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 3 * 32)
        self.op = amct.QuantCalibrationOp(str(record_file), params)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = [self.op("k", k), k, self.op("v", v), self.op("q", q)]
        turned = [y.unflatten(-1, (4, 8)).transpose(1, 2) for y in heads]
        return self.op("heads", turned[0]) + self.op("last", turned[0].transpose(-1, -2)).mT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_decode_loop(dtype: torch.dtype, granularity: str, place: str, tmp_path: Path) -> None:
    """10,000 calls of one token each give the bits of one call of 10,000 tokens."""
    x = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 8)
    x = x.to(dtype)
    for algorithm in ALGORITHMS if place == "host" else ("ifmr",):
        params = {"act_algo": algorithm, "quant_granularity": granularity}
        expected = record_of(tmp_path, [x], **params)
        assert record_of(tmp_path, list(x.view(-1, 1, 1, 8)), **params) == expected


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_fused_projection(granularity: str, algorithm: str, place: str, tmp_path: Path) -> None:
    """In inference mode and autocast, the record is that of copies of what the operator was shown."""
    params = {"act_algo": algorithm, "quant_granularity": granularity}
    torch.manual_seed(1)
    model = FusedAttention(tmp_path / "record.txt", **params)
    shown: dict[str, torch.Tensor] = {}
    model.op.register_forward_hook(lambda op, args, out: shown.update({args[0]: out.clone()}))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 5, 32))
    assert [result.name for result in model.op.results()] == ["k", "v", "q", "heads", "last"]
    factors = amct.read_record(tmp_path / "record.txt")
    with torch.inference_mode(False):
        for name, tensor in shown.items():
            assert tensor.dtype == torch.bfloat16
            record_of(tmp_path / "alone", [tensor.contiguous()], **params)
            expected = amct.read_record(tmp_path / "alone" / "record.txt")["layer"]
            assert factors[name].scale.equal(expected.scale), name
            assert factors[name].offset.equal(expected.offset), name


def _views(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    fused = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    yield "keys of a fused qkv", fused[..., 32:64]
    yield "heads", fused[..., 32:64].unflatten(-1, (4, 8)).transpose(1, 2)
    yield "channels first", fused.transpose(1, 2)
    yield "interleaved", fused.unflatten(-1, (8, 3, 4))[..., 1, :]
    yield "channels last", torch.randn(2, 8, 3, 5).to(dtype).to(memory_format=torch.channels_last)
    yield "grouped heads, expanded", fused[:, :, None, 32:64].expand(-1, -1, 4, -1)
    yield "every other token", fused[:, ::2, :32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_views_are_not_copied_on_the_host(dtype: torch.dtype, granularity: str, tmp_path: Path) -> None:
    for name, view in _views(dtype):
        for x in (view, view.detach().requires_grad_()):
            for algorithm in ALGORITHMS:
                with Operations() as operations:
                    record = record_of(tmp_path, [x], act_algo=algorithm, quant_granularity=granularity)
                assert set(operations.names) <= {"detach"}, name
                copied = x.detach().clone(memory_format=torch.contiguous_format)
                assert (
                    record_of(tmp_path, [copied], act_algo=algorithm, quant_granularity=granularity) == record
                )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_views_are_not_copied_on_a_device(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only their patterns are written, as integers, which an index has to be."""
    for name, view in _views(dtype):
        params = {"quant_granularity": "per_tensor", "nonfinite": "skip"}
        expected = record_of(tmp_path, [view], **params)
        with monkeypatch.context() as patch, Operations() as operations:
            patch.setattr(_observe, "counts_on_device", lambda x: True)
            assert record_of(tmp_path, [view], **params) == expected, name
        assert not {"clone", "copy_", "contiguous", "reshape", "_unsafe_view"} & set(operations.names), name


def test_a_view_larger_than_memory(tmp_path: Path) -> None:
    """64 MiB of elements that lie in 1 MiB, and 32 MiB to count them with."""
    run_python(
        """
        import pathlib, resource
        import torch
        import amct_pytorch as amct

        rows = torch.randn(8192, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        tall = rows.expand(64, -1, -1).transpose(0, 1)
        wide = rows[:, :1].expand(-1, 64)
        params = [{"act_algo": algorithm, "quant_granularity": granularity}
                  for algorithm in ("ifmr", "minmax") for granularity in ("per_tensor", "per_channel")]

        def calibrate(record, *batches):
            for i, settings in enumerate(params):
                op = amct.QuantCalibrationOp(record, settings)
                for j, batch in enumerate(batches):
                    op(f"{i}.{j}", batch)

        calibrate("copied.txt", tall.contiguous(), wide.contiguous())  # also starts all threads
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (32 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            tall.contiguous()
        except RuntimeError:
            calibrate("viewed.txt", tall, wide)
        assert pathlib.Path("copied.txt").read_bytes() == pathlib.Path("viewed.txt").read_bytes()
        """,
        cwd=tmp_path,
    )
