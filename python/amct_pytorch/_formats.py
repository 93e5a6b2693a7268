"""Rounding to the number formats of a cache, and their codes, with torch operations."""

from __future__ import annotations

import functools
import math

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
    return torch.copysign(magnitudes[_nearest_index(x, grid)], x)


def encoded(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The codes of float32 values, the same as those of the C++ core.

    Parameters
    ----------
    x : torch.Tensor
        float32, ``[..., channels]``.
    scale, offset : torch.Tensor
        float32 and int32, of shapes that broadcast with `x`.
    grid : Grid
        The format.

    Returns
    -------
    torch.Tensor
        uint8, ``[..., channels]``; of INT4 ``[..., ceil(channels / 2)]``: two codes a byte, that of the lower
        channel in the low bits. NaN has the code of 0.
    """
    quotient = x / scale
    quotient = torch.where(quotient.isnan(), 0.0, quotient)
    if not grid.is_float:
        codes = torch.clamp(torch.round(quotient) + offset, grid.qmin, grid.qmax).to(torch.int8)
        return _packed(codes) if grid.bits == 4 else codes.view(torch.uint8)
    if grid.name in _CASTS:
        largest = grid.magnitudes[-1]
        codes = quotient.clamp(-largest, largest).to(_CASTS[grid.name]).view(torch.uint8)
    else:
        codes = _codes(grid.name, x.device)[_nearest_index(quotient, grid)]
        codes = torch.where(quotient < 0, codes | 0x80, codes)
    return torch.where(codes == 0x80, 0, codes)  # zero has no sign


def decoded(
    codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, grid: Grid, channels: int
) -> torch.Tensor:
    """What codes of `encoded` stand for.

    Parameters
    ----------
    codes : torch.Tensor
        A type of one byte.
    scale, offset : torch.Tensor
        float32 and int32, of shapes that broadcast with the values.
    grid : Grid
        The format.
    channels : int
        How many values a row has.

    Returns
    -------
    torch.Tensor
        float32, ``[..., channels]``.
    """
    codes = codes.view(torch.uint8)
    if not grid.is_float:
        whole = _unpacked(codes, channels) if grid.bits == 4 else codes.view(torch.int8)
        return (whole - offset) * scale
    if grid.name in _CASTS:
        return codes.view(_CASTS[grid.name]).float() * scale
    values = _values(grid.name, codes.device).index_select(0, codes.flatten().int())
    return values.view(codes.shape) * scale


def _packed(codes: torch.Tensor) -> torch.Tensor:
    nibbles = codes.view(torch.uint8) & 0xF
    if nibbles.shape[-1] % 2 != 0:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4


def _unpacked(codes: torch.Tensor, channels: int) -> torch.Tensor:
    nibbles = torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(-2)[..., :channels]
    return (nibbles ^ 8).view(torch.int8) - 8


def _nearest_index(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Which magnitude is nearest; of two as near the larger, as HiF8 rounds."""
    magnitudes = _magnitudes(grid.name, x.device)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    return torch.bucketize(x.abs().contiguous(), middles, right=True)


@functools.cache
def _magnitudes(name: str, device: torch.device) -> torch.Tensor:
    return torch.tensor(grid_of(name).magnitudes, device=device)


@functools.cache
def _values(name: str, device: torch.device) -> torch.Tensor:
    return torch.tensor(grid_of(name).values, device=device)


@functools.cache
def _codes(name: str, device: torch.device) -> torch.Tensor:
    """The codes of the magnitudes."""
    values = grid_of(name).values[:128]
    order = sorted((value, code) for code, value in enumerate(values) if math.isfinite(value))
    return torch.tensor([code for _, code in order], dtype=torch.uint8, device=device)
