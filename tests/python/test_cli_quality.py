"""The commands that measure and report, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import amct_pytorch as amct
import pytest
from amct_pytorch.recommend import Recommendation
from command_line import error_of, run, saved_model

pytest.importorskip("transformers")


class TestQuality:
    def _arguments(self, folder: Path) -> list[str]:
        arguments = saved_model(folder, "llama")[:4]
        return [*arguments, "--tokens", "12", "--windows", "3", "--calibration-windows", "2"]

    def test_compare(self, tmp_path: Path) -> None:
        settings = "int8,int4:per_tensor:mse,int8+int4:kl,fp8_e4m3:per_head"
        result = run("evaluate", *self._arguments(tmp_path), "--compare", settings)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0].split()[:3] == ["setting", "perplexity", "loss"]
        assert lines[1].startswith("full precision")
        assert {line.split()[0] for line in lines[2:6]} == set(settings.split(","))
        assert lines[-1].startswith("33 tokens.")

    def test_a_record_of_some_layers_or_none(self, tmp_path: Path) -> None:
        arguments, record = self._arguments(tmp_path), tmp_path / "record.txt"
        assert run("calibrate", *saved_model(tmp_path, "llama"), "--record", record).exit_code == 0
        factors = amct.read_record(record)
        text = record.read_text()
        record.write_text(text[: text.index("record {", 1)])
        result = run("evaluate", *arguments, "--record", record)
        assert result.exit_code == 0
        assert len(amct.read_record(record)) == 1
        assert f"no factors of {len(factors) - 1} of {len(factors)} layers" in result.stderr
        record.write_text("")
        assert "has no factors of this model's layers" in error_of(
            run("evaluate", *arguments, "--record", record, "--max-loss", "0.5")
        )

    def test_nothing_that_keeps_the_loss(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing = Recommendation(None, {"a": "full"}, {}, [], [])
        monkeypatch.setattr("amct_pytorch._command_quality.recommend_for", lambda *_, **__: nothing)
        options = ["--max-loss", "0.2", "--record", tmp_path / "record.txt"]
        result = run("recommend", *self._arguments(tmp_path), *options)
        assert result.exit_code == 3
        assert "no setting keeps the loss of 0.2%" in result.stderr
        for max_loss in ("nan", "-1"):
            refused = run("recommend", *self._arguments(tmp_path), "--max-loss", max_loss)
            assert error_of(refused).startswith("--max-loss must be a percentage")

    def test_nothing_is_calibrated(self, tmp_path: Path) -> None:
        options = ["--tap", "cache", "--sink-tokens", "99", "--record", tmp_path / "record.txt"]
        result = run("calibrate", *saved_model(tmp_path, "llama"), *options)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "no layer was reached" in result.stderr.splitlines()[-1]

    def test_keys_weighed_by_queries(self, tmp_path: Path) -> None:
        settings = ["int4:per_tensor:mse", "int4:per_tensor:mse:query_weighted"]
        result = run("evaluate", *self._arguments(tmp_path), "--compare", ",".join(settings), "--json")
        assert result.exit_code == 0, result.stderr
        found = {one["name"]: one["kl"] for one in json.loads(result.stdout)["candidates"]}
        assert set(found) == set(settings)
        assert found[settings[0]] != found[settings[1]]

    def test_a_record_with_layers_as_json(self, tmp_path: Path) -> None:
        arguments = self._arguments(tmp_path)
        record = str(tmp_path / "record.txt")
        assert run("calibrate", *saved_model(tmp_path, "llama"), "--record", record).exit_code == 0
        result = run("evaluate", *arguments, "--record", record, "--layers", "--json")
        assert result.exit_code == 0, result.stderr
        content = json.loads(result.stdout)
        assert content["candidates"][0]["name"] == record
        assert content["candidates"][0]["layers"][0]["sqnr_db"] > 20
        assert "SQNR" in run("evaluate", *arguments, "--record", record, "--layers").stdout

    def test_counts_that_were_saved(self, tmp_path: Path) -> None:
        counts = tmp_path / "all.counts"
        options = [
            "--tap",
            "cache",
            "--granularity",
            "per_channel",
            "--dst-type",
            "INT4",
            "--sink-tokens",
            "2",
        ]
        record = str(tmp_path / "record.txt")
        calibrated = run(
            "calibrate",
            *saved_model(tmp_path, "llama"),
            *options,
            "--record",
            record,
            "--counts",
            str(counts),
        )
        assert calibrated.exit_code == 0, calibrated.stderr
        factors = amct.read_record(record)
        assert {(of_one.dst_type, of_one.sink_tokens) for of_one in factors.values()} == {("INT4", 2)}
        result = run("evaluate", *self._arguments(tmp_path), "--counts", str(counts), "--compare", "int8")
        assert result.exit_code == 0, result.stderr

    def test_recommend(self, tmp_path: Path) -> None:
        record = tmp_path / "mixed.txt"
        arguments = [*self._arguments(tmp_path), "--record", str(record)]
        result = run("recommend", *arguments, "--max-loss", "1000")
        assert result.exit_code == 0, result.stderr
        assert "Recommended: 4 layers int4:per_channel:minmax" in result.stdout
        assert {of_one.dst_type for of_one in amct.read_record(record).values()} == {"INT4"}
        content = json.loads(run("recommend", *arguments, "--max-loss", "1000", "--json").stdout)
        assert len(content["settings"]) == 4

    def test_the_exit_code_says_whether_the_loss_is_kept(self, tmp_path: Path) -> None:
        arguments = [*self._arguments(tmp_path), "--compare", "int8"]
        assert run("evaluate", *arguments, "--max-loss", "50").exit_code == 0
        assert run("evaluate", *arguments, "--max-loss", "-50").exit_code == 3

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            ([], 2, "name what to evaluate"),
            (["--compare", "int9"], 2, "'int9' is no format"),
            (["--compare", "int8,"], 2, "'' is no format"),
            (["--compare", "int8", "--windows", "90"], 1, "fewer than 92 windows"),
            (["--compare", "int8", "--num-tokens", "9"], 2, "--windows and --num-tokens both"),
            (["--compare", "int8", "--calibration-windows", "0"], 2, "the calibration needs windows"),
            (["--record", "r", "--calibration-text", "t"], 2, "nothing is calibrated here"),
            (["--compare", "int8", "--calibration-text", "t", "--calibration-jsonl", "j"], 2, "leave one"),
        ],
    )
    def test_what_is_refused(self, options: list[str], code: int, words: str, tmp_path: Path) -> None:
        result = run("evaluate", *self._arguments(tmp_path), *options)
        assert words in error_of(result)
        assert result.exit_code == code

    def test_windows_that_were_calibrated_on_are_left_out(self, tmp_path: Path) -> None:
        """Of a record they are those of `calibrate` with the same text, length and seed."""
        arguments = self._arguments(tmp_path)[:4]
        record = tmp_path / "record.txt"
        for seed in ([], ["--seed", "7"]):
            same = [*arguments, "--sequence-length", "12", *seed]
            assert run("calibrate", *same, "--batches", "2", "--record", record).exit_code == 0
            results = [
                json.loads(run("evaluate", *same, "--windows", "3", *options, "--json").stdout)["perplexity"]
                for options in (
                    ["--compare", "int8", "--calibration-windows", "2"],
                    ["--record", record, "--calibration-windows", "2"],
                    ["--record", record],
                )
            ]
            assert results[0] == results[1] != results[2]

    def test_by_tokens_with_batches_for_the_calibration(self, tmp_path: Path) -> None:
        arguments = [*self._arguments(tmp_path)[:4], "--sequence-length", "12", "--calibration-windows", "3"]
        compared = [*arguments, "--compare", "int8", "--json"]
        one = json.loads(run("evaluate", *compared, "--num-tokens", "30").stdout)
        assert one["tokens"] == 3 * 11
        other = json.loads(run("evaluate", *compared, "--windows", "3", "--batch-size", "2").stdout)
        # Counts are the same however the windows are put into batches, but for the rounding of the model.
        assert other["candidates"][0]["kl"] == pytest.approx(one["candidates"][0]["kl"], rel=0.05)

    def test_recent_tokens(self, tmp_path: Path) -> None:
        arguments = [*self._arguments(tmp_path), "--compare", "int4", "--json"]
        kl = [
            json.loads(run("evaluate", *arguments, "--recent-tokens", recent).stdout)["candidates"][0]["kl"]
            for recent in ("0", "12")
        ]
        assert kl[0] > 1e-6
        assert kl[1] == pytest.approx(0, abs=1e-7)


class TestReport:
    def test_from_a_calibration_to_a_page(self, tmp_path: Path) -> None:
        record, counts = str(tmp_path / "record.txt"), str(tmp_path / "all.counts")
        options = ["--tap", "cache", "--granularity", "per_channel", "--record", record, "--counts", counts]
        assert run("calibrate", *saved_model(tmp_path, "llama"), *options).exit_code == 0
        page = tmp_path / "report.html"
        result = run("report", "--record", record, "--counts", counts, "-o", str(page))
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith(f"{page}: ")
        assert "model.layers.0.self_attn.k_proj" in page.read_text()
        arguments = ["--record", record, "--counts", counts, "-o", str(tmp_path / "report.json")]
        evaluation = tmp_path / "evaluation.json"
        evaluation.write_text('{"perplexity": 12.5}')
        assert run("report", *arguments, "--format", "json", "--evaluation", str(evaluation)).exit_code == 0
        assert json.loads((tmp_path / "report.json").read_text())["evaluation"] == {"perplexity": 12.5}

    def test_json(self, tmp_path: Path) -> None:
        record, counts = str(tmp_path / "record.txt"), str(tmp_path / "all.counts")
        # Keys per channel at the projection are to be looked at.
        options = ["--granularity", "per_channel", "--record", record, "--counts", counts]
        assert run("calibrate", *saved_model(tmp_path, "llama"), *options).exit_code == 0
        page = tmp_path / "report.md"
        result = run("report", "--record", record, "--counts", counts, "--format", "md", "-o", page, "--json")
        content = json.loads(result.stdout)
        assert (content["report"], content["severity"]) == (str(page), "look")
        assert f"**{content['verdict']}**" in page.read_text()
        assert content["reasons"]

    def test_what_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bad").write_text("nothing")
        result = run("report", "--record", "none", "--counts", "none", "--evaluation", str(tmp_path / "bad"))
        assert "is not JSON" in error_of(result)
