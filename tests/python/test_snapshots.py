"""Runs that are broken, and go on from a snapshot."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import _snapshots
from amct_pytorch._snapshots import Forwards, header_of
from families import tiny
from helpers import calibrated, run_python, tokens
from test_cache_tap import NAMES, definition, ids

transformers = pytest.importorskip("transformers")

BATCHES = 6


def config_of(folder: Path, model: torch.nn.Module, tap: str = "cache", reach: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    text = definition("per_channel", reach, BATCHES).replace("tap: cache", f"tap: {tap}")
    (folder / "d.cfg").write_text(text)
    amct.create_quant_cali_config(
        str(folder / "config.json"),
        model,
        {"kv_cache_quant_layers": NAMES},
        str(folder / "d.cfg"),
    )
    return str(folder / "config.json")


def show(model: torch.nn.Module, begin: int, end: int) -> None:
    with torch.inference_mode():
        for i in range(begin, end):
            model(ids(i), use_cache=True)


@pytest.mark.parametrize("tap", ["linear", "cache"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_record_is_that_of_a_run_that_was_not_broken(tap: str, every: int, tmp_path: Path) -> None:
    whole = tiny("llama")
    amct.create_quant_cali_model(config_of(tmp_path, whole, tap, 32), str(tmp_path / "whole.txt"), whole)
    show(whole, 0, BATCHES)
    snapshot, record = tmp_path / "run.snapshot", tmp_path / "record.txt"
    options: dict[str, Any] = {"snapshot_file": str(snapshot), "snapshot_batches": every, "resume": True}
    begin = 0
    for end in (1, 4, 5, BATCHES):
        model = tiny("llama")
        amct.create_quant_cali_model(config_of(tmp_path, model, tap, 32), str(record), model, **options)
        run = amct.calibration_run(model)
        assert run.batches_done == begin
        show(model, begin, end)
        assert run.batches_done == end
        assert snapshot.exists() == (every <= end < BATCHES)
        begin += (end - begin) // every * every
        amct.remove_quant_cali(model)
    assert record.read_bytes() == (tmp_path / "whole.txt").read_bytes()


def test_without_a_snapshot_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    with amct.calibrate(
        model,
        config_of(tmp_path, model),
        str(tmp_path / "record.txt"),
        snapshot_file=str(tmp_path / "run.snapshot"),
        snapshot_batches=2,
        resume=True,
    ) as run:
        assert run.batches_done == 0
        show(model, 0, 3)
        assert (tmp_path / "run.snapshot").exists()
    assert {layer.batches for layer in run.results()} == {3}
    assert not (tmp_path / "run.snapshot").exists()  # the calibration was concluded


def test_an_error_leaves_the_snapshot(tmp_path: Path) -> None:
    snapshot, model = tmp_path / "run.snapshot", tiny("llama")
    config, record = config_of(tmp_path, model), str(tmp_path / "record.txt")

    def interrupted() -> None:
        with amct.calibrate(model, config, record, snapshot_file=str(snapshot), snapshot_batches=1):
            show(model, 0, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert snapshot.exists()
    with amct.calibrate(model, config, record, snapshot_file=str(snapshot), resume=True) as run:
        assert run.batches_done == 3
        show(model, 3, BATCHES)
        assert not run.unfinished()


def test_layers_that_were_finished_before_are_in_the_record_at_once(tmp_path: Path) -> None:
    """Layers that not every forward reaches finish at different times."""
    options: dict[str, Any] = {"snapshot_file": str(tmp_path / "snapshot"), "resume": True}
    text = "batch_num: 2 kv_cache_quant_config { calibration_config { minmax_quantize { } } }"

    def started() -> tuple[torch.nn.Module, Any]:
        torch.manual_seed(0)
        model = Sometimes()
        calibrated(tmp_path / "run", model, ["always", "rare"], text, snapshot_batches=1, **options)
        return model, amct.calibration_run(model)

    model, run = started()
    model(tokens(), False)
    model(tokens(), True)
    assert run.unfinished() == {"rare": (1, 2)}
    model, run = started()
    assert run.batches_done == 2
    assert list(amct.read_record(tmp_path / "run" / "record.txt")) == ["always"]
    assert [(layer.name, layer.batches) for layer in run.results()] == [("always", 2)]
    model(tokens(), True)
    assert list(amct.read_record(tmp_path / "run" / "record.txt")) == ["always", "rare"]


class Sometimes(torch.nn.Module):
    """A layer that each forward reaches, and one that some do."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, all_of_it: bool) -> torch.Tensor:
        x = self.always(x)
        return self.rare(x) if all_of_it else x


def test_a_forward_that_failed_is_not_counted(tmp_path: Path) -> None:
    model = tiny("llama")
    amct.create_quant_cali_model(
        config_of(tmp_path, model),
        str(tmp_path / "record.txt"),
        model,
        snapshot_file=str(tmp_path / "snapshot"),
        snapshot_batches=1,
    )
    run = amct.calibration_run(model)
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        show(model, 0, 1)
    hook.remove()
    assert run.batches_done == 0
    show(model, 0, 1)
    assert run.batches_done == 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_part_of_a_batch_is_not_saved(error: type[BaseException], tmp_path: Path) -> None:
    """Who goes on from it would show the batch again, and some layers would have seen it twice."""
    snapshot, model = tmp_path / "snapshot", tiny("llama")
    options: dict[str, Any] = {"snapshot_file": str(snapshot), "snapshot_batches": 1}
    config = config_of(tmp_path, model)
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model, **options)
    run = amct.calibration_run(model)
    show(model, 0, 1)
    before = snapshot.read_bytes()

    def fail(module: torch.nn.Module, args: Any) -> None:
        with pytest.raises(RuntimeError, match="or one still runs"):
            run.save_snapshot()
        raise error

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        show(model, 1, 2)
    hook.remove()
    with pytest.raises(RuntimeError, match="did not end as it should"):
        run.save_snapshot()
    assert snapshot.read_bytes() == before
    show(model, 1, 2)  # whoever goes on all the same has a run like any other
    assert run.batches_done == 2
    again = tiny("llama")
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), again, **options, resume=True)
    assert amct.calibration_run(again).batches_done == 2
    assert amct.calibration_run(again).unfinished() == run.unfinished()


def test_a_forward_that_ends_after_another_failed_saves_nothing() -> None:
    """What the failed one has shown to some layers only would be in the snapshot."""
    forwards, saved = Forwards(0), []
    in_thread = concurrent.futures.ThreadPoolExecutor(1)

    def end(completed: bool) -> None:
        forwards.end(completed, lambda done: True, saved.append)

    in_thread.submit(forwards.begin).result()
    forwards.begin()
    end(False)
    in_thread.submit(end, True).result()
    assert (forwards.is_torn, forwards.done, saved) == (True, 1, [])
    forwards.begin()
    end(True)
    assert (forwards.is_torn, forwards.done, saved) == (False, 2, [2])


def test_forwards_of_a_part_of_the_model_are_not_saved(tmp_path: Path) -> None:
    """Nothing counts them, so that whoever goes on would show them again."""
    model = tiny("llama")
    snapshot = tmp_path / "snapshot"
    config, record = config_of(tmp_path, model), str(tmp_path / "record.txt")
    amct.create_quant_cali_model(config, record, model, snapshot_file=str(snapshot))
    model.model(ids(), use_cache=True)
    with pytest.raises(RuntimeError, match="call the model that was given"):
        amct.calibration_run(model).save_snapshot()
    assert not snapshot.exists()


def test_what_a_full_disk_kept_from_the_files_is_gone_on_from(tmp_path: Path) -> None:
    snapshot, counts, record = tmp_path / "snapshot", tmp_path / "all.counts", tmp_path / "record.txt"
    options: dict[str, Any] = {"counts_file": str(counts), "snapshot_file": str(snapshot)}
    model = tiny("llama")
    config = config_of(tmp_path, model)

    def end_on_a_full_disk() -> None:
        with amct.calibrate(model, config, str(record), **options, snapshot_batches=1) as run:
            show(model, 0, BATCHES - 1)
            with files_of_at_most(4000), pytest.raises(OSError, match="is lost") as caught:
                show(model, BATCHES - 1, BATCHES)
            assert caught.value.filename == str(counts)
            run.write_record()

    with pytest.raises(RuntimeError, match=r"the counts file '.*' could not be written"):
        end_on_a_full_disk()
    assert list(amct.read_record(record)) == NAMES
    assert not counts.exists()
    with amct.calibrate(model, config, str(record), **options, resume=True) as run:
        assert run.batches_done == BATCHES - 1
        show(model, BATCHES - 1, BATCHES)
    assert not snapshot.exists()
    at_once, again = tmp_path / "once.counts", tiny("llama")
    with amct.calibrate(again, config, str(tmp_path / "once.txt"), counts_file=str(at_once)):
        show(again, 0, BATCHES)
    for path in (counts, at_once):
        amct.solve_counts(str(path), f"{path}.txt", act_algo="mse")
    assert Path(f"{counts}.txt").read_bytes() == Path(f"{at_once}.txt").read_bytes()


def test_a_snapshot_stays_until_the_record_is_written(tmp_path: Path) -> None:
    snapshot, record, model = tmp_path / "snapshot", tmp_path / "record.txt", tiny("llama")
    config = config_of(tmp_path, model)
    amct.create_quant_cali_model(config, str(record), model, snapshot_file=str(snapshot), snapshot_batches=1)
    run = amct.calibration_run(model)
    show(model, 0, BATCHES - 1)
    record.write_text("no record")
    with pytest.raises(ValueError, match="record"):
        show(model, BATCHES - 1, BATCHES)
    assert snapshot.exists()
    record.unlink()
    show(model, BATCHES - 1, BATCHES)  # for the layers behind the one that could not be written
    run.write_record()
    assert list(amct.read_record(record)) == NAMES
    assert not snapshot.exists()


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let files of this process become no larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_threads_that_always_overlap_are_held_for_a_snapshot(tmp_path: Path) -> None:
    model = tiny("llama")
    snapshot = tmp_path / "snapshot"
    config = config_of(tmp_path, model)
    amct.create_quant_cali_model(
        config, str(tmp_path / "record.txt"), model, snapshot_file=str(snapshot), snapshot_batches=1
    )
    run = amct.calibration_run(model)
    both = threading.Barrier(2, timeout=10)
    lags = []

    def wait(module: torch.nn.Module, args: Any) -> None:
        # Each forward goes on as the next one begins, so that there is never none.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)

    hook = model.model.layers[1].register_forward_pre_hook(wait)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        def work(i: int) -> None:
            show(model, i, i + 1)
            lags.append(run.batches_done - run._snapshots.saved_batch)

        list(pool.map(work, range(BATCHES - 1)))
    hook.remove()
    assert min(lags) == 0
    assert max(lags) <= 2


def test_forwards_of_threads_are_saved_between_them(tmp_path: Path) -> None:
    model = tiny("llama")
    snapshot = tmp_path / "snapshot"
    config = config_of(tmp_path, model)
    options: dict[str, Any] = {"snapshot_file": str(snapshot), "snapshot_batches": 1}
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), model, **options)
    run = amct.calibration_run(model)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: show(model, i, i + 1), range(BATCHES - 1)))
    assert run.batches_done == BATCHES - 1
    again = tiny("llama")
    amct.create_quant_cali_model(config, str(tmp_path / "record.txt"), again, **options, resume=True)
    assert set(amct.calibration_run(again).unfinished().values()) == {(BATCHES - 1, BATCHES)}


def test_what_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    config, record, snapshot = config_of(tmp_path, model), str(tmp_path / "r.txt"), tmp_path / "snapshot"

    def refused(error: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            amct.create_quant_cali_model(config, record, model, **options)
        assert not Path(record).exists()
        with pytest.raises(RuntimeError):
            amct.calibration_run(model)  # it was left alone

    refused(ValueError, "need a snapshot_file", resume=True)
    refused(ValueError, "need a snapshot_file", snapshot_minutes=1)
    refused(ValueError, "snapshot_batches must be > 0", snapshot_file=str(snapshot), snapshot_batches=0)
    refused(TypeError, "snapshot_minutes must be a number", snapshot_file=str(snapshot), snapshot_minutes="1")
    refused(TypeError, "resume must be a bool", snapshot_file=str(snapshot), resume=1)
    refused(ValueError, "is a folder", snapshot_file=str(tmp_path))
    refused(ValueError, "need a snapshot_file", snapshot_data="x")
    refused(TypeError, "snapshot_data must be a str", snapshot_file=str(snapshot), snapshot_data=1)
    snapshot.write_bytes(b"AMCTsnp\x01 and no more")
    refused(ValueError, "the snapshot is damaged", snapshot_file=str(snapshot), resume=True)
    snapshot.write_text("something else")
    refused(ValueError, "this is not a snapshot", snapshot_file=str(snapshot), resume=True)


def test_time_makes_a_snapshot_due(tmp_path: Path) -> None:
    model = tiny("llama")
    snapshot = tmp_path / "snapshot"
    amct.create_quant_cali_model(
        config_of(tmp_path, model),
        str(tmp_path / "record.txt"),
        model,
        snapshot_file=str(snapshot),
        snapshot_minutes=1e-9,
    )
    show(model, 0, 1)
    # A second name keeps the first snapshot; times of files may be too coarse to tell two apart.
    first = tmp_path / "first"
    first.hardlink_to(snapshot)
    show(model, 1, 2)
    assert not snapshot.samefile(first)


@pytest.mark.parametrize("minutes", [None, 10, 0.5])
def test_a_snapshot_is_due_when_its_minutes_are_over(
    minutes: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(_snapshots, "time", types.SimpleNamespace(monotonic=lambda: now))
    model, snapshot = tiny("llama"), tmp_path / "snapshot"
    options = {} if minutes is None else {"snapshot_minutes": minutes}
    amct.create_quant_cali_model(
        config_of(tmp_path, model),
        str(tmp_path / "record.txt"),
        model,
        snapshot_file=str(snapshot),
        **options,
    )

    def saved_batches() -> int:
        return header_of(str(snapshot))[0] if snapshot.exists() else 0

    interval = 60.0 * (10 if minutes is None else minutes)
    for saved in (0, 1):  # the second interval begins with the first snapshot
        now = 1000 + saved * interval + interval - 1
        show(model, 2 * saved, 2 * saved + 1)
        assert saved_batches() == 2 * saved
        now += 1
        show(model, 2 * saved + 1, 2 * saved + 2)
        assert saved_batches() == 2 * saved + 2


def test_a_killed_run_loses_less_than_the_interval(tmp_path: Path) -> None:
    """Killed after a forward or within the next one, and gone on with to the same record.

    Each run is a process, forked since importing torch again takes seconds; nothing starts a thread before.
    """
    ended = run_python(
        """
        import os, pathlib, signal, sys
        sys.path.insert(0, sys.argv[2])
        import amct_pytorch as amct
        from helpers import Decoder, config_for, tokens

        folder, batches = pathlib.Path(sys.argv[1]), 8

        def run(name, dies_after, is_within, **options):
            model = Decoder()
            die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            with amct.calibrate(model, config, str(folder / name), **options) as calibration:
                done = calibration.batches_done
                for i in range(done, batches):
                    if i == dies_after:
                        (model.layers[1] if is_within else model).register_forward_pre_hook(die, prepend=True)
                    model(tokens(i))
            return done

        def in_a_process(*args, **options):
            pid = os.fork()
            if pid == 0:
                os._exit(100 + run(*args, **options))
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        config = config_for(folder, Decoder(), None, f"batch_num: {batches}")
        assert in_a_process("whole", None, False) == 100
        for dies_after in (1, 2, 3, 5, 7):
            for is_within in (False, True):
                name = f"{dies_after}{is_within}"
                saving = {"snapshot_file": str(folder / f"{name}.snapshot"), "snapshot_batches": 3}
                assert in_a_process(name, dies_after, is_within, **saving) == -signal.SIGKILL
                done = in_a_process(name, None, False, resume=True, **saving) - 100
                print(dies_after, done)
                assert (folder / name).read_bytes() == (folder / "whole").read_bytes() != b""
        """,
        tmp_path,
        Path(__file__).parent,
    )
    runs = [tuple(map(int, line.split())) for line in ended.stdout.splitlines()]
    assert len(runs) == 10
    for shown, done in runs:
        assert shown - 3 < done <= shown


def test_no_snapshot_leaves_out_keys_that_wait(tmp_path: Path) -> None:
    """Those at the first position wait for a batch that tells how they are turned."""
    model = tiny("llama")
    snapshot = tmp_path / "snapshot"
    amct.create_quant_cali_model(
        config_of(tmp_path, model, "cache", 32),
        str(tmp_path / "record.txt"),
        model,
        snapshot_file=str(snapshot),
        snapshot_batches=1,
    )
    model(ids(length=1), use_cache=True)
    assert not snapshot.exists()
    with pytest.raises(RuntimeError, match="keys at the first position wait"):
        amct.calibration_run(model).save_snapshot()
    assert not snapshot.exists()
    model(ids(length=5), use_cache=True)
    assert snapshot.exists()
    assert set(amct.calibration_run(model).unfinished().values()) == {(2, BATCHES)}


def test_two_processes_do_not_write_one_record(tmp_path: Path) -> None:
    model = tiny("llama")
    config, record = config_of(tmp_path, model), tmp_path / "record.txt"
    script = (
        "import sys, time, amct_pytorch as amct\n"
        "from families import tiny\n"
        "amct.create_quant_cali_model(sys.argv[1], sys.argv[2], tiny('llama'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, config, str(record)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        message = rf"'{record}' is being written by another process \(process {other.pid} on "
        with pytest.raises(RuntimeError, match=message):
            amct.create_quant_cali_model(config, str(record), model)
        op = amct.QuantCalibrationOp(str(tmp_path / "other.txt"))
        op("layer", torch.ones(2, 4))  # another record is another matter
    finally:
        other.kill()
        other.wait()
    amct.create_quant_cali_model(config, str(record), model)
    show(model, 0, BATCHES)
    assert list(amct.read_record(record)) == NAMES
    assert not list(tmp_path.glob(".*"))
