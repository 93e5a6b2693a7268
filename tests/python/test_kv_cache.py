"""FakeQuantizedCache, on a small Llama."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch

transformers = pytest.importorskip("transformers")
from amct_pytorch.kv_cache import FakeQuantizedCache  # noqa: E402
from families import inputs, tiny  # noqa: E402
from helpers import spread_factors  # noqa: E402

# Newer transformers call it cache and warn of the old name.
_PARAMETERS = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"


def _llama(layers: int = 2, heads: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=heads,
        num_hidden_layers=layers,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _ids(length: int = 12) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(0))


def _record(folder: Path, model: Any, granularity: str = "per_tensor") -> Path:
    folder.mkdir(exist_ok=True)
    definition = folder / "definition.cfg"
    definition.write_text(
        "kv_cache_quant_config { calibration_config {"
        f" ifmr_quantize {{ quant_granularity: {granularity} }} }} }}"
    )
    config_file, record = folder / "config.json", folder / "record.txt"
    amct.create_quant_cali_config(str(config_file), model, config_defination=str(definition))
    amct.create_quant_cali_model(str(config_file), str(record), model)
    with torch.inference_mode():
        model(_ids())
    amct.remove_quant_cali(model)
    return record


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_what_is_stored_is_quantized(granularity: str, tmp_path: Path) -> None:
    model = _llama()
    record = _record(tmp_path, model, granularity)
    factors = amct.read_record(record)
    plain = transformers.DynamicCache()
    with torch.inference_mode():
        model(_ids(), **{CACHE: plain})
    for argument in (record, str(record), factors):
        cache = FakeQuantizedCache(argument, model)
        with torch.inference_mode():
            model(_ids(), **{CACHE: cache})
        # The first layer's keys do not depend on the quantization, so they can be compared one by one.
        name = "model.layers.0.self_attn.k_proj"
        for layer_name, stored, full in (
            (name, cache.layers[0].keys, plain.layers[0].keys),
            (name.replace("k_", "v_"), cache.layers[0].values, plain.layers[0].values),
        ):
            by_token = full.transpose(1, 2).flatten(2)
            wanted = amct.fake_quantize(by_token, factors[layer_name])
            assert torch.equal(stored.transpose(1, 2).flatten(2), wanted)
            assert not torch.equal(wanted, by_token)


def test_keys_from_before_rotary_embedding_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = _llama(), _llama()
    factors = amct.read_record(_record(tmp_path, model))
    assert {layer.tap for layer in factors.values()} == {"linear"}
    for _ in range(2):
        FakeQuantizedCache(factors, model)
    assert caplog.text.count("keys of 2 layers were calibrated at tap 'linear', before rotary embedding") == 1
    caplog.clear()
    FakeQuantizedCache(
        {name: dataclasses.replace(layer, tap="cache") for name, layer in factors.items()}, other
    )
    assert not caplog.text


def test_logits_stay_near(tmp_path: Path) -> None:
    model = _llama()
    record = _record(tmp_path, model)
    with torch.inference_mode():
        full = model(_ids()).logits
        quantized = model(_ids(), **{CACHE: FakeQuantizedCache(record, model)}).logits
    assert not torch.equal(full, quantized)
    assert (full - quantized).abs().max() < 0.05 * full.abs().max()


def test_token_by_token(tmp_path: Path) -> None:
    """Decoding stores one token at a time and gives what the whole prompt gives."""
    model = _llama()
    record = _record(tmp_path, model)
    whole, stepped = FakeQuantizedCache(record, model), FakeQuantizedCache(record, model)
    with torch.inference_mode():
        expected = model(_ids(), **{CACHE: whole}).logits
        parts = [model(_ids()[:, i : i + 1], **{CACHE: stepped}).logits for i in range(12)]
    assert stepped.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0.02, atol=0.02)
    assert isinstance(stepped, transformers.DynamicCache)
    assert model.generate(_ids(), **{CACHE: FakeQuantizedCache(record, model)}, max_new_tokens=3).shape == (
        2,
        15,
    )


def test_the_record_of_another_model(tmp_path: Path) -> None:
    record = _record(tmp_path, _llama(layers=1))
    with pytest.raises(ValueError, match=r"no factors for 2 layers of LlamaForCausalLM.*'model\.layers\.1\."):
        FakeQuantizedCache(record, _llama(layers=2))
    with pytest.raises(ValueError, match=r"no factors for 4 layers.*calibrate"):
        FakeQuantizedCache({}, _llama())


def test_the_record_of_a_larger_model(tmp_path: Path) -> None:
    record = _record(tmp_path, _llama(layers=3))
    with pytest.raises(ValueError, match=r"another model.*'model\.layers\.2\.self_attn\.k_proj'"):
        FakeQuantizedCache(record, _llama(layers=2))


def test_the_record_of_a_model_of_another_width(tmp_path: Path) -> None:
    record = _record(tmp_path, _llama(heads=2), "per_channel")
    model = _llama(heads=4)
    with pytest.raises(ValueError, match=r"16 scales.*32 channels"), torch.inference_mode():
        model(_ids(), **{CACHE: FakeQuantizedCache(record, model)})


def test_a_model_without_key_and_value_layers() -> None:
    with pytest.raises(ValueError, match=r"no key or value projection.*Linear"):
        FakeQuantizedCache({}, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_first_tokens_stay_as_they_are(family: str) -> None:
    """As many as the record says, wherever the effect of a record is seen."""
    model = tiny(family).eval()
    factors = {
        layer.name: dataclasses.replace(
            spread_factors(layer.heads or 1, layer.head_dim or 1, "per_channel", "INT4"), sink_tokens=3
        )
        for layer in amct.find_kv_layers(model)
    }
    pieces = inputs(family)["input_ids"].split([2, inputs(family)["input_ids"].shape[1] - 2], dim=1)
    ids = torch.cat(pieces, dim=1)

    def logits_with(cache: Any) -> torch.Tensor:
        return torch.cat([model(piece, **{CACHE: cache}).logits for piece in pieces], dim=1)

    caches = {
        "record": FakeQuantizedCache(factors, model),
        "argument": FakeQuantizedCache(factors, model, sink_tokens=2),
        "none": FakeQuantizedCache(factors, model, sink_tokens=0),
    }
    with torch.inference_mode():
        logits = {name: logits_with(cache) for name, cache in caches.items()}
        wanted = logits_with(amct.StaticQuantizedCache(factors, model))
        with amct.fake_quantized(model, factors, tap="cache"):
            at_cache = logits_with(transformers.DynamicCache())
        plain = model(ids).logits
        with amct.fake_quantized(model, factors):
            at_projections = model(ids).logits
    assert torch.equal(logits["record"], wanted)
    assert torch.equal(at_cache, wanted)
    assert not torch.equal(logits["argument"], logits["record"])
    assert not torch.equal(logits["none"], logits["argument"])
    # Of a causal model, what follows the first tokens cannot change them.
    assert torch.equal(at_projections[:, :3], plain[:, :3])
    assert not torch.equal(at_projections[:, 3:], plain[:, 3:])
    with pytest.raises(ValueError, match="sink_tokens must be a number of tokens"):
        FakeQuantizedCache(factors, model, sink_tokens=-1)
