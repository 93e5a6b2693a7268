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


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 32,
    "pad_token_id": 0,
}
MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LLAMA_LIKE = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"]
# The family, what its configuration needs beside SIZES, the layers, the heads of each.
FAMILIES: dict[str, tuple[dict[str, Any], list[str], int]] = {
    **{
        family: ({}, LLAMA_LIKE, 2)
        for family in (
            "llama",
            "qwen2",
            "qwen3",
            "mistral",
            "gemma",
            "gemma2",
            "gemma3_text",
            "starcoder2",
            "olmo2",
            "cohere",
            "glm4",
        )
    },
    "mixtral": (MOE, LLAMA_LIKE, 2),
    "qwen3_moe": (MOE, LLAMA_LIKE, 2),
    "llama4_text": ({**MOE, "intermediate_size_mlp": 16}, LLAMA_LIKE, 2),
    "opt": (
        {"ffn_dim": 16, "word_embed_proj_dim": 32},
        [f"model.decoder.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"],
        4,
    ),
    "jamba": (
        {**MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        [f"model.layers.1.self_attn.{p}_proj" for p in "kv"],
        2,
    ),
    "bert": (
        {},
        [f"bert.encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("key", "value")],
        4,
    ),
    "distilbert": (
        {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 16},
        [f"distilbert.transformer.layer.{i}.attention.{p}_lin" for i in range(2) for p in "kv"],
        4,
    ),
    "t5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_heads": 4, "num_layers": 2},
        [
            f"decoder.block.{i}.layer.{j}.{kind}.{p}"
            for i in range(2)
            for j, kind in enumerate(("SelfAttention", "EncDecAttention"))
            for p in "kv"
        ],
        4,
    ),
    "bart": (
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        },
        [
            f"model.decoder.layers.{i}.{kind}.{p}_proj"
            for i in range(2)
            for kind in ("self_attn", "encoder_attn")
            for p in "kv"
        ],
        4,
    ),
}


def _tiny(family: str, build: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family][0]})
    model: torch.nn.Module = getattr(transformers, build).from_config(config)
    return model.eval()


def _build_of(family: str) -> str:
    if family in ("bert", "distilbert"):
        return "AutoModelForMaskedLM"
    return "AutoModelForSeq2SeqLM" if family in ("t5", "bart") else "AutoModelForCausalLM"


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers(family: str, tmp_path: Path) -> None:
    """From the model to a record and a fake-quantized forward, without naming a layer."""
    torch.manual_seed(0)
    model = _tiny(family, _build_of(family))
    _, names, heads = FAMILIES[family]
    layers = amct.find_kv_layers(model)
    assert [layer.name for layer in layers] == names
    assert [layer.role for layer in layers] == ["key", "value"] * (len(names) // 2)
    assert {(layer.heads, layer.head_dim) for layer in layers} == {(heads, 8)}
    assert all(layer.source for layer in layers)

    ids = {"input_ids": torch.arange(1, 13).view(2, 6)}
    if family in ("t5", "bart"):
        ids["decoder_input_ids"] = torch.arange(11, 21).view(2, 5)
    calibrated(tmp_path, model)
    with torch.inference_mode():
        plain = model(**ids, use_cache=False).logits if "bert" not in family else model(**ids).logits
        record = amct.read_record(tmp_path / "record.txt")
        assert list(record) == names
        with amct.fake_quantized(model, record):
            stored = model(**ids).logits
    assert not torch.equal(stored, plain)
    assert torch.nn.functional.cosine_similarity(stored.flatten(), plain.flatten(), dim=0) > 0.98


def test_state_layers_are_left_alone_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _tiny("jamba", "AutoModelForCausalLM")
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
