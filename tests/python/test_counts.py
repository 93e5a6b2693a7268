"""Counts files from Python: saved by a calibration, solved again, merged."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from helpers import DECODER_LAYERS, Decoder, config_for, tokens

PER_CHANNEL = (
    "kv_cache_quant_config { calibration_config { ifmr_quantize { quant_granularity: per_channel } } }"
)


def _calibrate(folder: Path, seeds: list[int], counts: str, definition: str = PER_CHANNEL) -> Path:
    """Calibrate a Decoder on batches of these seeds, and give the counts file."""
    folder.mkdir(exist_ok=True)
    model = Decoder().bfloat16()
    config = config_for(folder, model, definition=f"batch_num: {len(seeds)} {definition}")
    path = folder / counts
    record = str(folder / "record.txt")
    with amct.calibrate(model, config, record, counts_file=str(path)):
        for seed in seeds:
            model(tokens(seed).bfloat16())
    return path


def test_solving_as_calibrated_gives_the_record(tmp_path: Path) -> None:
    counts = _calibrate(tmp_path, [1, 2, 3], "all.counts")
    again = tmp_path / "again.txt"
    results = amct.solve_counts(counts, again)
    assert again.read_text() == (tmp_path / "record.txt").read_text()
    assert [result.name for result in results] == DECODER_LAYERS
    assert all(result.batches == 3 and result.tokens == 48 for result in results)


@pytest.mark.parametrize("settings", [
    {"act_algo": "mse"},
    {"act_algo": "minmax", "asymmetric": False},
    {"act_algo": "hfmg", "num_of_bins": 1024, "quant_granularity": "per_tensor"},
    {"act_algo": "percentile", "percentile": 0.99, "num_bits": 4},
    {"act_algo": "kl", "dst_type": "FP8_E4M3", "quant_granularity": 0},
    {"max_percentile": 0.9, "quant_granularity": "per_head", "head_num": 2},
])  # fmt: skip
def test_solving_is_what_calibrating_so_would_give(settings: dict[str, object], tmp_path: Path) -> None:
    counts = _calibrate(tmp_path, [1, 2], "all.counts")
    record = tmp_path / "solved.txt"
    amct.solve_counts(counts, record, **settings)
    wanted = amct.read_record(record)
    given = {**settings}
    words = {"0": "per_tensor", "per_head": "per_head"}
    given["quant_granularity"] = words.get(
        str(given.get("quant_granularity")), str(given.get("quant_granularity", "per_channel"))
    )
    op = amct.QuantCalibrationOp(str(tmp_path / "op.txt"), {"batch_num": 2, **given})
    model = Decoder().bfloat16()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in DECODER_LAYERS}
    for name in DECODER_LAYERS:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: seen[name].append(output.detach())
        )
    for seed in (1, 2):
        model(tokens(seed).bfloat16())
    for name, outputs in seen.items():
        for output in outputs:
            op(name, output)
    found = amct.read_record(tmp_path / "op.txt")
    for name in DECODER_LAYERS:
        assert torch.equal(wanted[name].scale, found[name].scale)
        assert torch.equal(wanted[name].offset, found[name].offset)
        assert wanted[name].dst_type == found[name].dst_type


def test_merged_counts_are_those_of_one_run(tmp_path: Path) -> None:
    whole = _calibrate(tmp_path / "whole", [1, 2, 3], "all.counts")
    parts = [_calibrate(tmp_path / str(seed), [seed], "part.counts") for seed in (3, 1, 2)]
    merged = tmp_path / "merged.counts"
    amct.merge_counts(parts, merged)
    amct.solve_counts(whole, tmp_path / "a.txt")
    amct.solve_counts(merged, tmp_path / "b.txt")
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()


def test_unfinished_layers_are_saved_with_what_they_saw(tmp_path: Path) -> None:
    model = Decoder()
    config = config_for(tmp_path, model, definition="batch_num: 5")
    counts = tmp_path / "part.counts"
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model, counts_file=str(counts))
    model(tokens())
    run = amct.calibration_run(model)
    assert not counts.exists()
    run.finish()
    assert {result.batches for result in amct.solve_counts(counts)} == {1}


def test_what_is_refused(tmp_path: Path) -> None:
    counts = _calibrate(tmp_path, [1], "all.counts", "")
    with pytest.raises(ValueError, match=r"observed per_tensor.*calibrate per_channel"):
        amct.solve_counts(counts, quant_granularity="per_channel")
    with pytest.raises(ValueError, match="did you mean 'dst_type'"):
        amct.solve_counts(counts, dst_typ="INT4")
    with pytest.raises(ValueError, match="not a counts file"):
        amct.solve_counts(tmp_path / "record.txt")
    with pytest.raises(FileNotFoundError):
        amct.solve_counts(tmp_path / "none.counts")
    with pytest.raises(ValueError, match="counts_files is empty"):
        amct.merge_counts([], tmp_path / "x")
    record = tmp_path / "record.txt"
    before = record.read_text()
    with pytest.raises(ValueError, match="folder"):
        amct.create_quant_cali_model(
            str(tmp_path / "config.json"), str(record), Decoder(), counts_file=str(tmp_path)
        )
    assert record.read_text() == before
