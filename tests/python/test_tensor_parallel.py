"""One calibration by processes that share the heads of a model, started with torchrun."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import amct_pytorch as amct
import pytest
import torch
import torch.distributed as dist
from families import tiny
from forked_ranks import start_ranks
from shards import llama
from test_cache_tap import ids

transformers = pytest.importorskip("transformers")

BATCHES = 6
# Projections apart, fused and gathered, fused with heads in turns, and what all processes have whole.
TRANSFORMERS = ("llama", "phi3", "gpt_neox", "deepseek_v3")


class Setting(NamedTuple):
    """How a model is calibrated."""

    search: str
    tap: str
    dtype: torch.dtype = torch.bfloat16
    memory_budget: int = 1 << 30
    query_weighted: bool = False


FEW_BYTES = (
    4 * 4 * 16 * 30
)  # for 4 layers: of 6 batches of 16 channels fewer than there are, for a shard, too
SETTINGS = {
    "counts": Setting("ifmr_quantize { }", "linear"),
    "channels": Setting("mse_quantize { quant_granularity: per_channel }", "cache"),
    "heads": Setting("ifmr_quantize { quant_granularity: per_head }", "linear"),
    "range": Setting("minmax_quantize { }", "cache"),
    "range_heads": Setting("minmax_quantize { quant_granularity: per_head }", "linear"),
    "range_channels": Setting("minmax_quantize { quant_granularity: per_channel }", "linear"),
    "samples": Setting("mse_quantize { }", "linear", torch.float32),
    "samples_channels": Setting("ifmr_quantize { quant_granularity: per_channel }", "cache", torch.float32),
    "sketch": Setting("ifmr_quantize { }", "cache", torch.float32, FEW_BYTES),
    "sketch_channels": Setting(
        "mse_quantize { quant_granularity: per_channel }", "linear", torch.float32, FEW_BYTES
    ),
    "sketch_heads": Setting(
        "mse_quantize { quant_granularity: per_head }", "cache", torch.float32, FEW_BYTES
    ),
    "weighted": Setting("mse_quantize { }", "cache", query_weighted=True),
    "weighted_heads": Setting(
        "mse_quantize { quant_granularity: per_head }", "cache", torch.float16, query_weighted=True
    ),
}


def calibrate(
    folder: Path,
    name: str,
    model: torch.nn.Module,
    batches: range,
    rank: int,
    edit: tuple[str, str] | None = None,
    **groups: Any,
) -> str:
    """Calibrate, and tell what is known of the layers; `edit` replaces something in the configuration."""
    setting = SETTINGS[name]
    folder.mkdir(parents=True, exist_ok=True)
    definition, config = folder / f"{name}.cfg{rank}", str(folder / f"{name}.json{rank}")
    definition.write_text(
        f"batch_num: {BATCHES} kv_cache_quant_config {{ calibration_config {{ {setting.search} }} }}"
    )
    amct.create_quant_cali_config(
        config,
        model,
        config_defination=str(definition),
        tap=setting.tap,
        query_weighted=setting.query_weighted,
    )
    if edit:
        Path(config).write_text(Path(config).read_text().replace(*edit))
    with (
        amct.calibrate(
            model,
            config,
            str(folder / f"{name}.txt"),
            counts_file=str(folder / f"{name}.counts"),
            memory_budget=setting.memory_budget,
            **groups,
        ) as run,
        torch.inference_mode(),
    ):
        for i in batches:
            model(ids(i), use_cache=True)
    return "".join(
        f"{layer.name} {layer.batches} {layer.rows} {layer.channels} {layer.is_sketch} "
        # A sum of float32 values in the order in which they came.
        f"{layer.sqnr_db or 0:.9f} {layer.clipped_fraction}\n"
        for layer in run.results()
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of each setting."""
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, setting in SETTINGS.items():
        told = calibrate(folder, name, llama(setting.dtype), range(BATCHES), 0)
        assert ("True" in told) == (setting.memory_budget == FEW_BYTES)
        (folder / f"{name}.told").write_text(told)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make, each of which has half of the heads."""
    folder = tmp_path_factory.mktemp("two")
    for family in TRANSFORMERS:
        # Experts of this size are too small for the kernels that sharded ones are computed with.
        settings = {"first_k_dense_replace": 2} if family == "deepseek_v3" else {}
        tiny(family, **settings).to(torch.bfloat16).save_pretrained(folder / family)
    start_ranks(2, __file__, "two", str(folder))
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes make: pairs that have half of the batches, and all, two of which share a head."""
    folder = tmp_path_factory.mktemp("four")
    start_ranks(4, __file__, "four", str(folder))
    return folder


@pytest.mark.parametrize("ranks", ["two", "four/2", "four/4"])
def test_the_record_is_that_of_the_whole_model(
    ranks: str, one: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(ranks.partition("/")[0]) / ranks.partition("/")[2]
    for name in SETTINGS:
        assert (folder / f"{name}.told").read_text() == (one / f"{name}.told").read_text(), name
        assert (folder / f"{name}.txt").read_bytes() == (one / f"{name}.txt").read_bytes(), name
        merged = tmp_path / "merged.counts"  # with what a process with the whole model saw
        amct.merge_counts([folder / f"{name}.counts", one / f"{name}.counts"], merged)
        assert all(layer.batches == 2 * BATCHES for layer in amct.solve_counts(merged))
    assert '"head_num":1' in (folder / "heads.json0").read_text()


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_models_that_transformers_shares(family: str, two: Path, tmp_path: Path) -> None:
    """In bfloat16 they compute something else than alone from the first sum over processes on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(two / family, dtype=torch.bfloat16)
    calibrate(tmp_path, "channels", model, range(BATCHES), 0)
    torch.set_num_threads(threads)
    record, one = (
        amct.read_record(two / f"{family}.tp/channels.txt"),
        amct.read_record(tmp_path / "channels.txt"),
    )
    assert list(record) == list(one)
    assert len(one) == 4
    for number, name in enumerate(one):
        if number < 2:  # of the first block
            assert record[name].scale.equal(one[name].scale), name
            assert record[name].offset.equal(one[name].offset), name
        assert record[name].scale.shape == one[name].scale.shape
        assert record[name].scale.allclose(one[name].scale, rtol=0.2), name


def test_heads_of_the_whole_may_be_told_by_the_module(two: Path, one: Path) -> None:
    """Where the configuration has the numbers of a process."""
    assert (two / "own numbers/counts.txt").read_bytes() == (one / "counts.txt").read_bytes()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("not finite", "rank 1: NonFiniteError: layer 'model.layers.1.self_attn.v_proj'"),
        ("other batches", "RuntimeError: layer 'model.layers.0.self_attn.k_proj': .*different batches"),
        (
            "not copies",
            "ValueError: layer 'model.layers.0.self_attn.k_proj': shards 0 and 1 should be copies",
        ),
        (
            "no whole",
            "ValueError: layer 'model.layers.1.self_attn.k_proj': its shards have 8, 8 channels.* 24",
        ),
        (
            "other heads",
            "ValueError: layer 'model.layers.0.self_attn.k_proj': head_num makes 4 heads of its 16",
        ),
        ("another group", r"ValueError: tensor_parallel_group: rank 0 says that ranks \[0, 1\]"),
    ],
)
def test_where_one_fails_all_raise(what: str, error: str, two: Path) -> None:
    told = [(two / "failed" / f"{what}.{rank}").read_text() for rank in range(2)]
    assert all(re.search(error, message) for message in told), told
    assert not any(record.read_bytes() for record in (two / "failed").glob("*.txt"))


def test_an_error_between_forwards_ends_all(tmp_path: Path) -> None:
    """Others wait within the model, for what never comes."""
    ended = start_ranks(2, __file__, "ends", str(tmp_path), check=False)
    assert ended.returncode != 0
    assert "ValueError: not today" in ended.stderr
    assert (tmp_path / "counts.txt").read_bytes() == b""


def spread(folder: Path, sharing: int) -> None:
    """All settings, by processes of which so many share layers."""
    rank, size = dist.get_rank(), dist.get_world_size()
    pairs = [dist.new_group(list(range(first, first + sharing))) for first in range(0, size, sharing)]
    group = pairs[rank // sharing]
    for name, setting in SETTINGS.items():
        groups: dict[str, Any] = {"tensor_parallel_group": group}
        if sharing < size:
            groups["process_group"] = dist.group.WORLD
        batches = range(rank // sharing, BATCHES, size // sharing)
        told = calibrate(folder, name, llama(setting.dtype, group), batches, rank, **groups)
        assert bool(told) == (rank == 0)
        if rank == 0:
            (folder / f"{name}.told").write_text(told)


def fails(folder: Path) -> None:
    """What goes wrong, and what each process says of it."""
    rank = dist.get_rank()
    group = dist.group.WORLD
    folder.mkdir(exist_ok=True)

    def calibrate_wrong(
        what: str, change: Callable[[Any], None] = lambda model: None, name: str = "counts", **options: Any
    ) -> None:
        model = llama(SETTINGS[name].dtype, group)
        change(model)
        batches = range(BATCHES - (rank if what == "other batches" else 0))
        try:
            calibrate(folder, name, model, batches, rank, **{"tensor_parallel_group": group, **options})
        except (RuntimeError, ValueError) as error:
            (folder / f"{what}.{rank}").write_text(f"rank {rank}: {type(error).__name__}: {error}")

    def spoil(model: Any) -> None:
        if rank == 1:
            model.model.layers[1].self_attn.v_proj._whole[0].weight.data[8] = torch.nan

    def without_gathering(model: Any) -> None:  # so that ranks may see different batches
        for layer in model.model.layers:
            layer.self_attn.o_proj = torch.nn.Linear(16, 32, bias=False, dtype=torch.bfloat16)

    def say(heads: int, layers: slice, model: Any) -> None:
        for layer in model.model.layers[layers]:
            layer.self_attn.total_num_kv_heads = heads

    calibrate_wrong("not finite", spoil)
    calibrate_wrong("other batches", without_gathering)
    calibrate_wrong("not copies", lambda model: say(1, slice(0, 1), model))
    calibrate_wrong("no whole", lambda model: say(3, slice(1, 2), model))
    calibrate_wrong("other heads", name="heads", edit=('"head_num":1', '"head_num":2'))
    alone = [dist.new_group([0]), dist.new_group([1])]
    calibrate_wrong(
        "another group",
        process_group=group,
        tensor_parallel_group=group if rank == 0 else alone[1],
    )


def own_numbers(folder: Path) -> None:
    """A configuration of what this process has, and modules that say what all have."""
    model: Any = llama(torch.bfloat16, dist.group.WORLD)
    model.config.num_key_value_heads = 1
    for layer in model.model.layers:
        layer.self_attn.total_num_kv_heads = 2
    group = {"tensor_parallel_group": dist.group.WORLD}
    calibrate(folder / "own numbers", "counts", model, range(BATCHES), dist.get_rank(), **group)


def main() -> None:
    """What a process does."""
    dist.init_process_group("gloo")
    what, folder = sys.argv[1:]
    rank = dist.get_rank()
    if what == "four":
        for sharing in (2, 4):
            spread(Path(folder) / str(sharing), sharing)
    if what == "two":
        spread(Path(folder), 2)
        own_numbers(Path(folder))
        fails(Path(folder) / "failed")
        for family in TRANSFORMERS:
            plan = transformers.distributed.DistributedConfig(tp_plan="auto")
            shared = transformers.AutoModelForCausalLM.from_pretrained(
                f"{folder}/{family}", dtype=torch.bfloat16, distributed_config=plan
            )
            group = {"tensor_parallel_group": dist.group.WORLD}
            calibrate(Path(folder) / f"{family}.tp", "channels", shared, range(BATCHES), rank, **group)
    if what == "ends":
        model = llama(torch.bfloat16, dist.group.WORLD)
        config = f"{folder}/config{rank}.json"
        amct.create_quant_cali_config(config, model)
        with (
            amct.calibrate(model, config, f"{folder}/counts.txt", tensor_parallel_group=dist.group.WORLD),
            torch.inference_mode(),
        ):
            model(ids(0))
            if rank == 1:
                raise ValueError("not today")
            model(ids(1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
