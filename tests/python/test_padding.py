"""Padded positions are left out, at both taps."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._rotary import TURNS
from families import CACHE, tiny
from helpers import calibrated

transformers = pytest.importorskip("transformers")

LENGTHS = (3, 7, 5)
WIDTH = max(LENGTHS)


def exact(family: str) -> torch.nn.Module:
    """A model of one layer whose keys and values are exact sums, so that they do not depend on the batch."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 64).round().clamp(-8, 8) / 8)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.forward = lambda x, *args: x
    return model


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 32, (length,), generator=generator) for length in LENGTHS]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask ``[batch, WIDTH]``."""
    ids = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences()):
        there = slice(0, len(sequence)) if side == "right" else slice(WIDTH - len(sequence), WIDTH)
        ids[row, there], mask[row, there] = sequence, 1
    return ids, mask


def definition(tap: str, granularity: str, batches: int) -> str:
    search = f"minmax_quantize {{ quant_granularity: {granularity} }}"
    return (
        f"batch_num: {batches} "
        f"kv_cache_quant_config {{ calibration_config {{ tap: {tap} max_position: 32 {search} }} }}"
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("tap", ["linear", "cache"])
def test_padded_batches_give_the_bits_of_the_sequences(
    tap: str, granularity: str, side: str, tmp_path: Path
) -> None:
    layers = ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"]
    records = []
    for name in ("alone", "padded"):
        model = exact("llama")
        # The padding token is all zeros unless it is trained, and zeros change no range.
        model.model.embed_tokens.weight.data[0] = 3.0
        batches = len(LENGTHS) if name == "alone" else 1
        calibrated(tmp_path / name, model, layers, definition(tap, granularity, batches))
        run = amct.calibration_run(model)
        with torch.inference_mode():
            if name == "alone":
                for sequence in sequences():
                    model(sequence[None], use_cache=True)
            else:
                ids, mask = padded(side)
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        records.append((tmp_path / name / "record.txt").read_bytes())
        turns = TURNS if tap == "cache" and granularity == "per_channel" else 0
        real = sum(LENGTHS)
        assert [layer.rows for layer in run.results()] == [(1 + turns) * real, real], name
    assert records[0] == records[1]
    assert records[0]


def test_what_a_mask_may_be(tmp_path: Path) -> None:
    ids, mask = padded("right")
    rows = {}
    for name, given in {
        "int": mask,
        "bool": mask.bool(),
        "float": mask.float(),
        "none": None,
        "all": torch.ones_like(mask),
    }.items():
        model = tiny("llama")
        calibrated(tmp_path / name, model)
        run = amct.calibration_run(model)
        model(ids, attention_mask=given)
        rows[name] = run.results()[0].rows
    assert rows == {"int": 15, "bool": 15, "float": 15, "none": 21, "all": 21}


def test_the_mask_by_position_and_the_model_without_its_head(tmp_path: Path) -> None:
    ids, mask = padded("left")
    for name in ("whole", "body"):
        model = tiny("llama")
        calibrated(tmp_path / name, model)
        run = amct.calibration_run(model)
        (model if name == "whole" else model.model)(ids, mask)
        run.write_record()
        assert {layer.rows for layer in run.results()} == {15}


def test_generate_with_padding(tmp_path: Path) -> None:
    model = tiny("llama")
    ids, mask = padded("left")
    calibrated(tmp_path, model, definition=definition("cache", "per_tensor", 3))
    run = amct.calibration_run(model)
    model.generate(ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert {layer.rows for layer in run.results()} == {15 + 2 * 3}


@pytest.mark.parametrize("tap", ["linear", "cache"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_and_decoder_have_masks_of_their_own(family: str, tap: str, tmp_path: Path) -> None:
    model = tiny(family)
    ids, mask = padded("right")
    decoder_ids, decoder_mask = ids[:, :6], mask[:, :6]
    calibrated(tmp_path, model, definition=definition(tap, "per_tensor", 1))
    run = amct.calibration_run(model)
    model(
        ids,
        attention_mask=mask,
        decoder_input_ids=decoder_ids,
        decoder_attention_mask=decoder_mask,
        use_cache=True,
    )
    rows = {name: 15 if "ncDec" in name or "encoder_attn" in name else 14 for name in run.unfinished()}
    for layer in run.results():
        cross = "EncDecAttention" in layer.name or "encoder_attn" in layer.name
        assert layer.rows == (15 if cross else 14), layer.name
    assert rows == {}


def test_a_forward_that_fails_forgets_its_mask(tmp_path: Path) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model)
    run = amct.calibration_run(model)
    ids, mask = padded("right")
    with pytest.raises(IndexError):
        model(ids + 1000, attention_mask=mask)
    model(ids)
    assert {layer.rows for layer in run.results()} == {21}


@pytest.mark.parametrize("room", [0, 2, 10])
def test_a_mask_with_room_for_tokens_to_come(room: int, tmp_path: Path) -> None:
    """As a static cache has it: the first columns are those of the tokens."""
    model = tiny("llama")
    ids, mask = padded("right")
    calibrated(tmp_path, model, definition=definition("cache", "per_tensor", 2))
    run = amct.calibration_run(model)
    size = WIDTH + room
    cache = transformers.StaticCache(config=model.config, max_cache_len=size)
    whole = torch.cat((mask, torch.zeros(len(LENGTHS), room, dtype=torch.int64)), dim=1)
    first = WIDTH - 2
    with torch.inference_mode():
        model(ids[:, :first], attention_mask=whole, **{CACHE: cache})
        model(ids[:, first:], attention_mask=whole, **{CACHE: cache})
    assert {layer.rows for layer in run.results()} == {15}


def test_a_step_of_padding_alone_counts_nothing(tmp_path: Path) -> None:
    for tap in ("linear", "cache"):
        model = tiny("llama")
        calibrated(tmp_path / tap, model, definition=definition(tap, "per_tensor", 1))
        run = amct.calibration_run(model)
        ids = torch.ones(2, 4, dtype=torch.int64)
        model(ids, attention_mask=torch.zeros_like(ids), use_cache=True)
        assert set(run.unfinished().values()) == {(0, 1)}
        model(ids, use_cache=True)
        assert {layer.rows for layer in run.results()} == {8}


def test_a_mask_that_does_not_tell_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    calibrated(tmp_path, model)
    model(torch.ones(2, 4, dtype=torch.int64), attention_mask=torch.ones(2, 1, 4, 4, dtype=torch.bool))
    assert "attention_mask is not of the form [batch, tokens]" in caplog.text
