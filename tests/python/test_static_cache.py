"""StaticQuantizedCache: what it stores, and that it decodes as a cache that rounds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import amct_pytorch as amct
import pytest
import torch

transformers = pytest.importorskip("transformers")
from amct_pytorch import _coded_states, _core  # noqa: E402
from amct_pytorch._coded_states import CodedStates  # noqa: E402
from amct_pytorch.kv_cache import FakeQuantizedCache  # noqa: E402
from amct_pytorch.static_cache import StaticQuantizedCache  # noqa: E402
from families import CACHE, ENCODER_DECODERS, ENCODERS, FAMILIES, inputs, tiny  # noqa: E402
from helpers import spread_factors  # noqa: E402

Records = dict[str, amct.KVFactors]


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the C++ kernels, and as on other devices."""
    if request.param == "torch":
        monkeypatch.setattr(_coded_states, "_has_kernels", lambda _: False)
    return str(request.param)


def _record(model: Any, granularity: str = "per_channel", dst_type: str = "INT8") -> Records:
    record = {}
    for layer in amct.find_kv_layers(model):
        assert layer.heads is not None
        assert layer.head_dim is not None
        record[layer.name] = spread_factors(layer.heads, layer.head_dim, granularity, dst_type)
    return record


def _llama(**sizes: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **sizes})).eval()


def _sliding(kind: str) -> Any:
    """Models with windows of 5 tokens in all layers, or in some."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "pad_token_id": 0,
        "sliding_window": 5,
    }
    if kind == "mistral":
        return transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    layer_types = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**sizes, layer_types=layer_types)
    return transformers.Gemma3ForCausalLM(config).eval()


def _ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(0))


def _states(cache: Any) -> Iterator[torch.Tensor]:
    for layer in cache.layers:
        for states in (layer.keys, layer.values):
            yield states.dequantize() if isinstance(states, CodedStates) else states


class _Reference(transformers.DynamicCache):  # type: ignore[misc]
    """Holds tensors, and rounds those in the place of codes when they are read."""

    def __init__(self, record: Records, model: Any, sink_tokens: int = 0, recent_tokens: int = 0) -> None:
        super().__init__(config=model.config)
        self._factors = [
            [record[f"model.layers.{i}.self_attn.{p}_proj"] for p in "kv"] for i in range(len(self.layers))
        ]
        self._sink_tokens, self._recent_tokens = sink_tokens, recent_tokens
        self._recent, self._total = [0] * len(self.layers), [0] * len(self.layers)

    def update(self, keys: Any, values: Any, i: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        seen = 0 if self._recent_tokens == 0 else self._recent_now(i) + keys.shape[2]
        both = super().update(keys, values, i, *args, **kwargs)
        self._recent[i] = min(seen, self._recent_tokens)
        self._total[i] = self.get_seq_length(i)
        keys, values = (self._read(*pair, i, seen) for pair in zip(both, self._factors[i], strict=True))
        return keys, values

    def stored(self) -> Iterator[torch.Tensor]:
        for i, layer in enumerate(self.layers):
            for states, factors in zip((layer.keys, layer.values), self._factors[i], strict=True):
                yield self._read(states, factors, i, self._recent_now(i))

    def _recent_now(self, i: int) -> int:
        """Those that no crop has taken: it does not bring back what has become a code."""
        return max(self._recent[i] - (self._total[i] - self.get_seq_length(i)), 0)

    def _read(self, states: torch.Tensor, factors: amct.KVFactors, i: int, recent: int) -> torch.Tensor:
        beyond_window = self.get_seq_length(i) - states.shape[2]
        result = _rounded(states, factors, max(self._sink_tokens - beyond_window, 0))
        last = max(states.shape[2] - recent, 0)
        result[:, :, last:] = states[:, :, last:]
        return result


@pytest.mark.parametrize("granularity", ["per_tensor", "per_head", "per_channel"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in (*ENCODERS, *ENCODER_DECODERS)])
def test_logits_are_those_of_rounded_states(family: str, granularity: str) -> None:
    model = tiny(family)
    record = _record(model, granularity)
    ids = inputs(family)["input_ids"]
    stored, rounded = StaticQuantizedCache(record, model), FakeQuantizedCache(record, model)
    with torch.inference_mode():
        for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
            wanted = model(part, **{CACHE: rounded}).logits
            assert torch.equal(model(part, **{CACHE: stored}).logits, wanted)
    assert stored.get_seq_length() == ids.shape[1]
    assert len(stored) == len(rounded)
    assert [type(layer) for layer in stored.layers] == [type(layer) for layer in rounded.layers]
    assert any(isinstance(getattr(layer, "keys", None), CodedStates) for layer in stored.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dst_type", _core.grid_names())
def test_every_format_and_type(dst_type: str, dtype: torch.dtype, path: str) -> None:
    model = _llama(head_dim=10).to(dtype)
    record = _record(model, "per_channel", dst_type)
    stored, rounded = StaticQuantizedCache(record, model), FakeQuantizedCache(record, model)
    with torch.inference_mode():
        for part in (_ids()[:, :7], _ids()[:, 7:8]):
            wanted = model(part, **{CACHE: rounded}).logits
            assert torch.equal(model(part, **{CACHE: stored}).logits, wanted)
    codes = stored.layers[0].keys.codes
    assert codes.dtype == (torch.int8 if dst_type == "INT8" else torch.uint8)
    assert codes.shape == (2, 2, 8, 5 if dst_type == "INT4" else 10)
    assert stored.layers[0].keys.dtype == dtype


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 5},
}


@pytest.mark.parametrize("recent_tokens", [0, 3])
@pytest.mark.parametrize("mode", [*MODES, "assisted", "padded"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_generate(kind: str, mode: str, recent_tokens: int) -> None:
    model = _llama() if kind == "llama" else _sliding(kind)
    record = _record(model)
    alone = mode in ("prompt lookup", "assisted", "chunks")
    ids = _ids(batch=1 if alone else 2)
    options: dict[str, Any] = {"max_new_tokens": 12, **MODES.get(mode, {})}
    if mode == "prompt lookup":
        ids = ids[:, :4].repeat(1, 3)  # so that there is something to look up
    if mode == "assisted":
        torch.manual_seed(1)
        options["assistant_model"] = _llama(num_hidden_layers=1)
    if mode == "padded":
        ids[0, :5] = 0
        options["attention_mask"] = (ids != 0).long()
    results = []
    for cache in (
        _Reference(record, model, recent_tokens=recent_tokens)
        if recent_tokens
        else FakeQuantizedCache(record, model),
        StaticQuantizedCache(record, model, recent_tokens=recent_tokens),
    ):
        torch.manual_seed(3)
        results.append(model.generate(ids, **{CACHE: cache}, **options))
        results.append(cache.get_seq_length())
    assert torch.equal(results[2], results[0])
    assert results[3] == results[1]


def _falcon_h1() -> Any:
    """A model whose layers have keys, values and states of a recurrent part."""
    torch.manual_seed(0)
    config = transformers.FalconH1Config(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        vocab_size=64,
        pad_token_id=0,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )
    return transformers.FalconH1ForCausalLM(config).eval()


@pytest.mark.parametrize("mode", ["greedy", "beams", "chunks"])
@pytest.mark.parametrize("family", ["jamba", "falcon_h1"])
def test_generate_with_states_beside(family: str, mode: str) -> None:
    model: Any = tiny(family) if family in FAMILIES else _falcon_h1()
    record = _record(model)
    ids = _ids(batch=1 if mode == "chunks" else 2) % 31 + 1
    caches = [make(record, model) for make in (FakeQuantizedCache, StaticQuantizedCache)]
    tokens = [model.generate(ids, **{CACHE: cache}, max_new_tokens=6, **MODES[mode]) for cache in caches]
    assert torch.equal(*tokens)
    assert [type(layer) for layer in caches[1].layers] == [type(layer) for layer in caches[0].layers]
    assert caches[1].memory().unquantized == 4 * caches[1].memory().stored


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_an_earlier_cache_goes_on(kind: str) -> None:
    model = _llama() if kind == "llama" else _sliding(kind)
    record = _record(model)
    ids = _ids()
    prompt = StaticQuantizedCache(record, model)
    with torch.inference_mode():  # and then generate, which is not in inference mode
        model(ids[:, :7], **{CACHE: prompt})
    before = list(_states(prompt))
    wanted = model.generate(ids, **{CACHE: FakeQuantizedCache(record, model)}, max_new_tokens=5)
    for _ in range(2):
        assert torch.equal(model.generate(ids, **{CACHE: copy.deepcopy(prompt)}, max_new_tokens=5), wanted)
    assert all(map(torch.equal, before, _states(prompt)))
    assert torch.equal(model.generate(ids, **{CACHE: prompt}, max_new_tokens=5), wanted)


@pytest.mark.parametrize("recent_tokens", [0, 1, 4])
@pytest.mark.parametrize("sink_tokens", [0, 3])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_what_is_done_to_a_cache(kind: str, sink_tokens: int, recent_tokens: int, path: str) -> None:
    """Beside a cache that holds the tensors."""
    model = _llama() if kind == "llama" else _sliding(kind)
    record = _record(model)
    stored = StaticQuantizedCache(record, model, sink_tokens=sink_tokens, recent_tokens=recent_tokens)
    plain = _Reference(record, model, sink_tokens, recent_tokens)

    def same() -> None:
        for found, wanted in zip(_states(stored), plain.stored(), strict=True):
            assert torch.equal(found, wanted)

    def feed(*shape: int) -> None:
        for i in range(2):
            states = torch.randn(shape[0], 2, shape[1], 8), torch.randn(shape[0], 2, shape[1], 8)
            for found, wanted in zip(stored.update(*states, i), plain.update(*states, i), strict=True):
                assert torch.equal(found, wanted)
        same()
        assert stored.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)

    for cache in (stored, plain):
        cache.activate_past_recording()
    feed(3, 2)
    feed(3, 9)
    for change in (
        lambda cache: cache.crop(-2),
        lambda cache: cache.crop(0),
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([4, 1, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])),
    ):
        for cache in (stored, plain):
            change(cache)
        same()
        batch = plain.layers[0].keys.shape[0]
        feed(batch, 1)
        feed(batch, 3)
    assert stored.is_croppable
    for cache in (stored, plain):
        cache.reset()
        assert cache.get_seq_length() == 0
    feed(1, 2)
    if kind == "llama":
        for cache in (stored, plain):
            cache.crop(-1)  # into the sinks
    feed(1, 4)


def _rounded(states: torch.Tensor, factors: amct.KVFactors, keep: int) -> torch.Tensor:
    by_token = states.transpose(1, 2)
    rounded = amct.fake_quantize(by_token.flatten(2), factors).view(by_token.shape).transpose(1, 2)
    return torch.cat([states[:, :, :keep], rounded[:, :, keep:]], dim=2)


def test_sinks_are_exact() -> None:
    model = _llama()
    record = _record(model, dst_type="INT4")
    plain = transformers.DynamicCache()
    with torch.inference_mode():
        model(_ids(), **{CACHE: plain})
        for sink_tokens in (0, 4, 100):
            cache = StaticQuantizedCache(record, model, sink_tokens=sink_tokens)
            for part in (_ids()[:, :3], _ids()[:, 3:]):  # over the bound of two calls
                model(part, **{CACHE: cache})
            keys = cache.layers[0].keys.dequantize()
            same = (keys - plain.layers[0].keys).abs().amax((0, 1, 3)) < 1e-5
            assert same.tolist() == [token < sink_tokens for token in range(12)]


def test_recent_tokens_are_exact() -> None:
    model = _llama()
    record = _record(model, dst_type="INT4")
    plain = transformers.DynamicCache()
    cache = StaticQuantizedCache(record, model, sink_tokens=1, recent_tokens=4)
    seen = []
    with torch.inference_mode():
        model(_ids(), **{CACHE: plain})
        for part in (_ids()[:, :9], _ids()[:, 9:10], _ids()[:, 10:]):
            logits = model(part, **{CACHE: cache}).logits
            same = (
                cache.layers[0].keys.dequantize() - plain.layers[0].keys[:, :, : cache.get_seq_length()]
            ).abs()
            seen.append((same.amax((0, 1, 3)) < 1e-5).nonzero().flatten().tolist())
    assert seen == [[0, 5, 6, 7, 8], [0, 6, 7, 8, 9], [0, 8, 9, 10, 11]]
    assert cache.memory().stored == 2 * 2 * 2 * 2 * (5 * 8 * 4 + 7 * 4)
    # A prompt sees all of itself as it is.
    whole = StaticQuantizedCache(record, model, recent_tokens=1)
    with torch.inference_mode():
        wanted = model(_ids()).logits
        assert torch.equal(model(_ids(), **{CACHE: whole}).logits, wanted)
    assert not torch.equal(logits, wanted[:, 10:])
    assert whole.memory().unquantized > 5 * whole.memory().stored


def test_a_record_of_some_layers() -> None:
    model = _llama()
    record = _record(model)
    names = list(record)
    del record[names[1]], record[names[2]], record[names[3]]
    for make in (StaticQuantizedCache, FakeQuantizedCache):
        with pytest.raises(ValueError, match="no factors for 3 layers"):
            make(record, model)
    caches = [make(record, model, missing="keep") for make in (StaticQuantizedCache, FakeQuantizedCache)]
    plain = transformers.DynamicCache()
    with torch.inference_mode():
        logits = [model(_ids(), **{CACHE: cache}).logits for cache in (*caches, plain)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    stored = [layer for cached in caches[0].layers for layer in (cached.keys, cached.values)]
    assert [isinstance(states, CodedStates) for states in stored] == [True, False, False, False]
    size = plain.layers[0].keys.nbytes
    memory = caches[0].memory()
    assert (memory.stored, memory.unquantized) == (3 * size + size // 4, 4 * size)


def test_formats_of_several_layers() -> None:
    model = _llama()
    record = _record(model)
    for name, dst_type, granularity in zip(
        record,
        ("INT4", "FP8_E4M3", "HIF8", "INT8"),
        ("per_head", "per_tensor", "per_channel", "per_tensor"),
        strict=True,
    ):
        record[name] = _record(model, granularity, dst_type)[name]
    logits = []
    with torch.inference_mode():
        for make in (StaticQuantizedCache, FakeQuantizedCache):
            cache = make(record, model)
            logits.append(model(_ids(), **{CACHE: cache}).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(("dst_type", "ratio"), [("INT8", 2), ("INT4", 4), ("FP8_E4M3", 2)])
def test_memory_of_8k_tokens(dst_type: str, ratio: int) -> None:
    model = _llama(max_position_embeddings=8192).to(torch.bfloat16)
    cache = StaticQuantizedCache(_record(model, dst_type=dst_type), model)
    plain = transformers.DynamicCache()
    for tokens in (8000, *[1] * 192):
        states = torch.randn(1, 2, tokens, 8, dtype=torch.bfloat16)
        for i in range(2):
            cache.update(states, states, i)
            plain.update(states, states, i)
    memory = cache.memory()
    assert memory.unquantized == sum(x.nbytes for layer in plain.layers for x in (layer.keys, layer.values))
    assert memory.stored * ratio == memory.unquantized
    # What is really held.
    held = {id(x): x.buffer.codes.untyped_storage().nbytes() for x in _coded(cache)}
    assert memory.allocated == sum(held.values()) <= memory.stored * 17 / 16


def _coded(cache: Any) -> Iterator[Any]:
    for layer in cache.layers:
        yield from (layer.keys, layer.values)


def test_encoder_decoder_models_have_two_caches() -> None:
    model = tiny("t5")
    with pytest.raises(ValueError, match=r"SelfAttention' and '.*EncDecAttention'.*fake_quantized"):
        StaticQuantizedCache(_record(model), model)


def test_what_cannot_be_made() -> None:
    model = _llama()
    record = _record(model)
    with pytest.raises(ValueError, match="sink_tokens must be a number of tokens"):
        StaticQuantizedCache(record, model, sink_tokens=-1)
    with pytest.raises(TypeError, match="sink_tokens must be a int"):
        StaticQuantizedCache(record, model, sink_tokens=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recent_tokens must be a number of tokens, 0 or more, not -2"):
        StaticQuantizedCache(record, model, recent_tokens=-2)
    with pytest.raises(ValueError, match="missing must be 'error' or 'keep', not 'skip'"):
        StaticQuantizedCache(record, model, missing="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another model"):
        StaticQuantizedCache({**record, "other": next(iter(record.values()))}, model)
    cache = StaticQuantizedCache(record, _llama())
    with pytest.raises(RuntimeError, match=r"k_proj': 24 channels go into the cache"):
        cache.update(torch.zeros(1, 3, 1, 8), torch.zeros(1, 3, 1, 8), 0)
    narrow = StaticQuantizedCache(record, wide := _llama(num_key_value_heads=4))
    with pytest.raises(ValueError, match=r"16 scales do not fit 32 channels in 4 heads"):
        wide(_ids(), **{CACHE: narrow})


def test_no_gradients_flow(path: str) -> None:
    model = _llama()
    cache = StaticQuantizedCache(_record(model), model, sink_tokens=2, recent_tokens=2)
    model(_ids(), **{CACHE: cache}).logits.sum().backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad is None
    assert model.lm_head.weight.grad is not None


def test_it_is_found_in_the_package() -> None:
    assert amct.StaticQuantizedCache is StaticQuantizedCache
    assert amct.FakeQuantizedCache is FakeQuantizedCache
    assert {"StaticQuantizedCache", "FakeQuantizedCache"} <= set(dir(amct))
    with pytest.raises(AttributeError, match="no attribute 'DynamicQuantizedCache'"):
        _ = amct.DynamicQuantizedCache  # type: ignore[attr-defined]
