"""fake_quantize and fake_quantized."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import numpy as np
import pytest
import reference
import torch
from helpers import DECODER_LAYERS, DTYPES, Decoder, calibrated, factors_of, tokens


def _factors(scales: list[float], offsets: list[int]) -> amct.KVFactors:
    return amct.KVFactors(torch.tensor(scales), torch.tensor(offsets, dtype=torch.int32))


def test_by_hand() -> None:
    x = torch.tensor([-100.0, -0.26, -0.25, -0.24, 0.0, 0.75, 1.25, 63.4, 63.6, 1e30])
    # Codes -128..127 with offset 0 and scale 0.5 reach from -64 to 63.5; halves round to even.
    wanted = torch.tensor([-64.0, -0.5, 0.0, 0.0, 0.0, 1.0, 1.0, 63.5, 63.5, 63.5])
    assert torch.equal(amct.fake_quantize(x, _factors([0.5], [0])), wanted)
    shifted = amct.fake_quantize(x, _factors([0.5], [-128]))  # codes from 0 up only
    assert torch.equal(shifted, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 63.5, 63.5, 127.5]))


def test_per_channel() -> None:
    x = torch.full((2, 3, 2), 10.0)
    y = amct.fake_quantize(x, _factors([1.0, 4.0], [0, 126]))
    assert torch.equal(y[..., 0], torch.full((2, 3), 10.0))
    assert torch.equal(y[..., 1], torch.full((2, 3), 4.0))  # code 128 is clamped to 127
    assert y.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_values_are_those_of_the_formula(dtype: torch.dtype, granularity: str, tmp_path: Path) -> None:
    x = (tokens() * 3 + 1).to(dtype)
    before = x.clone()
    factors = factors_of(tmp_path, [x], quant_granularity=granularity)
    y = amct.fake_quantize(x, factors)
    assert torch.equal(x, before)
    assert (y.dtype, y.shape, y.device) == (x.dtype, x.shape, x.device)
    scale, offset = factors.scale.numpy(), factors.offset.numpy()
    codes = np.clip(np.round(x.float().numpy() / scale) + offset, -128, 127)
    wanted = ((codes - offset) * scale).astype(np.float32)
    assert torch.equal(y, torch.from_numpy(wanted).to(dtype))
    if granularity == "per_tensor":
        error = np.mean((wanted.astype(np.float64) - x.double().numpy()) ** 2)
        assert error == pytest.approx(
            reference.int8_mse(x.float().numpy(), scale.item(), offset.item()), rel=1e-5
        )


def test_zero_stays_zero(tmp_path: Path) -> None:
    for shift in (-5.0, 0.0, 5.0):
        factors = factors_of(tmp_path, [tokens() + shift])
        assert amct.fake_quantize(torch.zeros(3), factors).tolist() == [0.0] * 3


def test_wrong_number_of_factors() -> None:
    with pytest.raises(ValueError, match=r"3 scales.*4 channels"):
        amct.fake_quantize(torch.ones(2, 4), _factors([1.0] * 3, [0] * 3))


class TestModel:
    def test_layers_give_quantized_values(self, tmp_path: Path) -> None:
        model = Decoder()
        calibrated(tmp_path, model)(tokens())
        record = tmp_path / "record.txt"
        factors = amct.read_record(record)
        plain = Decoder()
        plain_output = plain(tokens())
        seen: dict[str, torch.Tensor] = {}
        for record_argument in (record, str(record), factors):
            with amct.fake_quantized(plain, record_argument) as quantized:
                assert quantized is plain
                handles = [
                    plain.get_submodule(name).register_forward_hook(
                        lambda m, i, out, name=name: seen.__setitem__(name, out)
                    )
                    for name in DECODER_LAYERS
                ]
                output = plain(tokens())
                for handle in handles:
                    handle.remove()
            assert not torch.equal(output, plain_output)
            assert (output - plain_output).abs().max() < 0.05
            for name in DECODER_LAYERS:
                codes = seen[name] / factors[name].scale
                np.testing.assert_allclose(codes.detach(), codes.detach().round(), atol=1e-3)
            # As it was.
            assert torch.equal(plain(tokens()), plain_output)
            assert all(not module._forward_hooks for module in plain.modules())

    def test_restored_after_an_error(self, tmp_path: Path) -> None:
        model = Decoder()
        calibrated(tmp_path, model)(tokens())
        with pytest.raises(KeyError), amct.fake_quantized(model, tmp_path / "record.txt"):
            raise KeyError
        assert all(not module._forward_hooks for module in model.modules())

    def test_an_empty_record_changes_nothing(self) -> None:
        model = Decoder()
        with amct.fake_quantized(model, {}):
            assert torch.equal(model(tokens()), Decoder()(tokens()))

    @pytest.mark.parametrize("as_path", [True, False])
    def test_the_record_of_another_model(self, as_path: bool, tmp_path: Path) -> None:
        calibrated(tmp_path, Decoder(blocks=3))(tokens())
        record = tmp_path / "record.txt"
        model = Decoder(blocks=2)
        argument = record if as_path else amct.read_record(record)
        with (
            pytest.raises(
                ValueError, match=r"another model.*Decoder.*'layers\.2\.self_attn\.k_proj'.*1 other"
            ) as caught,
            amct.fake_quantized(model, argument),
        ):
            pytest.fail("entered")
        assert ("record.txt" in str(caught.value)) == as_path
        assert all(not module._forward_hooks for module in model.modules())

    def test_the_record_of_a_model_of_another_width(self, tmp_path: Path) -> None:
        per_channel = "ifmr_quantize { quant_granularity: per_channel }"
        definition = f"kv_cache_quant_config {{ calibration_config {{ {per_channel} }} }}"
        calibrated(tmp_path, Decoder(), None, definition)(tokens())
        wider = Decoder(width=32)
        record = tmp_path / "record.txt"
        with amct.fake_quantized(wider, record), pytest.raises(ValueError, match=r"8 scales.*16 channels"):
            wider(tokens(width=32))

    def test_no_record(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), amct.fake_quantized(Decoder(), tmp_path / "none"):
            pytest.fail("entered")
