"""Rounding to the number formats of a cache, with torch operations."""

from __future__ import annotations

import functools

import torch

from amct_pytorch._core import Grid, find_grid

# The float formats that torch can cast to, rounding to even; what lies beyond their range is clamped first.
_CASTS = {
    "FP8_E4M3": torch.float8_e4m3fn,
    "FP8_E5M2": torch.float8_e5m2,
    "FP8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "FP8_E5M2FNUZ": torch.float8_e5m2fnuz,
}

grid_of = functools.cache(find_grid)


def rounded(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What is read back of float32 values that were stored in a format.

    Parameters
    ----------
    x : torch.Tensor
        float32.
    scale, offset : torch.Tensor
        float32 and int32, of shapes that broadcast with `x`.
    grid : Grid
        The format.

    Returns
    -------
    torch.Tensor
        float32, the shape of `x`: ``(clamp(round(x / scale) + offset, qmin, qmax) - offset) * scale``, or the
        nearest value of a float format to ``x / scale``, times `scale`.
    """
    if grid.is_float:
        return _nearest(x / scale, grid) * scale
    codes = torch.clamp(torch.round(x / scale) + offset, grid.qmin, grid.qmax)
    return (codes - offset) * scale


def _nearest(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    magnitudes = _magnitudes(grid.name, x.device)
    if grid.name in _CASTS:
        largest = magnitudes[-1].item()
        return x.clamp(-largest, largest).to(_CASTS[grid.name]).float()
    # HiF8 rounds halves away from zero: to the upper of two neighbours.
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    nearest = magnitudes[torch.bucketize(x.abs(), middles, right=True)]
    return torch.copysign(nearest, x)


@functools.cache
def _magnitudes(name: str, device: torch.device) -> torch.Tensor:
    return torch.tensor(grid_of(name).magnitudes, device=device)
