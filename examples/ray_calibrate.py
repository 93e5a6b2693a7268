"""Calibrate with Ray: tasks observe parts of a text, each where there is room, and their counts are added up.

    python examples/ray_calibrate.py model book.txt --tasks 2 --batches 4 --record record.txt

Without a cluster (RAY_ADDRESS, or one that `ray start` made on this machine) it starts Ray on this machine
alone. The factors have the same bits whatever the number of tasks, and as those of `amct-pytorch calibrate`
with these batches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ray


@ray.remote(num_cpus=1)  # num_gpus=1, and the model on "cuda", where there are some
def observe(model_folder: str, batches: list[list[int]], number: int) -> bytes:
    """What one task sees of its batches of token ids: a counts file, sent back by Ray."""
    import amct_pytorch as amct
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, use_safetensors=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        config, counts = f"{folder}/config.json", f"{folder}/task{number}.counts"
        definition = Path(folder) / "definition.cfg"
        definition.write_text(
            f"batch_num: {len(batches)} kv_cache_quant_config {{ calibration_config {{ "
            "mse_quantize { quant_granularity: per_channel } } }"
        )
        amct.create_quant_cali_config(config, model, config_defination=str(definition), tap="cache")
        with (
            amct.calibrate(model, config, f"{folder}/record.txt", counts_file=counts),
            torch.inference_mode(),
        ):
            for batch in batches:
                model(torch.tensor([batch]), use_cache=True)
        return Path(counts).read_bytes()


def main() -> None:
    """Cut the text, have its parts observed, and search factors of all that was seen."""
    import amct_pytorch as amct
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder of a transformers model, on all machines")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--record", default="record.txt")
    options = parser.parse_args()

    length, count = options.sequence_length, options.batches
    ids = AutoTokenizer.from_pretrained(options.model)(options.text.read_text("utf-8"))["input_ids"]
    if len(ids) < count * length:
        parser.error(f"'{options.text}' has {len(ids)} tokens, fewer than {count} batches of {length}")
    batches = [ids[i * length : (i + 1) * length] for i in range(count)]

    if not ray.is_initialized():
        try:
            ray.init("auto", log_to_driver=False)
        except ConnectionError:
            ray.init(
                "local",
                num_cpus=options.tasks,
                include_dashboard=False,
                object_store_memory=100 << 20,
                log_to_driver=False,
            )
    tasks = min(options.tasks, count)
    parts = [observe.remote(options.model, batches[number::tasks], number) for number in range(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        for number, part in enumerate(parts):
            seen.append(f"{folder}/task{number}.counts")
            Path(seen[-1]).write_bytes(ray.get(part))
        amct.merge_counts(seen, f"{folder}/all.counts")
        results = amct.solve_counts(f"{folder}/all.counts", options.record)
    ray.shutdown()
    print(f"{options.record}: {len(results)} layers, {results[0].batches} batches by {tasks} tasks")


if __name__ == "__main__":
    main()
