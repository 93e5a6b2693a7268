"""For any finite data: the candidate with the smallest loss, and factors that can be used."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from amct_pytorch import _core

Array = npt.NDArray[np.float32]
SETTINGS = hypothesis.settings(
    max_examples=200, derandomize=True, deadline=None, database=None, print_blob=True
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats whose exponents are spread evenly, subnormals, zeros and the bounds included."""
    special = [v for v in (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.2e-38, 1e-7, low, high) if low <= v <= high]
    return st.one_of(st.floats(low, high, width=32), st.sampled_from([float(np.float32(v)) for v in special]))


@st.composite
def _data(draw: st.DrawFn) -> Array:
    """One array: of one magnitude with outliers, or anything at all."""
    n = draw(st.integers(1, 200))
    if draw(st.booleans()):
        limit = float(np.float32(3e38))
        low, high = draw(
            st.sampled_from([(-limit, limit), (-10.0, 10.0), (0.0, limit), (-1e-3, 0.0), (5.0, 6.0)])
        )
        return draw(
            hnp.arrays(np.float32, n, elements=_numbers(float(np.float32(low)), float(np.float32(high))))
        )
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-44, 37))
    kind = draw(st.sampled_from(["normal", "uniform", "student", "exponential", "two", "constant", "narrow"]))
    samples = {
        "normal": lambda: generator.normal(size=n),
        "uniform": lambda: generator.uniform(-1, 1, n),
        "student": lambda: generator.standard_t(2, n),
        "exponential": lambda: generator.exponential(size=n) * generator.choice([-1, 1]),
        "two": lambda: generator.choice([-1.0, 3.0], n),
        "constant": lambda: np.full(n, generator.normal()),
        "narrow": lambda: 1 + generator.choice([-1.0, 0.0, 1.0], n) * 2.0 ** -draw(st.integers(5, 22)),
    }[kind]()
    shift = draw(st.sampled_from([0.0, 0.0, 3.0, -100.0]))
    return np.clip((samples + shift) * scale, -3e38, 3e38).astype(np.float32)


DATA = _data()


def _as(dtype: str, x: Array) -> torch.Tensor:
    """The data in another dtype, brought into its range."""
    largest = torch.finfo(DTYPES[dtype]).max
    return torch.from_numpy(np.clip(x, -largest, largest).astype(np.float32)).to(DTYPES[dtype])


def _solve(x: torch.Tensor, algorithm: str, with_offset: bool, **options: Any) -> tuple[float, int]:
    observer = _core.Observer()
    observer.observe(x)
    ((scale, offset),) = observer.solve(algorithm, with_offset, options)
    return scale, offset


def _check_usable(scale: float, offset: int, with_offset: bool) -> None:
    assert math.isfinite(scale)
    assert scale > 0
    assert scale == np.float32(scale)
    assert -128 <= offset <= 127
    assert with_offset or offset == 0
    zero = np.clip(np.round(0.0 / scale) + offset, -128, 127)
    assert (zero - offset) * scale == 0.0


def _is_smallest(loss: float, losses: Array, noise: float) -> bool:
    return loss <= noise * (1 + 1e-6) or loss <= losses.min() * (1 + 1e-6)


@st.composite
def _ifmr_options(draw: st.DrawFn) -> dict[str, float]:
    start = draw(st.floats(0.01, 1.5))
    end = start + draw(st.floats(0.05, 2.0))
    step = max((end - start) * draw(st.floats(0.02, 0.9)), 1e-3)
    percentile = st.one_of(st.just(1.0), st.just(0.999999), st.floats(0.5, 1, exclude_min=True))
    return {
        "max_percentile": draw(percentile),
        "min_percentile": draw(percentile),
        "start": start,
        "end": end,
        "step": step,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_offset", [True, False])
@SETTINGS
@hypothesis.given(x=DATA, given=st.one_of(st.just({}), _ifmr_options()))
def test_ifmr(dtype: str, with_offset: bool, x: Array, given: dict[str, float]) -> None:
    tensor = _as(dtype, x)
    options = dict(given)
    if options:
        options = {
            "max_percentile": given["max_percentile"],
            "min_percentile": given["min_percentile"],
            "search_range": [given["start"], given["end"]],
            "search_step": given["step"],
        }
    scale, offset = _solve(tensor, "ifmr", with_offset, **options)
    _check_usable(scale, offset, with_offset)

    wide = tensor.float().numpy()
    scales, lows, highs = reference.ifmr_candidates(wide, with_offset, **given)
    finite = np.isfinite(scales) & np.isfinite(highs)
    losses = np.array(
        [reference.ifmr_loss(wide, *c) for c in zip(scales[finite], lows[finite], highs[finite], strict=True)]
    )
    noise = reference.storage_noise(wide)
    low = float(lows[0]) if with_offset else None
    chosen = np.flatnonzero(finite & (scales == np.float32(scale)))
    if len(chosen):
        # Candidates may share a scale, where it is below FLT_EPSILON for instance; the best is meant.
        loss = min(reference.ifmr_loss(wide, scale, lows[i], highs[i]) for i in chosen)
        assert _is_smallest(loss, losses, noise)
    else:
        # The candidate that saturates at the end of float32, which the reference cannot represent.
        assert not finite.all()
        largest = float(np.finfo(np.float32).max)
        loss = reference.ifmr_loss(wide, scale, -largest if low is None else low, largest)
        assert losses.size == 0 or _is_smallest(loss, losses, noise)
    if with_offset:
        assert low is not None
        assert offset == int(-np.round(np.float32(low) / np.float32(scale))) - 128


def _edges_params(low: float, high: float, with_offset: bool) -> tuple[float, int]:
    """reference.minmax_params, in float64 where float32 would overflow."""
    low32, high32 = np.float32(low), np.float32(high)
    with np.errstate(over="ignore"):
        width = high32 - low32
    if not with_offset or np.isfinite(width):
        return reference.minmax_params(low, high, with_offset)
    scale = np.float32((float(high32) - float(low32)) / 255)
    return float(scale), int(np.round(np.float32(-128) - low32 / scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_offset", [True, False])
@SETTINGS
@hypothesis.given(x=DATA, bins=st.sampled_from([1024, 4096]))
# A range whose levels are narrower than FLT_EPSILON costs nothing, however much it clips.
@hypothesis.example(x=np.array([5.0078125, 5.0], np.float32), bins=1024)
def test_hfmg(dtype: str, with_offset: bool, x: Array, bins: int) -> None:
    tensor = _as(dtype, x)
    scale, offset = _solve(tensor, "hfmg", with_offset, num_of_bins=bins)
    _check_usable(scale, offset, with_offset)

    wide = tensor.float().numpy()
    if wide.min() == wide.max():  # every range is that value; beyond 2^53 the reference cannot bin it
        assert (scale, offset) == _edges_params(float(wide[0]), float(wide[0]), with_offset)
        return
    counts, low, high = reference.hfmg_histogram(wide, bins)
    ranges = reference.hfmg_ranges(counts)
    losses = np.array([reference.hfmg_loss(counts, low, high, left, right) for left, right in ranges])
    width = (high - low) / bins
    # Losses that differ by no more than rounding make equally good candidates.
    best = [ranges[i] for i in np.flatnonzero(losses <= losses.min() * (1 + 1e-6))]
    params = [
        _edges_params(low + left * width, low + (right + 1) * width, with_offset) for left, right in best
    ]
    assert any(offset == o and scale == pytest.approx(s, rel=1e-6) for s, o in params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_offset", [True, False])
@SETTINGS
@hypothesis.given(x=DATA)
def test_minmax(dtype: str, with_offset: bool, x: Array) -> None:
    tensor = _as(dtype, x)
    scale, offset = _solve(tensor, "minmax", with_offset)
    _check_usable(scale, offset, with_offset)
    wide = tensor.float().numpy()
    assert (scale, offset) == _edges_params(float(wide.min()), float(wide.max()), with_offset)
    # Nothing is clipped by more than rounding; but without offset, where the negative end is the longer
    # one, its 128 steps are the scale, and the positive end may reach the 128th too.
    if scale != 1.0:
        codes = wide.astype(np.float64) / scale + offset
        assert codes.min() >= -128.5 - 1e-3
        assert codes.max() <= (127.5 if with_offset else 128) + 1e-3


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
@SETTINGS
@hypothesis.given(x=DATA, y=DATA, seed=st.integers(0, 1000))
def test_merged_and_shuffled_observers_agree(algorithm: str, x: Array, y: Array, seed: int) -> None:
    whole = torch.from_numpy(np.concatenate([x, y])[:, None])
    once = _solve(whole, algorithm, True)
    left, right = _core.Observer(), _core.Observer()
    left.observe(torch.from_numpy(x[:, None]))
    right.observe(torch.from_numpy(y[:, None]))
    right.merge(left)
    assert right.solve(algorithm) == [once]
    shuffled = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))]
    assert _solve(shuffled, algorithm, True) == once


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@SETTINGS
@hypothesis.given(x=DATA)
def test_half_counts_are_those_of_the_widened_values(dtype: str, x: Array) -> None:
    """16-bit values are counted, float32 ones kept; both storages must give the same factors."""
    half = _as(dtype, x)
    for algorithm in ("ifmr", "hfmg", "minmax"):
        assert _solve(half, algorithm, True) == _solve(half.float(), algorithm, True)
