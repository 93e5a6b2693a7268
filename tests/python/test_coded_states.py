"""CodedStates: the codes, and what a cache layer does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from amct_pytorch import _coded_states, _core
from amct_pytorch._coded_states import StatesCodec
from helpers import spread_factors


@pytest.mark.parametrize("granularity", ["per_tensor", "per_head", "per_channel"])
@pytest.mark.parametrize("dst_type", _core.grid_names())
def test_codes_do_not_depend_on_the_device(
    dst_type: str, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Heads of 9 channels do not fill the bytes of INT4.
    codec = StatesCodec("layer", spread_factors(2, 9, granularity, dst_type), 18)
    x = torch.randn(2, 5, 2, 9).transpose(1, 2) * 2
    nan, infinity = float("nan"), float("inf")
    x[0, 0, 0] = torch.tensor([nan, infinity, -infinity, 0.0, -0.0, 1e38, -1e38, 1e-40, 0.015])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        by_kernels = codec.coded(x.to(dtype))
        with monkeypatch.context() as patch:
            patch.setattr(_coded_states, "_has_kernels", lambda _: False)
            by_torch = codec.coded(x.to(dtype))
            read = by_torch.dequantize()
        assert torch.equal(by_kernels.codes, by_torch.codes)
        assert torch.equal(by_kernels.dequantize(), read)
        assert read.isfinite().all()


def test_copies_grow_with_the_tokens_alone() -> None:
    """Decoding copies codes only where a buffer is full, and what was read stays as it is."""
    codec = StatesCodec("layer", spread_factors(2, 8, "per_channel", "INT8"), 16)
    states: Any = codec.coded(torch.ones(1, 2, 1, 8))
    first = states.dequantize()
    copied, addresses = 0, set()
    for tokens in range(2, 3000):
        states = torch.cat([states, codec.coded(torch.full((1, 2, 1, 8), tokens / 1000))], dim=-2)
        address = states.buffer.codes.data_ptr()
        copied += 0 if address in addresses else tokens
        addresses.add(address)
    assert states.shape == (1, 2, 2999, 8)
    assert copied < 17 * 3000
    assert torch.equal(first, states[:, :, :1].dequantize())


def test_parts_of_a_buffer_do_not_overwrite_each_other() -> None:
    codec = StatesCodec("layer", spread_factors(2, 8, "per_channel", "INT8"), 16)
    x = codec.coded(torch.randn(1, 2, 6, 8))
    x = torch.cat([x, codec.coded(torch.randn(1, 2, 1, 8))], dim=-2)  # with room now
    whole = x.dequantize()
    cropped = x[..., :-3, :]
    assert cropped.buffer is x.buffer
    more = torch.cat([cropped, torch.ones(1, 2, 2, 8)], dim=-2)
    assert more.buffer is not x.buffer
    assert torch.equal(x.dequantize(), whole)
    assert torch.equal(more[:, :, :4].dequantize(), whole[:, :, :4])
    del x, more
    more = torch.cat([cropped, torch.ones(1, 2, 2, 8)], dim=-2)
    assert more.buffer is cropped.buffer


def test_codes_do_not_depend_on_how_tokens_came() -> None:
    """Recent tokens that become codes later get those that they would have got at once."""
    codec = StatesCodec("layer", spread_factors(2, 8, "per_channel", "INT4"), 16, recent_tokens=5)
    x = torch.randn(1, 2, 40, 8)
    at_once: Any = codec.coded(x, exact=3)
    for sizes in ([1] * 40, [40], [3, 5, 2, 30], [4, 4, 7, 25], [9, 1, 1, 29], [2, 38], [6, 34]):
        states: Any = None
        for part in x.split(sizes, dim=2):
            seen = 0 if states is None else states.shape[2]
            coded = codec.coded(part, exact=max(3 - seen, 0))
            states = coded if states is None else torch.cat([states, coded], dim=-2)
        assert torch.equal(states.codes, at_once.codes)
        assert torch.equal(states.dequantize(), at_once.dequantize())
        assert torch.equal(states.recent, x[:, :, 35:])
        assert states.nbytes == at_once.nbytes == 32 * 8 + 8 * 64


@pytest.mark.parametrize("recent_tokens", [0, 2])
def test_codes_are_tensors_to_all_others(recent_tokens: int) -> None:
    codec = StatesCodec("layer", spread_factors(2, 8, "per_channel", "INT8"), 16, recent_tokens)
    x: Any = codec.coded(torch.randn(2, 2, 6, 8))
    tensor = x.dequantize()
    assert (x.shape, x.dtype, x.device, x.numel()) == (tensor.shape, tensor.dtype, tensor.device, 192)
    assert torch.equal(torch.matmul(tensor, x.transpose(2, 3)), tensor @ tensor.transpose(2, 3))
    assert torch.equal(torch.cat([x, x], dim=0), torch.cat([tensor, tensor], dim=0))
    assert torch.equal(torch.cat([tensor, x], dim=2), torch.cat([tensor, tensor], dim=2))
    for key in (0, (0, 1), (..., 0), (slice(None), 1), (slice(None), slice(None), slice(0, 6, 2))):
        assert torch.equal(x[key], tensor[key])
    for key in ((..., slice(2, 5), slice(None)), (slice(None), slice(None), slice(-3, None)), (slice(None),)):
        assert torch.equal(torch.as_tensor(x[key].cpu()), tensor[key])
    assert torch.equal(x.index_select(2, torch.tensor([3])), tensor[:, :, 3:4])
    assert torch.equal(x.repeat_interleave(2, dim=1), tensor.repeat_interleave(2, dim=1))
    assert "layer" in repr(x)
    with pytest.raises(AttributeError, match="zero_"):
        x.zero_()
