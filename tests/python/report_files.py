"""Calibrations for the tests of reports."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import torch
from amct_pytorch.evaluation import Evaluation, Quality
from helpers import DECODER_LAYERS, Decoder, config_for, tokens

PER_CHANNEL = (
    "kv_cache_quant_config { calibration_config { ifmr_quantize { quant_granularity: per_channel } } }"
)
KEY = DECODER_LAYERS[0]

NASTY = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>k_proj",
    "`code` | pipe & *star* </style></script>",
    "esc\x1b[31m\n\u202eright\x00",
    "größe 层 🙂",
    "{{ 7 * 7 }} {% raw %}",
]


class Odd(torch.nn.Module):
    """Layers with names of their own."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, torch.nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> None:
        for layer in self.children():
            layer(x)


class Skips(Decoder):
    """Batches do not reach its second block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)  # type: ignore[no-any-return]


def evaluation_of(*names: str) -> Evaluation:
    """An evaluation on one window, whose standard errors are not known, of candidates with these names."""
    nan = float("nan")
    found = [
        Quality(name, 23.7 + i, 0.0125 * (i - 1), nan, 0.0321, 0.0004, 0.9876, 5760.0, [])
        for i, name in enumerate(names)
    ]
    return Evaluation(23.7, 46080.0, 1023, found)


def calibrated_files(
    folder: Path,
    model: torch.nn.Module | None = None,
    seen: int = 2,
    asked: int = 2,
    layers: list[str] | None = None,
    definition: str = PER_CHANNEL,
) -> tuple[Path, Path]:
    """A record and a counts file."""
    folder.mkdir(exist_ok=True)
    model = Decoder() if model is None else model
    model = model.bfloat16()
    config = config_for(folder, model, layers, f"batch_num: {asked} {definition}")
    counts = folder / "all.counts"
    with amct.calibrate(model, config, str(folder / "record.txt"), counts_file=str(counts)):
        for seed in range(seen):
            model(tokens(seed).bfloat16())
    return folder / "record.txt", counts
