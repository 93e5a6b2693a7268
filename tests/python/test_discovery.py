"""Finding key and value projections."""

from __future__ import annotations

from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch.discovery import PROJECTION_PAIRS, KVLayer, is_supported
from helpers import DECODER_LAYERS, Decoder


def _names(model: torch.nn.Module) -> list[str]:
    return [layer.name for layer in amct.find_kv_layers(model)]


def _attention(**children: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleDict({"attn": torch.nn.ModuleDict(children)})


def test_decoder() -> None:
    layers = amct.find_kv_layers(Decoder())
    assert [layer.name for layer in layers] == DECODER_LAYERS
    assert [layer.role for layer in layers] == ["key", "value", "key", "value"]
    assert layers[0] == KVLayer("layers.0.self_attn.k_proj", "key")


@pytest.mark.parametrize("pair", PROJECTION_PAIRS, ids=lambda pair: pair.key)
def test_every_family_of_the_table(pair: Any) -> None:
    linear = torch.nn.Linear(2, 2)
    # The value stands first in the model; the key comes first in the result all the same.
    assert _names(_attention(**{pair.value: torch.nn.Linear(2, 2), pair.key: linear})) == [
        f"attn.{pair.key}",
        f"attn.{pair.value}",
    ]
    assert _names(_attention(**{pair.key: linear})) == []
    assert _names(_attention(**{pair.key: linear, pair.value: torch.nn.Identity()})) == []


def test_an_attention_module_by_itself() -> None:
    assert _names(Decoder().layers[0].self_attn) == ["k_proj", "v_proj"]


def test_names_that_only_resemble() -> None:
    assert _names(_attention(k_proj2=torch.nn.Linear(2, 2), v_proj2=torch.nn.Linear(2, 2))) == []
    assert _names(torch.nn.Linear(2, 2)) == []


def test_attention_that_two_blocks_share_is_listed_once() -> None:
    attention = Decoder(blocks=1).layers[0].self_attn
    model = torch.nn.ModuleList([attention, attention])
    assert _names(model) == ["0.k_proj", "0.v_proj"]


def test_supported() -> None:
    class Mine(torch.nn.Linear):
        pass

    assert is_supported(torch.nn.Linear(1, 1))
    assert is_supported(Mine(1, 1))
    assert not is_supported(torch.nn.LayerNorm(1))
    assert not is_supported(torch.nn.Identity())


@pytest.mark.parametrize(
    ("family", "first", "count"),
    [
        ("llama", "model.layers.0.self_attn.k_proj", 4),
        ("qwen3", "model.layers.0.self_attn.k_proj", 4),
        ("mistral", "model.layers.0.self_attn.k_proj", 4),
        ("bert", "encoder.layer.0.attention.self.key", 4),
    ],
)
def test_models_of_transformers(family: str, first: str, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, int] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 32,
    }
    if family != "bert":
        sizes |= {"num_key_value_heads": 2, "head_dim": 4}
    config = transformers.AutoConfig.for_model(family, **sizes)
    build = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = build.from_config(config)
    layers = amct.find_kv_layers(model)
    assert len(layers) == count
    assert layers[0] == KVLayer(first, "key")
    assert [layer.role for layer in layers] == ["key", "value"] * (count // 2)
