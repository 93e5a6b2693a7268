"""Processes that calibrate together add up what they saw, and one of them fails at it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch.distributed
from helpers import run_python

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

FOUR = """
    import os, pathlib, signal, sys, time, types
    sys.path.insert(0, sys.argv[2])
    import torch
    import torch.distributed as dist
    import amct_pytorch as amct
    from amct_pytorch import _core, _distributed
    from helpers import Decoder, config_for, tokens

    def fail(*args, **kwargs):
        raise OSError(28, "no room today", "somewhere")

    def run(folder, config, where, failing, rank):
        if rank == failing and where == "save_counts":
            _core.Session.save_counts = fail
        elif rank == failing and where != "counts_file":
            _distributed._core = types.SimpleNamespace(**vars(_core) | {where: fail})
        store = dist.FileStore(str(folder / "store"), 4)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=4)
        model, group = Decoder(), dist.group.WORLD
        files = {"record_file": str(folder / "record.txt"), "counts_file": str(folder / "all.counts")}
        with amct.calibrate(model, config, **files, process_group=group):
            model(tokens(rank))
            if rank == failing and where == "counts_file":
                (folder / "all.counts").mkdir()

    def process(said, *args):
        # Forked, since importing torch again takes seconds; nothing has started a thread here.
        pid = os.fork()
        if pid == 0:
            try:
                run(*args)
                message = "no error"
            except BaseException as error:
                message = f"{type(error).__name__}: {error}"
            said.write_text(message)
            os._exit(0)
        return pid

    def has_ended(pid):
        return os.waitpid(pid, os.WNOHANG)[0] == pid

    where, failing = sys.argv[3], int(sys.argv[4])
    top = pathlib.Path(sys.argv[1])
    folder = top / "run"
    config = config_for(folder, Decoder())
    running = {rank: process(top / str(rank), folder, config, where, failing, rank) for rank in range(4)}
    deadline = time.monotonic() + 30
    while running and time.monotonic() < deadline:
        running = {rank: pid for rank, pid in running.items() if not has_ended(pid)}
        time.sleep(0.01)
    for pid in running.values():
        os.kill(pid, signal.SIGKILL)
    print("still running:", *running)
"""


@pytest.mark.parametrize(
    ("where", "failing"), [("save_counts", 2), ("merge_counts", 2), ("write_record", 0), ("counts_file", 0)]
)
def test_where_one_of_four_fails_all_say_which(where: str, failing: int, tmp_path: Path) -> None:
    """As they add up, rank 2 what it and rank 3 saw, and without torchrun, which would end them."""
    ended = run_python(FOUR, tmp_path, Path(__file__).parent, where, failing)
    assert ended.stdout == "still running:\n"
    said = [(tmp_path / str(rank)).read_text() for rank in range(4)]
    error = said.pop(failing)
    assert re.match("OSError: .* no room today|ValueError: .* is a folder", error)
    message = "OthersFailedError: another process failed, so there is no record: "
    assert said == 3 * [f"{message}rank {failing}: {error}"]
    left = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "store"} <= set(left) <= {"config.json", "store", "all.counts", "record.txt"}
    assert "record.txt" not in left or left["record.txt"].read_bytes() == b""  # so that no old one stays
