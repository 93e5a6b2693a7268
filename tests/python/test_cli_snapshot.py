"""`amct-pytorch calibrate` that is ended, and goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import error_of, run, saved_model

pytest.importorskip("transformers")

BATCHES = 800


def arguments(folder: Path, ids: Path) -> list[str]:
    model = saved_model(folder, "llama")[1]
    return [
        *("--model", model, "--token-ids", str(ids), "--sequence-length", "8"),
        *("--batches", str(BATCHES), "--tap", "cache", "--granularity", "per_channel"),
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """What is calibrated, and its record."""
    folder = tmp_path_factory.mktemp("model")
    ids = torch.randint(0, 32, (8 * BATCHES,), generator=torch.Generator().manual_seed(0))
    (folder / "many.json").write_text(json.dumps(ids.tolist()))
    what = arguments(folder, folder / "many.json")
    result = run("calibrate", *what, "--record", folder / "whole.txt")
    assert result.exit_code == 0, result.stderr
    return what, (folder / "whole.txt").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_by_a_signal(number: signal.Signals, shared: tuple[list[str], bytes], tmp_path: Path) -> None:
    what, whole = shared
    record, snapshot = tmp_path / "record.txt", tmp_path / "run.snapshot"
    more = ["--record", str(record), "--snapshot", str(snapshot), "--resume"]
    program = [sys.executable, "-c", "from amct_pytorch.cli import main; main()"]
    command = [*program, "calibrate", *what, *more, "--snapshot-batches", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not snapshot.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number, err
        pattern = rf"interrupted after (\d+) of {BATCHES} batches, which are in '{re.escape(str(snapshot))}'"
        found = re.search(pattern + "; go on with --resume$", err.strip())
        assert found is not None, err
        assert 1 <= int(found[1]) < BATCHES
        assert out == ""
    result = run("calibrate", *what, *more, "-v")
    assert result.exit_code == 0, result.stderr
    done = re.search(r"going on after (\d+) batches", result.stderr)
    assert done is not None
    assert int(done[1]) >= 1
    assert record.read_bytes() == whole
    assert not snapshot.exists()


def test_other_batches_are_not_gone_on_with(shared: tuple[list[str], bytes], tmp_path: Path) -> None:
    what, _ = shared
    snapshot = tmp_path / "run.snapshot"
    more = ["--record", tmp_path / "record.txt", "--snapshot", snapshot, "--resume"]
    script = (
        "import os, signal, amct_pytorch.calibration as c; from amct_pytorch.cli import main\n"
        "save = c.CalibrationRun._between_forwards\n"
        "def between(run, done):\n"
        "    save(run, done)\n"
        "    if done == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
        "c.CalibrationRun._between_forwards = between\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "calibrate", *what, *map(str, more)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert "interrupted after 3 of" in ended.stderr
    of_another = f"{snapshot}: the snapshot is of another calibration: "
    for other, why in (
        (["--seed", "1"], "other batches were shown"),
        (["--dtype", "bfloat16"], "other batches were shown, or to another model"),
        (["--batches", "100"], "the configuration differs at '/batch_num'"),
    ):
        assert error_of(run("calibrate", *what, *more, *other)).startswith(of_another + why)


def test_options_that_need_a_snapshot(shared: tuple[list[str], bytes]) -> None:
    result = run("calibrate", *shared[0], "--resume", "--snapshot-batches", "3")
    assert (result.exit_code, error_of(result)) == (2, "--snapshot-batches and --resume need --snapshot FILE")
    result = run("calibrate", *shared[0], "--snapshot", "x", "--snapshot-minutes", "0")
    assert (result.exit_code, error_of(result)) == (2, "--snapshot-minutes must be > 0, not 0")
