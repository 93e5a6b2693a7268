"""Processes that calibrate together add up what they saw, and one of them fails at it."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch.distributed as dist
from amct_pytorch import _core, _distributed
from forked_ranks import start_ranks
from helpers import Decoder, config_for, tokens

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)


@pytest.mark.parametrize(
    ("where", "failing"), [("save_counts", 2), ("merge_counts", 2), ("write_record", 0), ("counts_file", 0)]
)
def test_where_one_of_four_fails_all_say_which(where: str, failing: int, tmp_path: Path) -> None:
    """As they add up, rank 2 what it and rank 3 saw, and without torchrun, which would end them."""
    config_for(tmp_path / "run", Decoder())
    ended = start_ranks(4, __file__, str(tmp_path), where, str(failing), check=False)
    assert ended.codes == 4 * [0], ended.stderr  # each ended by itself
    said = [(tmp_path / str(rank)).read_text() for rank in range(4)]
    error = said.pop(failing)
    assert re.match("OSError: .* no room today|ValueError: .* is a folder", error)
    message = "OthersFailedError: another process failed, so there is no record: "
    assert said == 3 * [f"{message}rank {failing}: {error}"]
    left = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert {"config.json"} <= set(left) <= {"config.json", "all.counts", "record.txt"}
    assert "record.txt" not in left or left["record.txt"].read_bytes() == b""  # so that no old one stays


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "no room today", "somewhere")


def calibrate(folder: Path, where: str, is_failing: bool) -> None:
    if is_failing and where == "save_counts":
        _core.Session.save_counts = fail  # type: ignore[method-assign]
    elif is_failing and where != "counts_file":
        _distributed._core = types.SimpleNamespace(**vars(_core) | {where: fail})  # type: ignore[assignment]
    dist.init_process_group("gloo")
    model = Decoder()
    with amct.calibrate(
        model,
        str(folder / "config.json"),
        str(folder / "record.txt"),
        counts_file=str(folder / "all.counts"),
        process_group=dist.group.WORLD,
    ):
        model(tokens(dist.get_rank()))
        if is_failing and where == "counts_file":
            (folder / "all.counts").mkdir()


def main() -> None:
    """What a process does: it writes what it has to say into a file of its number."""
    top, where, failing = sys.argv[1:]
    rank, message = os.environ["RANK"], "no error"
    try:
        calibrate(Path(top) / "run", where, failing == rank)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
    (Path(top) / rank).write_text(message)


if __name__ == "__main__":
    main()
