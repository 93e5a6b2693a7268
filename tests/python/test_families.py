"""Every family that the project knows, from the model to a fake-quantized forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._rotary import TURNS, turned_positions
from amct_pytorch._tap import Tap
from amct_pytorch.kv_cache import FakeQuantizedCache
from families import CACHE, ENCODER_DECODERS, ENCODERS, FAMILIES, inputs, tiny
from helpers import calibrated

# Families that turn keys by a module for it.
ROTARY = {
    *(
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
    ),
    *("glm4", "mixtral", "qwen3_moe", "llama4_text", "phi3", "gpt_neox", "falcon", "falcon/heads"),
    *("falcon/new", "persimmon", "deepseek_v2", "deepseek_v3"),
}


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ENCODERS])
def test_at_the_cache(
    family: str, granularity: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the model to a record and a forward that stores rounded keys and values, naming no layer."""
    model = tiny(family)
    names = FAMILIES[family][1]
    search = f"minmax_quantize {{ quant_granularity: {granularity} }}"
    definition = f"kv_cache_quant_config {{ calibration_config {{ tap: cache max_position: 64 {search} }} }}"
    calibrated(tmp_path, model, definition=definition)
    run = amct.calibration_run(model)
    ids = inputs(family)
    with torch.inference_mode():
        plain = model(**ids, use_cache=True).logits
        record = amct.read_record(tmp_path / "record.txt")
        assert list(record) == names
        assert {layer.tap for layer in run.results()} == {"cache"}
        assert not [hook for module in model.modules() for hook in module._forward_hooks.values()]
        assert not [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
        with amct.fake_quantized(model, record, tap="cache"):
            stored = model(**ids, use_cache=True).logits
        if family not in ENCODER_DECODERS:
            cache = FakeQuantizedCache(record, model)
            assert model(**ids, **{CACHE: cache}).logits.equal(stored)
        assert torch.equal(model(**ids, use_cache=True).logits, plain)
    assert not torch.equal(stored, plain)
    assert torch.nn.functional.cosine_similarity(stored.flatten(), plain.flatten(), dim=0) > 0.98
    turned = [layer.name for layer in run.results() if layer.rows > ids["input_ids"].numel()]
    keys = [layer.name for layer in amct.find_kv_layers(model) if layer.role == "key"]
    assert turned == (keys if family in ROTARY and granularity == "per_channel" else [])
    unknown = [
        record for record in caplog.records if "turned to their positions is not known" in record.message
    ]
    assert len(unknown) == (2 if family == "codegen" and granularity == "per_channel" else 0)


@pytest.mark.parametrize("family", sorted(ROTARY))
def test_keys_are_turned_as_the_model_turns_them(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turned key of the first layer is the one that the model caches at that position."""
    model = tiny(family)
    reach = 50
    shown: dict[str, torch.Tensor] = {}
    observe = Tap.observe

    def note(tap: Tap, name: str, x: torch.Tensor, *more: Any) -> None:
        shown[name] = x
        observe(tap, name, x, *more)

    monkeypatch.setattr(Tap, "observe", note)
    definition = (
        f"kv_cache_quant_config {{ calibration_config {{ tap: cache max_position: {reach} "
        "minmax_quantize { quant_granularity: per_channel } } }"
    )
    calibrated(tmp_path, model, definition=definition)
    ids = inputs(family)["input_ids"]
    key = amct.find_kv_layers(model)[0]
    with torch.inference_mode():
        model(ids, use_cache=True)
        turns = shown[key.name].view(1 + TURNS, *ids.shape, -1)
        for turn in range(TURNS):
            positions = turned_positions(torch.arange(ids.shape[1]), turn, reach)[None]
            assert turn * reach // TURNS <= int(positions.min()) <= int(positions.max()) < reach
            cache = model(ids, use_cache=True, position_ids=positions.expand_as(ids)).past_key_values
            layer = cache.layers[0]
            keys = layer.values if "kv_a_proj" in key.name else layer.keys
            assert key.heads is not None
            keys = keys[:, :: keys.shape[1] // key.heads]
            torch.testing.assert_close(turns[1 + turn], keys.transpose(1, 2).flatten(2), rtol=1e-3, atol=2e-4)


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
