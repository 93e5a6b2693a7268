"""Factors of keys hold at positions that were never calibrated."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._rotary import TURNS, turned_positions
from families import tiny
from helpers import calibrated
from test_cache_tap import definition, ids

REACH = 512


@pytest.mark.parametrize("first", [0, 1000])
@pytest.mark.parametrize("reach", [32, 50, 512, 4096])
def test_tokens_in_a_row_go_to_all_of_each_part(reach: int, first: int) -> None:
    for turn in range(TURNS):
        begin, end = turn * reach / TURNS, (turn + 1) * reach / TURNS
        places = turned_positions(torch.arange(first, first + 300), turn, reach)
        assert int(begin) <= int(places.min()) <= int(places.max()) < end
        found = places.unique()
        # A step of the golden ratio leaves no gap of more than twice the mean distance, but for rounding.
        edges = torch.cat((torch.tensor([int(begin) - 1]), found, torch.tensor([int(end)])))
        assert int(edges.diff().max()) <= 2 * (end - begin) / 300 + 1, turn
        assert len(found) >= min(end - begin, 300) / 2, turn


@pytest.mark.parametrize("reach", [64, 200])
def test_the_reach_is_what_the_configuration_says(reach: int, tmp_path: Path) -> None:
    records = {}
    for name, given in {"default": None, "same": reach, "other": 128}.items():
        model = tiny("llama", max_position_embeddings=reach)
        calibrated(tmp_path / name, model, definition=definition(reach=given))
        with torch.inference_mode():
            model(ids(), use_cache=True)
        records[name] = (tmp_path / name / "record.txt").read_bytes()
    assert records["default"]
    assert records["default"] == records["same"]
    assert records["default"] != records["other"]


def beyond(keys: torch.Tensor, factors: amct.KVFactors) -> float:
    """By how much keys ``[tokens, channels]`` lie outside of what INT8 codes stand for, at most.

    In parts of the whole range of their channel.
    """
    low, high = ((code - factors.offset) * factors.scale for code in (-128, 127))
    return float((torch.maximum(low - keys, keys - high) / (high - low)).max())


@pytest.mark.parametrize("family", ["llama", "cohere", "gpt_neox"])
def test_keys_of_later_positions_can_be_stored(family: str, tmp_path: Path) -> None:
    """Six tokens are calibrated, and a text of the same six is as long as the model can read.

    Of the first layer, whose keys depend on nothing but token and position. A key is turned to 16 positions
    of all there are, so that it may come to stand a little farther out at another one.
    """
    outside = {}
    for reach in (None, 0):
        model = tiny(family, max_position_embeddings=REACH)
        calibrated(tmp_path / str(reach), model, definition=definition(reach=reach))
        six = ids(batch=1, length=6)
        with torch.inference_mode():
            model(six, use_cache=True)
            cache = model(six.repeat(1, REACH // 6), use_cache=True).past_key_values
        key = amct.find_kv_layers(model)[0]
        factors = amct.read_record(tmp_path / str(reach) / "record.txt")[key.name]
        keys = cache.layers[0].keys[0].transpose(0, 1).flatten(1)
        assert len(keys) > 500
        outside[reach] = beyond(keys, factors)
    assert outside[None] < 1 / 8
    assert outside[0] > 1 / 2
