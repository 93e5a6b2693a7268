"""The first tokens of sequences are left out, at both taps, with padding, and over several forwards."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from helpers import DECODER_LAYERS, Decoder, config_for, tokens
from test_padding import LENGTHS, exact, padded, sequences

LAYERS = {"kv_cache_quant_layers": ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"]}
SINKS = 2


def _calibrate(folder: Path, model: torch.nn.Module, batches: int, tap: str, sinks: int) -> Path:
    """A calibration to be run: put into the model, its record's path given."""
    folder.mkdir(exist_ok=True)
    definition = folder / "definition.cfg"
    definition.write_text(
        f"batch_num: {batches} kv_cache_quant_config {{ calibration_config {{ "
        "minmax_quantize { quant_granularity: per_channel } max_position: 32 } }"
    )
    config = str(folder / "config.json")
    amct.create_quant_cali_config(config, model, LAYERS, str(definition), tap=tap, sink_tokens=sinks)
    amct.create_quant_cali_model(config, str(folder / "record.txt"), model)
    return folder / "record.txt"


def _range_of(record: Path) -> list[torch.Tensor]:
    return [factors.scale for factors in amct.read_record(record).values()]


@pytest.mark.parametrize("tap", ["linear", "cache"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_counted(tap: str, side: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    alone = exact("llama")
    record = _calibrate(tmp_path / "alone", alone, len(LENGTHS), tap, SINKS)
    with torch.inference_mode():
        for sequence in sequences():
            alone(sequence[None], use_cache=True)
    model = exact("llama")
    of_batch = _calibrate(tmp_path / "padded", model, 1, tap, SINKS)
    ids, mask = padded(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    assert of_batch.read_bytes() == record.read_bytes()
    assert record.read_text().count("sink_tokens: 2") == 2


@pytest.mark.parametrize("tap", ["linear", "cache"])
def test_they_are_those_of_the_sequence_not_of_the_forward(tap: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sequence = sequences()[1][None]
    records = []
    for name, cuts in (("whole", [7]), ("pieces", [1, 2, 4])):
        model = exact("llama")
        # What is seen in one batch or three; a piece of nothing but sinks is none.
        batches = len(cuts) - (1 if len(cuts) > 1 else 0)
        records.append(_calibrate(tmp_path / name, model, batches, tap, SINKS))
        cache = transformers.DynamicCache()
        with torch.inference_mode():
            for piece in sequence.split(cuts, dim=1):
                model(piece, past_key_values=cache, use_cache=True)
    assert records[0].read_bytes() == records[1].read_bytes()


def test_an_outlier_at_the_first_token_does_not_count(tmp_path: Path) -> None:
    x = tokens()
    x[:, 0] *= 100
    scales = []
    for name, sinks, batch in (("with", 0, x), ("without", 1, x), ("cut", 0, x[:, 1:])):
        model = Decoder(blocks=1)
        model.layers[0].norm = torch.nn.Identity()
        config = config_for(tmp_path / name, model)
        if sinks:
            amct.create_quant_cali_config(config, model, sink_tokens=sinks)
        with amct.calibrate(model, config, str(tmp_path / name / "record.txt")):
            model(batch)
        scales.append(_range_of(tmp_path / name / "record.txt"))
    assert all(torch.equal(a, b) for a, b in zip(scales[1], scales[2], strict=True))
    assert all(a > 10 * b for a, b in zip(scales[0], scales[1], strict=True))
    assert amct.read_record(tmp_path / "without" / "record.txt")[DECODER_LAYERS[0]].sink_tokens == 1


def test_what_is_refused(tmp_path: Path) -> None:
    config = str(tmp_path / "config.json")
    with pytest.raises(ValueError, match="sink_tokens must be from 0"):
        amct.create_quant_cali_config(config, Decoder(), sink_tokens=-1)
    with pytest.raises(TypeError, match="sink_tokens must be an int, not bool"):
        amct.create_quant_cali_config(config, Decoder(), sink_tokens=True)
