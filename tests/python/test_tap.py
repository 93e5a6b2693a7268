"""The calibrated module stays the user's module."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from families import inputs, tiny
from helpers import DECODER_LAYERS, Decoder, calibrated, factors_of, run_python, tokens
from structure import OURS, Hooks, changes, hooks_of, register_all, structure_of, those_of


class LoudLinear(torch.nn.Linear):
    """A subclass with an attribute of its own."""

    volume = 11


# By case: the family, what the definition says of all layers, and what its search groups.
STRUCTURES = {
    "linear": ("llama", "tap: linear", "per_tensor"),
    "cache": ("llama", "tap: cache max_position: 64", "per_channel"),
    "query_weighted": ("llama", "tap: cache query_weighted: true", "per_tensor"),
    "fused": ("phi3", "tap: linear", "per_tensor"),
    "fused_cache": ("phi3", "tap: cache max_position: 64", "per_channel"),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # attention is called by keywords
@pytest.mark.parametrize("case", STRUCTURES)
def test_structure_stays(case: str, tmp_path: Path) -> None:
    """While the model is calibrated, also within its forward, and after."""
    family, tap, granularity = STRUCTURES[case]
    model = tiny(family)
    attention = model.model.layers[1].self_attn
    model.model.norm.train()  # modules may differ in it
    model.model.norm.weight.requires_grad_(False)
    calls: list[str] = []
    within: list[tuple[dict[str, Any], Hooks]] = []
    for name, module in {"model": model, "attention": attention, **dict(attention.named_children())}.items():
        register_all(module, name, calls.append, backward=module is not model)
    attention.o_proj.register_forward_pre_hook(
        lambda *_: within.append((structure_of(model), hooks_of(model)))
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run() -> tuple[torch.Tensor, list[str]]:
        calls.clear()
        logits = model(**inputs(family), use_cache=True).logits
        logits.sum().backward()
        return logits, calls.copy()

    logits, called = run()
    assert {"before", "after, with words", "after going back"} <= {kind.split(": ")[1] for kind in called}
    structure, hooks = structure_of(model), hooks_of(model)

    def check(now: dict[str, Any], all_hooks: Hooks) -> None:
        assert changes(structure, now) == []
        assert those_of(all_hooks, hooks) == hooks

    definition = (
        f"batch_num: 2 kv_cache_quant_config {{ calibration_config {{ {tap} "
        f"mse_quantize {{ quant_granularity: {granularity} }} }} }}"
    )
    for batches in (2, 1):  # until it is finished, or taken off before
        assert calibrated(tmp_path, model, definition=definition) is model
        check(structure_of(model), hooks_of(model))
        for _ in range(batches):
            assert hooks_of(model) != hooks
            within.clear()
            again, others = run()
            assert again.equal(logits)
            assert others == called
            check(*within[0])
            check(structure_of(model), hooks_of(model))
        assert (hooks_of(model) == hooks) == (batches == 2)
        amct.remove_quant_cali(model)
        check(structure_of(model), hooks_of(model))
        assert hooks_of(model) == hooks
        assert not [name for module in model.modules() for name in vars(module) if name.startswith(OURS)]
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_a_module_is_what_it_was(tmp_path: Path) -> None:
    model = Decoder()
    model.layers[0].self_attn.k_proj = LoudLinear(16, 8)
    modules = dict(model.named_modules())
    parameters = {name: id(p) for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    text = repr(model)
    assert calibrated(tmp_path, model) is model
    assert dict(model.named_modules()) == modules
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert repr(model) == text
    k_proj = model.layers[0].self_attn.k_proj
    assert type(k_proj) is LoudLinear
    assert isinstance(k_proj, torch.nn.Linear)
    assert (k_proj.in_features, k_proj.out_features, k_proj.volume) == (16, 8, 11)
    assert k_proj.weight.shape == (8, 16)
    k_proj.weight.data.zero_()  # the module's own weight, not a copy's
    assert k_proj(tokens()).std(0).max() == 0
    model.load_state_dict(state)
    assert list(model.children()) == [model.layers]


def test_outputs_and_gradients_stay(tmp_path: Path) -> None:
    plain, model = Decoder(), calibrated(tmp_path, Decoder())
    for _ in range(2):  # while calibrating and after
        expected, actual = plain(tokens()), model(tokens())
        assert torch.equal(expected, actual)
        expected.square().sum().backward()
        actual.square().sum().backward()
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert p.grad is not None, name
            assert q.grad is not None, name
            assert torch.equal(p.grad, q.grad), name
    assert list(amct.read_record(tmp_path / "record.txt")) == DECODER_LAYERS


def test_the_very_tensor_is_passed_on(tmp_path: Path) -> None:
    given: list[torch.Tensor] = []

    class Remembering(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given.append(super().forward(x))
            return given[-1]

    model = torch.nn.ModuleDict({"k": Remembering(16, 4)})
    calibrated(tmp_path, model, ["k"], "batch_num: 2")
    for _ in range(3):
        y = model["k"](tokens())
        assert y is given[-1]
        assert y.grad_fn is not None
        assert y._version == 0


@pytest.mark.parametrize("case", ["cache", "query_weighted"])
def test_the_very_states_are_cached(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the module to its cache, from there to the attention function, and what the module puts out."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama

    model = tiny("llama")
    attention = model.model.layers[1].self_attn
    made: dict[str, Any] = {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            made[name] = function(*args, **kwargs)
            made[f"{name} of"] = args
            return made[name]

        return call

    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", noting("turned", modeling_llama.apply_rotary_pos_emb)
    )
    monkeypatch.setattr(
        transformers.DynamicCache, "update", noting("stored", transformers.DynamicCache.update)
    )
    transformers.AttentionInterface.register(
        "noted", noting("attended", transformers.AttentionInterface()["sdpa"])
    )
    model.set_attn_implementation("noted")
    attention.v_proj.register_forward_hook(lambda *args: made.update(value=args[2]))
    attention.forward = noting("put out", attention.forward)
    _, tap, granularity = STRUCTURES[case]
    search = f"mse_quantize {{ quant_granularity: {granularity} }}"
    calibrated(
        tmp_path,
        model,
        definition=f"batch_num: 2 kv_cache_quant_config {{ calibration_config {{ {tap} {search} }} }}",
    )
    attention.register_forward_hook(lambda *args: made.update(got=args[2]))
    run = amct.calibration_run(model)
    for batches in (1, 2):  # with the last one the hooks go before the forward returns
        model(**inputs("llama"), use_cache=True)
        _, key, value = made["stored of"][:3]
        assert key is made["turned"][1]
        # The module makes views of what its projection puts out.
        assert value.untyped_storage().data_ptr() == made["value"].untyped_storage().data_ptr()
        assert made["attended of"][2] is made["stored"][0]
        assert made["attended of"][3] is made["stored"][1]
        assert made["got"] is made["put out"]
        assert bool(run.unfinished()) == (batches == 1)


def test_hooks_of_the_user_run(tmp_path: Path) -> None:
    model = Decoder()
    k_proj = model.layers[0].self_attn.k_proj
    calls: list[str] = []
    seen: list[torch.Tensor] = []
    k_proj.register_forward_pre_hook(lambda m, args: calls.append("pre"))
    k_proj.register_forward_hook(lambda m, args, out: calls.append("before") or out * 3)
    k_proj.register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    calibrated(tmp_path, model, [DECODER_LAYERS[0]])
    k_proj.register_forward_hook(lambda m, args, out: calls.append("after") or seen.append(out))
    for _ in range(2):
        model(tokens()).sum().backward()
    assert calls == ["pre", "before", "after", "backward"] * 2
    assert len(k_proj._forward_hooks) == 2
    # What is calibrated is what the rest of the model gets, the user's hook included.
    expected = factors_of(tmp_path / "alone", seen[:1])
    assert amct.read_record(tmp_path / "record.txt")[DECODER_LAYERS[0]].scale.equal(expected.scale)


def test_hooks_of_all_modules_run(tmp_path: Path) -> None:
    names: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, a, o: names.append(type(m).__name__)
    )
    try:
        calibrated(tmp_path, Decoder())(tokens())
    finally:
        handle.remove()
    assert names.count("Linear") == 8


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_without_gradients(context: Any, tmp_path: Path) -> None:
    model = calibrated(tmp_path / "a", Decoder())
    with context():
        model(tokens())
    calibrated(tmp_path / "b", Decoder())(tokens())
    assert (tmp_path / "a" / "record.txt").read_bytes() == (tmp_path / "b" / "record.txt").read_bytes()


def test_autocast(tmp_path: Path) -> None:
    outputs: list[torch.Tensor] = []
    plain, model = Decoder(), calibrated(tmp_path, Decoder())
    plain.layers[1].self_attn.v_proj.register_forward_hook(lambda m, a, out: outputs.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(tokens()), model(tokens()))
    assert outputs[0].dtype == torch.bfloat16
    expected = factors_of(tmp_path / "alone", outputs)
    assert amct.read_record(tmp_path / "record.txt")[DECODER_LAYERS[3]].scale.equal(expected.scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models(dtype: torch.dtype, tmp_path: Path) -> None:
    plain, model = Decoder().to(dtype), calibrated(tmp_path, Decoder().to(dtype))
    assert torch.equal(plain(tokens().to(dtype)), model(tokens().to(dtype)))
    assert list(amct.read_record(tmp_path / "record.txt")) == DECODER_LAYERS


def test_a_model_moved_between_batches(tmp_path: Path) -> None:
    """Its dtype changes; both batches count."""
    model = calibrated(tmp_path, Decoder(), [DECODER_LAYERS[0]], "batch_num: 2")
    outputs: list[torch.Tensor] = []
    model.layers[0].self_attn.k_proj.register_forward_hook(lambda m, a, out: outputs.append(out.detach()))
    model(tokens(1))
    model.to(torch.bfloat16)(tokens(2).bfloat16())
    joined = torch.cat([output.float() for output in outputs])
    expected = factors_of(tmp_path / "alone", [joined])
    assert amct.read_record(tmp_path / "record.txt")[DECODER_LAYERS[0]].scale.equal(expected.scale)


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled(when: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, model = Decoder(), Decoder()
    if when == "before":
        compiled = torch.compile(model, backend="eager")
        compiled(tokens())
        calibrated(tmp_path, model, None, "batch_num: 2")
    else:
        compiled = torch.compile(calibrated(tmp_path, model, None, "batch_num: 2"), backend="eager")
    for seed in (1, 2, 3):
        torch.testing.assert_close(compiled(tokens(seed)), plain(tokens(seed)))
    eager = calibrated(tmp_path / "eager", Decoder(), None, "batch_num: 2")
    for seed in (1, 2):
        eager(tokens(seed))
    assert amct.calibration_run(model).unfinished() == {}
    mine, theirs = (amct.read_record(folder / "record.txt") for folder in (tmp_path, tmp_path / "eager"))
    for name in DECODER_LAYERS:
        torch.testing.assert_close(mine[name].scale, theirs[name].scale)


def test_compiled_in_a_program_that_had_not_loaded_the_compiler(tmp_path: Path) -> None:
    """The other tests here have; see outside_graphs."""
    run_python(
        """
        import sys, torch
        import amct_pytorch as amct
        assert "torch._dynamo" not in sys.modules
        model = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(4, 4), "v_proj": torch.nn.Linear(4, 4)})
        definition = open("d.cfg", "w")
        definition.write("batch_num: 2")
        definition.close()
        amct.create_quant_cali_config("c.json", model, config_defination="d.cfg")
        amct.create_quant_cali_model("c.json", "r.txt", model)
        op = amct.QuantCalibrationOp("r.txt", {"batch_num": 2})

        @torch.compile(backend="eager")
        def step(x):
            y = model["k_proj"](x) * 2
            z = op("mine", y)
            return model["v_proj"](z) + y

        for i in range(4):
            x = torch.randn(3, 4)
            y = torch.nn.functional.linear(x, model["k_proj"].weight, model["k_proj"].bias) * 2
            z = torch.nn.functional.linear(y, model["v_proj"].weight, model["v_proj"].bias) + y
            torch.testing.assert_close(step(x), z)
        assert {result.batches for result in amct.calibration_run(model).results() + op.results()} == {2}
        assert sorted(amct.read_record("r.txt")) == ["k_proj", "mine", "v_proj"]
        """,
        cwd=tmp_path,
    )


def test_compiled_code_forgets_what_was_taken_off(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = calibrated(tmp_path, Decoder(), None, "batch_num: 2")
    compiled = torch.compile(model, backend="eager")
    compiled(tokens())
    run = amct.calibration_run(model)
    amct.remove_quant_cali(model)
    compiled(tokens())
    assert run.unfinished() == dict.fromkeys(DECODER_LAYERS, (1, 2))
    assert (tmp_path / "record.txt").read_bytes() == b""


def test_every_call_of_a_layer_is_a_batch(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"k": torch.nn.Linear(16, 4)})
    calibrated(tmp_path, model, ["k"], "batch_num: 3")
    for seed in range(5):
        model["k"](tokens(seed))
    assert amct.calibration_run(model).results()[0].batches == 3


@pytest.mark.parametrize("action", ["copied", "pickled", "saved"])
def test_copies_while_calibrating(action: str, tmp_path: Path) -> None:
    def act(model: torch.nn.Module) -> torch.nn.Module:
        if action == "copied":
            return copy.deepcopy(model)
        if action == "pickled":
            return pickle.loads(pickle.dumps(model))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    model = calibrated(tmp_path, Decoder(), None, "batch_num: 2")
    for _ in range(2):
        word = "copied" if action == "copied" else "pickled"
        with pytest.raises(RuntimeError, match=rf"'layers\.0\.self_attn\.k_proj'.*{word}.*remove_quant_cali"):
            act(model)
        model(tokens())
    # All layers are finished: the copy is an ordinary model, and the original is still what it was.
    before = (tmp_path / "record.txt").read_bytes()
    twin = act(model)
    assert torch.equal(twin(tokens()), model(tokens()))
    assert (tmp_path / "record.txt").read_bytes() == before
    assert all(not module._forward_hooks for module in twin.modules())
    with pytest.raises(RuntimeError, match="holds no calibration"):
        amct.calibration_run(twin)
    assert len(amct.calibration_run(model).results()) == 4
    amct.create_quant_cali_model(str(tmp_path / "config.json"), str(tmp_path / "twin.txt"), twin)
    for _ in range(2):
        twin(tokens())
    assert (tmp_path / "twin.txt").read_bytes() == before


def test_copies_after_remove(tmp_path: Path) -> None:
    model = calibrated(tmp_path, Decoder())
    amct.remove_quant_cali(model)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(twin(tokens()), model(tokens()))


def test_a_copy_after_a_failed_write(tmp_path: Path) -> None:
    """The layer is finished, though its factors are not in the file yet: no hook may stay behind."""
    model = calibrated(tmp_path, Decoder(), [DECODER_LAYERS[0]])
    record = tmp_path / "record.txt"
    record.unlink()
    record.mkdir()  # in the way, also for root
    with pytest.raises(ValueError, match=r"record\.txt.*folder"):
        model(tokens())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(tokens()), model(tokens()))
    record.rmdir()
    amct.calibration_run(model).write_record()
    assert list(amct.read_record(record)) == [DECODER_LAYERS[0]]


def test_state_dict_can_be_saved_while_calibrating(tmp_path: Path) -> None:
    model = calibrated(tmp_path, Decoder(), None, "batch_num: 2")
    model(tokens())
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin = Decoder(seed=5)
    twin.load_state_dict(torch.load(buffer))
    assert torch.equal(twin(tokens()), model(tokens()))


def test_a_module_that_returns_a_tuple(tmp_path: Path) -> None:
    class Pair(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return y, y

    model = calibrated(tmp_path, torch.nn.ModuleDict({"k": Pair(4, 4)}), ["k"])
    with pytest.raises(TypeError, match=r"layer 'k'.*tensor.*tuple"):
        model["k"](torch.ones(1, 4))
    assert (tmp_path / "record.txt").read_bytes() == b""


def test_an_error_in_the_model_leaves_the_layer_as_it_was(tmp_path: Path) -> None:
    model = calibrated(tmp_path, Decoder())
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.ones(1, 2, 5))
    assert amct.calibration_run(model).unfinished() == dict.fromkeys(DECODER_LAYERS, (0, 1))
    model(tokens())
    assert list(amct.read_record(tmp_path / "record.txt")) == DECODER_LAYERS
