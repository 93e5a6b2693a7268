"""What many processes that calibrate together move, keep and wait for, from measurements of one layer.

    python bench/ranks.py
    python bench/ranks.py --layers 32 --ranks 64 --tokens 1e8 --gigabytes-a-second 1.2

Counts of a layer (keys, or values) are made of normal bfloat16 values, for as many tokens as a rank shows,
then saved and merged as `calibrate(process_group=...)` does it. Sizes and times of all layers and ranks
follow from that. Counts are bounded: a channel has no more than 65,536 patterns, and few of them occur. Each
of ceil(log2(ranks)) steps sends the counts of one process, which holds those of two; the last is the largest.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import amct_pytorch as amct
import torch
from amct_pytorch import _core
from layout import digits, duration, text_table

ROWS = 8192  # of a batch
MEASURED = 4  # layers in a file, so that what a file takes by itself does not show


def counts_of(path: Path, granularity: str, channels: int, tokens: int, seed: int) -> None:
    """A counts file of layers that saw normal values, in channels of different widths."""
    names = [f"layer{i}" for i in range(MEASURED)]
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, channels, device="meta") for name in names})
    definition, config = path.with_suffix(".cfg"), path.with_suffix(".json")
    search = f"mse_quantize {{ quant_granularity: {granularity} }}"
    definition.write_text(
        f"batch_num: {2**32 - 1} kv_cache_quant_config {{ calibration_config {{ {search} }} }}"
    )
    amct.create_quant_cali_config(str(config), model, {"kv_cache_quant_layers": names}, str(definition))
    session = _core.Session(_core.read_config(str(config)), str(path.with_suffix(".txt")), 1 << 30)
    generator = torch.Generator().manual_seed(seed)
    width = torch.exp(torch.linspace(-2, 2, channels))
    for begin in range(0, tokens, ROWS):
        x = torch.randn(min(ROWS, tokens - begin), channels, generator=generator)
        for name in names:
            session.observe(name, (x * width).bfloat16().__dlpack__())
    session.save_counts(str(path))


def measure(granularity: str, channels: int, tokens: int) -> tuple[int, int, float]:
    """Bytes of a layer's counts, those of two ranks' sum, and the nanoseconds that adding them up took."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{rank}.counts" for rank in range(2)]
        for rank, part in enumerate(parts):
            counts_of(part, granularity, channels, tokens, rank)
        whole = Path(folder) / "sum.counts"
        start = time.perf_counter_ns()
        _core.merge_counts([str(part) for part in parts], str(whole))
        taken = time.perf_counter_ns() - start
        return parts[0].stat().st_size // MEASURED, whole.stat().st_size // MEASURED, taken / MEASURED


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=80, help="attention layers (default: 80)")
    parser.add_argument("--kv-heads", type=int, default=8, help="key/value heads (default: 8)")
    parser.add_argument("--head-dim", type=int, default=128, help="channels of a head (default: 128)")
    parser.add_argument("--tokens", type=float, default=1e9, help="tokens of all ranks (default: 1e9)")
    parser.add_argument("--ranks", type=int, default=1024, help="processes (default: 1024)")
    parser.add_argument(
        "--measured", type=int, default=1 << 20, help="most tokens that a measurement shows (default: 2^20)"
    )
    parser.add_argument(
        "--gigabytes-a-second", type=float, default=10.0, help="between two processes (default: 10)"
    )
    options = parser.parse_args(arguments)
    channels = options.kv_heads * options.head_dim
    each = math.ceil(options.tokens / options.ranks)
    shown = min(each, options.measured)
    steps = math.ceil(math.log2(options.ranks))
    rows = []
    for granularity in ("per_tensor", "per_channel"):
        part, both, nanoseconds = measure(granularity, channels, shown)
        tensors = 2 * options.layers
        # Of all ranks together: twice as many patterns as two of them found, but not beyond the bound.
        most = tensors * min(2 * both, channels * 65536 * 6)
        step = most / (options.gigabytes_a_second * 1e9) * 1e9 + tensors * nanoseconds
        rows.append(
            [
                granularity,
                f"{part / 2**10:,.0f} KiB",
                f"{tensors * part / 2**20:,.0f} MiB",
                f"{2 * most / 2**20:,.0f} MiB",
                f"{(options.ranks - 1) * most / 2**30:,.1f} GiB",
                duration(tensors * nanoseconds),
                f"{steps} x {duration(step)}",
            ]
        )
    print(
        f"{options.layers} layers, {options.kv_heads} heads of {options.head_dim}, {options.tokens:.3g} "
        f"tokens over {options.ranks:,} ranks: {each:,} each, of which {shown:,} are measured; "
        f"{digits(options.gigabytes_a_second)} GB/s\n"
    )
    header = ("granularity", "a layer", "a rank sends", "a rank holds", "all move", "adding up", "at the end")
    print(text_table(header, rows, "<>>>>>>"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
