"""What the subcommands of `amct-pytorch` share."""

from __future__ import annotations

import enum
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn, ParamSpec

import typer

from amct_pytorch import _models

P = ParamSpec("P")


class Tap(enum.StrEnum):
    """Where layers are observed."""

    linear = "linear"
    cache = "cache"


class Granularity(enum.StrEnum):
    """What shares factors."""

    per_tensor = "per_tensor"
    per_channel = "per_channel"
    per_head = "per_head"


class Algorithm(enum.StrEnum):
    """How factors are searched."""

    ifmr = "ifmr"
    hfmg = "hfmg"
    minmax = "minmax"
    percentile = "percentile"
    mse = "mse"
    kl = "kl"


class Format(enum.StrEnum):
    """What the cache stores."""

    int8 = "INT8"
    int4 = "INT4"
    fp8_e4m3 = "FP8_E4M3"
    fp8_e5m2 = "FP8_E5M2"
    fp8_e4m3fnuz = "FP8_E4M3FNUZ"
    fp8_e5m2fnuz = "FP8_E5M2FNUZ"
    hif8 = "HIF8"


class Dtype(enum.StrEnum):
    """What weights are loaded as."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Model = Annotated[str, typer.Option(help="Folder of a transformers model.")]
Gguf = Annotated[str | None, typer.Option(help="Name of a GGUF file in the folder, where that is the model.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]
LoadAs = Annotated[Dtype, typer.Option(help="Type to load the weights as.")]
Device = Annotated[str, typer.Option(help="Device to run on.")]


def with_errors_in_a_line(command: Callable[P, None]) -> Callable[P, None]:
    """Say what went wrong without a traceback, and exit with 1."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # Whoever reads the output has enough; nothing is left to be said, also not as Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (_models.InputError, ImportError, OSError, ValueError, RuntimeError) as error:
            fail(str(error))

    return call


def fail(message: str) -> NoReturn:
    """Say what is wrong, and exit with 1."""
    typer.echo(f"amct-pytorch: {message}", err=True)
    sys.exit(1)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; not cut to the width of a terminal, since names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
