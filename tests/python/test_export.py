"""Exports as the programs read them that have their readers on PyPI."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import numpy as np
import pytest
import torch
from amct_pytorch import _core
from amct_pytorch._fused import FUSED_PROJECTIONS
from amct_pytorch.discovery import LATENT_PROJECTION, PROJECTION_PAIRS
from checkpoints import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    SHARD,
    names,
    record_for,
    save_llama,
    tensors_of,
    write_record,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM

CHECKPOINT_RUNTIMES = ("vllm-ascend", "vllm", "modelopt", "tensorrt-llm", "msmodelslim")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, saved."""
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder / "single")
    LlamaForCausalLM.from_pretrained(folder / "single").save_pretrained(
        folder / "sharded", max_shard_size="20KB"
    )
    assert (folder / "sharded" / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture(params=["single", "sharded"])
def checkpoint(request: pytest.FixtureRequest, original: Path, tmp_path: Path) -> Path:
    """A copy to export into."""
    return Path(shutil.copytree(original / request.param, tmp_path / "checkpoint"))


def logits_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(16)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", CHECKPOINT_RUNTIMES)
def test_checkpoints_load_as_before(runtime: str, checkpoint: Path, original: Path, tmp_path: Path) -> None:
    """Written twice; what transformers makes of the weights stays the same, bit for bit."""
    if runtime == "vllm":
        pytest.importorskip("compressed_tensors")
    record = record_for(runtime, tmp_path)
    amct.export_record(record, runtime, model=checkpoint)
    amct.export_record(record, runtime, model=checkpoint)
    assert torch.equal(logits_of(checkpoint), logits_of(original / "single"))
    report = amct.verify_export(checkpoint, runtime, record)
    assert report.ok, str(report)
    assert len(report.layers) == 2 * LAYERS
    assert {layer.match for layer in report.layers} <= {"equal", "merged"}


@pytest.mark.parametrize("runtime", CHECKPOINT_RUNTIMES)
def test_the_index_holds_all_tensors_where_they_are(runtime: str, checkpoint: Path, tmp_path: Path) -> None:
    amct.export_record(record_for(runtime, tmp_path), runtime, model=checkpoint)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    size = 0
    for path in checkpoint.glob("*.safetensors"):
        for name, tensor in tensors_of(path).items():
            held[name] = path.name
            size += tensor.nbytes
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == size


def test_compressed_tensors_accepts_the_settings(checkpoint: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    for more in ("", "head_num: 2"):
        record = write_record(tmp_path, 2 if more else 1, more=f"tap: cache dst_type: 'FP8_E4M3' {more}")
        amct.export_record(record, "vllm", model=checkpoint)
        settings = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
        config = quantization.QuantizationConfig.model_validate(settings)
        scheme = config.kv_cache_scheme
        assert (scheme.num_bits, scheme.type, scheme.symmetric, scheme.dynamic) == (8, "float", True, False)
        assert scheme.strategy == ("attn_head" if more else "tensor")
        scales = tensors_of(checkpoint / SHARD)
        assert {tuple(scale.shape) for scale in scales.values()} == {(2, 1, 1) if more else (1,)}


def test_vllm_tensors_are_the_records_scales(checkpoint: Path, tmp_path: Path) -> None:
    record = record_for("vllm", tmp_path)
    amct.export_record(record, "vllm", model=checkpoint)
    tensors = tensors_of(checkpoint / SHARD)
    for name, factors in amct.read_record(record).items():
        attention, half = name.removesuffix("_proj").rsplit(".", 1)
        assert torch.equal(tensors.pop(f"{attention}.{half}_scale"), factors.scale)
    assert not tensors


def test_vllm_ascend_tensors_are_one_a_channel(checkpoint: Path, tmp_path: Path) -> None:
    for count in (1, HEADS, HEADS * HEAD_DIM):
        more = "tap: cache" + (f" head_num: {HEADS}" if count == HEADS else "")
        record = write_record(tmp_path, count, more=more)
        amct.export_record(record, "vllm-ascend", model=checkpoint)
        tensors = tensors_of(checkpoint / SHARD)
        for name, factors in amct.read_record(record).items():
            scale = tensors[f"{name}.kv_cache_scale"]
            assert torch.equal(scale, factors.scale.repeat_interleave(HEADS * HEAD_DIM // count))
            assert torch.equal(tensors[f"{name}.kv_cache_offset"], torch.zeros(HEADS * HEAD_DIM))
    description = json.loads((checkpoint / "quant_model_description.json").read_text())
    assert description["kv_cache_type"] == "C8"
    assert description["model.layers.0.self_attn.q_proj.weight"] == "FLOAT"


def test_lmdeploys_expression_finds_every_pair_in_order(tmp_path: Path) -> None:
    record = write_record(tmp_path, offset=-7)
    output = tmp_path / "lmdeploy.txt"
    report = amct.export_record(record, "lmdeploy", output)
    assert [file.path for file in report.files] == [str(output)]
    pairs = re.findall(r"scale:\s*([\d\.\-]+)\s*offset:\s*(-?\d+)", output.read_text())
    factors = amct.read_record(record)
    assert [(np.float32(scale), int(offset)) for scale, offset in pairs] == [
        (factors[name].scale.item(), 7) for name in names()
    ]
    assert amct.verify_export(output, "lmdeploy", record).ok
    wrong = amct.verify_export(record, "lmdeploy", record)
    assert not wrong.ok
    assert any("sign" in layer.difference for layer in wrong.layers) or any(
        "wrong sign" in finding.why for finding in wrong.findings
    )


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_scanned_as_by_the_expression(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        "scale:",
        "offset:",
        "scale",
        "key: 'a'",
        " ",
        "\n",
        "\t",
        "",
        "-",
        ".",
        "1",
        "2.5",
        "0",
        "e-05",
        "#",
        "x",
    ]
    weights = np.array([8, 8, 1, 1, 6, 3, 1, 1, 2, 2, 9, 5, 5, 1, 1, 1], float)
    path = tmp_path / "text"
    for _ in range(20):
        text = "".join(rng.choice(parts, 120, p=weights / weights.sum()))
        path.write_text(text)
        pairs = re.findall(r"scale:\s*([\d\.\-]+)\s*offset:\s*(-?\d+)", text)
        report = amct.verify_export(path, "lmdeploy", layers=max(len(pairs), 1))
        used = [finding.value for finding in report.findings if finding.verdict == "used"]
        assert used == [f"scale {scale}, offset {offset}" for scale, offset in pairs], text


def test_npz_and_json_hold_everything(tmp_path: Path) -> None:
    record = write_record(tmp_path, 4, offset=-3, more="head_num: 4")
    factors = amct.read_record(record)
    amct.export_record(record, "npz", tmp_path / "factors.npz")
    with np.load(tmp_path / "factors.npz", allow_pickle=False) as arrays:
        metadata = json.loads(arrays["metadata"].item())
        for name in names():
            assert np.array_equal(arrays[f"{name}.scale"], factors[name].scale.numpy())
            assert np.array_equal(arrays[f"{name}.offset"], factors[name].offset.numpy())
            assert arrays[f"{name}.scale"].dtype == np.float32
            assert arrays[f"{name}.offset"].dtype == np.int32
        assert set(arrays.files) == {"metadata"} | {f"{n}.{p}" for n in names() for p in ("scale", "offset")}
    amct.export_record(record, "json", tmp_path / "factors.json")
    plain = json.loads((tmp_path / "factors.json").read_text())
    assert plain["format"] == metadata["format"] == "amct-kv-factors"
    assert [layer["name"] for layer in plain["layers"]] == names()
    for layer, described in zip(plain["layers"], metadata["layers"], strict=True):
        assert np.float32(layer["scale"]).tolist() == factors[layer["name"]].scale.tolist()
        assert layer["offset"] == factors[layer["name"]].offset.tolist()
        assert {key: layer[key] for key in described} == described
        assert (layer["granularity"], layer["dst_type"]) == ("per_head", "INT8")
    # An archive that NumPy wrote, compressed, is read too.
    with np.load(tmp_path / "factors.npz") as arrays:
        np.savez_compressed(tmp_path / "again.npz", **dict(arrays))
    for name in ("factors.npz", "again.npz", "factors.json"):
        report = amct.verify_export(tmp_path / name, name.rpartition(".")[2], record)
        assert report.ok, str(report)


def test_what_cannot_be_said_is_refused_with_the_nearest(tmp_path: Path) -> None:
    record = write_record(tmp_path, 4, offset=2)
    with pytest.raises(amct.Unrepresentable, match="per_channel") as caught:
        amct.export_record(record, "vllm", tmp_path / "out")
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.dst_type, error.granularity, error.with_offset, error.tap) == (
        "FP8_E4M3",
        "per_head",
        False,
        "cache",
    )
    assert error.command in str(error)
    assert error.command.startswith("amct solve COUNTS --dst-type FP8_E4M3")
    assert not (tmp_path / "out").exists()


def test_keys_before_rotary_embedding_need_leave(checkpoint: Path, tmp_path: Path) -> None:
    record = write_record(tmp_path, HEADS * HEAD_DIM, more="")
    with pytest.raises(amct.Unrepresentable, match="rotary"):
        amct.export_record(record, "vllm-ascend", model=checkpoint)
    amct.export_record(record, "vllm-ascend", model=checkpoint, allow_linear_tap=True)


def test_sglangs_file(checkpoint: Path, tmp_path: Path) -> None:
    record = record_for("sglang", tmp_path)
    amct.export_record(record, "sglang", tmp_path / "factors.json", checkpoint, ranks=2)
    data = json.loads((tmp_path / "factors.json").read_text())
    factors = amct.read_record(record)
    assert (data["model_type"], data["kv_cache"]["dtype"]) == ("llama", "float8_e4m3fn")
    largest = [max(factors[name].scale.item() for name in names()[i : i + 2]) for i in range(0, 6, 2)]
    for rank in "01":
        table = data["kv_cache"]["scaling_factor"][rank]
        assert list(table) == ["0", "1", "2"]
        assert [np.float32(value) for value in table.values()] == largest
    assert amct.verify_export(tmp_path / "factors.json", "sglang", record, checkpoint, ranks=2).ok


def test_reports_are_text_and_json(tmp_path: Path) -> None:
    record = write_record(tmp_path)
    report = amct.export_record(record, "json", tmp_path / "f.json")
    assert report.runtime == "json"
    assert "f.json" in str(report)
    assert json.loads(report.to_json())["files"][0]["path"] == str(tmp_path / "f.json")
    verified = amct.verify_export(tmp_path / "f.json", "json")
    data: dict[str, Any] = json.loads(verified.to_json())
    assert data["ok"] is verified.ok is True
    assert len(data["layers"]) == len(verified.layers) == 2 * LAYERS
    assert str(verified).endswith("OK\n")


def test_runtimes_say_what_they_can_be_told() -> None:
    runtimes = amct.runtimes()
    assert list(runtimes) == [
        "lmdeploy",
        "vllm-ascend",
        "vllm",
        "modelopt",
        "tensorrt-llm",
        "sglang",
        "msmodelslim",
        "json",
        "npz",
    ]
    assert runtimes["vllm"].dst_types == ["FP8_E4M3"]
    assert runtimes["vllm"].granularities == ["per_tensor", "per_head"]
    assert runtimes["lmdeploy"].with_offset
    assert not runtimes["lmdeploy"].writes_folder
    assert all(runtime.summary and runtime.readers for runtime in runtimes.values())
    assert set(runtimes["json"].dst_types) == set(_core.grid_names())


def test_every_name_that_discovery_gives_has_its_place(tmp_path: Path) -> None:
    """The lists of projections' names in C++ are those of discovery."""
    pairs = [(pair.key, pair.value) for pair in PROJECTION_PAIRS]
    pairs += [(f"{fused.name}.key", f"{fused.name}.value") for fused in FUSED_PROJECTIONS]
    for key, value in pairs:
        text = "".join(
            f"record {{ key: 'h.{i}.attn.{name}' kv_cache_value {{ scale: 1 offset: 0 tap: cache }} }}\n"
            for i in (1, 0)
            for name in (value, key)
        )
        record = tmp_path / "record.txt"
        record.write_text(text)
        report = amct.export_record(record, "lmdeploy", tmp_path / "out.txt")
        assert report.warnings == []
        assert [layer.source for layer in amct.verify_export(tmp_path / "out.txt", "lmdeploy").layers] == [
            f"h.{i}.attn.{name}" for i in (0, 1) for name in (key, value)
        ]
        fp8 = text.replace("tap: cache", "tap: cache dst_type: 'FP8_E4M3'")
        record.write_text(fp8)
        amct.export_record(record, "vllm", tmp_path / "vllm")
        assert set(tensors_of(tmp_path / "vllm" / SHARD)) == {
            f"h.{i}.attn.attn.{half}_scale" for i in (0, 1) for half in "kv"
        }
    record.write_text(
        f"record {{ key: 'h.0.attn.{LATENT_PROJECTION}.key' kv_cache_value {{ scale: 1 offset: 0 }} }}"
        "record { key: 'h.0.attn.kv_a_layernorm' kv_cache_value { scale: 1 offset: 0 role: value } }"
    )
    with pytest.raises(ValueError, match="multi-head latent"):
        amct.export_record(record, "lmdeploy", tmp_path / "out.txt")


def test_bad_arguments(tmp_path: Path) -> None:
    record = write_record(tmp_path)
    with pytest.raises(ValueError, match="'tgi' is not known; known are lmdeploy"):
        amct.export_record(record, "tgi", tmp_path / "out")
    with pytest.raises(ValueError, match="give the path"):
        amct.export_record(record, "lmdeploy")
    with pytest.raises(ValueError, match="model_dtype"):
        amct.export_record(record, "lmdeploy", tmp_path / "out", model_dtype="int8")
    with pytest.raises(FileNotFoundError):
        amct.export_record(tmp_path / "none.txt", "lmdeploy", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        amct.export_record(record, "lmdeploy", tmp_path / "out", tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        amct.verify_export(tmp_path / "none", "lmdeploy")
    with pytest.raises(ValueError, match="folder"):
        amct.export_record(record, "lmdeploy", tmp_path)
    for argument in ({"heads": "2"}, {"ranks": None}, {"allow_linear_tap": 1}, {"model_type": 3}):
        with pytest.raises(TypeError, match=next(iter(argument))):
            amct.export_record(record, "lmdeploy", tmp_path / "out", **argument)  # type: ignore[arg-type]
    for bad in (None, 3):
        with pytest.raises(TypeError, match="record_file"):
            amct.export_record(bad, "lmdeploy", tmp_path / "out")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="as_runtime"):
            amct.verify_export(record, bad)  # type: ignore[arg-type]
