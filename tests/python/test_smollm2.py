"""A real model on real text: SmolLM2-135M-Instruct, every key and value layer."""

from __future__ import annotations

import inspect
import json
import math
import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import numpy as np
import pytest
import reference
import torch

LAYERS = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(30) for p in "kv"]
BATCHES, LENGTH = 2, 64
CAPTURED = ("model.layers.0.self_attn.k_proj", "model.layers.29.self_attn.v_proj")


@dataclass
class Run:
    folder: Path
    model: Any
    batches: list[torch.Tensor]
    held_back: list[torch.Tensor]
    plain_outputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    captured: dict[str, torch.Tensor]
    results: list[amct.LayerResult]

    @property
    def record(self) -> Path:
        return self.folder / "record.txt"


@pytest.fixture(scope="module")
def run(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("smollm2")
    model = smollm2.model
    text = "\n\n".join(pydoc_data.topics.topics.values())
    ids = smollm2.tokenizer(text[:20000], return_tensors="pt").input_ids[0]
    windows = list(ids[: LENGTH * 4].view(4, 1, LENGTH))
    batches, held_back = windows[:BATCHES], windows[BATCHES:]

    captured: dict[str, list[torch.Tensor]] = {name: [] for name in CAPTURED}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: captured[name].append(out)
        )
        for name in CAPTURED
    ]
    with torch.inference_mode():
        plain_outputs = [model(batch, use_cache=False).logits for batch in batches]
    for handle in handles:
        handle.remove()

    definition = folder / "definition.cfg"
    definition.write_text(f"batch_num: {BATCHES}")
    config_file = str(folder / "config.json")
    amct.create_quant_cali_config(config_file, model, config_defination=str(definition))
    assert amct.create_quant_cali_model(config_file, str(folder / "record.txt"), model) is model
    with torch.inference_mode():
        outputs = [model(batch, use_cache=False).logits for batch in batches]
    results = amct.calibration_run(model).results()
    amct.remove_quant_cali(model)
    joined = {name: torch.cat(parts).flatten(0, 1) for name, parts in captured.items()}
    return Run(folder, model, batches, held_back, plain_outputs, outputs, joined, results)


def test_every_layer_is_found(run: Run) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    assert list(config)[2:] == LAYERS
    assert config["batch_num"] == BATCHES


def test_outputs_are_those_of_the_model_itself(run: Run) -> None:
    for plain, calibrated in zip(run.plain_outputs, run.outputs, strict=True):
        assert torch.equal(plain, calibrated)


def test_every_layer_is_recorded_in_order(run: Run) -> None:
    factors = amct.read_record(run.record)
    assert list(factors) == LAYERS
    for layer in factors.values():
        assert layer.scale.shape == layer.offset.shape == (1,)
        assert math.isfinite(layer.scale.item())
        assert layer.scale.item() > 0
        assert -128 <= layer.offset.item() <= 127
    assert [result.name for result in run.results] == LAYERS
    for result in run.results:
        assert (result.batches, result.tokens, result.channels) == (BATCHES, BATCHES * LENGTH, 192)
        assert result.scales == [factors[result.name].scale.item()]
        assert result.sqnr_db > 20
        assert result.clipped_fraction < 0.01


@pytest.mark.parametrize("name", CAPTURED)
def test_factors_are_those_of_the_reference(name: str, run: Run) -> None:
    values = run.captured[name].numpy()
    scale, offset, _ = reference.ifmr(values)
    factors = amct.read_record(run.record)[name]
    assert factors.scale.item() == pytest.approx(scale, rel=2.5e-7)
    assert factors.offset.item() == offset
    (result,) = (result for result in run.results if result.name == name)
    assert (result.min, result.max) == (values.min(), values.max())
    signal = float(np.mean(values.astype(np.float64) ** 2))
    sqnr = 10 * math.log10(signal / reference.int8_mse(values, scale, offset))
    assert result.sqnr_db == pytest.approx(sqnr, rel=1e-6)


def test_protobuf_reads_the_record(run: Run, schema: Any) -> None:
    from google.protobuf import text_format

    record = schema.message("AMCTPytorchProto.ScaleOffsetRecord")()
    text_format.Parse(run.record.read_text(), record)
    ours = amct.read_record(run.record)
    assert [entry.key for entry in record.record] == LAYERS
    for entry in record.record:
        assert list(entry.kv_cache_value.scale) == ours[entry.key].scale.tolist()
        assert list(entry.kv_cache_value.offset) == ours[entry.key].offset.tolist()
    # Writing it with protobuf and reading that changes nothing either.
    again = run.folder / "again.txt"
    again.write_text(text_format.MessageToString(record))
    assert {name: f.scale.item() for name, f in amct.read_record(again).items()} == {
        name: f.scale.item() for name, f in ours.items()
    }


def test_protobuf_reads_what_we_take_as_definition(run: Run, schema: Any) -> None:
    from google.protobuf import text_format

    config = schema.message("AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig")(batch_num=BATCHES)
    config.kv_cache_quant_config.quant_layers.extend(LAYERS)
    config.kv_cache_quant_config.calibration_config.ifmr_quantize.SetInParent()
    definition = run.folder / "by_protobuf.cfg"
    definition.write_text(text_format.MessageToString(config))
    config_file = run.folder / "by_protobuf.json"
    amct.create_quant_cali_config(str(config_file), run.model, config_defination=str(definition))
    assert config_file.read_bytes() == (run.folder / "config.json").read_bytes()


def test_perplexity_with_a_quantized_cache(run: Run) -> None:
    transformers = pytest.importorskip("transformers")
    from amct_pytorch.evaluation import perplexity
    from amct_pytorch.kv_cache import FakeQuantizedCache

    full = perplexity(run.model, run.held_back, transformers.DynamicCache)
    assert 1 < full < 100  # it does read English
    assert full == pytest.approx(perplexity(run.model, run.held_back), rel=1e-4)
    quantized = perplexity(run.model, run.held_back, lambda: FakeQuantizedCache(run.record, run.model))
    assert quantized != full
    assert quantized == pytest.approx(full, rel=0.02)
    with amct.fake_quantized(run.model, run.record):
        assert perplexity(run.model, run.held_back) == pytest.approx(full, rel=0.02)
    # A record that is wrong by a factor would be seen.
    spoilt = {
        name: amct.KVFactors(factors.scale * 16, factors.offset)
        for name, factors in amct.read_record(run.record).items()
    }
    with amct.fake_quantized(run.model, spoilt):
        assert perplexity(run.model, run.held_back) > 1.1 * full


def test_generation_with_a_quantized_cache(run: Run, smollm2: Any) -> None:
    from amct_pytorch.kv_cache import FakeQuantizedCache

    parameters = inspect.signature(run.model.forward).parameters
    argument = "cache" if "cache" in parameters else "past_key_values"
    prompt = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    cache = FakeQuantizedCache(run.record, run.model)
    ids = run.model.generate(prompt, **{argument: cache}, max_new_tokens=2, do_sample=False)
    assert "Paris" in smollm2.tokenizer.decode(ids[0, prompt.shape[1] :])


def test_the_record_of_another_model(run: Run) -> None:
    with (
        pytest.raises(ValueError, match=r"another model.*Linear.*'model\.layers\.0\.self_attn\.k_proj'"),
        amct.fake_quantized(torch.nn.Linear(2, 2), run.record),
    ):
        pytest.fail("entered")
