"""evaluate() against straightforward computations, layers and heads included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._layer_quality import clips
from amct_pytorch.evaluation import evaluate, perplexity, windows
from families import CACHE, tiny

transformers = pytest.importorskip("transformers")

WINDOW = 16


@pytest.fixture(scope="module")
def rows() -> list[torch.Tensor]:
    return windows(torch.randint(1, 32, (64,), generator=torch.Generator().manual_seed(1)), WINDOW)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found = tiny("llama").eval()
    with torch.no_grad():  # weights so large that quantization shows
        for parameter in found.parameters():
            parameter.mul_(3)
    return found


@pytest.fixture(scope="module")
def counts(model: torch.nn.Module, rows: list[torch.Tensor], tmp_path_factory: Any) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("counts")
    definition = folder / "definition.cfg"
    definition.write_text(
        "batch_num: 4 kv_cache_quant_config { calibration_config { "
        "minmax_quantize { quant_granularity: per_channel } } }"
    )
    config = str(folder / "config.json")
    amct.create_quant_cali_config(config, model, None, str(definition), tap="cache", max_position=WINDOW)
    with amct.calibrate(model, config, str(folder / "record.txt"), counts_file=str(folder / "counts")):
        for row in rows:  # so few that others would go beyond their range
            model(row, use_cache=True)
    return folder / "counts"


def _record(counts: Path, folder: Path, **settings: Any) -> dict[str, amct.KVFactors]:
    amct.solve_counts(counts, folder / "record.txt", **settings)
    return amct.read_record(folder / "record.txt")


def _log_probs(model: torch.nn.Module, row: torch.Tensor, cache: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(row, **{CACHE: cache}).logits[:, :-1].double().log_softmax(-1)


def test_against_the_long_way(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path
) -> None:
    record = _record(counts, tmp_path, num_bits=4, act_algo="mse")
    calls = []
    found = evaluate(model, rows[2:], {"int4": record}, progress=lambda: calls.append(1))
    assert len(calls) == 2
    quality = found.candidates[0]
    nll, full_nll, divergences, agreeing = [], [], [], 0
    for row in rows[2:]:
        full = _log_probs(model, row, transformers.DynamicCache())
        one = _log_probs(model, row, amct.StaticQuantizedCache(record, model))
        wanted = row[:, 1:, None]
        full_nll.append(-full.gather(-1, wanted).mean().item())
        nll.append(-one.gather(-1, wanted).mean().item())
        divergences.append((full.exp() * (full - one)).sum(-1).mean().item())
        agreeing += int((full.argmax(-1) == one.argmax(-1)).sum())
    assert found.tokens == 2 * (WINDOW - 1)
    assert found.perplexity == pytest.approx(math.exp(sum(full_nll) / 2), rel=1e-5)
    assert found.perplexity == pytest.approx(perplexity(model, rows[2:]), rel=1e-5)
    assert quality.perplexity == pytest.approx(math.exp(sum(nll) / 2), rel=1e-5)
    differences = [a - b for a, b in zip(nll, full_nll, strict=True)]
    ratio = math.exp(sum(differences) / 2)
    assert quality.loss == pytest.approx(ratio - 1, abs=1e-5)
    spread = abs(differences[0] - differences[1]) / 2  # of the mean of two
    assert quality.loss_error == pytest.approx(ratio * spread, abs=1e-5)
    assert quality.kl == pytest.approx(sum(divergences) / 2, rel=1e-4)
    assert quality.kl > 1e-4
    assert quality.kl_error == pytest.approx(abs(divergences[0] - divergences[1]) / 2, rel=1e-3)
    assert quality.top1_agreement == pytest.approx(agreeing / found.tokens)
    # Two layers of keys and values, two heads of eight channels, in float32 and in half a byte.
    assert found.bytes_per_token == 2 * 2 * 16 * 4
    assert quality.bytes_per_token == 2 * 2 * 16 / 2


def test_better_formats_are_better(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path
) -> None:
    records = {
        name: _record(counts, tmp_path, **settings)
        for name, settings in (
            ("int4", {"num_bits": 4}),
            ("int8", {}),
            ("fp8", {"dst_type": "FP8_E4M3", "asymmetric": False}),
        )
    }
    found = evaluate(model, rows[2:], records)
    kl = {quality.name: quality.kl for quality in found.candidates}
    assert kl["int8"] < kl["fp8"] < kl["int4"]
    # With all tokens kept as they are nothing is lost.
    kept = evaluate(model, rows[2:], records, sink_tokens=WINDOW)
    assert all(quality.kl == pytest.approx(0, abs=1e-7) for quality in kept.candidates)
    assert all(quality.loss == pytest.approx(0, abs=1e-7) for quality in kept.candidates)


@pytest.mark.parametrize("recent_tokens", [1, 3, 9])
def test_recent_tokens_are_those_of_decoding(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path, recent_tokens: int
) -> None:
    """Up to three, the pieces of a window are single tokens, and so the logits are those of decoding."""
    record = _record(counts, tmp_path, num_bits=4)
    found = evaluate(model, rows[2:], {"int4": record}, sink_tokens=1, recent_tokens=recent_tokens)
    losses, bytes_per_token = [], 0.0
    for row in rows[2:]:
        cache = amct.StaticQuantizedCache(record, model, sink_tokens=1, recent_tokens=recent_tokens)
        with torch.inference_mode():
            steps = [model(token, **{CACHE: cache}).logits for token in row.split(1, dim=1)]
        log_probs = torch.cat(steps, dim=1)[:, :-1].double().log_softmax(-1)
        losses.append(-log_probs.gather(-1, row[:, 1:, None]).mean().item())
        bytes_per_token = cache.memory().stored / row.numel()
    rel = 1e-6 if recent_tokens < 4 else 0.02
    assert found.candidates[0].perplexity == pytest.approx(math.exp(sum(losses) / 2), rel=rel)
    assert found.candidates[0].bytes_per_token == bytes_per_token
    assert found.perplexity == pytest.approx(perplexity(model, rows[2:]), rel=1e-5)


def test_what_recent_tokens_save(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path
) -> None:
    record = _record(counts, tmp_path, num_bits=4)
    kl = [
        evaluate(model, rows[2:], {"int4": record}, recent_tokens=recent_tokens).candidates[0].kl
        for recent_tokens in (0, 4, 8, WINDOW)
    ]
    assert kl[0] > kl[1] > kl[2] > kl[3] == pytest.approx(0, abs=1e-7)
    # Of layers, what is stored is what the codes of all would be; attention sees less of it.
    of_layers = [
        {(layer.layer, layer.head): layer for layer in quality.layers}
        for recent_tokens in (0, 4)
        for quality in evaluate(
            model, rows[2:], {"int4": record}, recent_tokens=recent_tokens, layers=True
        ).candidates
    ]
    assert of_layers[0].keys() == of_layers[1].keys()
    values, attention = ("model.layers.0.self_attn.v_proj", None), ("model.layers.0.self_attn", None)
    assert of_layers[1][values].sqnr_db == pytest.approx(of_layers[0][values].sqnr_db, rel=1e-5)
    assert of_layers[1][attention].attention_error < of_layers[0][attention].attention_error


def test_first_tokens_are_no_part_of_what_layers_lose(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path
) -> None:
    record = _record(counts, tmp_path, num_bits=4)
    name = "model.layers.0.self_attn.v_proj"
    stored = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _m, _a, output: stored.append(output[:, 5:])
    )
    with torch.inference_mode():
        for row in rows[2:]:
            model(row)
    handle.remove()
    x = torch.cat(stored).flatten(0, 1)
    largest = (amct.fake_quantize(x, record[name]) - x).abs().max().item()
    quality = evaluate(model, rows[2:], {"int4": record}, sink_tokens=5, layers=True).candidates[0]
    found = next(layer for layer in quality.layers if layer.layer == name and layer.head is None)
    assert found.max_error == pytest.approx(largest, rel=1e-6)
    kept = evaluate(model, rows[2:], {"int4": record}, sink_tokens=WINDOW, layers=True).candidates[0]
    assert {layer.sqnr_db for layer in kept.layers} == {None}


def test_layers_and_heads(
    model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, tmp_path: Path
) -> None:
    record = _record(counts, tmp_path, num_bits=4, act_algo="percentile", percentile=0.9)
    quality = evaluate(model, rows[2:], {"int4": record}, layers=True).candidates[0]
    by_key = {(layer.layer, layer.head): layer for layer in quality.layers}
    name = "model.layers.0.self_attn.v_proj"
    assert [key for key in by_key if key[0] == name] == [(name, None), (name, 0), (name, 1)]
    # The values of the first layer do not depend on the cache.
    stored = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _a, output: stored.append(output))
    with torch.inference_mode():
        for row in rows[2:]:
            model(row)
    handle.remove()
    x = torch.cat(stored).flatten(0, 1)
    read = amct.fake_quantize(x, record[name])
    outside = clips(x, record[name])
    for head, part in ((None, slice(None)), (0, slice(0, 8)), (1, slice(8, 16))):
        signal, noise = x[:, part].double().square().sum(), (read - x)[:, part].double().square().sum()
        layer = by_key[name, head]
        assert layer.sqnr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-6)
        assert layer.max_error == pytest.approx((read - x)[:, part].abs().max().item(), rel=1e-6)
        assert layer.clipped_fraction == pytest.approx(outside[:, part].double().mean().item())
        assert layer.clipped_fraction > 0
    attention = [layer for layer in quality.layers if layer.layer == "model.layers.1.self_attn"]
    assert [layer.head for layer in attention] == [None, 0, 1, 2, 3]
    assert all(0 < layer.attention_error < 2 for layer in attention)


def test_what_is_refused(model: torch.nn.Module, counts: Path, tmp_path: Path) -> None:
    record = _record(counts, tmp_path)
    with pytest.raises(ValueError, match="no window"):
        evaluate(model, [], {"int8": record})
    del record["model.layers.0.self_attn.k_proj"]
    row = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="no factors for 1 layers"):
        evaluate(model, [row], {"int8": record})
    kept = evaluate(model, [row], {"int8": record}, missing="keep", layers=True)
    assert math.isnan(kept.candidates[0].loss_error)
    assert "model.layers.0.self_attn.k_proj" not in {layer.layer for layer in kept.candidates[0].layers}
