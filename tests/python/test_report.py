"""Reports: what they say, and that their HTML holds nothing but itself."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch._report_model import Finding, Report, Severity
from amct_pytorch._report_names import MINUS, NONE, compact, number, percent, printable, short_names
from amct_pytorch._report_verdict import OUTLIER_RATIO, sqnr_limits
from helpers import DECODER_LAYERS, Decoder, config_for, mode_of, run_python, tokens
from report_files import KEY, NASTY, PER_CHANNEL, Odd, Skips, calibrated_files, evaluation_of


def made(record: Path, counts: Path, compare: Path | None = None, config_file: Path | None = None) -> Report:
    return amct.report(
        record, counts, record.parent / "report.json", compare=compare, config_file=config_file, format="json"
    )


def findings(made_report: Report, name: str = KEY) -> dict[str, Severity]:
    layer = next(layer for layer in made_report.layers if layer.name == name)
    return {finding.kind: finding.severity for finding in layer.findings}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a calibration that leaves nothing to be said."""
    return calibrated_files(tmp_path_factory.mktemp("files"))


class TestModel:
    def test_numbers_are_those_of_the_search(self, files: tuple[Path, Path]) -> None:
        found = made(*files)
        results = {result.name: result for result in amct.solve_counts(files[1])}
        assert [layer.name for layer in found.layers] == DECODER_LAYERS
        for layer in found.layers:
            result = results[layer.name]
            assert layer.quality is not None
            assert layer.quality.sqnr_db == pytest.approx(result.sqnr_db)
            assert layer.quality.clipped_fraction == pytest.approx(result.clipped_fraction)
            assert [group.scale for group in layer.quality.groups] == result.scales
            assert [group.offset for group in layer.quality.groups] == result.offsets
            assert (layer.batches, layer.rows, layer.channels) == (2, 32, 8)
            assert layer.histogram is not None
            assert sum(layer.histogram.counts) == layer.values == 32 * 8
            assert (layer.histogram.low, layer.histogram.high) == (result.min, result.max)
            assert 0.5 < layer.quality.chosen_factor < 1.5
        assert (found.batch_num, found.title) == (2, "record.txt")
        assert [layer.role for layer in found.layers] == ["key", "value"] * 2

    def test_nothing_to_be_said(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        amct.solve_counts(counts, record, quant_granularity="per_tensor")
        found = made(record, counts)
        assert found.severity == Severity.GOOD
        assert found.verdict.startswith("Good")
        assert found.reasons == []

    def test_keys_per_channel_at_the_projection(self, files: tuple[Path, Path]) -> None:
        found = made(*files)
        assert findings(found) == {"tap": Severity.LOOK}
        assert [(reason.kind, reason.layers) for reason in found.reasons] == [("tap", [0, 2])]
        assert found.verdict == "Look at 2 layers before you ship these factors."

    def test_fewer_batches(self, tmp_path: Path) -> None:
        found = made(*calibrated_files(tmp_path, seen=2, asked=5))
        assert findings(found)["few_batches"] == Severity.LOOK
        assert "2 of 5 batches" in json.dumps(found.to_dict())

    def test_not_reached(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path, Skips())
        assert len(made(record, counts).layers) == 2
        found = made(record, counts, config_file=tmp_path / "config.json")
        assert [layer.name for layer in found.layers] == DECODER_LAYERS
        assert findings(found, DECODER_LAYERS[2]) == {"not_reached": Severity.BAD}
        assert found.reasons[0].layers == [2, 3]
        assert found.verdict == "Do not ship: 2 of 4 layers are bad."

    def test_layers_that_one_file_lacks(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        fewer, fewer_counts = calibrated_files(tmp_path / "fewer", layers=[KEY])
        assert findings(made(fewer, counts), DECODER_LAYERS[1]) == {"no_factors": Severity.BAD}
        found = made(record, fewer_counts)
        assert findings(found, DECODER_LAYERS[1]) == {"no_counts": Severity.LOOK}
        assert [layer.quality is None for layer in found.layers] == [False, True, True, True]

    def test_not_finite(self, tmp_path: Path) -> None:
        model = Decoder().bfloat16()
        config = tmp_path / "config.json"
        config_for(tmp_path, model, definition=f"batch_num: 2 {PER_CHANNEL}")
        content = json.loads(config.read_text())
        for layer in content.values():
            if isinstance(layer, dict):
                for part in [layer, *(v for v in layer.values() if isinstance(v, dict))]:
                    if "act_algo" in part:
                        part["nonfinite"] = "skip"
        config.write_text(json.dumps(content))
        bad = tokens().bfloat16()
        bad[0, 0, 0] = math.nan
        record, counts = tmp_path / "record.txt", tmp_path / "all.counts"
        with amct.calibrate(model, str(config), str(record), counts_file=str(counts)):
            model(bad)
            model(tokens(2).bfloat16())
        found = made(record, counts)
        assert findings(found)["non_finite"] == Severity.BAD
        assert found.layers[0].non_finite == 8
        assert found.severity == Severity.BAD

    def test_outlier_channels(self, tmp_path: Path) -> None:
        model = Decoder()
        with torch.no_grad():
            model.get_parameter(f"{KEY}.weight")[5] *= 100
        record, counts = calibrated_files(tmp_path, model)
        own = made(record, counts)
        assert [outlier.channel for outlier in own.layers[0].outliers] == [5]
        assert own.layers[0].outliers[0].ratio > OUTLIER_RATIO
        assert "outliers" not in findings(own)  # its factors are its own
        amct.solve_counts(counts, record, quant_granularity="per_tensor")
        assert findings(made(record, counts))["outliers"] == Severity.LOOK

    def test_bad_factors(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        amct.solve_counts(counts, record, act_algo="percentile", percentile=0.6)
        found = made(record, counts)
        assert findings(found) == {"sqnr": Severity.BAD, "clipped": Severity.BAD, "tap": Severity.LOOK}
        assert [(reason.severity, reason.kind) for reason in found.reasons] == [
            (Severity.BAD, "sqnr"),
            (Severity.BAD, "clipped"),
            (Severity.LOOK, "tap"),
        ]
        sqnrs = [found.layers[place].quality for place in found.reasons[0].layers]
        shown = [quality.sqnr_db or 0 for quality in sqnrs if quality is not None]
        assert shown == sorted(shown)

    def test_limits_hold(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        amct.solve_counts(counts, record, quant_granularity="per_tensor", dst_type="FP8_E5M2")
        for layer in made(record, counts).layers:
            assert layer.quality is not None
            sqnr = layer.quality.sqnr_db
            assert sqnr is not None
            wanted = sqnr < sqnr_limits("FP8_E5M2").look
            assert any(finding.kind == "sqnr" for finding in layer.findings) == wanted

    def test_comparison(self, tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        other = tmp_path / "int4.txt"
        amct.solve_counts(counts, other, act_algo="mse", num_bits=4)
        for layer in made(record, counts, other).layers:
            assert layer.compared is not None
            assert layer.compared.dst_type == "INT4"
            assert layer.sqnr_change is not None
            assert layer.sqnr_change > 10

    def test_a_constant_is_exact(self, tmp_path: Path) -> None:
        model = Decoder()
        with torch.no_grad():
            model.get_parameter(f"{KEY}.weight").zero_()
            model.get_parameter(f"{KEY}.bias").zero_()
        record, counts = calibrated_files(tmp_path, model)
        found = made(record, counts)
        assert found.layers[0].quality is not None
        assert found.layers[0].quality.sqnr_db is None
        for form in ("html", "md"):
            amct.report(record, counts, tmp_path / "out", format=form)
            assert "exact" in (tmp_path / "out").read_text("utf-8")

    def test_what_is_refused(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        record, counts = files
        with pytest.raises(ValueError, match="'html', 'json', 'md'"):
            amct.report(record, counts, tmp_path / "x", format="pdf")
        with pytest.raises(ValueError, match="would replace the other"):
            amct.report(record, counts, counts)
        with pytest.raises(FileNotFoundError):
            amct.report(tmp_path / "none.txt", counts, tmp_path / "x")
        with pytest.raises(ValueError, match="not a counts file"):
            amct.report(record, record, tmp_path / "x")
        with pytest.raises(TypeError, match="title must be a str"):
            amct.report(record, counts, tmp_path / "x", title=3)  # type: ignore[arg-type]
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="file"):
            amct.report(record, counts, tmp_path / "file" / "x")
        other, _ = calibrated_files(tmp_path / "other", Odd(["own"]), layers=["own"])
        with pytest.raises(ValueError, match="different models"):
            amct.report(other, counts, tmp_path / "x")
        assert not list(tmp_path.glob("x*"))

    def test_is_written_as_other_files_are(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        """Missing folders are made, and who may read it does not depend on the umask."""
        path = tmp_path / "new" / "report.json"
        amct.report(*files, path, format="json")
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert (mode_of(path), mode_of(path.parent)) == (0o640, 0o750)

    def test_a_missing_package_is_named(
        self, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'amct-pytorch\[report\]'") as caught:
            amct.report(*files, tmp_path / "x")
        assert "\n" not in str(caught.value)
        amct.report(*files, tmp_path / "x", format="md")

    def test_importing_it_needs_no_extra_package(self) -> None:
        script = "import sys, amct_pytorch.report; assert 'matplotlib' not in sys.modules"
        run_python(script, PYTHONPATH=":".join(sys.path))


class TestText:
    def test_json(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        found = amct.report(*files, path, format="json", evaluation={"perplexity": math.inf, "by": {"a": 1}})

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        content = json.loads(path.read_text("ascii"), parse_constant=refuse)
        assert content == found.to_dict()
        assert content["schema_version"] == 1
        assert content["severity"] == "look"
        assert content["evaluation"] == {"perplexity": None, "by": {"a": 1}}
        layer = content["layers"][0]
        assert layer["name"] == KEY
        assert layer["severity"] == "look"
        assert len(layer["quality"]["groups"]) == layer["channels"] == 8
        assert layer["findings"][0]["kind"] == "tap"

    def test_markdown(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        path = tmp_path / "report.md"
        amct.report(*files, path, format="md", title="A *title*", compare=files[0], evaluation={"ppl": 23.5})
        text = path.read_text("utf-8")
        assert text.startswith("# A \\*title\\*\n\n**Look at 2 layers")
        assert f"| `{KEY}` | " in text
        assert "| ppl | 23.500 |" in text
        rows = [line for line in text.splitlines() if line.startswith("| `layers")]
        assert len(rows) == 4
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}

    def test_evaluations_are_tables(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        found = amct.report(*files, tmp_path / "x.md", format="md", evaluation=evaluation_of("int4", "a|b"))
        text = (tmp_path / "x.md").read_text("utf-8")
        assert "| perplexity in full precision | 23.700 |" in text
        assert "| tokens predicted | 1,023 |" in text
        assert f"| int4 | 23.700 | {MINUS}1.250% | 3.210 ± 0.040% | 98.76% | 5,760 |" in text
        assert "| a\\|b | 24.700 | +0.000% | 3.210 ± 0.040% | 98.76% | 5,760 |" in text
        assert found.evaluation["candidates"][0]["loss_error"] is None
        assert found.severity.value == "look"
        # What `evaluate --json` wrote is the same; what lacks a column is shown as it is.
        amct.report(*files, tmp_path / "y.md", format="md", evaluation=found.evaluation)
        assert (tmp_path / "y.md").read_text("utf-8") == text
        amct.report(*files, tmp_path / "y.md", format="md", evaluation={"candidates": [{"name": "int4"}]})
        assert "| candidates | " in (tmp_path / "y.md").read_text("utf-8")

    def test_what_the_model_loses_is_judged(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        evaluation = evaluation_of(files[0].name, "other").to_dict()
        for loss, error, severity, words in (
            (0.0125, None, "look", "Look again before you ship these factors: perplexity grows by 1.2%"),
            (0.09, 0.01, "bad", "Do not ship: perplexity grows by 9.0% with the cache quantized."),
            (0.09, 0.085, "look", "Look at 2 layers"),  # which may be noise
            (None, None, "look", "Look at 2 layers"),
        ):
            evaluation["candidates"][0] |= {"loss": loss, "loss_error": error}
            found = amct.report(*files, tmp_path / "x.md", format="md", evaluation=evaluation)
            assert found.severity.value == severity
            assert found.verdict.startswith(words)
            assert (found.reasons[0].kind == "loss") == ("perplexity" in words)
            assert ("perplexity grows" in (tmp_path / "x.md").read_text("utf-8")) == ("perplexity" in words)
            amct.report(*files, tmp_path / "x.html", evaluation=evaluation)
        # Of other records nothing follows.
        evaluation["candidates"][0] |= {"name": "third", "loss": 9.0}
        found = amct.report(*files, tmp_path / "x.html", evaluation=evaluation)
        assert found.verdict.startswith("Look at 2 layers")
        assert "None of these settings has the name" in (tmp_path / "x.html").read_text("utf-8")
        evaluation["candidates"][0] |= {"loss": "b"}
        amct.report(*files, tmp_path / "x.html", evaluation=evaluation)

    def test_names_in_markdown(self, tmp_path: Path) -> None:
        files = calibrated_files(tmp_path, Odd(NASTY), layers=NASTY)
        amct.report(*files, tmp_path / "report.md", format="md", title=NASTY[3])
        text = (tmp_path / "report.md").read_text("utf-8")
        assert "``" + " `code` \\| pipe" in text
        assert "größe 层 🙂" in text
        assert all(character.isprintable() or character == "\n" for character in text)

    def test_small_things(self) -> None:
        assert printable("a\x1bb\u202e\n") == "a\\x1bb\\u202e\\n"
        assert printable("\udc80") == "\\udc80"
        assert short_names(["a.0.k", "a.0.v", "a.1.k"]) == ["0.k", "0.v", "1.k"]
        assert short_names(["a.k", "b"]) == ["a.k", "b"]
        assert short_names(["only.one"]) == ["only.one"]
        assert [number(x) for x in (0.012, 14.0, 1234.5, 1.23e-7, -3.5, None)] == [
            "0.0120",
            "14.0",
            "1,234",
            "1.23e" + MINUS + "7",
            MINUS + "3.50",
            NONE,
        ]
        assert [percent(x) for x in (0.0, 1e-7, 0.00012, 0.5, None)] == [
            "0%",
            "< 0.001%",
            "0.012%",
            "50%",
            NONE,
        ]
        assert [compact(x) for x in (1.0, 10_000.0, 424_700_000.0)] == ["1", "10k", "425M"]
        assert Finding(Severity.BAD, "sqnr", "x") == Finding(Severity.BAD, "sqnr", "x")
