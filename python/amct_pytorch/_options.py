"""Options that subcommands of `amct-pytorch` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amct_pytorch._command import be_verbose
from amct_pytorch._compat import StrEnum


class Tap(StrEnum):
    """Where layers are observed."""

    linear = "linear"
    cache = "cache"


class Granularity(StrEnum):
    """What shares factors."""

    per_tensor = "per_tensor"
    per_channel = "per_channel"
    per_head = "per_head"


class Algorithm(StrEnum):
    """How factors are searched."""

    ifmr = "ifmr"
    hfmg = "hfmg"
    minmax = "minmax"
    percentile = "percentile"
    mse = "mse"
    kl = "kl"


class Format(StrEnum):
    """What the cache stores."""

    int8 = "INT8"
    int4 = "INT4"
    fp8_e4m3 = "FP8_E4M3"
    fp8_e5m2 = "FP8_E5M2"
    fp8_e4m3fnuz = "FP8_E4M3FNUZ"
    fp8_e5m2fnuz = "FP8_E5M2FNUZ"
    hif8 = "HIF8"


class Dtype(StrEnum):
    """What weights are loaded as."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def _verbose_at_once(verbose: bool) -> bool:
    if verbose:
        be_verbose(True)
    return verbose


# The model.
Model = Annotated[str, typer.Option(help="Folder of a transformers model, or a GGUF file.")]
Gguf = Annotated[
    str | None, typer.Option(help="Name of the GGUF file in the folder, where it holds more than one.")
]
LoadAs = Annotated[Dtype, typer.Option(help="Type to load the weights as.")]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cuda:1, npu, ...")]

# What it is run on.
Text = Annotated[Path | None, typer.Option(help="Text file to run the model on.")]
Jsonl = Annotated[
    Path | None,
    typer.Option(
        help='File of JSON lines in place of a text: {"messages": [...]}, for the chat template of the '
        'model, {"text": ...} or {"prompt": ..., "completion": ...}.'
    ),
]
TokenIds = Annotated[Path | None, typer.Option(help="JSON list of token ids in place of a text.")]
SequenceLength = Annotated[
    int, typer.Option("--sequence-length", "--tokens", min=2, help="Tokens in a window.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Take windows of the text at random, or shuffle the JSON lines. Without it they are taken as "
        "they come.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Windows in a batch of the calibration.")]

# The settings of a calibration. What is not given is left to the definition, or is the default.
Definition = Annotated[
    Path | None, typer.Option(help="Simplified definition, which names layers and settings.")
]
AlgorithmOption = Annotated[
    Algorithm | None, typer.Option("--algorithm", help="How factors are searched (default: ifmr).")
]
GranularityOption = Annotated[
    Granularity | None, typer.Option("--granularity", help="What shares factors (default: per_tensor).")
]
FormatOption = Annotated[
    Format | None, typer.Option("--dst-type", help="What the cache stores (default: INT8).")
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric",
        help="Factors without or with offset (default: with, but formats of floating point have none).",
    ),
]
TapOption = Annotated[
    Tap | None,
    typer.Option("--tap", help="Observe projections, or what goes into the cache (default: linear)."),
]
SinkTokens = Annotated[
    int | None,
    typer.Option(min=0, help="First tokens of a window that the cache keeps unquantized (default: 0)."),
]
MaxPosition = Annotated[
    int | None,
    typer.Option(
        min=0, help="Position that keys per channel at tap cache hold up to (default: the model's)."
    ),
]
QueryWeighted = Annotated[
    bool | None,
    typer.Option(
        "--query-weighted",
        help="Weigh the channels of keys that share factors by the queries on them; at tap cache.",
    ),
]

# What is said.
Json = Annotated[bool, typer.Option("--json", help="Write JSON in place of text.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Say what is done and how long it takes; show the traceback of an error.",
        callback=_verbose_at_once,
    ),
]
