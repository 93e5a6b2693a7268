"""recommend(): the cheapest mixture within a loss."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._candidates import parse_candidate
from amct_pytorch.evaluation import evaluate
from amct_pytorch.recommend import recommend
from families import tiny
from test_evaluate import counts, model  # noqa: F401 (fixtures)

pytest.importorskip("transformers")

INT4, INT8 = "int4:per_channel:minmax", "int8:per_channel:minmax"
LAYERS = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"]


@pytest.fixture(scope="module")
def rows(model: torch.nn.Module) -> list[torch.Tensor]:  # noqa: F811
    """Texts of the model's own, which it predicts less well with any error."""
    torch.manual_seed(1)
    start = torch.ones(8, 1, dtype=torch.int64)
    text = model.generate(start, do_sample=True, min_new_tokens=15, max_new_tokens=15)
    return list(text.view(8, 1, 16))


def _loss(model: torch.nn.Module, rows: list[torch.Tensor], counts: Path, **settings: object) -> float:  # noqa: F811
    record = counts.parent / "of_all.txt"
    amct.solve_counts(counts, record, **settings)
    quality = evaluate(model, rows, {"all": record}).candidates[0]
    return quality.loss + quality.loss_error


def test_everything_nothing_or_some(
    model: torch.nn.Module,  # noqa: F811
    rows: list[torch.Tensor],
    counts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    of_int4 = _loss(model, rows, counts, num_bits=4)
    of_int8 = _loss(model, rows, counts)
    assert of_int8 < of_int4 / 4
    generous = recommend(model, rows, counts, max_loss=100.0)
    assert set(generous.settings.values()) == {INT4}
    assert not generous.sensitivity
    assert len(generous.tried) == 1

    none = recommend(model, rows, counts, max_loss=0.0, candidates=["int4:per_tensor"])
    assert set(none.settings.values()) == {"full"}
    assert none.quality is None
    assert none.results == []

    # Enough for INT8, and for some layers of INT4.
    said: list[str] = []
    found = recommend(model, rows, counts, max_loss=(of_int8 + of_int4) / 2, progress=said.append)
    assert set(found.settings.values()) == {INT4, INT8}
    assert list(found.settings) == LAYERS
    assert set(found.sensitivity) == set(LAYERS)
    least = min(found.sensitivity, key=lambda name: found.sensitivity[name])
    assert found.settings[least] == INT4
    assert found.quality is not None
    assert found.quality in found.tried
    assert said
    record = tmp_path / "mixed.txt"
    found.write(record)
    factors = amct.read_record(record)
    assert {name: of_one.dst_type for name, of_one in factors.items()} == {
        name: "INT4" if setting == INT4 else "INT8" for name, setting in found.settings.items()
    }
    measured = evaluate(model, rows, {"mixed": record}).candidates[0]
    assert measured.kl == pytest.approx(found.quality.kl, rel=1e-6)
    assert measured.bytes_per_token == found.quality.bytes_per_token


def test_the_record_says_which_tokens_were_kept(
    model: torch.nn.Module,  # noqa: F811
    rows: list[torch.Tensor],
    counts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """So that whoever takes it gets what was measured."""
    found = recommend(model, rows, counts, max_loss=100.0, sink_tokens=3, recent_tokens=2)
    found.write(tmp_path / "record.txt")
    factors = amct.read_record(tmp_path / "record.txt")
    assert {of_one.sink_tokens for of_one in factors.values()} == {3}
    measured = evaluate(model, rows, {"record": tmp_path / "record.txt"}, recent_tokens=2).candidates[0]
    assert found.quality is not None
    assert measured.kl == found.quality.kl


def test_what_cannot_be_recommended(
    model: torch.nn.Module,  # noqa: F811
    rows: list[torch.Tensor],
    counts: Path,  # noqa: F811
) -> None:
    with pytest.raises(ValueError, match="no standard error on one window"):
        recommend(model, rows[:1], counts)
    for max_loss in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_loss must be a share of perplexity"):
            recommend(model, rows, counts, max_loss=max_loss)
    with pytest.raises(ValueError, match=r"counts are of another model; this one has no layer 'model\."):
        recommend(tiny("gpt_neox"), rows, counts)


@pytest.mark.parametrize(
    ("text", "keys", "values"),
    [
        ("int8", ("INT8", 1, "minmax", True), ("INT8", 1, "minmax", True)),
        ("int4:per_tensor:mse:symmetric", ("INT4", 0, "mse", False), ("INT4", 0, "mse", False)),
        ("int8+int4:kl", ("INT8", 1, "kl", True), ("INT4", 1, "kl", True)),
        ("fp8_e4m3:per_head", ("FP8_E4M3", 2, "minmax", False), ("FP8_E4M3", 2, "minmax", False)),
        ("full+int8", None, ("INT8", 1, "minmax", True)),
        ("int8:per_head:query_weighted", ("INT8", 2, "minmax", True), ("INT8", 2, "minmax", True)),
    ],
)
def test_candidates(text: str, keys: tuple[object, ...] | None, values: tuple[object, ...] | None) -> None:
    candidate = parse_candidate(text)
    assert candidate.name == text
    assert candidate.query_weighted == ("query_weighted" in text)
    for settings, wanted in ((candidate.keys, keys), (candidate.values, values)):
        found = settings and tuple(
            settings[key] for key in ("dst_type", "quant_granularity", "act_algo", "asymmetric")
        )
        assert found == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int9", "'int9' is no format"),
        ("int8:per_word", "'per_word' is none of per_tensor"),
        ("int8+int8+int8", "KEYS"),
        ("hif8:asymmetric", "no offsets"),
        ("int8:per_tensor:per_channel", "'per_tensor' and 'per_channel' do not go together"),
        ("int8:mse:mse", "'mse' and 'mse' do not go together"),
        ("int8:symmetric:asymmetric", "'symmetric' and 'asymmetric' do not go together"),
    ],
)
def test_candidates_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_candidate(text)
