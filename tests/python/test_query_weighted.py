"""Channels of keys are weighed by the queries that meet them."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import _core
from amct_pytorch._queries import squares_of

transformers = pytest.importorskip("transformers")
from families import tiny  # noqa: E402
from test_padding import LENGTHS, exact, padded, sequences  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

KEY = "model.layers.0.self_attn.k_proj"


def _config(folder: Path, model: torch.nn.Module, batches: int, granularity: str, **settings: Any) -> str:
    folder.mkdir(exist_ok=True)
    definition = folder / "definition.cfg"
    definition.write_text(
        f"batch_num: {batches} kv_cache_quant_config {{ calibration_config {{ tap: cache dst_type: INT4 "
        f"mse_quantize {{ quant_granularity: {granularity} }} }} }}"
    )
    config = str(folder / "config.json")
    amct.create_quant_cali_config(config, model, None, str(definition), **settings)
    return config


def _ids(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(1, 32, (batch, length), generator=torch.Generator().manual_seed(0))


def _scaled_queries(model: Any) -> Any:
    """A model whose queries are much larger on some channels, and keys on others."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[::3] *= 30
            layer.self_attn.k_proj.weight[1::3] *= 8
    return model


class _Seen:
    """What the attention function of transformers is called with, by its own name."""

    def __init__(self, model: Any) -> None:
        self.queries: dict[int, list[torch.Tensor]] = {}
        self.keys: dict[int, list[torch.Tensor]] = {}
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attention(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.queries.setdefault(module.layer_idx, []).append(query)
            self.keys.setdefault(module.layer_idx, []).append(key)
            return sdpa(module, query, key, *args, **kwargs)

        transformers.AttentionInterface.register("seen", attention)
        model.set_attn_implementation("seen")


@pytest.mark.parametrize("granularity", ["per_tensor", "per_head"])
def test_factors_are_those_of_a_session_that_is_told(granularity: str, tmp_path: Path) -> None:
    model = _scaled_queries(tiny("llama").eval())
    seen = _Seen(model)
    factors = []
    for weighted in (False, True):
        config = _config(tmp_path / str(weighted), model, 2, granularity, query_weighted=weighted)
        with amct.calibrate(model, config, str(tmp_path / "record.txt")), torch.inference_mode():
            for row in _ids().split(1):
                model(row, use_cache=True)
        factors.append(amct.read_record(tmp_path / "record.txt"))
    assert not torch.equal(factors[0][KEY].scale, factors[1][KEY].scale)
    for name, found in factors[1].items():
        if name.endswith("v_proj"):
            assert torch.equal(found.scale, factors[0][name].scale)
    # The long way: what the function of the model itself was called with.
    session = _core.Session(_core.read_config(config), str(tmp_path / "other.txt"), 1 << 30)
    for i in range(2):
        name = f"model.layers.{i}.self_attn.k_proj"
        for query, key in zip(seen.queries[i][:2], seen.keys[i][:2], strict=True):
            heads, head_dim = key.shape[1], key.shape[3]
            groups = query.view(1, heads, -1, *query.shape[2:])
            steps = (groups.double() ** 2 * 2**16).round()
            weights = steps.sum((0, 2, 3)).long().flatten()
            assert weights.shape == (heads * head_dim,)
            session.add_channel_weights(name, torch.utils.dlpack.to_dlpack(weights))
            session.observe(name, torch.utils.dlpack.to_dlpack(key.transpose(1, 2).flatten(2).clone()))
    results = {result.name: result for result in session.results()}
    for name, result in results.items():
        assert result.scales == factors[1][name].scale.tolist()
    assert len(results) == 2


def test_padding_and_sinks_weigh_nothing(tmp_path: Path) -> None:
    records = []
    for name in ("alone", "padded"):
        model = exact("llama")
        batches = len(LENGTHS) if name == "alone" else 1
        config = _config(tmp_path / name, model, batches, "per_tensor", query_weighted=True, sink_tokens=1)
        ids, mask = padded("left")
        with amct.calibrate(model, config, str(tmp_path / name / "record")), torch.inference_mode():
            if name == "alone":
                for sequence in sequences():
                    model(sequence[None], use_cache=True)
            else:
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        records.append((tmp_path / name / "record").read_bytes())
    assert records[0] == records[1]


def test_counts_keep_the_weights(tmp_path: Path) -> None:
    """A calibration per channel collects them, and factors of heads are solved with them or without."""
    model = _scaled_queries(tiny("llama").eval())
    config = _config(tmp_path, model, 1, "per_channel", query_weighted=True, max_position=0)
    counts, record = str(tmp_path / "counts"), str(tmp_path / "record.txt")
    with amct.calibrate(model, config, record, counts_file=counts), torch.inference_mode():
        model(_ids(), use_cache=True)
    settings = {"quant_granularity": 2, "head_num": 2}
    amct.solve_counts(counts, record, **settings)
    weighted = amct.read_record(record)[KEY]
    amct.solve_counts(counts, record, query_weighted=False, **settings)
    plain = amct.read_record(record)[KEY]
    assert not torch.equal(weighted.scale, plain.scale)
    config = _config(tmp_path / "heads", model, 1, "per_head", query_weighted=True)
    with amct.calibrate(model, config, record), torch.inference_mode():
        model(_ids(), use_cache=True)
    assert torch.equal(amct.read_record(record)[KEY].scale, weighted.scale)


def test_squares() -> None:
    queries = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = squares_of(queries, 3, None)
    expected = (queries.double() ** 2).sum((0, 2)).view(3, 2, 4).sum(1).flatten()
    assert torch.allclose(whole.double() / 2**16, expected, atol=1e-3)
    rows = torch.tensor([0, 3, 9])
    some = squares_of(queries, 3, rows)
    expected = (queries.transpose(1, 2).flatten(0, 1)[rows].double() ** 2).sum(0).view(3, 2, 4).sum(1)
    assert torch.allclose(some.double() / 2**16, expected.flatten(), atol=1e-3)
    # The order of batches and of tokens changes no bit, and what is not finite breaks no sum.
    parts = squares_of(queries[:, :, :2], 3, None) + squares_of(queries[:, :, 2:], 3, None)
    assert torch.equal(parts, whole)
    queries[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    assert squares_of(queries, 3, None).min() > 0


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    before = ALL_ATTENTION_FUNCTIONS.get_interface
    models = [exact("llama"), exact("llama")]
    for i, model in enumerate(models):
        config = _config(tmp_path / str(i), model, 1, "per_tensor", query_weighted=True)
        amct.create_quant_cali_model(config, str(tmp_path / f"{i}.txt"), model)
    assert ALL_ATTENTION_FUNCTIONS.get_interface != before
    amct.remove_quant_cali(models[0])
    models[1](_ids(), use_cache=True)
    amct.remove_quant_cali(models[1])
    assert ALL_ATTENTION_FUNCTIONS.get_interface == before
    assert (tmp_path / "1.txt").stat().st_size > 0


def test_a_model_that_is_dropped_is_freed(tmp_path: Path) -> None:
    before = ALL_ATTENTION_FUNCTIONS.get_interface
    model = exact("llama")
    config = _config(tmp_path, model, 1, "per_tensor", query_weighted=True)
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model)
    attention = weakref.ref(model.model.layers[0].self_attn)
    del model
    gc.collect()
    assert attention() is None
    assert ALL_ATTENTION_FUNCTIONS.get_interface == before


def test_eager_attention_is_seen_too(tmp_path: Path) -> None:
    records = []
    for implementation in ("eager", "sdpa"):
        model = exact("llama")
        model.set_attn_implementation(implementation)
        config = _config(tmp_path, model, 1, "per_tensor", query_weighted=True)
        with amct.calibrate(model, config, str(tmp_path / "record.txt")), torch.inference_mode():
            model(_ids(), use_cache=True)
        records.append((tmp_path / "record.txt").read_text().splitlines()[:6])
    assert records[0] == records[1]


def test_queries_that_are_not_seen_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact("llama")
    config = _config(tmp_path, model, 1, "per_tensor", query_weighted=True)
    attention = model.model.layers[0].self_attn
    forward = type(attention).forward

    def own(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        states = torch.zeros(hidden_states.shape[0], 2, hidden_states.shape[1], 8)
        cache.update(states, states, self.layer_idx)
        return hidden_states, None

    monkeypatch.setattr(type(attention), "forward", own)
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model)
    with pytest.raises(RuntimeError, match="leave query_weighted out, or show them by"):
        model(_ids(), use_cache=True)
    amct.remove_quant_cali(model)
    monkeypatch.setattr(type(attention), "forward", forward)


def test_where_it_cannot_be(tmp_path: Path) -> None:
    model = exact("llama")
    with pytest.raises(ValueError, match=r"k_proj' is to be query_weighted, which needs tap 'cache'"):
        amct.create_quant_cali_config(str(tmp_path / "config.json"), model, query_weighted=True)
    with pytest.raises(TypeError, match="query_weighted must be a bool, not int"):
        _config(tmp_path, model, 1, "per_tensor", query_weighted=1)
    config = _config(tmp_path, model, 1, "per_tensor", query_weighted=True)
    layers = json.loads(Path(config).read_text())
    of_each = {name: layers[name]["kv_data_quant_config"].get("query_weighted") for name in list(layers)[2:]}
    assert {name.rpartition(".")[2]: weighted for name, weighted in of_each.items()} == {
        "k_proj": True,
        "v_proj": None,
    }


def test_queries_are_shown_by_hand(tmp_path: Path) -> None:
    model = exact("llama")
    config = _config(tmp_path, model, 1, "per_tensor", query_weighted=True)
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model)
    states = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match=r"queries of shape \(1, 3, 5, 8\) cannot weigh keys of 5 tokens"):
        amct.observe_cache("model.layers.0.self_attn", states, states, queries[:, :3])
    amct.observe_cache("model.layers.0.self_attn", states, states, queries)
    assert KEY in {result.name for result in amct.calibration_run(model).results()}
    amct.remove_quant_cali(model)
