"""Slow float64 restatement of the searches, which the core is checked against.

It takes flat numpy arrays, follows the formulas one by one and optimises nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FLT_EPSILON = np.float32(1.1920929e-07)


def order_statistic_index(n: int, percentile: float) -> int:
    """k such that the clip bound is the k-th largest (or smallest) of n values, 1-based."""
    return 1 if 1.0 - percentile < FLT_EPSILON else n - int(percentile * n)


def ifmr_bounds(x: Array, max_percentile: float, min_percentile: float) -> tuple[np.float32, np.float32]:
    """Initial (clip_min, clip_max) in float32, widened so that they hold zero."""
    x = np.sort(np.asarray(x, np.float32).ravel())
    clip_max = x[len(x) - order_statistic_index(len(x), max_percentile)]
    clip_min = x[order_statistic_index(len(x), min_percentile) - 1]
    return min(np.float32(0), clip_min), max(np.float32(0), clip_max)


def ratio_grid(start: float, end: float, step: float) -> Array:
    """start, start+step, ... below end: float64 arithmetic, each value rounded once to float32."""
    count = int(np.ceil((end - start) / step))
    return (start + step * np.arange(count, dtype=np.float64)).astype(np.float32)


def ifmr_candidates(
    x: Array,
    with_offset: bool,
    max_percentile: float = 0.999999,
    min_percentile: float = 0.999999,
    start: float = 0.7,
    end: float = 1.3,
    step: float = 0.01,
) -> tuple[Array, Array, Array]:
    """(scales, clip_min per candidate, clip_max per candidate), all float32."""
    low, high = ifmr_bounds(x, max_percentile, min_percentile)
    ratios = ratio_grid(start, end, step)
    with np.errstate(over="ignore"):  # a candidate beyond float32 gets the scale inf
        if with_offset:
            highs = (ratios * high).astype(np.float32)
            lows = np.full_like(highs, low)
            scales = ((highs - low) / np.float32(255)).astype(np.float32)
        else:
            levels = np.float32(128 if abs(high) < abs(low) else 127)
            highs = (ratios * max(abs(high), abs(low))).astype(np.float32)
            lows = -highs
            scales = (highs / levels).astype(np.float32)
    scales = np.where(scales < FLT_EPSILON, np.float32(1), scales).astype(np.float32)
    return scales, lows, highs


def ifmr_loss(x: Array, scale: float, low: float, high: float) -> float:
    """Mean squared error of rounding clip(x) to multiples of scale, in float64."""
    x = np.asarray(x, np.float64).ravel()
    q = np.round(np.clip(x, np.float64(low), np.float64(high)) / np.float64(scale)) * np.float64(scale)
    return float(np.mean((q - x) ** 2))


def storage_noise(x: Array) -> float:
    """The loss that counts as zero: what float32 storage alone costs; matters for constant tensors."""
    return float((float(FLT_EPSILON) * np.max(np.abs(np.asarray(x, np.float64)))) ** 2)


def ifmr(x: Array, with_offset: bool = True, **options: float) -> tuple[float, int, Array]:
    """(scale, offset, losses of all candidates). First argmin wins."""
    scales, lows, highs = ifmr_candidates(x, with_offset, **options)
    losses = np.array([ifmr_loss(x, *candidate) for candidate in zip(scales, lows, highs, strict=True)])
    losses[losses <= storage_noise(x)] = 0.0
    best = int(np.argmin(losses))
    scale = scales[best]
    offset = int(-np.round(np.float32(lows[best]) / scale)) - 128 if with_offset else 0
    return float(scale), offset, losses


def int8_mse(x: Array, scale: float, offset: int) -> float:
    """Mean squared error of storing q = clip(round(x/scale)+offset, -128, 127), read as (q-offset)*scale."""
    x = np.asarray(x, np.float64).ravel()
    q = np.clip(np.round(x / scale) + offset, -128, 127)
    return float(np.mean(((q - offset) * scale - x) ** 2))


def hfmg_histogram(x: Array, num_of_bins: int = 4096) -> tuple[Array, float, float]:
    """Counts of num_of_bins equal bins over [min, max] of all the data seen; max falls in the last bin.

    A constant tensor is binned over [value-1, value+1], its range stays [value, value].
    """
    x = np.asarray(x, np.float32).ravel()
    low, high = float(x.min()), float(x.max())
    left, right = (low, high) if low != high else (low - 1.0, high + 1.0)
    index = np.floor((x.astype(np.float64) - left) * num_of_bins / (right - left)).astype(np.int64)
    return np.bincount(np.minimum(index, num_of_bins - 1), minlength=num_of_bins), low, high


def hfmg_ranges(counts: Array) -> list[tuple[int, int]]:
    """Bin ranges [left, right] met while the sparser end is cut off, until a quarter of the bins is left."""
    total, n = int(counts.sum()), len(counts)
    quota = max(int(np.ceil(total / 100000)), 1)
    left, right, ranges = 0, n - 1, []
    while right - left > int(np.ceil(n / 4)):
        a, seen = left, 0
        while a < right and seen < quota:
            seen += int(counts[a])
            a += 1
        b, seen = right, 0
        while a < b and seen < quota:
            seen += int(counts[b])
            b -= 1
        if right - b >= a - left:
            right = b
        else:
            left = a
        ranges.append((left, right))
    return ranges


def _cell_error(t: Array, width: float, levels: int) -> Array:
    """Integral from 0 to t of (u - centre of u's level)^2 du; levels of `width`, end levels extended."""
    half = width / 2
    k = np.clip(np.floor(t / width), 0, levels - 1)
    u = t - k * width - half
    return k * width**3 / 12 + (u**3 + half**3) / 3


def hfmg_loss(counts: Array, low: float, high: float, left: int, right: int, levels: int = 256) -> float:
    """Squared error of mapping the histogram, uniform inside a bin, to `levels` levels over left..right."""
    bin_width = (high - low) / len(counts)
    width = bin_width * (right - left + 1) / levels
    if width < FLT_EPSILON:
        return 0.0
    edges = (np.arange(len(counts) + 1, dtype=np.float64) - left) * bin_width
    error = _cell_error(edges, width, levels)
    return float(np.sum(counts / bin_width * (error[1:] - error[:-1])))


def minmax_params(low: float, high: float, with_offset: bool = True) -> tuple[float, int]:
    """(scale, offset) of INT8 for a clip range, in float32 as the record stores it."""
    low32, high32 = np.float32(low), np.float32(high)
    if with_offset:
        low32, high32 = min(low32, np.float32(0)), max(high32, np.float32(0))
        scale = np.float32((high32 - low32) / np.float32(255))
        if scale < FLT_EPSILON:
            return 1.0, -128
        return float(scale), int(np.round(np.float32(-128) - low32 / scale))
    levels = np.float32(128 if abs(high32) < abs(low32) else 127)
    scale = np.float32(max(abs(high32), abs(low32)) / levels)
    return (1.0 if scale < FLT_EPSILON else float(scale)), 0


def hfmg(x: Array, with_offset: bool = True, num_of_bins: int = 4096) -> tuple[float, int, Array]:
    """(scale, offset, [(left, right, loss)]). First argmin wins."""
    counts, low, high = hfmg_histogram(x, num_of_bins)
    tried = [(left, right, hfmg_loss(counts, low, high, left, right)) for left, right in hfmg_ranges(counts)]
    left, right, _ = min(tried, key=lambda t: t[2])
    bin_width = (high - low) / num_of_bins
    return *minmax_params(low + left * bin_width, low + (right + 1) * bin_width, with_offset), np.array(tried)
