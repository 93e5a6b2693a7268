"""Every family that the project knows, from the model to a fake-quantized forward."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from families import ENCODER_DECODERS, ENCODERS, FAMILIES, inputs, tiny
from helpers import calibrated


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers(family: str, tmp_path: Path) -> None:
    """From the model to a record and a fake-quantized forward, without naming a layer."""
    model = tiny(family)
    _, names, heads = FAMILIES[family]
    layers = amct.find_kv_layers(model)
    assert [layer.name for layer in layers] == names
    assert [layer.role for layer in layers] == ["key", "value"] * (len(names) // 2)
    assert {layer.heads for layer in layers} == {heads}
    assert all(layer.head_dim for layer in layers)
    assert all(layer.source for layer in layers)

    ids = inputs(family)
    calibrated(tmp_path, model)
    with torch.inference_mode():
        plain = model(**ids, use_cache=False).logits if "bert" not in family else model(**ids).logits
        record = amct.read_record(tmp_path / "record.txt")
        assert list(record) == names
        with amct.fake_quantized(model, record):
            stored = model(**ids).logits
    assert not torch.equal(stored, plain)
    assert torch.nn.functional.cosine_similarity(stored.flatten(), plain.flatten(), dim=0) > 0.98


# Families that normalize keys after their projection.
NORMALIZED = ("gemma3_text", "llama4_text", "olmo2", "persimmon", "qwen3", "qwen3_moe")


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in (*ENCODERS, *ENCODER_DECODERS, "jamba")]
)
def test_layers_are_what_is_cached(family: str) -> None:
    """The linear tap sees the values that the cache gets, and keys that were turned at most."""
    model = tiny(family)
    layers = amct.find_kv_layers(model)
    seen: dict[str, torch.Tensor] = {}

    def watch(layer: amct.KVLayer) -> None:
        def hook(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
            seen[layer.name] = output if layer.slice is None else layer.slice.of(output)

        model.get_submodule(layer.module).register_forward_hook(hook)

    for layer in layers:
        watch(layer)
    with torch.inference_mode():
        cache = model(**inputs(family), use_cache=True).past_key_values
    for i, (key, value) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        stored = {"key": cache.layers[i].keys, "value": cache.layers[i].values}
        if "kv_a_layernorm" in value.name:  # the latent comes first
            stored = {"value": cache.layers[i].keys, "key": cache.layers[i].values}
        for layer in (key, value):
            there = stored[layer.role]
            assert layer.heads is not None
            # Falcon stores the key of each group once for each of its queries.
            there = there[:, :: there.shape[1] // layer.heads]
            here = seen[layer.name].unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            if layer.role == "value":
                torch.testing.assert_close(here, there)
            elif family not in NORMALIZED:
                torch.testing.assert_close(here.norm(dim=-1), there.norm(dim=-1))
