"""Processes that calibrate together, are killed, and go on from their snapshots."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
import torch.distributed as dist
from forked_ranks import start_ranks
from shards import llama
from test_cache_tap import ids

pytest.importorskip("transformers")

BATCHES = 7


@pytest.mark.parametrize(
    ("killed", "begins"),
    [("1 before 4", 2), ("0 before 4", 2), ("0 after 4", 4), ("1 before 2", 0), ("0 clock 3", 2)],
)
def test_ranks_that_share_layers_go_on_from_one_batch(killed: str, begins: int, tmp_path: Path) -> None:
    """Killed as some of them have saved a batch and others have not."""
    start_ranks(2, __file__, str(tmp_path / "whole"), "tensor", "none")
    assert start_ranks(2, __file__, str(tmp_path), "tensor", killed, check=False).returncode != 0
    assert (tmp_path / "record.txt").read_bytes() == b""
    ended = start_ranks(2, __file__, str(tmp_path), "tensor", "none")
    assert sorted(ended.stdout.split()) == [f"0:{begins}", f"1:{begins}"]
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "whole/record.txt").read_bytes()
    assert not list(tmp_path.glob("snapshot*"))


def test_ranks_with_batches_of_their_own_go_on(tmp_path: Path) -> None:
    start_ranks(2, __file__, str(tmp_path / "whole"), "data", "none")
    assert start_ranks(2, __file__, str(tmp_path), "data", "1 before 2", check=False).returncode != 0
    start_ranks(2, __file__, str(tmp_path), "data", "none")
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "whole/record.txt").read_bytes()


def test_other_processes_are_refused(tmp_path: Path) -> None:
    assert start_ranks(3, __file__, str(tmp_path), "data", "all end 2", check=False).returncode != 0
    assert len(list(tmp_path.glob("snapshot.rank*"))) == 3
    ended = start_ranks(2, __file__, str(tmp_path), "data", "none", check=False)
    assert "the snapshot is of rank 0 of 3 processes, and this is rank 0 of 2; go on with" in ended.stderr
    assert "snapshot.rank2 of an earlier calibration by more processes" in ended.stderr
    assert (tmp_path / "record.txt").read_bytes() == b""


def main() -> None:
    """What a process does."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    folder, how, killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
    from amct_pytorch import _snapshots

    write = _snapshots.Snapshots._write

    def kill(when: str, batches: int) -> None:
        if killed == [str(rank), when, str(batches)]:
            os.kill(os.getpid(), signal.SIGKILL)

    def written(self: Any, layers: Any, path: str, batches: int) -> None:
        kill("before", batches)
        write(self, layers, path, batches)
        kill("after", batches)

    _snapshots.Snapshots._write = written  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    shares = how == "tensor"
    model = llama(torch.bfloat16, dist.group.WORLD if shares else None)
    config = f"{folder}/config{rank}.json"
    amct.create_quant_cali_config(config, model, tap="cache")
    group = {"tensor_parallel_group" if shares else "process_group": dist.group.WORLD}
    # By the clock of the first rank alone, or by batches.
    often: dict[str, Any] = {"snapshot_batches": 2 if shares else 1}
    if killed[1:2] == ["clock"]:
        often = {"snapshot_minutes": 1e-9 if rank == 0 else 1000.0}
    with (
        amct.calibrate(
            model,
            config,
            f"{folder}/record.txt",
            snapshot_file=f"{folder}/snapshot",
            resume=True,
            **often,
            **group,
        ) as run,
        torch.inference_mode(),
    ):
        print(f"{rank}:{run.batches_done}\n", end="", flush=True)  # in one write
        mine = list(range(BATCHES)) if shares else list(range(BATCHES))[rank::size]
        for i in mine[run.batches_done :]:
            kill("clock", run.batches_done + 1)
            model(ids(i), use_cache=True)
            if killed == ["all", "end", str(run.batches_done)]:
                raise KeyboardInterrupt
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
