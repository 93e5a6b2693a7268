"""One file under two arguments, of which one is written: refused before anything is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from command_line import error_of, run
from helpers import Decoder, config_for, tokens

FILES = ("config_file", "record_file", "counts_file", "snapshot_file")
PAIRS = [(a, b) for i, a in enumerate(FILES) for b in FILES[i + 1 :]]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def same(kind: str, path: Path) -> str:
    """Another name of a file, which is made."""
    other = path.with_name("other name")
    if kind == "symlink":
        other.symlink_to(path)
    elif kind == "hard link":
        os.link(path, other)
    else:
        return f"{path.parent}/../{path.parent.name}/{path.name}"
    return str(other)


@pytest.mark.parametrize("kind", ["path", "symlink", "hard link"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
@pytest.mark.parametrize("call", ["create_quant_cali_model", "calibrate"])
def test_calibration(call: str, one: str, two: str, kind: str, tmp_path: Path) -> None:
    model = Decoder()
    paths: dict[str, Any] = {name: str(tmp_path / name) for name in FILES}
    paths["config_file"] = config_for(tmp_path, model)
    if one != "config_file":
        Path(paths[one]).write_text("")
    paths[two] = same(kind, Path(paths[one]))
    before = files_in(tmp_path)

    def begin() -> None:
        config, record = paths.pop("config_file"), paths.pop("record_file")
        if call == "create_quant_cali_model":
            amct.create_quant_cali_model(config, record, model, **paths)
        else:
            with amct.calibrate(model, config, record, **paths):
                raise AssertionError

    with pytest.raises(ValueError, match=rf"({one} and {two}|{two} and {one}) are both '.*'; one would"):
        begin()
    assert files_in(tmp_path) == before
    with pytest.raises(RuntimeError, match="holds no calibration"):
        amct.calibration_run(model)


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_calibration_by_processes(one: str, two: str, tmp_path: Path) -> None:
    model = Decoder()
    paths: dict[str, Any] = {name: str(tmp_path / name) for name in FILES}
    paths["config_file"] = config_for(tmp_path, model)
    if two == "snapshot_file":  # that of this rank
        Path(paths["config_file"]).rename(tmp_path / "config_file")
        paths["config_file"] = str(tmp_path / "config_file")
        Path(paths[one]).touch()
        Path(paths[one]).rename(tmp_path / "snapshot_file.rank0")
        paths[one] = str(tmp_path / "snapshot_file.rank0")
    else:
        paths[two] = paths[one]
    before = files_in(tmp_path)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def begin() -> None:
        config, record = paths.pop("config_file"), paths.pop("record_file")
        with amct.calibrate(model, config, record, process_group=torch.distributed.group.WORLD, **paths):
            raise AssertionError

    try:
        with pytest.raises(ValueError, match=rf"({one} and {two}|{two} and {one}) are both '.*'; one would"):
            begin()
    finally:
        torch.distributed.destroy_process_group()
    assert {name: content for name, content in files_in(tmp_path).items() if name != "store"} == before


def test_counts_records_and_configurations(tmp_path: Path) -> None:
    model, counts, record = Decoder(), tmp_path / "all.counts", tmp_path / "record.txt"
    config = config_for(tmp_path, model)
    with amct.calibrate(model, config, str(record), counts_file=str(counts)):
        model(tokens())
    definition = tmp_path / "d.cfg"
    definition.write_text("batch_num: 1")
    copy = Path(shutil.copy(counts, tmp_path / "copy.counts"))
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=f"record_file and counts_file are both '{counts}'"):
        amct.solve_counts(counts, counts)
    with pytest.raises(ValueError, match=rf"output and counts_files\[1\] are both '{counts}'"):
        amct.merge_counts([copy, counts], counts)
    with pytest.raises(ValueError, match=f"config_file and config_defination are both '{definition}'"):
        amct.create_quant_cali_config(str(definition), model, config_defination=str(definition))
    with pytest.raises(ValueError, match=f"output and record_file are both '{record}'"):
        amct.export_record(record, "json", record)
    with pytest.raises(ValueError, match=f"output and record_file are both '{record}'"):
        amct.report(record, counts, record, format="json")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "one", "two"),
    [
        ("config --model M", "--output", "--definition"),
        ("calibrate --model M", "--record", "--text"),
        ("calibrate --model M --text x", "--counts", "--config"),
        ("calibrate --model M --token-ids x", "--counts", "--snapshot"),
        ("recommend --model M --text x", "--record", "--counts"),
        ("report --record r --counts x", "--output", "--evaluation"),
    ],
)
def test_commands(words: str, one: str, two: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("[]")
    result = run(*words.split(), one, path, two, path)
    assert result.exit_code == 2
    assert error_of(result) == f"{one} and {two} are both '{path}'; one would replace the other"
    assert path.read_text() == "[]"
