"""Finding key and value projections."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._projection import is_projection
from amct_pytorch.discovery import PROJECTION_PAIRS, KVLayer, find_state_layers
from families import SIZES, tiny
from helpers import DECODER_LAYERS, Decoder, calibrated, config_for, tokens


def _names(model: torch.nn.Module) -> list[str]:
    return [layer.name for layer in amct.find_kv_layers(model)]


def _attention(**children: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleDict({"attn": torch.nn.ModuleDict(children)})


def test_decoder() -> None:
    layers = amct.find_kv_layers(Decoder())
    assert [layer.name for layer in layers] == DECODER_LAYERS
    assert [layer.role for layer in layers] == ["key", "value", "key", "value"]
    assert layers[0] == KVLayer("layers.0.self_attn.k_proj", "key", source="Attention (k_proj, v_proj)")


@pytest.mark.parametrize("pair", PROJECTION_PAIRS, ids=lambda pair: pair.key)
def test_every_family_of_the_table(pair: Any) -> None:
    linear = torch.nn.Linear(2, 2)
    beside = {name: torch.nn.Linear(2, 2) for name in pair.beside}
    # The value stands first in the model; the key comes first in the result all the same.
    assert _names(_attention(**{pair.value: torch.nn.Linear(2, 2), pair.key: linear}, **beside)) == [
        f"attn.{pair.key}",
        f"attn.{pair.value}",
    ]
    assert _names(_attention(**{pair.key: linear}, **beside)) == []
    assert _names(_attention(**{pair.key: linear, pair.value: torch.nn.Identity()}, **beside)) == []
    if beside:
        assert _names(_attention(**{pair.key: linear, pair.value: torch.nn.Linear(2, 2)})) == []


def test_an_attention_module_by_itself() -> None:
    assert _names(Decoder().layers[0].self_attn) == ["k_proj", "v_proj"]


def test_names_that_only_resemble() -> None:
    assert _names(_attention(k_proj2=torch.nn.Linear(2, 2), v_proj2=torch.nn.Linear(2, 2))) == []
    assert _names(torch.nn.Linear(2, 2)) == []


def test_attention_that_two_blocks_share_is_listed_once() -> None:
    attention = Decoder(blocks=1).layers[0].self_attn
    model = torch.nn.ModuleList([attention, attention])
    assert _names(model) == ["0.k_proj", "0.v_proj"]


class Wrapped(torch.nn.Module):
    """What LoRA and quantization put in the place of a Linear: no subclass of it, but of its interface."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)


def test_supported() -> None:
    class Mine(torch.nn.Linear):
        pass

    assert is_projection(torch.nn.Linear(1, 1))
    assert is_projection(Mine(1, 1))
    assert is_projection(Wrapped(torch.nn.Linear(1, 1)))
    assert is_projection(torch.nn.Conv1d(4, 2, 1))
    for other in (
        torch.nn.LayerNorm(1),
        torch.nn.Identity(),
        torch.nn.Embedding(2, 2),
        torch.nn.BatchNorm1d(2),
        torch.nn.Conv1d(4, 2, 3),
        torch.nn.Conv1d(4, 2, 1, groups=2),
        torch.nn.Conv2d(4, 2, 1),
        torch.nn.Bilinear(1, 1, 1),
        torch.nn.MultiheadAttention(4, 2),
    ):
        assert not is_projection(other), other


@pytest.mark.parametrize("kind", ["wrapped", "conv1d", "Conv1D"])
def test_projections_of_other_types_give_what_a_linear_gives(kind: str, tmp_path: Path) -> None:
    linear = torch.nn.Linear(16, 6)
    other: torch.nn.Module
    x = tokens(batch=3, length=5)
    if kind == "wrapped":
        other, there = Wrapped(linear), x
    elif kind == "conv1d":
        other, there = torch.nn.Conv1d(16, 6, 1), x.transpose(1, 2)
        other.weight.data, other.bias.data = linear.weight.data[..., None].clone(), linear.bias.data
    else:
        other, there = pytest.importorskip("transformers").pytorch_utils.Conv1D(6, 16), x
        other.weight.data, other.bias.data = linear.weight.data.T.contiguous(), linear.bias.data
    records = []
    for module, batch in ((linear, x), (other, there)):
        search = "ifmr_quantize { quant_granularity: per_channel }"
        definition = f"kv_cache_quant_config {{ calibration_config {{ {search} }} }}"
        model = calibrated(
            tmp_path / type(module).__name__, torch.nn.ModuleDict({"k": module}), ["k"], definition
        )
        model["k"](batch)
        records.append(amct.read_record(tmp_path / type(module).__name__ / "record.txt"))
        with amct.fake_quantized(model, records[-1]):
            stored = model["k"](batch)
        amct.remove_quant_cali(model)
        records.append(stored.transpose(1, 2) if kind == "conv1d" and module is other else stored)
    factors, stored, other_factors, other_stored = records
    torch.testing.assert_close(other_factors["k"].scale, factors["k"].scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(other_stored, stored, rtol=0, atol=float(factors["k"].scale.max()) * 1.01)


def test_patterns(tmp_path: Path) -> None:
    config = config_for(tmp_path, Decoder(), ["layers.*.[kv]_proj", "layers.0.self_attn.q_proj"])
    named = [name for name in json.loads(Path(config).read_text()) if name.startswith("layers")]
    assert named == [*DECODER_LAYERS, "layers.0.self_attn.q_proj"]
    with pytest.raises(
        ValueError, match=r"quant_layers: no layer that can be calibrated matches 'layer\.\*'"
    ):
        config_for(tmp_path, Decoder(), ["layer.*"])


def test_what_is_found_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "amct_pytorch"):
        config_for(tmp_path, tiny("gpt2"))
    assert (
        "4 key and value layers found: transformer.h.0.attn.c_attn.key (key, 4 heads of 8, of" in caplog.text
    )
    assert "transformer.h.1.attn.c_attn.value (value, 4 heads of 8, of GPT2Attention (c_attn))" in caplog.text


def test_state_layers_are_left_alone_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("jamba")
    assert find_state_layers(model) == ["model.layers.0.mamba"]
    with caplog.at_level(logging.INFO, "amct_pytorch"):
        config_for(tmp_path, model)
    assert (
        "1 layers keep a state instead of keys and values and are left alone: model.layers.0.mamba"
        in caplog.text
    )


def test_what_reads_images_is_left_out() -> None:
    transformers = pytest.importorskip("transformers")
    text = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4),
    )
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    names = _names(model)
    assert len(names) == 4
    assert all("language_model.layers" in name for name in names)
