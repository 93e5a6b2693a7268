"""Whatever writes a file: links, folders, full disks and missing rights; signals; two at once."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import amct_pytorch as amct
import pytest
from command_line import error_of, run, saved_model
from helpers import Decoder, config_for, run_python, tokens
from report_files import calibrated_files

AMCT = Path(sysconfig.get_path("scripts")) / "amct"

Write = Callable[[Path, str], object]


def _calibrate(folder: Path, **files: str) -> None:
    model = Decoder()
    given = {"record_file": str(folder / "scratch" / "record.txt"), **files}
    with amct.calibrate(model, str(folder / "config.json"), **given):  # type: ignore[arg-type]
        model(tokens())
        model(tokens())


def _snapshot(folder: Path, path: str) -> None:
    model = Decoder()
    record = str(folder / "scratch" / "record.txt")

    class StopError(Exception):
        """The run is broken off; one that ends removes its snapshot."""

    with (
        contextlib.suppress(StopError),
        amct.calibrate(model, str(folder / "config.json"), record, snapshot_file=path) as run,
    ):
        model(tokens())
        run.save_snapshot()
        raise StopError


def _operator(folder: Path, path: str) -> None:
    amct.QuantCalibrationOp(path)("a", tokens())


def _amct(*arguments: object) -> None:
    result = subprocess.run([AMCT, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        assert result.returncode == 1, result
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("amct: ")
        raise RuntimeError(result.stderr)


# What writes a file: it takes a folder with a record, counts and a configuration, and the path to write.
WRITERS: dict[str, Write] = {
    "configuration": lambda folder, path: amct.create_quant_cali_config(path, Decoder()),
    "record": lambda folder, path: _calibrate(folder, record_file=path),
    "counts": lambda folder, path: _calibrate(folder, counts_file=path),
    "snapshot": _snapshot,
    "operator": _operator,
    "solve": lambda folder, path: amct.solve_counts(folder / "all.counts", path),
    "merge": lambda folder, path: amct.merge_counts([folder / "all.counts"], path),
    "json": lambda folder, path: amct.export_record(folder / "record.txt", "json", path),
    "npz": lambda folder, path: amct.export_record(folder / "record.txt", "npz", path),
    "html": lambda folder, path: amct.report(folder / "record.txt", folder / "all.counts", path),
    "md": lambda folder, path: amct.report(folder / "record.txt", folder / "all.counts", path, format="md"),
    "amct solve": lambda folder, path: _amct("solve", folder / "all.counts", "-o", path),
    "amct merge": lambda folder, path: _amct("merge", folder / "all.counts", "-o", path),
    "amct export": lambda folder, path: _amct("export", folder / "record.txt", "--to", "npz", "-o", path),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sources")
    calibrated_files(made)
    config_for(made, Decoder(), None, "batch_num: 2")
    return made


def left_behind(folder: Path) -> list[str]:
    """Files that only exist while others are written."""
    return [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".lock")]


@pytest.mark.parametrize("name", WRITERS)
class TestEveryWriter:
    def test_a_link_is_replaced_and_not_followed(self, name: str, folder: Path, tmp_path: Path) -> None:
        elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
        elsewhere.mkdir()
        here.mkdir()
        (elsewhere / "precious").write_text("")  # as empty as a record that an operator may go on with
        for link, target in ((here / "link", "precious"), (here / "dangling", "none")):
            link.symlink_to(elsewhere / target)
            WRITERS[name](folder, str(link))
            assert not link.is_symlink()
            assert link.stat().st_size > 0
        assert (elsewhere / "precious").read_text() == ""
        assert sorted(path.name for path in elsewhere.iterdir()) == ["precious"]
        assert left_behind(tmp_path) == []

    def test_a_linked_folder_is_where_it_leads(self, name: str, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "linked").symlink_to(tmp_path / "real")
        WRITERS[name](folder, str(tmp_path / "linked" / "file"))
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]

    def test_a_folder_or_a_file_in_the_way(self, name: str, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("as it was")
        (tmp_path / "folder").mkdir()
        for target in ("folder", "folder/", "file/below", "file/a/b"):
            with pytest.raises((ValueError, NotADirectoryError, RuntimeError)) as caught:
                WRITERS[name](folder, f"{tmp_path}/{target}")
            message = str(caught.value).rstrip("\n")
            assert message.isprintable()
            assert str(tmp_path) in message
        assert (tmp_path / "file").read_text() == "as it was"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
        assert list((tmp_path / "folder").iterdir()) == []

    def test_a_name_that_cannot_be_one(self, name: str, folder: Path, tmp_path: Path) -> None:
        for target in ("", f"{tmp_path}/{'n' * 256}", f"{tmp_path}/nul\0inside"):
            if name.startswith("amct ") and "\0" in target:
                continue  # no argument of a process holds one
            with pytest.raises((ValueError, RuntimeError)) as caught:
                WRITERS[name](folder, target)
            assert str(caught.value).rstrip("\n").isprintable()
        assert list(tmp_path.iterdir()) == []


# Every writer of Python, in an interpreter of its own; what must go wrong is in `expected`.
EVERY_WRITER = """
import os, pathlib, resource, shutil, sys
sys.path.insert(0, sys.argv[1])
import torch
import test_io_faults as t
source, place = map(pathlib.Path, sys.argv[2:4])
writers = {name: write for name, write in t.WRITERS.items() if not name.startswith("amct ")}

def each(expected, is_there):
    for name, write in writers.items():
        target = place / name
        before = target.read_bytes() if is_there else None
        try:
            write(source, str(target))
        except OSError as error:
            assert error.errno == expected, (name, error)
            assert str(target) in str(error), (name, error)
        else:
            raise SystemExit(f"{name}: it was written")
        if is_there:
            # A run empties its record before it begins.
            assert target.read_bytes() == before or (name == "record" and not target.read_bytes()), name
        else:
            assert not target.exists(), name
    assert t.left_behind(place) == [], t.left_behind(place)
"""


class TestEveryWriterOfPython:
    def test_a_disk_that_becomes_full(self, folder: Path, tmp_path: Path) -> None:
        script = f"""
scratch = source / "scratch"
scratch.mkdir(exist_ok=True)
for name, write in writers.items():
    write(source, str(place / name))
t.calibrate_into_the_scratch(source)
resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
each({errno.EFBIG}, True)
"""
        run_python(
            EVERY_WRITER + script, Path(__file__).parent, copied(folder, tmp_path), made(tmp_path / "out")
        )

    def test_a_folder_that_may_not_be_written(self, folder: Path) -> None:
        place = Path(tempfile.mkdtemp(dir="/var/tmp"))
        try:
            place.chmod(0o755)
            (place / "out").mkdir()
            source = copied(folder, place)
            script = f"""
for write in writers.values():
    write(source, str(place / "warm"))  # who has no rights may not be able to import what it takes
    (place / "warm").unlink()
if os.geteuid() == 0:
    for path in [place, source, *source.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # root may write anywhere
place.chmod(0o555)
each({errno.EACCES}, False)
"""
            run_python(EVERY_WRITER + script, Path(__file__).parent, source, place / "out")
        finally:
            shutil.rmtree(place)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def copied(folder: Path, to: Path) -> Path:
    source = made(to / "source")
    for name in ("record.txt", "all.counts", "config.json"):
        shutil.copy(folder / name, source / name)
        (source / name).chmod(0o644)
    (source / "scratch").mkdir()
    return source


def calibrate_into_the_scratch(folder: Path) -> None:
    """What writers need besides their target is there before the disk is full."""
    _calibrate(folder)


class TestCommands:
    """Exit codes are those of docs/reference/exit-codes.md."""

    def test_files_that_cannot_be_read(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "dangling").symlink_to("none")
        (tmp_path / "loop").symlink_to("loop")
        for bad in ("none", "folder", "dangling", "loop", "none/below"):
            for arguments in (
                ["inspect", tmp_path / bad],
                ["solve", tmp_path / bad, "-o", tmp_path / "x"],
                ["merge", folder / "all.counts", tmp_path / bad, "-o", tmp_path / "x"],
                ["diff", folder / "record.txt", tmp_path / bad],
                ["export", tmp_path / bad, "--to", "json", "-o", tmp_path / "x"],
            ):
                with pytest.raises(RuntimeError, match=bad):
                    _amct(*arguments)
            counts = folder / "all.counts"
            output = tmp_path / "x"
            message = error_of(run("report", "--record", tmp_path / bad, "--counts", counts, "-o", output))
            assert bad in message
        with pytest.raises(RuntimeError, match="a pipe or a device"):
            _amct("solve", tmp_path / "pipe", "-o", tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_output_that_nobody_takes(self, folder: Path) -> None:
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(
                [AMCT, "inspect", folder / "record.txt"], stdout=full, stderr=subprocess.PIPE
            )
        assert (result.returncode, result.stderr) == (1, b"amct: the output cannot be written\n")

    def test_two_that_write_one_record(self, folder: Path, tmp_path: Path) -> None:
        """Each is done, or is told who writes; the record is that of one of them, whole."""
        ways = ([], ["--algorithm", "minmax"])
        expected = []
        for number, way in enumerate(ways):
            _amct("solve", folder / "all.counts", "-o", tmp_path / f"{number}.txt", *way)
            expected.append((tmp_path / f"{number}.txt").read_bytes())
        assert expected[0] != expected[1]
        record = tmp_path / "record.txt"
        command = [AMCT, "solve", folder / "all.counts", "-o", record]
        for _ in range(10):
            running = [
                subprocess.Popen([*command, *way], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
                for way in ways
            ]
            for process in running:
                _, err = process.communicate(timeout=60)
                assert process.returncode == 0, err
            assert record.read_bytes() in expected
        assert left_behind(tmp_path) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_amct_is_ended_at_any_moment(self, number: signal.Signals, folder: Path, tmp_path: Path) -> None:
        record = tmp_path / "record.txt"
        _amct("solve", folder / "all.counts", "-o", record)
        whole = record.read_bytes()
        generator = random.Random(0)
        ended = 0
        for _ in range(30):
            command = [AMCT, "solve", folder / "all.counts", "-o", record]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            time.sleep(generator.uniform(0, 0.03))
            process.send_signal(number)
            process.communicate(timeout=60)
            assert process.returncode in (0, -number)
            ended += process.returncode != 0
            assert record.read_bytes() == whole
        assert ended
        # A new file has a name for two calls of the system before it is in its place, and a record a lock.
        litter = [path for path in tmp_path.iterdir() if path != record]
        assert len(litter) <= 4
        for path in litter:
            assert path.suffix in (".tmp", ".lock")
            path.unlink()


# Forks a process for each run, so that torch is imported once.
ENDED = """
import os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch, transformers, transformers.models.llama.modeling_llama
import amct_pytorch as amct
from amct_pytorch.cli import main
folder, arguments = pathlib.Path(sys.argv[2]), sys.argv[3:]
generator = random.Random(1)
codes = []
for number in (signal.SIGINT, signal.SIGTERM) * 3:
    where = folder / str(len(codes))
    where.mkdir()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(where / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        files = ["--record", f"{where}/r/record.txt", "--counts", f"{where}/r/counts"]
        sys.argv[1:] = ["calibrate", *arguments, *files]
        main()
        os._exit(99)
    while not (where / "r").exists():  # it has begun
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (where / "stderr").read_text()
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.3))
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (where / "stderr").read_text()
    assert code in (128 + number, 0), (code, said)
    lines = said.splitlines()
    assert all(line.startswith("amct-pytorch: ") for line in lines), said
    # What was seen so far may be told as well.
    lines = [line for line in lines if "WARNING" not in line]
    assert lines == ["amct-pytorch: interrupted"] * (code != 0), said
    there = sorted(path.name for path in (where / "r").iterdir())
    assert there in ([], ["record.txt"], ["counts", "record.txt"]), there
    if "record.txt" in there:
        amct.read_record(where / "r/record.txt")
    if "counts" in there:
        amct.solve_counts(where / "r/counts")
    codes.append(code)
print(*codes)
"""


def test_amct_pytorch_is_ended_at_any_moment(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    arguments = saved_model(tmp_path, "llama")
    arguments = [*arguments[:4], "--sequence-length", "4", "--batches", "400", "--tap", "cache"]
    ids = tmp_path / "ids.json"
    ids.write_text(str([1 + i % 30 for i in range(1600)]))
    codes = run_python(ENDED, Path(__file__).parent, tmp_path, *arguments).stdout.split()
    assert len(codes) == 6
    assert {"130", "143"} <= set(codes)


@pytest.fixture(autouse=True)
def _whole_interpreter() -> Iterator[None]:
    """No test leaves a handler of signals behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before
    assert sys.exc_info() == (None, None, None)


def test_a_forked_process_that_ends_leaves_the_run_alone(tmp_path: Path) -> None:
    script = """
        import os, pathlib, sys
        sys.path.insert(0, sys.argv[1])
        import amct_pytorch as amct
        from helpers import Decoder, config_for, tokens
        model = Decoder()
        config = config_for(pathlib.Path("."), model, definition="batch_num: 2")
        with amct.calibrate(model, config, "record.txt"):
            model(tokens())
            before = sorted(os.listdir())
            child = os.fork()
            if child == 0:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert sorted(os.listdir()) == before and ".record.txt.lock" in before
            model(tokens())
        print(len(amct.read_record("record.txt")))
    """
    ended = run_python(script, Path(__file__).parent, cwd=tmp_path)
    assert ended.stdout.strip() == "4"
    assert "have no factors" not in ended.stderr
