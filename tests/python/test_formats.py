"""Number formats: those of the core against other implementations, and the way from settings to rounding."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import en_dtypes
import numpy as np
import pytest
import torch
from amct_pytorch import _core
from amct_pytorch._formats import _CASTS, grid_of
from helpers import Decoder, calibrated, factors_of, tokens

FLOATS = ["FP8_E4M3", "FP8_E5M2", "FP8_E4M3FNUZ", "FP8_E5M2FNUZ", "HIF8"]


def _spread_values() -> torch.Tensor:
    """Values over all exponents of the formats, halves between neighbours included."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.exp2(torch.empty(20000).uniform_(-26, 18, generator=generator))
    halves = torch.arange(1, 2048) / 2048 * 64
    x = torch.cat([spread, halves, torch.zeros(1)])
    return torch.cat([x, -x])


@pytest.mark.parametrize("name", list(_CASTS))
def test_the_core_rounds_as_torch_casts(name: str) -> None:
    grid, one = grid_of(name), _core.QuantParams(1.0)
    largest = grid.magnitudes[-1]
    x = _spread_values()
    by_torch = x.clamp(-largest, largest).to(_CASTS[name]).float()
    by_core = torch.tensor([grid.store(value, one) for value in x.tolist()])
    assert torch.equal(by_core, by_torch)
    every = torch.arange(128, dtype=torch.uint8).view(_CASTS[name]).float()
    assert grid.magnitudes == sorted(every[every.isfinite()].tolist())


def test_hif8_is_that_of_en_dtypes() -> None:
    x = _spread_values().clamp(-(2.0**15), 2.0**15).numpy()
    grid, one = grid_of("HIF8"), _core.QuantParams(1.0)
    stored = np.array([grid.store(value, one) for value in x.tolist()], np.float32)
    assert np.array_equal(stored, x.astype(en_dtypes.hifloat8).astype(np.float32))


@pytest.mark.parametrize("name", _core.grid_names())
def test_fake_quantize_reads_back_what_the_core_stores(name: str) -> None:
    x = _spread_values() / 64
    for scale, offset in ((0.3, 0), (2.0**-7, 0 if name in FLOATS else 5)):
        factors = amct.KVFactors(
            torch.tensor([scale]), torch.tensor([offset], dtype=torch.int32), dst_type=name
        )
        params = _core.QuantParams(scale, offset)
        wanted = torch.tensor([grid_of(name).store(value, params) for value in x.tolist()])
        found = amct.fake_quantize(x, factors)
        # Dividing in float32, a value next to the middle of two levels may go to the other one.
        other = found != wanted.float()
        assert other.float().mean() < 1e-3
        step = (found - wanted).abs()[other]
        assert torch.all(step <= (x[other].abs() * 0.26).clamp(min=scale))


@pytest.mark.parametrize("name", _core.grid_names())
def test_from_the_operators_parameters_to_the_record(name: str, tmp_path: Path) -> None:
    x = tokens() * 3 + 1
    factors = factors_of(tmp_path, [x], dst_type=name, act_algo="mse")
    assert factors.dst_type == name
    if name in FLOATS:
        assert factors.offset.tolist() == [0]
    error = (amct.fake_quantize(x, factors) - x).square().mean() / x.square().mean()
    # About 2^-2n / 3 of the square of the range for n bits, and 2^-2m / 12 for m mantissa bits.
    assert error < (0.02 if name == "INT4" else 3e-3)
    text = (tmp_path / "record.txt").read_text()
    assert ("dst_type" in text) == (name != "INT8")


def test_from_the_definition_to_the_record(tmp_path: Path) -> None:
    definition = (
        "kv_cache_quant_config { calibration_config { dst_type: FP8_E4M3 mse_quantize { } } }"
        "override_layers_configs { layer_name: 'layers.0.self_attn.v_proj' kv_data_quant_config {"
        "  dst_type: INT4 kl_quantize { quant_granularity: per_channel } } }"
    )
    # A definition with layers names them all.
    definition = definition.replace(
        "{ calibration", "{ quant_layers: 'layers.*.self_attn.k_proj' calibration", 1
    )
    model = calibrated(tmp_path, Decoder(), definition=definition)
    model(tokens())
    results = {result.name: result for result in amct.calibration_run(model).results()}
    assert results["layers.0.self_attn.k_proj"].dst_type == "FP8_E4M3"
    assert not results["layers.0.self_attn.k_proj"].with_offset
    assert results["layers.0.self_attn.k_proj"].sqnr_db > 28
    assert (
        results["layers.0.self_attn.v_proj"].dst_type,
        results["layers.0.self_attn.v_proj"].algorithm,
    ) == ("INT4", "kl")
    assert results["layers.0.self_attn.v_proj"].with_offset
    assert amct.read_record(tmp_path / "record.txt")["layers.0.self_attn.v_proj"].dst_type == "INT4"


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"must be one of 'INT8', .* not \"INT9\"; did you mean"):
        _core.find_grid("INT9")
