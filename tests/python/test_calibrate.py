"""The context manager, and finishing layers on demand."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from helpers import DECODER_LAYERS, Decoder, config_for, record_of, tokens

TWO = "batch_num: 2"


class Experts(torch.nn.Module):
    """Layers that a batch reaches only if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(16, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, chosen: list[int]) -> None:
        for i in chosen:
            self.experts[i](x)


EXPERTS = [f"experts.{i}" for i in range(3)]


def test_a_whole_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Decoder()
    config, record = config_for(tmp_path, model, definition=TWO), tmp_path / "record.txt"
    with amct.calibrate(model, config, str(record)) as run:
        assert amct.calibration_run(model) is run
        for seed in (1, 2):
            model(tokens(seed))
    assert list(amct.read_record(record)) == DECODER_LAYERS
    assert len(run.results()) == 4
    with pytest.raises(RuntimeError, match="holds no calibration"):
        amct.calibration_run(model)
    assert not [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert caplog.text == ""

    same = Decoder()
    amct.create_quant_cali_model(config, str(tmp_path / "contract.txt"), same)
    for seed in (1, 2):
        same(tokens(seed))
    assert (tmp_path / "contract.txt").read_bytes() == record.read_bytes()


def test_layers_that_saw_less_and_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # runs of other tests have something to say, too
    caplog.clear()
    model = Experts()
    config = config_for(tmp_path, model, EXPERTS, TWO)
    record = tmp_path / "record.txt"
    with amct.calibrate(model, config, str(record)) as run:
        model(tokens(1), [0, 2])
        model(tokens(2), [0])
    assert list(amct.read_record(record)) == ["experts.0", "experts.2"]
    assert run.unfinished() == {"experts.1": (0, 2)}
    messages = [entry.message for entry in caplog.records if entry.levelno == logging.WARNING]
    assert messages == [
        "1 layers were finished with fewer batches than configured: experts.2 (1 of 2, 16 tokens)",
        "1 layers were not reached and have no factors: experts.1",
    ]
    record_of(tmp_path / "alone", [model.experts[2](tokens(1))])
    alone = amct.read_record(tmp_path / "alone" / "record.txt")["layer"]
    assert amct.read_record(record)["experts.2"].scale.equal(alone.scale)
    caplog.clear()
    del run
    gc.collect()
    assert caplog.text == ""  # nothing is said twice


def test_finish_then_more_batches(tmp_path: Path) -> None:
    model = Experts()
    config = config_for(tmp_path, model, EXPERTS, TWO)
    record = tmp_path / "record.txt"
    amct.create_quant_cali_model(config, str(record), model)
    run = amct.calibration_run(model)
    model(tokens(1), [0])
    run.finish()
    assert list(amct.read_record(record)) == ["experts.0"]
    text = record.read_text()
    for seed in (2, 3):
        model(tokens(seed), [0, 1])
    assert list(amct.read_record(record)) == ["experts.0", "experts.1"]
    assert record.read_text().startswith(text)  # what is finished stays as it is
    run.finish()
    assert list(amct.read_record(record)) == ["experts.0", "experts.1"]


def test_an_error_in_the_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Factors that are there are kept; nothing is finished early; the error is the context's own."""
    model = Experts()
    record = tmp_path / "record.txt"
    config = config_for(tmp_path, model, EXPERTS, TWO)
    runs = []

    def run_into_an_error() -> None:
        with amct.calibrate(model, config, str(record)) as run:
            runs.append(run)
            for seed in (1, 2):
                model(tokens(seed), [1])
            model(tokens(3), [0])
            raise KeyError

    with pytest.raises(KeyError):
        run_into_an_error()
    run = runs.pop()
    assert list(amct.read_record(record)) == ["experts.1"]
    assert run.unfinished() == {"experts.0": (1, 2), "experts.2": (0, 2)}
    assert not model.experts[0]._forward_hooks
    del run
    gc.collect()
    assert "2 layers have no factors" in caplog.text


def test_an_operator_can_be_finished_too(tmp_path: Path) -> None:
    record = tmp_path / "record.txt"
    op = amct.QuantCalibrationOp(str(record), {"batch_num": 5})
    op("a", tokens(1))
    op.finish()
    assert list(amct.read_record(record)) == ["a"]
    assert op.results()[0].batches == 1


def test_a_layer_that_cannot_be_finished(tmp_path: Path) -> None:
    record = tmp_path / "record.txt"
    op = amct.QuantCalibrationOp(str(record), {"batch_num": 5, "nonfinite": "skip"})
    op("dead", torch.full((1, 2), float("nan")))
    op("good", tokens(1))
    with pytest.raises(RuntimeError, match="layer 'dead', batch 1: no finite value was observed"):
        op.finish()
    assert list(amct.read_record(record)) == ["good"]


def test_what_a_device_holds_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amct_pytorch._observe.counts_on_device", lambda x: True)
    record = tmp_path / "record.txt"
    op = amct.QuantCalibrationOp(str(record), {"batch_num": 5})
    op("a", tokens(1).bfloat16())
    op("nan", torch.full((1, 2), float("nan")))
    with pytest.raises(amct.NonFiniteError, match="layer 'nan', batch 1"):
        op.finish()
    assert list(amct.read_record(record)) == ["a"]
    record_of(tmp_path / "host", [tokens(1).bfloat16()])
    host = amct.read_record(tmp_path / "host" / "record.txt")["layer"]
    assert amct.read_record(record)["a"].scale.equal(host.scale)
