"""Exports as the runtimes' own code reads them, where `make readers` has fetched it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pydantic
import pytest
import readers
import torch
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
from readers import Quiet, definitions, library
from safetensors.torch import save_file

QUERY_HEADS = 4
FP8 = "tap: cache dst_type: 'FP8_E4M3'"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


class Parallel:
    """One process of several that share the heads."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.functions = {
            "get_tensor_model_parallel_rank": lambda: rank,
            "get_tensor_model_parallel_world_size": lambda: size,
        }

    @property
    def heads(self) -> int:
        return HEADS // self.size

    def part(self, factors: torch.Tensor) -> torch.Tensor:
        """What this process needs of factors of a head or of all, in the order of heads."""
        if factors.numel() == 1:
            return factors
        return factors.chunk(self.size)[self.rank]


ALL_RANKS = [Parallel(), Parallel(0, 2), Parallel(1, 2)]


class Attention(torch.nn.Module):
    """What a runtime's attention has besides the factors."""

    def __init__(self, parallel: Parallel) -> None:
        super().__init__()
        self.num_kv_heads = parallel.heads
        self.kv_cache_dtype = "fp8"
        for name in ("_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
            self.register_buffer(name, torch.tensor(1.0))
        self._k_scale_cpu, self._v_scale_cpu = torch.ones(1), torch.ones(1)


def attention_model(method: Any, parallel: Parallel) -> tuple[torch.nn.Module, list[Any]]:
    """A model that has only the places of the factors, and its attention layers."""
    model = torch.nn.Module()
    attentions = []
    for i in range(LAYERS):
        attentions.append(Attention(parallel))
        method.create_weights(attentions[-1])
        at = model
        for part in ("model", "layers", str(i), "self_attn"):
            if part not in dict(at.named_children()):
                at.add_module(part, torch.nn.Module())
            at = at.get_submodule(part)
        at.add_module("attn", attentions[-1])
    return model, attentions


def load(folder: Path, model: torch.nn.Module, remap: Callable[..., str | None], loader: Any) -> list[str]:
    """Load the factors of a checkpoint as a model of the runtime does; their names in the model."""
    loaded = []
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in tensors_of(path).items():
            if name.endswith(".weight"):
                continue
            parameters = dict(model.named_parameters())
            to = remap(name, parameters)
            assert to is not None, f"{name} is not loaded"
            getattr(parameters[to], "weight_loader", loader)(parameters[to], tensor)
            loaded.append(to)
    return loaded


def factors_of(record: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales of keys and values, layer by layer."""
    factors = amct.read_record(record)
    scales = [factors[name].scale for name in names()]
    return zip(scales[::2], scales[1::2], strict=True)


def check_modelopts_factors(
    loading: Any, methods: Any, attributes: tuple[str, str], checkpoint: Path, folder: Path
) -> None:
    """What a runtime's attention multiplies by, of a checkpoint that was exported for ModelOpt."""
    record = write_record(folder, more=FP8)
    amct.export_record(record, "modelopt", model=checkpoint)
    method = methods.BaseKVCacheMethod(None)
    model, attentions = attention_model(method, Parallel())
    load(checkpoint, model, loading.maybe_remap_kv_scale_name, loading.default_weight_loader)
    for attention, (keys, values) in zip(attentions, factors_of(record), strict=True):
        method.process_weights_after_loading(attention)
        read = tuple(getattr(attention, name) for name in attributes)
        assert read == (keys.item(), values.item())


class TestVllm:
    FOLDER = "vllm/model_executor/"

    @classmethod
    def loading(cls) -> types.ModuleType:
        file = cls.FOLDER + "model_loader/weight_utils.py"
        functions = ("maybe_remap_kv_scale_name", "default_weight_loader")
        return definitions("vllm", file, *functions, logger=Quiet(), torch=torch)

    @classmethod
    def methods(cls) -> types.ModuleType:
        return definitions(
            "vllm",
            cls.FOLDER + "layers/quantization/kv_cache.py",
            "KVCacheScaleParameter",
            "BaseKVCacheMethod",
            torch=torch,
            logger=Quiet(),
            QuantizeMethodBase=object,
            is_weights_pre_processed=lambda: False,
            kv_cache_uses_per_token_head_scales=lambda dtype: False,
            is_quantized_kv_cache=lambda dtype: True,
            current_platform=types.SimpleNamespace(is_fp8_fnuz=lambda: False),
        )

    @classmethod
    def compressed_tensors(cls, parallel: Parallel) -> type:
        quantization = library("compressed_tensors.quantization")
        module = definitions(
            "vllm",
            cls.FOLDER + "layers/quantization/compressed_tensors/compressed_tensors.py",
            "CompressedTensorsKVCacheMethod",
            torch=torch,
            partial=partial,
            BaseKVCacheMethod=cls.methods().BaseKVCacheMethod,
            QuantizationStrategy=quantization.QuantizationStrategy,
            **parallel.functions,
        )
        method: type = module.CompressedTensorsKVCacheMethod
        return method

    @pytest.mark.parametrize("parallel", ALL_RANKS, ids=lambda p: f"{p.rank}of{p.size}")
    @pytest.mark.parametrize("count", [1, HEADS])
    def test_factors(self, count: int, parallel: Parallel, checkpoint: Path, tmp_path: Path) -> None:
        loading = self.loading()
        record = write_record(tmp_path, count, more=FP8 + (f" head_num: {HEADS}" if count == HEADS else ""))
        amct.export_record(record, "vllm", model=checkpoint)
        settings = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
        config = types.SimpleNamespace(
            kv_cache_scheme=settings["kv_cache_scheme"],
            total_num_kv_heads=HEADS,
            total_num_heads=QUERY_HEADS,
        )
        method = self.compressed_tensors(parallel)(config)
        model, attentions = attention_model(method, parallel)
        loaded = load(checkpoint, model, loading.maybe_remap_kv_scale_name, loading.default_weight_loader)
        assert len(set(loaded)) == 2 * LAYERS
        for attention, (keys, values) in zip(attentions, factors_of(record), strict=True):
            method.process_weights_after_loading(attention)
            assert attention._k_scale.equal(parallel.part(keys))
            assert attention._v_scale.equal(parallel.part(values))

    def test_modelopts_factors(self, checkpoint: Path, tmp_path: Path) -> None:
        loading, methods = self.loading(), self.methods()
        check_modelopts_factors(loading, methods, ("_k_scale_float", "_v_scale_float"), checkpoint, tmp_path)

    def test_what_it_cannot_be_told_it_refuses_as_well(self) -> None:
        scheme = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
        validate = self.compressed_tensors(Parallel()).validate_kv_cache_scheme  # type: ignore[attr-defined]
        validate(scheme)
        for change in ({"type": "int"}, {"num_bits": 4}, {"symmetric": False}, {"strategy": "channel"}):
            with pytest.raises(NotImplementedError):
                validate(scheme | change)
        granularities = amct.runtimes()["vllm"].granularities
        assert (amct.runtimes()["vllm"].dst_types, granularities) == (
            ["FP8_E4M3"],
            ["per_tensor", "per_head"],
        )

    @pytest.mark.parametrize("runtime", ["vllm", "modelopt"])
    def test_every_name(self, runtime: str, checkpoint: Path, tmp_path: Path) -> None:
        remap = self.loading().maybe_remap_kv_scale_name
        amct.export_record(write_record(tmp_path, more=FP8), runtime, model=checkpoint)
        check_names(remap, checkpoint, runtime)


ENDS = ("k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "scale", "output_scale")
PLACES = ("", "attn", "k_proj", "v_proj", "qkv_proj", "qkqkv_proj", "k_cache", "v_cache", "q", "o_proj")


def check_names(remap: Callable[..., str | None], folder: Path, runtime: str) -> None:
    """Which tensors are factors: by `verify_export` of a checkpoint, and by the runtime's own function."""
    attention = "model.layers.0.self_attn"
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    weights = {name: file for name, file in index["weight_map"].items() if file != SHARD}
    places = {f"{attention}.attn.{end}": end for end in ENDS[:3]}
    for place, end in itertools.product(PLACES, ENDS):
        name = ".".join(filter(None, (attention, place, end)))
        save_file({name: torch.tensor([0.5])}, folder / SHARD, metadata={"format": "pt"})
        index_path.write_text(json.dumps(index | {"weight_map": weights | {name: SHARD}}))
        report = amct.verify_export(folder, runtime)
        verdicts = {(finding.verdict, finding.key) for finding in report.findings}
        # A scale of values without one of keys is loaded, too, and then an assertion fails.
        taken = bool(verdicts & {("used", name), ("fatal", attention)})
        assert taken == (places.get(remap(name, places) or "") in ENDS[:2]), f"{name}: {report}"


class TestSglang:
    FOLDER = "sglang/srt/"

    @classmethod
    def loading(cls) -> types.ModuleType:
        return definitions(
            "sglang",
            cls.FOLDER + "model_loader/weight_utils.py",
            "maybe_remap_kv_scale_name",
            "default_weight_loader",
            "KVCacheQuantSchema",
            "QuantParamSchema",
            "kv_cache_scales_loader",
            print_warning_once=lambda message: None,
            logger=Quiet(),
            torch=torch,
            json=json,
            BaseModel=pydantic.BaseModel,
            ConfigDict=pydantic.ConfigDict,
            model_validator=pydantic.model_validator,
            ValidationInfo=pydantic.ValidationInfo,
            Dict=dict,
            Optional=typing.Optional,
        )

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_its_file(self, ranks: int, tmp_path: Path) -> None:
        read = self.loading().kv_cache_scales_loader
        record = record_for("sglang", tmp_path)
        path = tmp_path / "factors.json"
        amct.export_record(record, "sglang", path, model_type="llama", ranks=ranks)
        effective = {
            layer.layer: layer.scale[0]
            for layer in amct.verify_export(path, "sglang", layers=LAYERS, ranks=ranks).layers
        }
        for rank in range(ranks):
            scales = dict(read(str(path), rank, ranks, LAYERS, "llama"))
            assert scales == pytest.approx(effective, rel=1e-7)
            for i, (keys, values) in enumerate(factors_of(record)):
                assert scales[i] == pytest.approx(max(keys.item(), values.item()), rel=1e-7)
        assert not read(str(path), 0, ranks, LAYERS + 1, "llama")
        assert not read(str(path), 0, ranks, LAYERS, "qwen2")

    def test_a_checkpoints_factors(self, checkpoint: Path, tmp_path: Path) -> None:
        loading = self.loading()
        methods = definitions(
            "sglang",
            self.FOLDER + "layers/quantization/kv_cache.py",
            "BaseKVCacheMethod",
            torch=torch,
            QuantizeMethodBase=object,
            is_fp8_fnuz=lambda: False,
        )
        check_modelopts_factors(loading, methods, ("k_scale_float", "v_scale_float"), checkpoint, tmp_path)

    def test_every_name(self, checkpoint: Path, tmp_path: Path) -> None:
        remap = self.loading().maybe_remap_kv_scale_name
        amct.export_record(write_record(tmp_path, more=FP8), "modelopt", model=checkpoint)
        check_names(remap, checkpoint, "sglang")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lmdeploy(dtype: torch.dtype, tmp_path: Path) -> None:
    file = "lmdeploy/pytorch/backends/dlinfer/ascend/op_backend.py"
    reader = definitions("lmdeploy", file, "AscendKVQuantMeta", re=re, torch=torch, itertools=itertools)
    record = write_record(tmp_path, offset=-7)
    output = tmp_path / "lmdeploy.txt"
    amct.export_record(record, "lmdeploy", output, model_dtype=str(dtype).removeprefix("torch."))
    reader.AscendKVQuantMeta.set_value("cpu", dtype, str(output), LAYERS)
    meta = reader.AscendKVQuantMeta.quant_meta
    for keys, values in factors_of(record):
        assert next(meta["k_scales"]).equal(keys.to(dtype))
        assert next(meta["v_scales"]).equal(values.to(dtype))
        assert next(meta["kv_scales"]).equal(torch.cat((keys, values)).to(dtype))
        assert next(meta["kv_zeros"]).tolist() == [7, 7]  # added there to the code, and subtracted here


@pytest.mark.parametrize("parallel", ALL_RANKS, ids=lambda p: f"{p.rank}of{p.size}")
@pytest.mark.parametrize("count", [1, HEADS, HEADS * HEAD_DIM])
def test_vllm_ascend(count: int, parallel: Parallel, checkpoint: Path, tmp_path: Path) -> None:
    config = definitions(
        "vllm-ascend",
        "vllm_ascend/quantization/modelslim_config.py",
        "AscendModelSlimConfig.get_cache_scale",
        "AscendModelSlimConfig._add_kvcache_quant_metadata",
        "AscendModelSlimConfig.is_c8_quant_layer",
        re=re,
    )
    weights = definitions(
        "vllm-ascend",
        "vllm_ascend/quantization/methods/kv_c8.py",
        "_c8_kv_scale_weight_loader",
        "AscendC8KVCacheAttentionMethod",
        torch=torch,
        logger=Quiet(),
        AscendAttentionScheme=object,
        get_current_vllm_config=lambda: types.SimpleNamespace(kv_transfer_config=None),
    )
    backend = definitions(
        "vllm-ascend",
        "vllm_ascend/attention/attention_v1.py",
        "AscendC8AttentionBackendImpl._prepare_c8_scales",
        "AscendC8AttentionBackendImpl._quantize_kv_to_int8",
        torch=torch,
        **parallel.functions,
    )
    record = write_record(
        tmp_path, count, more="tap: cache" + (f" head_num: {HEADS}" if count == HEADS else "")
    )
    amct.export_record(record, "vllm-ascend", model=checkpoint)
    settings = types.SimpleNamespace(
        quant_description=json.loads((checkpoint / "quant_model_description.json").read_text())
    )
    config._add_kvcache_quant_metadata(settings)
    method = weights.AscendC8KVCacheAttentionMethod(settings.quant_description, "")
    model, attentions = attention_model(method, parallel)
    load(
        checkpoint,
        model,
        lambda name, _: config.get_cache_scale(settings, name),
        loader=None,
    )
    implementation = types.SimpleNamespace(num_kv_heads=parallel.heads, head_size=HEAD_DIM)
    x = torch.randn(50, parallel.heads, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    for i, (attention, scales) in enumerate(zip(attentions, factors_of(record), strict=True)):
        assert config.is_c8_quant_layer(settings, f"model.layers.{i}.self_attn.attn")
        assert attention.kv_cache_torch_dtype is torch.int8
        method.process_weights_after_loading(attention)
        backend._prepare_c8_scales(implementation, attention, torch.device("cpu"))
        keys, values = (
            parallel.part(scale.repeat_interleave(HEADS * HEAD_DIM // count)).view(
                1, parallel.heads, HEAD_DIM
            )
            for scale in scales
        )
        assert attention._c8_k_scale.equal(keys)
        assert attention._c8_v_scale.equal(values)
        codes = backend._quantize_kv_to_int8(implementation, x, x, attention, len(x))
        for code, scale in zip(codes, (keys, values), strict=True):
            assert code.equal((x * (1 / scale)).round().clamp(-128, 127).to(torch.int8))


@pytest.mark.parametrize("needed", ["", "1"])
def test_what_is_missing_is_skipped_or_fails(
    needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI would be green without it, though nothing read the exports."""
    monkeypatch.setattr(readers, "_FOLDER", tmp_path)
    monkeypatch.setenv("AMCT_NEED_READERS", needed)
    either = (pytest.fail.Exception, pytest.skip.Exception)  # a skip that is not caught would skip this test
    with pytest.raises(either, match="vllm is not here: make readers") as code:
        TestVllm.loading()
    with pytest.raises(either, match="no_such_library is not installed") as module:
        library("no_such_library")
    assert code.type is module.type is (pytest.fail.Exception if needed else pytest.skip.Exception)
