"""A whole run of the existing toolkit: model, definition, configuration, batches, record."""

from __future__ import annotations

import math
from pathlib import Path

import amct_pytorch as amct
import numpy as np
import pytest
import reference
import torch
from helpers import GOLDEN

FOLDER = GOLDEN / "model"
LAYERS = ["layers.0.k_proj", "layers.0.v_proj", "layers.1.k_proj", "layers.1.v_proj"]
# Not sqrt(32): the one value that gives outputs.npz bit for bit.
SCORE_DIVISOR = 5.6


class Layer(torch.nn.Module):
    """Attention of one head; keys and values are half as wide as queries and stand there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(32, 32)
        self.k_proj = torch.nn.Linear(32, 16)
        self.v_proj = torch.nn.Linear(32, 16)
        self.o_proj = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = self.k_proj(x).repeat(1, 1, 2)
        values = self.v_proj(x).repeat(1, 1, 2)
        scores = self.q_proj(x) @ keys.transpose(-1, -2) / SCORE_DIVISOR
        return x + self.o_proj(torch.softmax(scores, -1) @ values)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(Layer(), Layer())
        with np.load(FOLDER / "weights.npz") as weights:
            self.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _batches() -> list[torch.Tensor]:
    with np.load(FOLDER / "inputs.npz") as inputs:
        return [torch.from_numpy(inputs[f"batch{i}"]) for i in range(3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor]]:
    """The folder of a finished run, and what the model gave for each batch."""
    folder = tmp_path_factory.mktemp("golden")
    model = Model()
    config_file, record_file = str(folder / "config.json"), str(folder / "record.txt")
    amct.create_quant_cali_config(config_file, model, config_defination=str(FOLDER / "quant.cfg"))
    calibration_model = amct.create_quant_cali_model(config_file, record_file, model)
    with torch.no_grad():
        outputs = [calibration_model(batch) for batch in _batches()]
    return folder, outputs


def test_config(run: tuple[Path, list[torch.Tensor]]) -> None:
    assert (run[0] / "config.json").read_bytes() == (FOLDER / "config.json").read_bytes()


def test_outputs(run: tuple[Path, list[torch.Tensor]]) -> None:
    plain = Model()
    with torch.no_grad():
        for batch, output in zip(_batches(), run[1], strict=True):
            assert torch.equal(plain(batch), output)
    # Another machine's matrix product may round otherwise.
    with np.load(FOLDER / "outputs.npz") as outputs:
        np.testing.assert_allclose(run[1][-1].numpy(), outputs["last"], rtol=0, atol=2e-5)


def test_record(run: tuple[Path, list[torch.Tensor]]) -> None:
    golden = amct.read_record(FOLDER / "record.txt")
    ours = amct.read_record(run[0] / "record.txt")
    assert list(ours) == list(golden) == LAYERS
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in LAYERS}
    model = Model()
    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen[name].append(out))
    with torch.no_grad():
        for batch in _batches():
            model(batch)
    for name in LAYERS:
        if name == "layers.1.k_proj":  # HFMG over several batches: never worse, where it differs
            columns = torch.cat(seen[name]).reshape(-1, 16).T.numpy()
            for i, column in enumerate(columns):
                mine = reference.int8_mse(column, ours[name].scale[i].item(), ours[name].offset[i].item())
                theirs = reference.int8_mse(
                    column, golden[name].scale[i].item(), golden[name].offset[i].item()
                )
                assert mine <= theirs * 1.001
                scale, offset, _ = reference.hfmg(column)
                assert ours[name].scale[i].item() == pytest.approx(scale, rel=1e-6)
                assert ours[name].offset[i].item() == offset
        else:
            torch.testing.assert_close(ours[name].scale, golden[name].scale, rtol=2.5e-7, atol=0)
            assert ours[name].offset.tolist() == golden[name].offset.tolist()


def test_record_looks_like_the_golden_one(run: tuple[Path, list[torch.Tensor]]) -> None:
    """Line by line the same fields in the same order, and the numbers no longer than they need be."""
    ours = (run[0] / "record.txt").read_text().splitlines()
    golden = (FOLDER / "record.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in ours] == [line.split(":")[0] for line in golden]
    for line in ours:
        if "scale:" in line:
            number = line.split()[1]
            assert number == str(np.float32(number))


def test_results_tell_what_was_seen(tmp_path: Path) -> None:
    model = Model()
    config_file = str(FOLDER / "config.json")
    amct.create_quant_cali_model(config_file, str(tmp_path / "record.txt"), model)
    outputs: list[torch.Tensor] = []
    model.layers[0].k_proj.register_forward_hook(lambda m, i, out: outputs.append(out.detach()))
    for batch in _batches():
        model(batch)
    run = amct.calibration_run(model)
    assert run.unfinished() == {}
    results = run.results()
    assert [result.name for result in results] == LAYERS
    assert [result.algorithm for result in results] == ["ifmr", "ifmr", "hfmg", "ifmr"]
    assert [result.granularity for result in results] == ["per_tensor"] * 2 + ["per_channel"] * 2
    assert [result.with_offset for result in results] == [True, True, True, False]
    first, seen = results[0], torch.cat(outputs).numpy()
    assert (first.batches, first.tokens, first.channels, first.non_finite) == (3, 240, 16, 0)
    assert (first.min, first.max) == (seen.min(), seen.max())
    error = reference.int8_mse(seen, first.scales[0], first.offsets[0])
    assert first.sqnr_db == pytest.approx(10 * math.log10(np.mean(seen.astype(float) ** 2) / error), rel=1e-9)
    codes = np.round(seen.astype(float) / first.scales[0]) + first.offsets[0]
    assert first.clipped_fraction == pytest.approx(np.mean((codes < -128) | (codes > 127)), abs=1e-12)
    assert first.observe_seconds > 0
    assert first.search_seconds > 0
