"""Windows of a text, and perplexity."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from amct_pytorch.evaluation import perplexity, windows


def test_windows() -> None:
    cut = windows(torch.arange(10), 3)
    assert [window.tolist() for window in cut] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]]]
    assert windows(torch.arange(4), 4)[0].shape == (1, 4)
    with pytest.raises(ValueError, match=r"2 tokens.*window of 3"):
        windows(torch.arange(2), 3)


class Bigram(torch.nn.Module):
    """Predicts from the last token alone; takes what perplexity passes and keeps it."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = logits
        self.calls: list[dict[str, Any]] = []

    def forward(
        self, tokens: torch.Tensor, use_cache: Any = None, past_key_values: Any = None
    ) -> SimpleNamespace:
        self.calls.append({"use_cache": use_cache, "past_key_values": past_key_values})
        assert torch.is_inference_mode_enabled()
        return SimpleNamespace(logits=self.table[tokens])


def test_perplexity_of_a_uniform_guess_is_the_number_of_words() -> None:
    model = Bigram(torch.zeros(7, 7))
    assert perplexity(model, [torch.arange(7).view(1, 7)]) == pytest.approx(7)
    assert model.calls == [{"use_cache": False, "past_key_values": None}]


def test_perplexity_weighs_tokens_not_batches() -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    batches = [torch.tensor([[0, 1, 2, 3, 4, 0]]), torch.tensor([[4, 4], [1, 0]])]
    logs = table.float().log_softmax(-1)
    pairs = [(a, b) for batch in batches for row in batch.tolist() for a, b in itertools.pairwise(row)]
    assert len(pairs) == 7
    expected = math.exp(-sum(logs[a, b].item() for a, b in pairs) / 7)
    assert perplexity(Bigram(table), batches) == pytest.approx(expected, rel=1e-5)


def test_every_batch_has_a_cache_of_its_own() -> None:
    model = Bigram(torch.zeros(3, 3))
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    perplexity(model, [torch.zeros(1, 2, dtype=torch.int64)] * 3, make)
    assert len(made) == 3
    assert [call["past_key_values"] for call in model.calls] == made


def test_the_newer_name_of_the_cache_is_used_where_there_is_one() -> None:
    class Renamed(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, cache: Any = None, past_key_values: Any = None) -> Any:
            assert past_key_values is None
            assert cache == "mine"
            return SimpleNamespace(logits=torch.zeros(*tokens.shape, 4))

    assert perplexity(Renamed(), [torch.zeros(1, 3, dtype=torch.int64)], lambda: "mine") == pytest.approx(4)
