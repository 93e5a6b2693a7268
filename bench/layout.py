"""How the benchmarks' scripts write numbers and tables: aligned text, or Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0))


def digits(value: float | None, count: int = 3) -> str:
    """A number in `count` significant digits without an exponent (`0.0619`, `226`); None is a dash."""
    if value is None:
        return "-"
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    rounded = float(f"{value:.{count - 1}e}")
    exponent = int(f"{rounded:e}".partition("e")[2])
    return f"{rounded:,.{max(count - 1 - exponent, 0)}f}"


def duration(nanoseconds: float) -> str:
    """A time in the largest unit that leaves at least 1 of it (`4.29 ms`)."""
    unit, size = next((pair for pair in _UNITS if nanoseconds >= pair[1]), _UNITS[-1])
    return f"{digits(nanoseconds / size)} {unit}"


def mebibytes(size: float | None) -> str:
    """A number of bytes, in MiB to two places; None is a dash."""
    return "-" if size is None else f"{size / 2**20:,.2f}"


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str, markdown: bool = False
) -> str:
    """A table with a line a row; a row without cells is a gap.

    `align` has one character a column: `<` for left, `>` for right.
    """
    if any(len(row) not in (0, len(header)) for row in rows) or len(align) != len(header):
        raise ValueError(f"a table of {len(header)} columns needs as many cells a row and signs in align")
    if markdown:
        rule = ["---:" if sign == ">" else "---" for sign in align]
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *rows) if line]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(row[column]) for row in (header, *rows) if row) for column in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *map(list, rows)]
    return "\n".join(
        "  ".join(
            f"{cell:{sign}{width}}" for cell, sign, width in zip(line, align, widths, strict=False)
        ).rstrip()
        for line in lines
    )
