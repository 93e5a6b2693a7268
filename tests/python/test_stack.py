"""Living with the rest of the stack: offloading, compiling, checkpointing, saving, autocast; at both taps."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from families import tiny
from helpers import config_for, run_python

transformers = pytest.importorskip("transformers")

IDS = torch.arange(1, 13).view(2, 6)
TAPS = pytest.mark.parametrize("tap", ["linear", "cache"])


def definition(tap: str) -> str:
    search = "minmax_quantize { quant_granularity: per_channel }"
    return f"batch_num: 2 kv_cache_quant_config {{ calibration_config {{ tap: {tap} {search} }} }}"


def record_with(
    folder: Path, tap: str, change: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model
) -> bytes:
    """The record of two batches through a model that is changed after its configuration was written."""
    model = tiny("llama")
    config = config_for(folder, model, definition=definition(tap))
    model = change(model)
    with amct.calibrate(model, config, str(folder / "record.txt")) as run, torch.inference_mode():
        model(IDS)
        model(IDS + 1)
    assert run.unfinished() == {}
    return (folder / "record.txt").read_bytes()


@TAPS
@pytest.mark.parametrize("where", ["cpu", "disk", "some"])
def test_offloaded_by_accelerate(where: str, tap: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def offload(model: torch.nn.Module) -> torch.nn.Module:
        folder = str(tmp_path / "offload")
        if where == "cpu":
            model = accelerate.cpu_offload(model, execution_device="cpu")
        elif where == "disk":
            model = accelerate.disk_offload(model, offload_dir=folder, execution_device="cpu")
        else:
            names = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
            devices = {"model.layers.0": "disk", **dict.fromkeys(names, "cpu")}
            options = {"main_device": "cpu", "offload_dir": folder, "force_hooks": True}
            model = accelerate.dispatch_model(model, devices, **options)
        assert any(parameter.is_meta for parameter in model.parameters())
        return model

    assert record_with(tmp_path / "offloaded", tap, offload) == record_with(tmp_path / "plain", tap)


COMPILED = """
    import sys
    import torch
    sys.path.insert(0, {folder!r})
    import amct_pytorch as amct
    from test_stack import IDS, config_for, definition, tiny
    from pathlib import Path

    folder, tap, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    model = tiny("llama")
    config = config_for(folder, model, definition=definition(tap))
    if when == "before":
        compiled = torch.compile(model, backend="eager")
        with torch.inference_mode():
            compiled(IDS)
    with amct.calibrate(model, config, str(folder / "record.txt")) as run, torch.inference_mode():
        if when == "within":
            compiled = torch.compile(model, backend="eager")
        compiled(IDS)
        compiled(IDS + 1)
    assert run.unfinished() == {{}}
"""


@TAPS
@pytest.mark.parametrize("when", ["before", "within"])
def test_compiled(when: str, tap: str, tmp_path: Path) -> None:
    """In an interpreter of its own, where dynamo is not loaded at first; nothing of ours is traced."""
    expected = record_with(tmp_path / "plain", tap)
    script = COMPILED.format(folder=str(Path(__file__).parent))
    done: subprocess.CompletedProcess[str] = run_python(script, tmp_path, tap, when)
    assert (tmp_path / "record.txt").read_bytes() == expected
    assert "Graph break" not in done.stderr


def test_gradient_checkpointing_counts_a_forward_once(tmp_path: Path) -> None:
    model = tiny("llama").train()
    model.gradient_checkpointing_enable()
    config = config_for(tmp_path, model, definition=definition("linear"))
    with amct.calibrate(model, config, str(tmp_path / "record.txt")) as run:
        model(IDS).logits.sum().backward()
        assert set(run.unfinished().values()) == {(1, 2)}
        model(IDS).logits.sum().backward()
    assert {layer.rows for layer in run.results()} == {24}


@TAPS
def test_save_pretrained_while_it_observes(tap: str, tmp_path: Path) -> None:
    model = tiny("llama")
    config = config_for(tmp_path, model, definition=definition(tap))
    with amct.calibrate(model, config, str(tmp_path / "record.txt")):
        model(IDS)
        model.save_pretrained(tmp_path / "saved")
        model(IDS)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert saved(IDS).logits.equal(model(IDS).logits)


@TAPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, tap: str, tmp_path: Path) -> None:
    model = tiny("llama")
    config = config_for(tmp_path, model, definition=definition(tap))
    with amct.calibrate(model, config, str(tmp_path / "record.txt")) as run, torch.autocast("cpu", dtype):
        model(IDS)
        model(IDS)
    assert len(run.results()) == 4
    assert not any(layer.is_sketch for layer in run.results())


def test_data_parallel_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    config = config_for(tmp_path, model)
    with pytest.raises(RuntimeError, match=r"DataParallel copies the model in every forward.*model\.module"):
        amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), torch.nn.DataParallel(model))
    assert not (tmp_path / "record.txt").exists()
