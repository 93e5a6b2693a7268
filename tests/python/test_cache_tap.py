"""Tap 'cache': what goes into the cache of a model is what is calibrated."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from families import CACHE, tiny
from helpers import Decoder, calibrated, record_of, tokens
from test_padding import exact

transformers = pytest.importorskip("transformers")

NAMES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"]


def definition(granularity: str = "per_channel", reach: int | None = 0, batches: int = 1) -> str:
    limit = "" if reach is None else f"max_position: {reach}"
    search = f"minmax_quantize {{ quant_granularity: {granularity} }}"
    return (
        f"batch_num: {batches} "
        f"kv_cache_quant_config {{ calibration_config {{ tap: cache {limit} {search} }} }}"
    )


def ids(seed: int = 1, batch: int = 2, length: int = 6) -> torch.Tensor:
    return torch.randint(1, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


def states_of(cache: Any) -> list[torch.Tensor]:
    """Keys and values of each layer, ``[batch, tokens, channels]``."""
    return [
        states.transpose(1, 2).flatten(2) for layer in cache.layers for states in (layer.keys, layer.values)
    ]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_those_of_what_the_cache_holds(
    granularity: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny("llama").to(dtype)
    calibrated(tmp_path, model, definition=definition(granularity))
    with torch.inference_mode():
        cache = model(ids(), use_cache=True).past_key_values
    record = amct.read_record(tmp_path / "record.txt")
    for name, states in zip(NAMES, states_of(cache), strict=True):
        record_of(tmp_path / name, [states], act_algo="minmax", quant_granularity=granularity)
        expected = amct.read_record(tmp_path / name / "record.txt")["layer"]
        assert record[name].scale.equal(expected.scale)
        assert record[name].offset.equal(expected.offset)


@pytest.mark.parametrize("kind", ["dynamic", "static", "sliding", "hybrid"])
def test_generate_with_any_cache(kind: str, tmp_path: Path) -> None:
    """Prefill and decode: each token is seen once, as it is stored."""
    family = {"sliding": "mistral", "hybrid": "gemma3_text"}.get(kind, "llama")
    model = tiny(family)
    new = 5
    calibrated(tmp_path, model, definition=definition(batches=new))
    run = amct.calibration_run(model)
    options = {"cache_implementation": "static"} if kind == "static" else {}
    generated = model.generate(
        ids(), max_new_tokens=new, min_new_tokens=new, do_sample=True, pad_token_id=0, **options
    )
    assert generated.shape[1] == 6 + new
    assert {layer.batches for layer in run.results()} == {new}
    assert {layer.rows for layer in run.results()} == {2 * (6 + new - 1)}
    assert list(amct.read_record(tmp_path / "record.txt")) == NAMES


def test_without_a_cache_it_says_what_to_do(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition())
    message = (
        r"attention 'model\.layers\.0\.self_attn' was called without a cache.*use_cache=True.*tap 'linear'"
    )
    with pytest.raises(RuntimeError, match=message):
        model(ids(), use_cache=False)
    model(ids(), use_cache=True)
    assert list(amct.read_record(tmp_path / "record.txt")) == NAMES
    with (
        amct.fake_quantized(model, tmp_path / "record.txt", tap="cache"),
        pytest.raises(RuntimeError, match="nothing is rounded at tap 'cache'"),
    ):
        model(ids(), use_cache=False)


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    model = tiny("bert")
    calibrated(tmp_path, model, definition=definition())
    with pytest.raises(RuntimeError, match="was called without a cache"):
        model(ids())


def test_the_output_and_the_cache_are_what_they_are_without_calibration(tmp_path: Path) -> None:
    model = tiny("llama")
    expected = model(ids(), use_cache=True)
    calibrated(tmp_path, model, definition=definition(batches=2, reach=64))
    output = model(ids(), use_cache=True)
    assert output.logits.equal(expected.logits)
    for stored, plain in zip(
        states_of(output.past_key_values), states_of(expected.past_key_values), strict=True
    ):
        assert stored.equal(plain)
    assert "update" not in vars(output.past_key_values)


def test_a_forward_that_fails_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition())
    cache = transformers.DynamicCache()
    spoil(model, 3)
    with pytest.raises(amct.NonFiniteError, match=r"layers\.0\.self_attn\.k_proj', batch 1"):
        model(torch.tensor([[2, 3]]), **{CACHE: cache})
    assert "update" not in vars(cache)
    model(torch.tensor([[2, 4]]), use_cache=True)
    assert list(amct.read_record(tmp_path / "record.txt")) == NAMES


def spoil(model: torch.nn.Module, token: int) -> None:
    """Have the model's keys be NaN for a token."""
    with torch.no_grad():
        model.model.embed_tokens.weight[token, 0] = float("nan")


@pytest.mark.parametrize("bad", [[[3, 3, 3]], [[2, 3, 4]]], ids=["all", "one"])
def test_a_batch_that_is_refused_does_not_tell_how_keys_are_turned(bad: Any, tmp_path: Path) -> None:
    records = []
    for name in ("alone", "after"):
        model = tiny("llama")
        spoil(model, 3)
        calibrated(tmp_path / name, model, definition=definition(batches=2, reach=64))
        if name == "after":
            with pytest.raises(amct.NonFiniteError):
                model(torch.tensor(bad), use_cache=True)
        for tokens_of_batch in ([[4, 5, 6, 7]], [[8, 9, 10, 11]]):
            model(torch.tensor(tokens_of_batch), use_cache=True)
        records.append((tmp_path / name / "record.txt").read_bytes())
    assert records[0] == records[1]


@pytest.mark.parametrize("reach", [0, 64])
@pytest.mark.parametrize("mask", [None, [[0, 0, 1, 1], [0, 1, 1, 1]]], ids=["whole", "padded"])
def test_not_finite_values_are_told_by_their_place_in_the_batch(
    mask: Any, reach: int, tmp_path: Path
) -> None:
    """Not by that among the rows that are counted, which padding leaves out and turning adds."""
    model = tiny("llama")
    spoil(model, 3)
    calibrated(tmp_path, model, definition=definition(batches=3, reach=reach))
    model(ids(seed=1) % 3 + 4, use_cache=True)
    bad = torch.tensor([[3, 4, 5, 6], [4, 5, 3, 6]])  # the first is padding where there is a mask
    given = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    with pytest.raises(amct.NonFiniteError, match=r"k_proj', batch 2: .* of shape \[2, 4, 16\]") as caught:
        model(bad, use_cache=True, **given)
    channels = 16
    first = 0 if mask is None else 6 * channels
    assert (caught.value.count, caught.value.first_index) == (channels * (2 if mask is None else 1), first)


def test_the_order_of_batches_does_not_matter(tmp_path: Path) -> None:
    records = []
    for order in ((1, 2, 3), (3, 1, 2)):
        model = tiny("llama")
        folder = tmp_path / str(order[0])
        calibrated(folder, model, definition=definition(batches=3, reach=None))
        with torch.inference_mode():
            for seed in order:
                model(ids(seed, length=4 + seed), use_cache=True)
        records.append((folder / "record.txt").read_bytes())
    assert records[0] == records[1]
    assert records[0]


def test_the_reach_is_the_models_unless_another_is_given(tmp_path: Path) -> None:
    rows = {}
    for reach in (None, 0, 64):
        model = tiny("llama")
        calibrated(tmp_path / str(reach), model, definition=definition(reach=reach))
        run = amct.calibration_run(model)
        model(ids(), use_cache=True)
        rows[reach] = [layer.rows for layer in run.results()]
    assert rows == {None: [204, 12] * 2, 0: [12] * 4, 64: [204, 12] * 2}
    scales = [
        amct.read_record(tmp_path / str(reach) / "record.txt")[NAMES[0]].scale for reach in (None, 0, 64)
    ]
    assert bool((scales[0] >= scales[1]).all())  # what is seen as it is counts, too
    assert bool((scales[0] > scales[1]).any())
    assert not scales[0].equal(scales[2])


def test_tokens_at_the_first_position_wait_for_a_batch_that_tells_how_keys_are_turned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = []
    for order in ((1, 6, 1), (6, 1, 1), (1, 1, 6)):
        model = tiny("llama")
        folder = tmp_path / "-".join(map(str, order))
        calibrated(folder, model, definition=definition(reach=64, batches=3))
        with torch.inference_mode():
            for length in order:
                model(ids(length=length), use_cache=True)
        records.append((folder / "record.txt").read_bytes())
    assert records[0] == records[1] == records[2]
    assert list(amct.read_record(tmp_path / "1-6-1" / "record.txt")) == NAMES
    assert "tokens at the first position alone do not tell how keys are turned" in caplog.text


def test_large_values_in_slow_channels_do_not_hide_how_keys_are_turned(tmp_path: Path) -> None:
    model = tiny("qwen2")
    with torch.no_grad():
        bias = model.model.layers[0].self_attn.k_proj.bias
        bias.view(2, 8)[:, [3, 7]] = 400  # the slowest pair of each head
    calibrated(tmp_path, model, definition=definition(reach=64))
    run = amct.calibration_run(model)
    model(ids(length=20), use_cache=True)
    assert [layer.rows for layer in run.results()] == [680, 40] * 2


def test_the_cache_is_as_it_was_when_its_layers_are_finished(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition())
    with torch.inference_mode():
        cache = model(ids(), use_cache=True).past_key_values
    assert "update" not in vars(cache)
    copy.deepcopy(cache)


def test_an_update_of_the_users_own_stays(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition(batches=2))
    cache, calls = transformers.DynamicCache(), []
    update = cache.update

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return update(*args, **kwargs)

    cache.update = own
    for _ in range(3):
        model(ids(), **{CACHE: cache})
    assert len(calls) == 6
    assert vars(cache)["update"] is own


@pytest.mark.parametrize("where", ["k_proj", "o_proj"])
def test_an_interrupt_leaves_nothing_behind(where: str, tmp_path: Path) -> None:
    """Torch calls no hook then, so what the forward left is cleared by the next one."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model = tiny("llama")
    cache = transformers.DynamicCache()
    calibrated(tmp_path, model, definition=definition(batches=2))
    run = amct.calibration_run(model)
    module = getattr(model.model.layers[1].self_attn, where)
    hook = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids(), attention_mask=torch.tensor([[1] * 6, [0] * 3 + [1] * 3]), **{CACHE: cache})
    hook.remove()
    cache.layers.clear()
    seen = run.unfinished()
    amct.remove_quant_cali(model)
    plain = model(ids(), **{CACHE: cache}).logits
    assert run.unfinished() == seen  # the cache shows nothing to a run that is over
    assert plain.equal(model(ids(), use_cache=True).logits)
    assert "update" not in vars(cache)


def test_threads_do_not_mix_their_forwards(tmp_path: Path) -> None:
    batches = [(ids(seed, length=8), torch.ones(2, 8, dtype=torch.int64)) for seed in range(24)]
    for i, (_, mask) in enumerate(batches):
        mask[0, : i % 4] = 0
    for tap in ("linear", "cache"):
        records = []
        for threads in (1, 4):
            # Other sums may differ in their last bit with the memory that a thread gets; these are exact.
            model = exact("llama")
            layers = [f"model.layers.0.self_attn.{part}_proj" for part in "kv"]
            text = definition(reach=64, batches=len(batches)).replace("cache", tap, 1)
            folder = tmp_path / f"{tap}{threads}"
            calibrated(folder, model, layers, text.replace("kv_linear", "kv_cache"))
            run = amct.calibration_run(model)

            def work(mine: list[Any], model: torch.nn.Module = model) -> None:
                with torch.inference_mode():
                    for batch, mask in mine:
                        model(batch, attention_mask=mask, use_cache=True)

            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, [batches[k::threads] for k in range(threads)]))
            assert {layer.batches for layer in run.results()} == {len(batches)}
            records.append((folder / "record.txt").read_bytes())
        assert records[0] == records[1]


def test_a_forward_while_another_copies_the_rotary_embedding(tmp_path: Path) -> None:
    """What runs in one thread is watched while another, which turns keys, makes itself an embedding."""

    class WhileCopied:
        """What a module holds: as it is copied, something else happens."""

        def __init__(self, happens: Callable[[], None]) -> None:
            self.happens = happens

        def __deepcopy__(self, memo: Any) -> None:
            self.happens()

    def run(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            model(batch, use_cache=True)

    records = []
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        for together in (False, True):
            model = exact("llama")
            layers = [f"model.layers.0.self_attn.{part}_proj" for part in "kv"]
            folder = tmp_path / str(together)
            calibrated(folder, model, layers, definition(reach=64, batches=2))
            second = iter([functools.partial(run, ids(2, length=9))])
            if together:
                model.model.rotary_emb.held = WhileCopied(
                    lambda second=second: [other.submit(call).result() for call in second]
                )
            run(ids(1, length=8))
            for call in second:
                call()
            records.append((folder / "record.txt").read_bytes())
    assert records[0] == records[1]


def test_a_batch_whose_angles_are_not_known_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Factors would hold for its positions alone, and nobody would know."""
    model = tiny("llama")
    calibrated(tmp_path, model, NAMES[:2], definition(reach=64, batches=3))
    model(ids(), use_cache=True)
    assert "not known" not in caplog.text
    forward = model.model.rotary_emb.forward
    model.model.rotary_emb.__class__ = type("Elsewhere", (torch.nn.Module,), {})
    model.model.rotary_emb.forward = forward
    model.model.rotary_emb._forward_hooks.clear()
    for length in (8, 9):  # else the angles are those of the batch before
        model(ids(length=length), use_cache=True)
    message = f"layer '{NAMES[0]}': how its keys are turned to their positions is not known"
    assert caplog.text.count(message) == 1


def test_two_models_with_the_same_names(tmp_path: Path) -> None:
    models = [Custom(shows=True), Custom(shows=True)]
    for i, model in enumerate(models):
        calibrated(tmp_path / str(i), model, definition=definition(batches=2))
    models[0](tokens())
    first, second = (amct.calibration_run(model) for model in models)
    assert set(first.unfinished().values()) == {(1, 2)}
    assert set(second.unfinished().values()) == {(0, 2)}
    states = torch.ones(1, 2, 2, 4)
    with pytest.raises(RuntimeError, match=r"several models .*call observe_cache\(\) inside"):
        amct.observe_cache("decoder.layers.0.self_attn", states, states)
    for model in models:
        amct.remove_quant_cali(model)


@pytest.mark.parametrize("rope", ["linear", "dynamic", "yarn", "llama3"])
def test_scaled_rotary_embeddings_are_left_as_they_are(rope: str, tmp_path: Path) -> None:
    """Turning asks the embedding for far positions, and must not change what the model computes."""
    parameters = {
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }[rope]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=32,
        max_position_embeddings=64,
        rope_parameters={"rope_type": rope, "rope_theta": 10000.0, **parameters},
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.inference_mode():
        plain = model(ids(), use_cache=True).logits
        calibrated(tmp_path, model, definition=definition(reach=None, batches=2))
        run = amct.calibration_run(model)
        for _ in range(2):
            assert model(ids(), use_cache=True).logits.equal(plain)
        assert model(ids(), use_cache=True).logits.equal(plain)
    assert [layer.rows for layer in run.results()] == [408, 24] * 2


class Custom(torch.nn.Module):
    """A decoder that keeps its cache by itself."""

    def __init__(self, shows: bool) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.shows = shows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.decoder.layers):
            attention = block.self_attn
            if self.shows:
                hook = attention.register_forward_pre_hook(self._store(f"decoder.layers.{i}.self_attn"))
            x = block(x)
            if self.shows:
                hook.remove()
        return x

    def _store(self, name: str) -> Any:
        def hook(attention: Any, args: tuple[torch.Tensor]) -> None:
            states = [
                torch.nn.functional.linear(args[0], p.weight, p.bias).unflatten(-1, (2, -1)).transpose(1, 2)
                for p in (attention.k_proj, attention.v_proj)
            ]
            amct.observe_cache(name, *states)

        return hook


def test_observe_cache(tmp_path: Path) -> None:
    gc.collect()  # models of other tests, whose runs failed
    model = Custom(shows=True)
    amct.observe_cache("decoder.layers.0.self_attn", torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))  # no run
    calibrated(tmp_path, model, definition=definition(reach=None))
    model(tokens())
    linear = Decoder()
    calibrated(tmp_path / "linear", linear, definition=definition().replace("tap: cache", ""))
    linear(tokens())
    shown = amct.read_record(tmp_path / "record.txt")
    for name, factors in amct.read_record(tmp_path / "linear" / "record.txt").items():
        assert shown[f"decoder.{name}"].scale.equal(factors.scale)


def test_a_model_that_shows_nothing(tmp_path: Path) -> None:
    model = Custom(shows=False)
    calibrated(tmp_path, model, definition=definition())
    with pytest.raises(RuntimeError, match=r"show it by amct_pytorch\.observe_cache\(\)"):
        model(tokens())


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        (torch.ones(2, 8, 8), TypeError, r"a tensor of 4 dimensions .*, not \(2, 8, 8\)"),
        ([1], TypeError, "not list"),
        (
            torch.ones(1, 3, 2, 4),
            RuntimeError,
            "12 channels go into the cache, but its projection puts out 8",
        ),
    ],
)
def test_states_that_cannot_be(states: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    model = calibrated(tmp_path, Decoder(), definition=definition())
    with pytest.raises(error, match=message):
        amct.observe_cache("layers.0.self_attn", states, states)
    assert set(amct.calibration_run(model).unfinished().values()) == {(0, 1)}
    amct.remove_quant_cali(model)


def test_settings_of_create_quant_cali_config(tmp_path: Path) -> None:
    model = tiny("llama")
    file = tmp_path / "config.json"
    amct.create_quant_cali_config(str(file), model, tap="cache", max_position=128)
    text = file.read_text()
    assert text.count('"tap":"cache"') == 4
    assert text.count('"role":"key"') == 2
    assert text.count('"max_position":128') == 2  # of the keys
    for bad, error, message in (
        ({"tap": "attention"}, ValueError, "tap must be 'linear' or 'cache', not 'attention'"),
        ({"max_position": -1}, ValueError, r"max_position must be from 0 to 2\^31, not -1"),
        ({"max_position": 2**63}, ValueError, "not 9223372036854775808"),
        ({"max_position": 1.5}, TypeError, "max_position must be a int"),
        ({"max_position": True}, TypeError, "max_position must be an int, not bool"),
    ):
        with pytest.raises(error, match=message):
            amct.create_quant_cali_config(str(file), model, **bad)
    with pytest.raises(
        ValueError, match=r"layer 'lm_head' has tap 'cache', but is not among the key and value"
    ):
        amct.create_quant_cali_config(str(file), model, {"kv_cache_quant_layers": ["lm_head"]}, tap="cache")
    assert file.read_text() == text


def test_both_taps_in_one_run(tmp_path: Path) -> None:
    model = tiny("llama")
    layers = " ".join(f"quant_layers: '{name}'" for name in NAMES)
    text = (
        f"kv_cache_quant_config {{ {layers} }} override_layers_configs {{ "
        "layer_name: '*.k_proj' kv_data_quant_config { tap: cache } }"
    )
    calibrated(tmp_path, model, definition=text)
    run = amct.calibration_run(model)
    model(ids(), use_cache=True)
    assert [layer.tap for layer in run.results()] == ["cache", "linear"] * 2


def test_copies_are_refused_while_it_observes(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition())
    with pytest.raises(RuntimeError, match="is being calibrated, so its model cannot be copied"):
        copy.deepcopy(model)
    model(ids(), use_cache=True)
    copied = copy.deepcopy(model)
    assert copied(ids(), use_cache=True).logits.equal(model(ids(), use_cache=True).logits)
    amct.remove_quant_cali(copied)
    amct.remove_quant_cali(model)


def test_taken_off_before_its_end(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model, definition=definition(reach=64, batches=2))
    model(ids(), use_cache=True)
    amct.remove_quant_cali(model)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    model(ids(), use_cache=False)
    assert amct.read_record(tmp_path / "record.txt") == {}
