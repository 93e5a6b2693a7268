"""Fused projections: keys and values get factors of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._projection import ChannelSlice
from families import inputs, tiny
from helpers import calibrated, config_for, tokens

WIDTH = 24  # of a fused projection: query, key and value of 8


class Fused(torch.nn.Module):
    """Attention of two heads of 4 with one projection, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads = 2
        self.W_pack = torch.nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return self.W_pack(x)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_factors_are_those_of_the_parts(granularity: str, tmp_path: Path) -> None:
    definition = (
        "kv_cache_quant_config { calibration_config { "
        f"minmax_quantize {{ quant_granularity: {granularity} }} }} }}"
    )
    model = Fused()
    calibrated(tmp_path, model, definition=definition)
    output = model(tokens())
    op = amct.QuantCalibrationOp(
        str(tmp_path / "parts.txt"), {"act_algo": "minmax", "quant_granularity": granularity}
    )
    op("W_pack.key", output[..., 8:16].contiguous())
    op("W_pack.value", output[..., 16:].contiguous())
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "parts.txt").read_bytes()
    assert "_amct_calibration_taps" in model.W_pack.__dict__
    amct.remove_quant_cali(model)
    assert "_amct_calibration_taps" not in model.W_pack.__dict__

    record = amct.read_record(tmp_path / "record.txt")
    with amct.fake_quantized(model, record):
        stored = model(tokens())
    assert stored[..., :8].equal(output[..., :8])  # queries are not stored
    assert stored[..., 8:16].equal(amct.fake_quantize(output[..., 8:16], record["W_pack.key"]))
    assert stored[..., 16:].equal(amct.fake_quantize(output[..., 16:], record["W_pack.value"]))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_one_factor_for_all_where_that_is_wanted(family: str, tmp_path: Path) -> None:
    """As the existing toolkit has it: by a flag, or by naming the projection itself."""
    model = tiny(family)
    fused = list(dict.fromkeys(layer.module for layer in amct.find_kv_layers(model)))
    amct.create_quant_cali_config(str(tmp_path / "flag.json"), model, split_fused=False)
    named = config_for(tmp_path, model, fused)
    assert (tmp_path / "flag.json").read_bytes() == Path(named).read_bytes()
    assert "slice" not in Path(named).read_text()
    amct.create_quant_cali_model(named, str(tmp_path / "record.txt"), model)
    model(**inputs(family))
    assert list(amct.read_record(tmp_path / "record.txt")) == fused


def test_parts_by_pattern_beside_the_whole(tmp_path: Path) -> None:
    model = Fused()
    calibrated(tmp_path, model, ["W_pack", "*.value"])
    model(tokens())
    assert list(amct.read_record(tmp_path / "record.txt")) == ["W_pack", "W_pack.value"]


def test_a_slice_of_any_module_may_be_written_by_hand(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"mixed": torch.nn.Linear(16, 12)})
    config = json.loads(Path(config_for(tmp_path, model, ["mixed"])).read_text())
    settings = config.pop("mixed")["kv_data_quant_config"]
    settings |= {"role": "value", "slice": [2, 3], "slice_groups": 4, "act_algo": "minmax"}
    for key in ("max_percentile", "min_percentile", "search_range", "search_step"):
        del settings[key]
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "mixed.value": {"kv_data_quant_config": settings}})
    )
    record = str(tmp_path / "record.txt")
    amct.create_quant_cali_model(str(tmp_path / "config.json"), record, model)
    output = model["mixed"](tokens())
    op = amct.QuantCalibrationOp(str(tmp_path / "part.txt"), {"act_algo": "minmax"})
    op("mixed.value", output[..., 2::3].contiguous())
    assert Path(record).read_bytes() == (tmp_path / "part.txt").read_bytes()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("W_pack.key", {"role": "value"}, "its name must be '<module>.value'"),
        ("W_pack", {}, "its name must be '<module>.key'"),
        ("W_pack.key", {"slice": [8, 25]}, r"slice \[8, 25\] of 1 groups does not fit the 24 channels"),
        ("W_pack.key", {"slice_groups": 5}, "of 5 groups does not fit"),
        ("W_pak.key", {}, "the model has no layer 'W_pak.key'; did you mean 'W_pack.key'"),
    ],
)
def test_slices_that_cannot_be(name: str, part: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"role": "key", "slice": [8, 16], **part}
    (tmp_path / "config.json").write_text(json.dumps({name: {"kv_data_quant_config": settings}}))
    with pytest.raises(ValueError, match=message):
        amct.create_quant_cali_model(str(tmp_path / "config.json"), str(tmp_path / "record.txt"), Fused())
    assert not (tmp_path / "record.txt").exists()


def test_the_same_part_twice(tmp_path: Path) -> None:
    model = torch.nn.ModuleList([Fused()])
    model.append(model[0])
    part = {"kv_data_quant_config": {"role": "key", "slice": [8, 16]}}
    (tmp_path / "config.json").write_text(json.dumps({"0.W_pack.key": part, "1.W_pack.key": part}))
    with pytest.raises(ValueError, match="are one module under two names; keep one"):
        amct.create_quant_cali_model(str(tmp_path / "config.json"), str(tmp_path / "record.txt"), model)


class TestChannelSlice:
    def test_of(self) -> None:
        x = torch.arange(24).view(2, 12)
        assert ChannelSlice(3, 5).of(x).tolist() == [[3, 4], [15, 16]]
        assert ChannelSlice(3, 5).of(x).data_ptr() == x[:, 3:].data_ptr()  # a view
        assert ChannelSlice(1, 2, 3).of(x).tolist() == [[1, 5, 9], [13, 17, 21]]
        assert ChannelSlice(1, 2, 3).channels == 3

    def test_replaced(self) -> None:
        x = torch.arange(24).view(2, 12)
        result = ChannelSlice(1, 2, 3).replaced(x, torch.full((2, 3), -1))
        assert result.tolist()[0] == [0, -1, 2, 3, 4, -1, 6, 7, 8, -1, 10, 11]
        assert x[0, 1] == 1

    def test_what_does_not_fit(self) -> None:
        assert not ChannelSlice(0, 5).fits(4)
        assert not ChannelSlice(0, 1, 3).fits(4)
        with pytest.raises(RuntimeError, match="do not fit an output of 4 channels"):
            ChannelSlice(0, 5).of(torch.zeros(1, 4))
