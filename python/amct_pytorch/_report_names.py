"""Names and numbers of files as they can be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"

# Where there is no number.
NONE = "\N{EN DASH}"


def printable(text: str) -> str:
    r"""The text with what cannot be seen, or would move other text, written as an escape.

    Examples
    --------
    >>> printable("a\x1b[31m\u202e")
    'a\\x1b[31m\\u202e'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the parts that all of them have in common; as they are where that cannot be told.

    Examples
    --------
    >>> short_names(["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"])
    ['k_proj', 'v_proj']
    """
    parts = [name.split(".") for name in names]
    if len(names) < 2 or len({len(own) for own in parts}) != 1:
        return list(names)
    kept = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    short = [".".join(own[place] for place in kept) for own in parts]
    return short if len(set(short)) == len(set(names)) and all(short) else list(names)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a reader: '0.0120', '12,300'; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:#.{digits}g}".partition("e")
    text = mantissa.removesuffix(".") + (f"e{int(exponent)}" if exponent else "")
    return text.replace("-", MINUS)


def decibel(value: float | None, mse: float = 1.0) -> str:
    """An SQNR: '31.4'; 'exact' where there is no error."""
    if value is None:
        return "exact" if mse == 0 else NONE
    return f"{value:.1f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """A difference in dB: '+1.2', or with a minus sign."""
    return NONE if value is None else f"{value:+.1f}".replace("-", MINUS)


def percent(fraction: float | None) -> str:
    """A share: '0.012%'; '< 0.001%' where it is hardly more than nothing."""
    if fraction is None:
        return NONE
    if fraction == 0:
        return "0%"
    if fraction < 1e-5:
        return "< 0.001%"
    return f"{fraction * 100:#.2g}%" if fraction < 0.1 else f"{fraction * 100:.0f}%"


def compact(value: float) -> str:
    """A count in a few signs: '10k', '1.35M'."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"
