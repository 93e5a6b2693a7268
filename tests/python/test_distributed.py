"""One calibration by several processes, started with torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._distributed import Processes
from families import tiny
from forked_ranks import start_ranks
from test_cache_tap import ids

transformers = pytest.importorskip("transformers")

BATCHES = 7
SMALL = 4 * 1000  # bytes: a quarter does not hold a layer's values, and half does
SETTINGS = {
    "ifmr": "ifmr_quantize { }",
    "mse": "mse_quantize { quant_granularity: per_channel }",
    "minmax": "minmax_quantize { quant_granularity: per_head }",
}
TAPS = {"ifmr": "linear", "mse": "linear", "minmax": "cache"}


class Rare(torch.nn.Module):
    """A Llama, and experts of which a batch reaches one or none."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = tiny("llama").to(dtype)
        torch.manual_seed(0)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8, dtype=dtype) for _ in range(3))

    def forward(self, i: int) -> None:
        self.decoder(ids(i), use_cache=True)
        if i % 4 < 2:
            x = torch.linspace(-1, 1, 16).view(2, 8).to(self.experts[0].weight.dtype)
            self.experts[i % 4](x * (i + 1))


def config_of(folder: Path, search: str) -> tuple[Rare, str]:
    dtype = torch.float32 if search == "mse" else torch.bfloat16
    model = Rare(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "d.cfg").write_text(
        f"batch_num: {BATCHES} kv_cache_quant_config {{ calibration_config {{ {SETTINGS[search]} }} }}"
    )
    names = [f"decoder.model.layers.{i}.self_attn.{half}_proj" for i in range(2) for half in "kv"]
    names += [f"experts.{i}" for i in range(3)]
    config = str(folder / "config.json")
    if search == "minmax":
        names = names[:4]  # of experts no heads are known
    amct.create_quant_cali_config(
        config, model, {"kv_cache_quant_layers": names}, str(folder / "d.cfg"), tap=TAPS[search]
    )
    return model, config


def calibrate(folder: Path, search: str, mine: slice, rank: int = 0, **options: Any) -> list[str]:
    model, config = config_of(folder / str(rank), search)
    with (
        amct.calibrate(
            model, config, str(folder / "record.txt"), counts_file=str(folder / "all.counts"), **options
        ) as run,
        torch.inference_mode(),
    ):
        for i in range(BATCHES)[mine]:
            model(i)
    if (
        options and run.results()
    ):  # as of one process, values are kept where the search needs their range alone
        assert all(layer.sqnr_db is not None for layer in run.results())
    return [result.name for result in run.results()]


# By what differs: what the second rank replaces in its configuration by what, and what all say of it.
OTHER_SETTINGS = {
    "granularity": (
        '"quant_granularity":0',
        '"quant_granularity":1',
        "layer 'model.layers.0.self_attn.k_proj': quant_granularity is 0 for rank 0 and 1 for rank 1; all",
    ),
    "search": (
        '"search_step":0.01',
        '"search_step":0.02',
        "layer 'model.layers.0.self_attn.k_proj': search_step is 0.01 for rank 0 and 0.02 for rank 1; all",
    ),
    "offset": (
        '"activation_offset":true',
        '"activation_offset":false',
        "activation_offset is True for rank 0 and False for rank 1; all",
    ),
}


def no_room(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise MemoryError("no room")


def torchrun(ranks: int, file: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `start_ranks`, by torchrun itself, which takes longer."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*command, file, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
    )


@pytest.mark.parametrize(("ranks", "search"), [(2, "ifmr"), (3, "minmax"), (4, "mse")])
def test_the_record_is_that_of_one_process(ranks: int, search: str, tmp_path: Path) -> None:
    """Of uneven parts, and where a layer is reached on one rank alone, or on none."""
    results = calibrate(tmp_path / "one", search, slice(None))
    start = torchrun if ranks == 2 else start_ranks
    ended = start(ranks, __file__, "spread", str(tmp_path / "many"), search)
    assert (tmp_path / "many/record.txt").read_bytes() == (tmp_path / "one/record.txt").read_bytes()
    solved = amct.solve_counts(tmp_path / "many" / "all.counts")
    assert [result.name for result in solved] == results
    told = {f"{rank}:{len(results) if rank == 0 else 0}" for rank in range(ranks)}
    assert set(re.findall(r"\d:\d", ended.stdout)) == told  # lines of processes may be mixed
    if search != "minmax":
        assert "1 layers were not reached by any process and have no factors: experts.2" in ended.stderr


def test_layers_may_be_spread_as_well(tmp_path: Path) -> None:
    """Pipeline parallelism: each rank has some layers; those of the first rank come first.

    A layer's share of the memory budget is that of all layers.
    """
    ended = start_ranks(2, __file__, "pipeline", str(tmp_path))
    assert "[True, True, True, True]" in ended.stdout
    whole = tiny("llama")
    config = str(tmp_path / "whole.json")
    (tmp_path / "two.cfg").write_text("batch_num: 2")
    amct.create_quant_cali_config(config, whole, config_defination=str(tmp_path / "two.cfg"))
    amct.create_quant_cali_model(config, str(tmp_path / "whole.txt"), whole, memory_budget=SMALL)
    for i in range(2):
        whole(ids(i))
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()


@pytest.mark.parametrize(
    ("where", "rank", "error"),
    [
        ("setup", 1, "ValueError: .*no layer is named"),
        ("folder", 1, "FileNotFoundError: .*nowhere"),
        ("forward", 1, "ValueError: not today"),
        ("receive", 0, "MemoryError: no room"),
        ("send", 1, "MemoryError: no room"),
    ],
)
def test_where_one_fails_all_raise(where: str, rank: int, error: str, tmp_path: Path) -> None:
    ended = start_ranks(2, __file__, "fails", str(tmp_path), where, check=False)
    assert ended.returncode != 0
    assert re.search(f"another process failed, so there is no record: rank {rank}: {error}", ended.stdout)
    assert re.search(error, ended.stderr)
    record = tmp_path / "record.txt"  # an empty one, so that none of another run is taken for it
    assert record.exists() == (where not in ("setup", "folder"))
    assert not record.exists() or record.read_bytes() == b""


def test_where_one_is_killed_the_others_end(tmp_path: Path) -> None:
    """By themselves: torchrun would end them."""
    ended = start_ranks(3, __file__, "fails", str(tmp_path), "killed", check=False)
    assert ended.codes == [1, -signal.SIGKILL, 1]
    assert (tmp_path / "record.txt").read_bytes() == b""


@pytest.mark.parametrize("setting", list(OTHER_SETTINGS))
def test_all_need_the_same_settings(setting: str, tmp_path: Path) -> None:
    ended = start_ranks(2, __file__, "fails", str(tmp_path), setting, check=False)
    assert ended.returncode != 0
    assert ended.stderr.count(f"ValueError: {OTHER_SETTINGS[setting][2]}") == 2
    assert not (tmp_path / "record.txt").exists()


def test_what_was_gathered_is_not_left_to_a_thread_of_gloo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that lets go of a tensor while the interpreter ends makes the process abort."""
    holders: list[threading.Thread] = []

    def all_gather(everyones: list[torch.Tensor], mine: torch.Tensor, group: Any) -> None:
        for x in everyones:
            x.copy_(mine)
        holders.append(threading.Thread(target=lambda *held: time.sleep(0.05), args=(mine, *everyones)))
        holders[-1].start()

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
        assert Processes(torch.distributed.group.WORLD).tell_all({"a": 1}) == [{"a": 1}]
        assert len(holders) == 2
        assert not any(hasattr(holder, "_args") for holder in holders)  # a thread drops them at its end
    finally:
        torch.distributed.destroy_process_group()


def test_an_error_is_said_where_another_process_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def gone(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    try:
        processes = Processes(torch.distributed.group.WORLD)
        monkeypatch.setattr(processes, "tell_all", gone)
        with pytest.raises(ValueError, match="ours"), processes.together():
            raise ValueError("ours")
        with (
            pytest.raises(RuntimeError, match=r"within the timeout of the group .*closed"),
            processes.together(),
        ):
            pass
    finally:
        torch.distributed.destroy_process_group()


def main() -> None:
    """What a process does."""
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    group = torch.distributed.group.WORLD
    what, folder, *more = sys.argv[1:]
    if what == "spread":
        mine = slice(rank, None, size)
        results = calibrate(Path(folder), more[0], mine, rank, process_group=group)
        print(f"{rank}:{len(results)}\n", end="", flush=True)  # in one write
    if what == "pipeline":
        model = tiny("llama")
        layers = [f"model.layers.{rank}.self_attn.{half}_proj" for half in "kv"]
        config = f"{folder}/config{rank}.json"
        amct.create_quant_cali_config(config, model, {"kv_cache_quant_layers": layers})
        with amct.calibrate(
            model, config, f"{folder}/record.txt", memory_budget=SMALL, process_group=group
        ) as run:
            for i in range(2):
                model(ids(i))
        if rank == 0:
            print([layer.is_sketch for layer in run.results()], flush=True)
    if what == "fails":
        model = tiny("llama")
        config = f"{folder}/config{rank}.json"
        amct.create_quant_cali_config(config, model)
        if rank == 1 and more == ["folder"]:
            tempfile.tempdir = f"{folder}/nowhere"
        if rank == 1 and more == ["setup"]:
            Path(config).write_text("{}")
        if more == [{0: "receive", 1: "send"}.get(rank)]:
            Processes._room = no_room  # type: ignore[method-assign]
        if rank == 1 and more[0] in OTHER_SETTINGS:
            here, other = OTHER_SETTINGS[more[0]][:2]
            content = Path(config).read_text()
            Path(config).write_text(content.replace(here, other))
            assert Path(config).read_text() != content
        try:
            with amct.calibrate(model, config, f"{folder}/record.txt", process_group=group):
                model(ids(rank))
                if rank == 1 and more == ["killed"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                if rank == 1 and more == ["forward"]:
                    raise ValueError("not today")
                while more == ["forward"]:  # which ends as soon as the other one has failed
                    model(ids(rank))
                    time.sleep(0.05)
        except RuntimeError as error:
            print(error, flush=True)
            raise SystemExit(1) from error
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
