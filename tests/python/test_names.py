"""Names of layers, whatever they hold: each comes through unchanged, or is refused at once and in a line."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import unicodedata
from pathlib import Path

import amct_pytorch as amct
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from amct_pytorch._command import table
from helpers import run_python, tokens
from report_files import Odd, calibrated_files

AMCT = Path(sysconfig.get_path("scripts")) / "amct"
LONGEST = 4096

# What terminals, pages, protobuf, JSON, ZIP, C and glob patterns each take for something else.
NAMES = [
    "K_proj",
    "k_proj",
    "a/../../b",
    "/etc/passwd",
    "..\\k",
    "a b ",
    " ",
    "\t\r\n\x0b\x0c\x1b[2J\x07\x7f",
    "nul\x00inside",
    "c1\x9b31m\x85",
    "bidi\u202egnp\u2066x\u2069",
    "\ufeff\u200b\u2028\u2029",
    "größe 层 🙂 e\u0301 \U0010ffff \uffff",
    "\"'\\`$(id)${x}%s%n{}{{7*7}}",
    "<script>alert(1)</script>",
    "</script><!--<script>",
    "\"onmouseover='alert(1)",
    "]]>&lt;&#x3c;",
    "key: 'a' scale: 1 offset: 2",
    "# no comment",
    "*[k?]",
    "n" * LONGEST,
    "层" * (LONGEST // 3),
]


def same(names: list[str], expected: list[str]) -> None:
    assert [name.encode() for name in names] == [name.encode() for name in expected]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A record and a counts file of layers with all these names."""
    plain = [name for name in NAMES if "." not in name]  # torch has no module with a dot in its name
    return calibrated_files(tmp_path_factory.mktemp("names"), Odd(plain), layers=plain)


@pytest.fixture(scope="module")
def names(files: tuple[Path, Path]) -> list[str]:
    return [name for name in NAMES if "." not in name]


def command(*arguments: str | Path, code: int = 0) -> str:
    result = subprocess.run([AMCT, *arguments], capture_output=True, timeout=60)
    assert result.returncode == code, result.stderr
    return (result.stdout + result.stderr).decode()  # which must be UTF-8


class TestTheWholeWay:
    def test_configuration(self, files: tuple[Path, Path], names: list[str]) -> None:
        content = json.loads((files[0].parent / "config.json").read_bytes())
        same([key for key in content if key not in ("batch_num", "activation_offset")], names)

    def test_record_and_counts(self, files: tuple[Path, Path], names: list[str], tmp_path: Path) -> None:
        same(list(amct.read_record(files[0])), names)
        again = tmp_path / "again.txt"
        same([result.name for result in amct.solve_counts(files[1], again)], names)
        assert again.read_bytes() == files[0].read_bytes()
        amct.merge_counts([files[1]], tmp_path / "merged.counts")
        same([result.name for result in amct.solve_counts(tmp_path / "merged.counts")], names)

    def test_an_operator_takes_any(self, tmp_path: Path) -> None:
        op = amct.QuantCalibrationOp(str(tmp_path / "record.txt"))
        for name in ["", ".", "..", *NAMES]:
            op(name, tokens())
        same(list(amct.read_record(tmp_path / "record.txt")), ["", ".", "..", *NAMES])

    def test_snapshot(self, tmp_path: Path, names: list[str]) -> None:
        script = """
            import pathlib, sys, json, torch
            sys.path.insert(0, sys.argv[2])
            import amct_pytorch as amct
            from report_files import Odd
            from helpers import config_for, tokens
            folder, names = pathlib.Path(sys.argv[1]), json.loads(sys.argv[3])
            model = Odd(names)
            config = config_for(folder, model, names, "batch_num: 3")
            more = {"snapshot_file": str(folder / "s"), "snapshot_batches": 1, "resume": True}
            with amct.calibrate(model, config, str(folder / "record.txt"), **more) as run:
                first = run.batches_done
                for seed in range(first, 3):
                    model(tokens(seed))
                    if seed == 0:
                        import os; os._exit(0)
            print(first)
        """
        given = json.dumps([name for name in names if "\0" not in name and len(name) < 100])
        folder = str(Path(__file__).parent)
        assert run_python(script, tmp_path, folder, given).stdout == ""
        assert run_python(script, tmp_path, folder, given).stdout == "1\n"
        same(list(amct.read_record(tmp_path / "record.txt")), json.loads(given))

    def test_plain_exports(self, files: tuple[Path, Path], names: list[str], tmp_path: Path) -> None:
        amct.export_record(files[0], "json", tmp_path / "factors.json")
        written = json.loads((tmp_path / "factors.json").read_bytes())
        same([layer["name"] for layer in written["layers"]], names)
        assert amct.verify_export(tmp_path / "factors.json", "json", record=files[0]).ok
        # Names of files in an archive cannot have such characters.
        with pytest.raises(ValueError, match=r"'.*\\x1b.*control characters; export to json") as caught:
            amct.export_record(files[0], "npz", tmp_path / "factors.npz")
        assert str(caught.value).isprintable()
        assert not (tmp_path / "factors.npz").exists()
        record = tmp_path / "record.txt"
        op = amct.QuantCalibrationOp(str(record))
        without = [name for name in NAMES if not {"\0", "\x1b"} & set(name)]
        for name in without:
            op(name, tokens())
        amct.export_record(record, "npz", tmp_path / "factors.npz")
        assert amct.verify_export(tmp_path / "factors.npz", "npz", record=record).ok
        with np.load(tmp_path / "factors.npz", allow_pickle=False) as archive:
            assert {f"{name}.scale" for name in without} <= set(archive.files)

    @pytest.mark.parametrize("runtime", ["lmdeploy", "sglang", "vllm", "vllm-ascend", "msmodelslim"])
    def test_a_runtime_that_counts_layers_is_told_no_nonsense(
        self, runtime: str, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises((ValueError, OSError)) as caught:
            amct.export_record(files[0], runtime, tmp_path / "out", model=tmp_path)
        assert str(caught.value).isprintable()
        assert not (tmp_path / "out").exists()

    def test_inspect_and_diff_show_all_of_them(
        self, files: tuple[Path, Path], names: list[str], tmp_path: Path
    ) -> None:
        for path, columns in ((files[0], "factors"), (files[1], "batches")):
            text = command("inspect", path)
            assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"]
            assert columns in text.splitlines()[0]
            assert text.count("\n") == len(names) + 3
            read = json.loads(command("inspect", "--json", path))
            same([layer["layer"] for layer in read["layers"]], names)
        other = tmp_path / "other.txt"
        amct.solve_counts(files[1], other, act_algo="minmax")
        text = command("diff", files[0], other, code=3)
        assert "\\u202e" in text
        assert "\x1b" not in text
        found = json.loads(command("diff", "--json", files[0], other, code=3))
        assert {layer["layer"] for layer in found["layers"]} <= set(names)
        assert found["layers"]

    def test_case_alone_tells_layers_apart(self, files: tuple[Path, Path]) -> None:
        factors = amct.read_record(files[0])
        assert not factors["K_proj"].scale.equal(factors["k_proj"].scale)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@hypothesis.settings(max_examples=150, derandomize=True, deadline=None, database=None, print_blob=True)
@hypothesis.given(names=st.lists(TEXT, min_size=1, max_size=5, unique=True))
def test_any_text_comes_through(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    record = folder / "record.txt"
    op = amct.QuantCalibrationOp(str(record))
    for number, name in enumerate(names):
        op(name, torch.full((1, 2), 1.0 + number))
    factors = amct.read_record(record)
    same(list(factors), names)
    assert len({float(layer.scale) for layer in factors.values()}) == len(names)
    modules = [name for name in names if name and "." not in name]
    if not modules:
        return
    config = folder / "config.json"
    amct.create_quant_cali_config(str(config), Odd(modules), {"kv_cache_quant_layers": modules})
    model, counts = Odd(modules), folder / "all.counts"
    with amct.calibrate(model, str(config), str(folder / "model.txt"), counts_file=str(counts)):
        model(tokens())
    same(list(amct.read_record(folder / "model.txt")), modules)
    same([result.name for result in amct.solve_counts(counts)], modules)


class TestRefusals:
    @pytest.mark.parametrize("name", ["\ud800", "a\udcffb", "\udfff\ud800"])
    def test_surrogates(self, name: str, tmp_path: Path) -> None:
        """Python's text can hold what UTF-8 cannot say."""
        model = Odd([name])
        for given in ({"kv_cache_quant_layers": [name]}, {"kv_cache_quant_layers": ["*"]}):
            with pytest.raises(ValueError, match=r"cannot be written in UTF-8: '.*\\ud") as caught:
                amct.create_quant_cali_config(str(tmp_path / "config.json"), model, given)
            assert "\n" not in str(caught.value)
        op = amct.QuantCalibrationOp(str(tmp_path / "record.txt"))
        with pytest.raises(ValueError, match="layer_name cannot be written in UTF-8"):
            op(name, tokens())
        assert list(tmp_path.iterdir()) == []
        for call in (
            lambda: amct.read_record(tmp_path / name),
            lambda: amct.QuantCalibrationOp(str(tmp_path / name)),
            lambda: amct.create_quant_cali_config(str(tmp_path / name), model),
            lambda: amct.QuantCalibrationOp(str(tmp_path / "r"), {"act_algo": name}),
            lambda: amct.QuantCalibrationOp(str(tmp_path / "r"), {name: 1}),
        ):
            with pytest.raises(ValueError, match="cannot be written in UTF-8"):
                call()

    @pytest.mark.parametrize("name", ["n" * (LONGEST + 1), "层" * (LONGEST // 3 + 1), "n" * 65536])
    def test_too_long(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"longer than {LONGEST} bytes") as caught:
            amct.create_quant_cali_config(
                str(tmp_path / "config.json"), Odd([name]), {"kv_cache_quant_layers": [name]}
            )
        assert len(str(caught.value)) < 200
        with pytest.raises(ValueError, match=f"longer than {LONGEST} bytes"):
            amct.QuantCalibrationOp(str(tmp_path / "record.txt"))(name, tokens())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["batch_num", "activation_offset"])
    def test_a_setting_of_the_configuration(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"a layer cannot be called '{name}'"):
            amct.create_quant_cali_config(
                str(tmp_path / "config.json"), Odd([name]), {"kv_cache_quant_layers": [name]}
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_record_that_is_not_utf8(self, tmp_path: Path) -> None:
        record = tmp_path / "record.txt"
        for escaped in (r"\377", r"\355\240\200", r"\xc0\x80"):
            record.write_text(f"record {{ key: 'a{escaped}' kv_cache_value {{ scale: 1 offset: 0 }} }}")
            with pytest.raises(ValueError, match=r"record\.txt: the name of a layer, 'a\\x.*', is not UTF-8"):
                amct.read_record(record)


def test_a_terminal_is_not_driven() -> None:
    """The table of amct-pytorch, as that of amct."""
    shown = table([["layer", "n"], *([name, "1"] for name in NAMES)])
    assert len(shown.split("\n")) == len(NAMES) + 1
    assert shown.replace("\n", "").isprintable()
