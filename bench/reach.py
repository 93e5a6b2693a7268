"""How far factors hold: perplexity of SmolLM2-135M with an INT8 cache, by where and how it was calibrated.

    python bench/reach.py --text wiki.test.txt --calibration-text wiki.train.txt
    python bench/reach.py --tokens 1024 --calibration-tokens 512 --windows 8
    python bench/reach.py --table settings --tokens 1024 --calibration-tokens 1024 --calibration-windows 4

The weights are those that `make demo` installs. In the table `reach` factors are per channel (min-max),
from as many tokens each: at the outputs of the projections ("linear"), at the cache with the positions of
the calibration alone, and with keys turned up to `--tokens`. The table `settings` has taps, granularities
and searches on windows as long as those of the evaluation. All are evaluated on the same windows of
`--tokens`, with keys and values rounded as they go into the cache.

Exit status: 0, also where the weights are not installed, which is said.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import smollm2
from layout import text_table
from measure import add_common_options, machine, positive, use_threads, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    if not smollm2.is_installed():
        return 0
    use_threads(options.threads)
    figures = measure(options)
    print(machine(options.threads))
    print(f"SmolLM2-135M, {options.dtypes[0]}, {options.windows} windows of {options.tokens} tokens\n")
    plain = figures[0]["perplexity"]
    rows = [
        [row["calibration"], f"{row['perplexity']:.4f}", f"{(row['perplexity'] / plain - 1) * 100:+.3f}%"]
        for row in figures
    ]
    print(text_table(("calibration", "perplexity", "loss"), rows, "<>>", options.markdown))
    if options.json:
        write_json(options.json, {"machine": machine(options.threads), "figures": figures})
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=list(WAYS), default="reach", help="what the rows are")
    parser.add_argument("--tokens", type=positive, default=4096, help="of an evaluated window")
    parser.add_argument("--windows", type=positive, default=4, help="that are evaluated")
    parser.add_argument("--calibration-tokens", type=positive, default=256, help="of a short window")
    parser.add_argument("--calibration-windows", type=positive, default=32, help="short ones")
    parser.add_argument("--text", type=Path, help="to evaluate on (default: Python's language reference)")
    parser.add_argument("--calibration-text", type=Path, help="(default: the rest of the other one)")
    add_common_options(parser, rows=None, dtypes=("float32",))
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    import torch
    import transformers
    from amct_pytorch.evaluation import perplexity, windows
    from amct_pytorch.kv_cache import FakeQuantizedCache

    gguf = smollm2.gguf()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = smollm2.load(options.dtypes[0])

    def ids(path: Path | None) -> torch.Tensor:
        text = "\n\n".join(pydoc_data.topics.topics.values()) if path is None else path.read_text("utf-8")
        return torch.tensor(tokenizer(text, verbose=False)["input_ids"])

    evaluated = ids(options.text)
    needed = options.windows * options.tokens
    calibrated = evaluated[needed:] if options.calibration_text is None else ids(options.calibration_text)
    tests = windows(evaluated, options.tokens)[: options.windows]
    short = windows(calibrated, options.calibration_tokens)[: options.calibration_windows]
    count = max(1, options.calibration_tokens * options.calibration_windows // options.tokens)
    long = windows(calibrated, options.tokens)[:count]

    figures = [{"calibration": "none: full precision", "perplexity": perplexity(model, tests)}]
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS[options.table](options, short, long):
            record = calibrate(model, Path(folder), way)
            result = perplexity(model, tests, lambda record=record: FakeQuantizedCache(record, model))
            figures.append({"calibration": way.name, "perplexity": result})
    return figures


class Way(NamedTuple):
    """How a row of the table is calibrated."""

    name: str
    batches: list[Any]
    tap: str
    max_position: int | None = None
    granularity: str = "per_channel"
    algorithm: str = "minmax"


def reach_ways(options: argparse.Namespace, short: list[Any], long: list[Any]) -> list[Way]:
    """Where and on what windows keys are calibrated, to be used on long ones."""
    s, t = f"{len(short)} windows of {options.calibration_tokens}", options.tokens
    whole = f"{len(long)} windows of {t}"
    return [
        Way(f"linear, {s}", short, "linear"),
        Way(f"cache, {s} as they are", short, "cache", 0),
        Way(f"cache, {s}, keys turned up to {t}", short, "cache", t),
        Way(f"cache, {whole} as they are", long, "cache", 0),
        Way(f"cache, {whole}, keys turned up to {t}", long, "cache", t),
    ]


def settings_ways(options: argparse.Namespace, short: list[Any], long: list[Any]) -> list[Way]:
    """Both taps, both granularities, all searches, on long windows."""
    return [
        Way(f"{tap}, {granularity}, {algorithm}", long, tap, options.tokens, granularity, algorithm)
        for tap in ("linear", "cache")
        for granularity in ("per_tensor", "per_channel")
        for algorithm in ("minmax", "ifmr", "hfmg", "percentile", "mse")
    ]


WAYS = {"reach": reach_ways, "settings": settings_ways}


def calibrate(model: Any, folder: Path, way: Way) -> Any:
    """The factors of all layers."""
    import amct_pytorch as amct
    import torch

    config, record, definition = (str(folder / name) for name in ("c.json", "r.txt", "d.cfg"))
    search = f"{way.algorithm}_quantize {{ quant_granularity: {way.granularity} }}"
    Path(definition).write_text(
        f"batch_num: {len(way.batches)} kv_cache_quant_config {{ calibration_config {{ {search} }} }}"
    )
    amct.create_quant_cali_config(config, model, None, definition, tap=way.tap, max_position=way.max_position)
    Path(record).unlink(missing_ok=True)
    with amct.calibrate(model, config, record), torch.inference_mode():
        for batch in way.batches:
            model(batch, use_cache=True)
    return amct.read_record(record)


if __name__ == "__main__":
    sys.exit(main())
