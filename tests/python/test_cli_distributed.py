"""`amct-pytorch calibrate` by processes that torchrun starts, or that stand for them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from command_line import error_of, run, saved_model

pytest.importorskip("transformers")

BATCHES = 400
COMMAND = (sys.executable, "-m", "amct_pytorch.cli", "calibrate", "--distributed")


@pytest.fixture(scope="module")
def what(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes, Path]:
    """What is calibrated, the record of one process, and what it has seen."""
    folder = tmp_path_factory.mktemp("model")
    ids = torch.randint(0, 32, (8 * BATCHES,), generator=torch.Generator().manual_seed(0))
    (folder / "many.json").write_text(json.dumps(ids.tolist()))
    arguments = [
        *(*saved_model(folder, "llama")[:2], "--token-ids", str(folder / "many.json")),
        *("--sequence-length", "8", "--tap", "cache", "--granularity", "per_channel", "--algorithm", "mse"),
        *("--batches", str(BATCHES), "--dtype", "bfloat16"),
    ]
    result = run("calibrate", *arguments, "--record", folder / "one.txt", "--counts", folder / "one.counts")
    assert result.exit_code == 0, result.stderr
    return arguments, (folder / "one.txt").read_bytes(), folder / "one.counts"


def start(arguments: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them, one for each list of arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(arguments))}
    return [
        subprocess.Popen(
            [*COMMAND, *mine],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, mine in enumerate(arguments)
    ]


def test_the_record_is_that_of_one_process(what: tuple[list[str], bytes, Path], tmp_path: Path) -> None:
    """Of uneven parts; the first one shows a table, the others nothing."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    more = ["--record", str(tmp_path / "record.txt"), "--counts", str(tmp_path / "all.counts")]
    ended = subprocess.run(
        [*torchrun, "-m", *COMMAND[2:], *what[0], *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "record.txt").read_bytes() == what[1]
    assert ended.stdout.count("model.layers.0.self_attn.k_proj") == 1
    assert ended.stdout.count(f"{tmp_path}/record.txt: 4 layers") == 1
    told = [
        [(x.name, x.batches, x.rows) for x in amct.solve_counts(c)]
        for c in (tmp_path / "all.counts", what[2])
    ]
    assert told[0] == told[1]


def test_goes_on_after_a_signal(what: tuple[list[str], bytes, Path], tmp_path: Path) -> None:
    snapshot = tmp_path / "run.snapshot"
    more = [*what[0], "--record", str(tmp_path / "record.txt"), "--snapshot", str(snapshot), "--resume"]
    processes = start([[*more, "--snapshot-batches", "1"]] * 2)
    parts = [Path(f"{snapshot}.rank{rank}") for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(part.exists() for part in parts):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, told
    assert re.search(r"interrupted after \d+ of 200 batches, which are in '.*\.rank0'; go on", told[0][1])
    for process in start([more] * 2):
        assert process.wait(120) == 0
    assert (tmp_path / "record.txt").read_bytes() == what[1]
    assert not any(part.exists() for part in parts)


def test_where_one_fails_all_end_with_its_exit_code(
    what: tuple[list[str], bytes, Path], tmp_path: Path
) -> None:
    mine = [*what[0], "--record", str(tmp_path / "record.txt")]
    other = [*mine]
    other[other.index("--token-ids") + 1] = str(tmp_path / "none.json")
    processes = start([mine, other])
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert [out for out, _ in told] == ["", ""]
    assert f"amct-pytorch: cannot read '{tmp_path}/none.json'" in told[1][1]
    assert "amct-pytorch: " not in told[0][1]
    assert not (tmp_path / "record.txt").exists()


def test_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["calibrate", *saved_model(tmp_path, "llama"), "--record", str(tmp_path / "record.txt")]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert "torchrun --nproc-per-node" in error_of(run(*arguments, "--distributed"))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert "one of 2 processes" in error_of(run(*arguments))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(*arguments).exit_code == 0
