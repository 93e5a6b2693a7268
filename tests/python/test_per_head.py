"""quant_granularity per head: each head is a tensor of its own."""

from __future__ import annotations

import json
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from families import FAMILIES, inputs, tiny
from helpers import DTYPES, Decoder, calibrated, factors_of, record_of, tokens

SEARCH = "minmax_quantize {{ quant_granularity: per_head }}"
DEFINITION = f"kv_cache_quant_config {{{{ calibration_config {{{{ {{0}} {SEARCH} }}}} }}}}"


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "minmax", "percentile", "mse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_are_those_of_the_heads(dtype: torch.dtype, algorithm: str, tmp_path: Path) -> None:
    batches = [tokens(seed, length=5).to(dtype) for seed in (1, 2)]
    factors = factors_of(tmp_path, batches, act_algo=algorithm, quant_granularity="per_head", head_num=4)
    assert factors.per_head
    assert factors.scale.shape == (4,)
    for head in range(4):
        alone = factors_of(
            tmp_path, [x[..., 4 * head : 4 * head + 4].contiguous() for x in batches], act_algo=algorithm
        )
        assert factors.scale[head] == alone.scale[0]
        assert factors.offset[head] == alone.offset[0]
        expected = amct.fake_quantize(batches[0][..., 4 * head : 4 * head + 4], alone)
        assert amct.fake_quantize(batches[0], factors)[..., 4 * head : 4 * head + 4].equal(expected)


@pytest.mark.parametrize("tap", ["linear", "cache"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "deepseek_v3", "falcon/new"])
def test_heads_are_found_in_the_model(family: str, tap: str, tmp_path: Path) -> None:
    model = tiny(family)
    calibrated(tmp_path, model, definition=DEFINITION.format(f"tap: {tap}"))
    run = amct.calibration_run(model)
    with torch.inference_mode():
        plain = model(**inputs(family), use_cache=True).logits
        record = amct.read_record(tmp_path / "record.txt")
        assert {factors.scale.numel() for factors in record.values()} == {FAMILIES[family][2]}
        assert {layer.granularity for layer in run.results()} == {"per_head"}
        with amct.fake_quantized(model, record, tap=tap):
            stored = model(**inputs(family), use_cache=True).logits
    assert not stored.equal(plain)
    assert torch.nn.functional.cosine_similarity(stored.flatten(), plain.flatten(), dim=0) > 0.98


def test_heads_that_are_given_and_heads_that_are_not_known(tmp_path: Path) -> None:
    model = Decoder()
    with pytest.raises(
        ValueError, match=r"'layers\.0\.self_attn\.k_proj' is to have factors per head.*head_num"
    ):
        calibrated(tmp_path, model, definition=DEFINITION.format(""))
    calibrated(tmp_path, model, definition=DEFINITION.format("head_num: 2"))
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config["layers.0.self_attn.k_proj"]["kv_data_quant_config"]
    assert settings == {"act_algo": "minmax", "quant_granularity": 2, "head_num": 2}
    model(tokens())
    assert {f.scale.numel() for f in amct.read_record(tmp_path / "record.txt").values()} == {2}


def test_channels_that_cannot_be_cut(tmp_path: Path) -> None:
    op = amct.QuantCalibrationOp(str(tmp_path / "r.txt"), {"quant_granularity": "per_head", "head_num": 3})
    with pytest.raises(RuntimeError, match=r"layer 'a', batch 1: .*16 channels.*3 heads"):
        op("a", tokens())
    with pytest.raises(RuntimeError, match="needs head_num"):
        amct.QuantCalibrationOp(str(tmp_path / "r.txt"), {"quant_granularity": "per_head"})
    with pytest.raises(ValueError, match="3 scales do not fit a tensor of 16 channels"):
        amct.fake_quantize(tokens(), amct.KVFactors(torch.ones(3), torch.zeros(3), per_head=True))


def test_on_a_device_heads_move_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"quant_granularity": "per_head", "head_num": 4}
    expected = record_of(tmp_path, [tokens(1), tokens(2)], **params)
    monkeypatch.setattr("amct_pytorch._observe.counts_on_device", lambda x: True)
    assert record_of(tmp_path, [tokens(1), tokens(2)], **params) == expected
