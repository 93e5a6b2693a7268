"""Bad input gives an error that names what to mend, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from helpers import DECODER_LAYERS, Decoder, calibrated, config_for, factors_of, run_python, tokens

NAN, INF = float("nan"), float("inf")
KEY = DECODER_LAYERS[0]


def _refused(config_file: Path, error: type[Exception] = ValueError) -> str:
    """The message of create_quant_cali_model, which must have done nothing else."""
    folder = config_file.parent
    record = folder / "record.txt"
    record.write_text("precious")
    model = Decoder()
    before = sorted(folder.iterdir())
    with pytest.raises(error) as caught:
        amct.create_quant_cali_model(str(config_file), str(record), model)
    assert record.read_text() == "precious"
    assert sorted(folder.iterdir()) == before
    assert all(not module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="holds no calibration"):
        amct.calibration_run(model)
    return str(caught.value)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads(Path(config_for(folder, Decoder())).read_text())


class TestConfigFile:
    def test_missing(self, tmp_path: Path) -> None:
        message = _refused(tmp_path / "config.json", FileNotFoundError)
        assert str(tmp_path / "config.json") in message
        assert "No such file" in message

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").mkdir()
        assert "'" + str(tmp_path / "config.json") + "' is a folder" in _refused(tmp_path / "config.json")

    @pytest.mark.parametrize("content", ["", " \n\t\r\n"])
    def test_empty(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(content)
        message = _refused(tmp_path / "config.json")
        for word in (str(tmp_path / "config.json"), "empty", "create_quant_cali_config"):
            assert word in message

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        """No prefix of a configuration passes for one."""
        config_file = tmp_path / "config.json"
        whole = Path(config_for(tmp_path, Decoder(), [KEY])).read_bytes()
        model = Decoder()
        for length in range(len(whole)):
            config_file.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"config\.json: (not JSON: .*line \d+, column \d+|.*empty)"):
                amct.create_quant_cali_model(str(config_file), str(tmp_path / "record.txt"), model)
        assert not (tmp_path / "record.txt").exists()

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe{}", b'{"a\xc3": 1}', "{}".encode("utf-16"), b'{"\xed\xa0\x80": 1}', b"\x80"]
    )
    def test_not_utf8(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes(content)
        message = _refused(tmp_path / "config.json")
        assert str(tmp_path / "config.json") in message
        assert "UTF-8" in message

    def test_huge(self, tmp_path: Path) -> None:
        config_file = tmp_path / "config.json"
        with config_file.open("wb") as file:
            file.truncate(10 << 30)  # sparse; reading all of it would take the memory
        message = _refused(config_file)
        assert f"'{config_file}' is larger than {64 << 20} bytes" in message

    @pytest.mark.parametrize(
        "content",
        [
            "batch_num = 1",
            "{'batch_num': 1}",
            '{"a": NaN}',
            '{"a": 1,}',
            '{"a": 01}',
            "{} {}",
            "record { }",
            "\0",
        ],
    )
    def test_not_json(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(content)
        message = _refused(tmp_path / "config.json")
        assert str(tmp_path / "config.json") in message
        assert "not JSON" in message
        assert "line 1, column" in message

    @pytest.mark.parametrize("content", ["[" * 100000, '{"a":' * 100000])
    def test_deeply_nested(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(content)
        message = _refused(tmp_path / "config.json")
        assert str(tmp_path / "config.json") in message
        assert "nested too deeply" in message

    @pytest.mark.parametrize("content", ["[]", "1", "null", '"text"', "true"])
    def test_no_object(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(content)
        assert "config.json: a JSON object is needed, not " in _refused(tmp_path / "config.json")

    @pytest.mark.parametrize(
        ("old", "new", "key"),
        [
            ('"batch_num":1', '"batch_num":1,"batch_num":2', "batch_num"),
            ('"search_step":0.01', '"search_step":0.01,"search_step":0.02', "search_step"),
            (
                '"kv_data_quant_config":{',
                '"kv_data_quant_config":{},"kv_data_quant_config":{',
                "kv_data_quant_config",
            ),
            (f'"{KEY}":', f'"{KEY}":{{"kv_data_quant_config":{{}}}},"{KEY}":', KEY),
            ('"batch_num":1', '"batch_num":1,"b\\u0061tch_num":2', "batch_num"),
        ],
    )
    def test_duplicate_key(self, old: str, new: str, key: str, tmp_path: Path) -> None:
        config_file = Path(config_for(tmp_path, Decoder(), [KEY]))
        text = config_file.read_text()
        assert old in text
        config_file.write_text(text.replace(old, new))
        message = _refused(config_file)
        assert message == f"{config_file}: key '{key}' appears twice; remove one"

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("batch_num", 0, ("batch_num", "from 1", "0")),
            ("batch_num", -1, ("batch_num", "-1")),
            ("batch_num", 1.0, ("batch_num", "integer", "1.0")),
            ("batch_num", True, ("batch_num", "true")),
            ("batch_num", "1", ("batch_num", '"1"')),
            ("batch_num", None, ("batch_num", "null")),
            ("batch_num", 2**64, ("batch_num",)),
            ("batch_num", [1], ("batch_num",)),
            ("activation_offset", 1, ("activation_offset", "true or false", "1")),
            ("activation_offset", "true", ("activation_offset", '"true"')),
            ("activation_offset", None, ("activation_offset", "null")),
            ("batch_nun", 3, ("'batch_nun'", "did you mean 'batch_num'?")),
            ("colour", "red", ("'colour'", "neither a known key nor a layer")),
            (KEY, 1, (f"'{KEY}'",)),
            (KEY, [], (f"'{KEY}'",)),
            (KEY, {}, (f"layer '{KEY}'", "'kv_data_quant_config' is missing")),
            (KEY, {"kv_data_quant_config": 1}, (f"layer '{KEY}'", "must be an object, not number")),
            (KEY, {"kv_data_quant_config": {}, "x": 1}, (f"layer '{KEY}'", "unknown key 'x'")),
            (KEY, {"kv_cache_quant_config": {}}, (f"layer '{KEY}'", "unknown key 'kv_cache_quant_config'")),
        ],
    )
    def test_wrong_schema(self, key: str, value: Any, words: tuple[str, ...], tmp_path: Path) -> None:
        config = _config(tmp_path)
        config[key] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = _refused(tmp_path / "config.json")
        assert message.startswith(f"{tmp_path / 'config.json'}: ")
        for word in words:
            assert word in message

    def test_no_layers(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"batch_num":1}')
        assert "config.json: no layer is named" in _refused(tmp_path / "config.json")

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("act_algo", "ifrm", ("did you mean 'ifmr'?",)),
            ("act_algo", 1, ("a string",)),
            ("act_algo", "", ("must be one of",)),
            ("max_percentile", 0.5, ("(0.5, 1]", "0.5")),
            ("max_percentile", 1.1, ("(0.5, 1]", "1.1")),
            ("max_percentile", "0.9", ("(0.5, 1]", '"0.9"')),
            ("max_percentile", True, ("(0.5, 1]", "true")),
            ("max_percentile", None, ("null",)),
            ("max_percentile", {}, ("object",)),
            ("min_percentile", 0.4, ("(0.5, 1]", "0.4")),
            ("min_percentile", 2, ("(0.5, 1]", "2")),
            ("search_range", [1.3, 0.7], ("0 < start < end", "[1.3, 0.7]")),
            ("search_range", [0, 1], ("0 < start < end",)),
            ("search_range", [0.7], ("0 < start < end",)),
            ("search_range", 0.7, ("0 < start < end", "0.7")),
            ("search_range", ["a", "b"], ("list of numbers",)),
            ("search_range", [0.7, None], ("list of numbers",)),
            ("search_step", 0, ("(0, end - start]", "0.0")),
            ("search_step", 0.7, ("(0, end - start]", "0.7")),
            ("search_step", 1e-12, ("1,000,000",)),
            ("search_step", "x", ("(0, end - start]",)),
            ("quant_granularity", 2, ("needs head_num",)),
            ("quant_granularity", 3, ("0 (per tensor), 1 (per channel) or 2 (per head)", "3")),
            ("quant_granularity", -1, ("0 (per tensor), 1 (per channel) or 2 (per head)", "-1")),
            ("quant_granularity", "per_tensor", ("0 (per tensor)", '"per_tensor"')),
            ("quant_granularity", False, ("0 (per tensor)", "false")),
            ("asymmetric", 1, ("true or false",)),
            ("asymmetric", None, ("null",)),
            ("nonfinite", "drop", ("'raise' or 'skip'",)),
            ("num_bits", 16, ("must be 8 or 4",)),
            ("num_of_bins", 4096, ("'hfmg'", "'ifmr'")),
            ("search_stp", 0.01, ("did you mean 'search_step'?",)),
            ("with_offset", True, ("unknown key",)),
            ("colour", 1, ("unknown key",)),
            ("dst_type", "INT", ("must be one of", "'INT4'")),
            ("head_num", 4, ("for quant_granularity per head",)),
        ],
    )
    def test_wrong_setting(self, key: str, value: Any, words: tuple[str, ...], tmp_path: Path) -> None:
        config = _config(tmp_path)
        config[KEY]["kv_data_quant_config"][key] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = _refused(tmp_path / "config.json")
        assert message.startswith(f"{tmp_path / 'config.json'}: layer '{KEY}': ")
        for word in (key, *words):
            assert word in message

    @pytest.mark.parametrize("bins", [0, 1000, 4096.0, "4096", True, None])
    def test_wrong_bins(self, bins: Any, tmp_path: Path) -> None:
        config = _config(tmp_path)
        config[KEY]["kv_data_quant_config"] = {"act_algo": "hfmg", "num_of_bins": bins}
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = _refused(tmp_path / "config.json")
        assert f"{tmp_path / 'config.json'}: layer '{KEY}': num_of_bins must be " in message

    def test_unknown_layer(self, tmp_path: Path) -> None:
        config = _config(tmp_path)
        config["layers.0.self_attn.k_porj"] = config[KEY]
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = _refused(tmp_path / "config.json")
        assert message == (
            f"{tmp_path / 'config.json'}: the model has no layer 'layers.0.self_attn.k_porj'; "
            "did you mean 'layers.0.self_attn.k_proj'?"
        )

    @pytest.mark.parametrize(("name", "kind"), [("layers.0.norm", "LayerNorm"), ("layers.1", "Block")])
    def test_layer_of_a_wrong_type(self, name: str, kind: str, tmp_path: Path) -> None:
        config = _config(tmp_path)
        config[name] = config[KEY]
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = _refused(tmp_path / "config.json")
        assert message == (
            f"{tmp_path / 'config.json'}: layer '{name}' is a {kind}, which cannot be calibrated; "
            "name a Linear layer or another projection"
        )

    def test_settings_left_out_take_their_defaults(self, tmp_path: Path) -> None:
        """Not bad at all: a file by hand need not spell everything out."""
        (tmp_path / "config.json").write_text(json.dumps({KEY: {"kv_data_quant_config": {}}}))
        record = tmp_path / "record.txt"
        model = amct.create_quant_cali_model(str(tmp_path / "config.json"), str(record), Decoder())
        model(tokens())
        calibrated(tmp_path / "full", Decoder(), [KEY])(tokens())
        assert record.read_bytes() == (tmp_path / "full" / "record.txt").read_bytes()


class TestDefinition:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("batch_num: -1", ("line 1, column",)),
            ("batch_num: 1.5", ("line 1, column",)),
            ("batch_num: 4294967296", ("line 1, column",)),
            ("\n\n  activation_offset: maybe", ("line 3, column",)),
            ("kv_cache_quant_config {", ("line 1, column",)),
            (
                "kv_cache_quant_config { calibration_config { ifmr_quantize { num_of_bins: 1 } } }",
                ("line 1", "num_of_bins"),
            ),
            (
                "kv_cache_quant_config { calibration_config { magic_quantize { } } }",
                ("line 1", "magic_quantize"),
            ),
            ("quant_layers: 'x'", ("line 1, column", "quant_layers")),
            ("kv_cache_quant_config { quant_layers: 'a' quant_layers: 'a' }", ("'a'", "listed twice")),
            (
                f"override_layers_configs {{ layer_name: '{KEY}' layer_name: '{KEY}' }}",
                (KEY, "overridden twice"),
            ),
            (f"{{ {KEY} }}", ("line 1",)),
            ('{"batch_num": 1}', ("line 1",)),
        ],
    )
    def test_refused(self, text: str, words: tuple[str, ...], tmp_path: Path) -> None:
        config_file = tmp_path / "config.json"
        config_file.write_text("as it was")
        (tmp_path / "definition.cfg").write_text(text)
        with pytest.raises(ValueError, match=r"definition\.cfg") as caught:
            amct.create_quant_cali_config(
                str(config_file), Decoder(), config_defination=str(tmp_path / "definition.cfg")
            )
        for word in words:
            assert word in str(caught.value)
        assert config_file.read_text() == "as it was"

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.cfg"):
            amct.create_quant_cali_config(
                str(tmp_path / "c"), Decoder(), config_defination=str(tmp_path / "none.cfg")
            )
        assert list(tmp_path.iterdir()) == []

    def test_not_utf8_and_huge(self, tmp_path: Path) -> None:
        definition = tmp_path / "definition.cfg"
        definition.write_bytes(b"# caf\xe9")
        with pytest.raises(ValueError, match=r"definition\.cfg.*UTF-8"):
            amct.create_quant_cali_config(str(tmp_path / "c"), Decoder(), config_defination=str(definition))
        with definition.open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(ValueError, match=r"definition\.cfg.*larger than"):
            amct.create_quant_cali_config(str(tmp_path / "c"), Decoder(), config_defination=str(definition))


class TestFolders:
    def test_a_file_in_the_place_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("as it was")
        name = str(tmp_path / "file" / "config.json")
        with pytest.raises(NotADirectoryError, match="file"):
            amct.create_quant_cali_config(name, Decoder())
        config_file = config_for(tmp_path, Decoder())
        model = Decoder()
        with pytest.raises(NotADirectoryError, match="file"):
            amct.create_quant_cali_model(config_file, str(tmp_path / "file" / "a" / "r.txt"), model)
        assert not model.layers[0].self_attn.k_proj._forward_hooks
        assert (tmp_path / "file").read_text() == "as it was"

    def test_a_folder_that_vanishes_comes_back(self, tmp_path: Path) -> None:
        """Somebody cleans up between two layers; folders are made where they are missing."""
        record = tmp_path / "out" / "record.txt"
        op = amct.QuantCalibrationOp(str(record))
        op("a", tokens())
        shutil.rmtree(record.parent)
        op("b", tokens())
        assert list(amct.read_record(record)) == ["b"]

    @pytest.fixture
    def public_folder(self) -> Iterator[Path]:
        """A folder that a user without privileges can reach, which pytest's own is not."""
        folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
        folder.chmod(0o755)
        yield folder
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)

    def test_read_only(self, public_folder: Path) -> None:
        result = run_python(
            """
            import os, pathlib, sys
            import torch
            import amct_pytorch as amct

            folder = pathlib.Path(sys.argv[1])
            if os.geteuid() == 0:
                os.chown(folder, 65534, 65534)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)  # root may write anywhere
            model = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(4, 4), "v_proj": torch.nn.Linear(4, 4)})
            config, record = folder / "config.json", folder / "record.txt"
            amct.create_quant_cali_config(str(config), model)
            amct.create_quant_cali_model(str(config), str(record), model)
            model["k_proj"](torch.ones(1, 4))
            before = config.read_bytes(), record.read_bytes(), sorted(os.listdir(folder))
            folder.chmod(0o555)

            def refused(call, path):
                try:
                    call()
                except PermissionError as error:
                    assert error.filename == str(path), error.filename
                    return str(error)
                raise AssertionError("not refused")

            refused(lambda: amct.create_quant_cali_config(str(config), model), config)
            refused(lambda: amct.create_quant_cali_config(str(folder / "new" / "c"), model), folder / "new")
            op = amct.QuantCalibrationOp(str(folder / "other.txt"))
            refused(lambda: op("x", torch.ones(2)), folder / "other.txt")
            text = refused(lambda: model["v_proj"](torch.ones(1, 4)), record)
            assert "v_proj" in text and "write_record" in text, text
            twin = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(4, 4), "v_proj": torch.nn.Linear(4, 4)})
            refused(lambda: amct.create_quant_cali_model(str(config), str(record), twin), record)
            assert not twin["k_proj"]._forward_hooks
            assert before == (config.read_bytes(), record.read_bytes(), sorted(os.listdir(folder)))

            folder.chmod(0o755)
            amct.calibration_run(model).write_record()
            op.write_record()
            assert list(amct.read_record(record)) == ["k_proj", "v_proj"]
            assert list(amct.read_record(folder / "other.txt")) == ["x"]
            config.chmod(0)
            refused(lambda: amct.create_quant_cali_model(str(config), str(folder / "r"), twin), config)
            record.chmod(0)
            refused(lambda: amct.read_record(record), record)
            refused(lambda: amct.QuantCalibrationOp(str(record)), record)
            assert sorted(os.listdir(folder)) == ["config.json", "other.txt", "record.txt"]
            """,
            public_folder,
        )
        assert result.stderr.count("exists and will be overwritten") == 1


# Runs a calibration whose record cannot be written at first. `full()` makes it so, `free()` ends it.
FULL_DISK = """
import errno, os, pathlib, sys
import torch
import amct_pytorch as amct
from amct_pytorch import calibration

calibration._WRITING_SHARE = 1  # no layer waits for another
folder = pathlib.Path(sys.argv[1])
names = ["layers.%d.%s_proj" % (i, p) for i in range(40) for p in "kv"]
layers = [{"k_proj": torch.nn.Linear(2, 8), "v_proj": torch.nn.Linear(2, 8)} for _ in range(40)]
model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(map(torch.nn.ModuleDict, layers))})
prepare()
config, record = folder / "config.json", folder / "record.txt"
(folder / "definition.cfg").write_text(
    "kv_cache_quant_config { calibration_config { minmax_quantize { quant_granularity: per_channel } } }")
amct.create_quant_cali_config(str(config), model, config_defination=str(folder / "definition.cfg"))
amct.create_quant_cali_model(str(config), str(record), model)
for name in names[:3]:
    model.get_submodule(name)(torch.ones(1, 2))
files = config.read_bytes(), record.read_bytes()
full()
listing = sorted(os.listdir(folder))

def refused(call, path):
    try:
        call()
    except OSError as error:
        assert error.errno == CODE, error
        assert error.filename == str(path), error.filename
        return str(error)
    raise AssertionError("not refused")

for name in names[3:60]:
    text = refused(lambda: model.get_submodule(name)(torch.ones(1, 2)), record)
    assert name in text and "write_record" in text, text
    assert not model.get_submodule(name)._forward_hooks
    model.get_submodule(name)(torch.ones(1, 2))  # the model itself goes on working
run = amct.calibration_run(model)
refused(run.write_record, record)
refused(lambda: amct.create_quant_cali_config(str(config), model), config)
op = amct.QuantCalibrationOp(str(folder / "other.txt"), {"quant_granularity": "per_channel"})
refused(lambda: op("x", torch.ones(2, 500)), folder / "other.txt")
assert (config.read_bytes(), record.read_bytes()) == files
assert sorted(os.listdir(folder)) == listing, os.listdir(folder)
assert len(run.results()) == 60

free()
for name in names[60:70]:
    model.get_submodule(name)(torch.ones(1, 2))
assert list(amct.read_record(record)) == names[:70]  # the kept ones came with the next layer
op.write_record()
assert amct.read_record(folder / "other.txt")["x"].scale.numel() == 500
run.write_record()
for name in names[70:]:
    model.get_submodule(name)(torch.ones(1, 2))
assert list(amct.read_record(record)) == names
assert run.unfinished() == {}
"""


class TestFullDisk:
    def test_file_size_limit(self, tmp_path: Path) -> None:
        """The write stops in the middle, as over a quota."""
        script = f"""
CODE = {errno.EFBIG}
import resource

def prepare():
    pass

def full():
    limit = record.stat().st_size + 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

def free():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""
        run_python(script + FULL_DISK, tmp_path)

    def test_full_file_system(self, tmp_path: Path) -> None:
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        probe = [*unshare, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode != 0:
            pytest.skip("a file system of its own cannot be mounted here")
        script = f"""
CODE = {errno.ENOSPC}
import subprocess

def prepare():
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], check=True)

def full():
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError as error:
            assert error.errno == CODE

def free():
    os.unlink(folder / "filler")
"""
        command = [*unshare, sys.executable, "-c", script + FULL_DISK, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert list(tmp_path.iterdir()) == []  # it was all in the mount

    def test_a_record_spoilt_in_between(self, tmp_path: Path) -> None:
        """What is not a record is not touched; the factors wait until it is mended."""
        record = tmp_path / "record.txt"
        model = calibrated(tmp_path, Decoder())
        record.write_text("someone's notes")
        with pytest.raises(ValueError, match=r"record\.txt.*line 1.*column"):
            model(tokens())
        assert record.read_text() == "someone's notes"
        with pytest.raises(ValueError, match=r"record\.txt"):
            amct.calibration_run(model).write_record()
        record.unlink()
        amct.calibration_run(model).write_record()
        written = list(amct.read_record(record))  # of the layers that were searched by then
        assert written == DECODER_LAYERS[: len(written)] != []
        model(tokens())
        assert list(amct.read_record(record)) == DECODER_LAYERS


class TestTensors:
    """A batch is taken whole or not at all."""

    @pytest.fixture
    def op(self, tmp_path: Path) -> amct.QuantCalibrationOp:
        return amct.QuantCalibrationOp(str(tmp_path / "record.txt"), {"batch_num": 2})

    def _finish(self, op: amct.QuantCalibrationOp, tmp_path: Path) -> None:
        """After any error the layer is as it was: two good batches give what they give alone."""
        seen = op.unfinished().get("layer", (0, 2))[0]
        for batch in (tokens(1), tokens(2))[seen:]:
            op("layer", batch)
        expected = factors_of(tmp_path / "alone", [tokens(1), tokens(2)])
        factors = amct.read_record(tmp_path / "record.txt")["layer"]
        assert factors.scale.equal(expected.scale)
        assert factors.offset.equal(expected.offset)

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_not_finite(
        self, value: float, dtype: torch.dtype, op: amct.QuantCalibrationOp, tmp_path: Path
    ) -> None:
        op("layer", tokens(1))
        batch = tokens(9).to(dtype) * 50
        batch[1, 2, 3] = value
        batch[1, 7, 15] = -value
        for view, index in ((batch, 163), (batch.transpose(0, 1), 83)):
            with pytest.raises(RuntimeError) as caught:
                op("layer", view)
            assert type(caught.value) is amct.NonFiniteError
            assert (caught.value.count, caught.value.first_index) == (2, index)
            message = str(caught.value)
            for word in (
                "layer 'layer'",
                "batch 2",
                "2 of 256 values",
                f"index {index} ",
                "nonfinite",
                "skip",
            ):
                assert word in message
        assert not (tmp_path / "record.txt").exists()
        self._finish(op, tmp_path)

    def test_not_finite_in_a_model(self, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder(), None, "batch_num: 2")
        bad = tokens()
        bad[0, 0, 0] = NAN
        with pytest.raises(amct.NonFiniteError, match=rf"layer '{KEY}', batch 1: 8 of 128 values"):
            model(bad)
        assert amct.calibration_run(model).unfinished() == dict.fromkeys(DECODER_LAYERS, (0, 2))
        for seed in (1, 2):
            model(tokens(seed))
        twin = calibrated(tmp_path / "twin", Decoder(), None, "batch_num: 2")
        for seed in (1, 2):
            twin(tokens(seed))
        assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "twin" / "record.txt").read_bytes()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
    def test_not_finite_skipped(self, dtype: torch.dtype, granularity: str, tmp_path: Path) -> None:
        batch = tokens().to(dtype)
        batch[0, 0, :8] = NAN
        batch[0, 0, 8:] = INF
        op = amct.QuantCalibrationOp(
            str(tmp_path / "record.txt"), {"nonfinite": "skip", "quant_granularity": granularity}
        )
        assert op("layer", batch) is batch
        assert op.results()[0].non_finite == 16
        rest = batch.flatten(0, 1)[1:]
        expected = factors_of(tmp_path / "alone", [rest], quant_granularity=granularity)
        assert amct.read_record(tmp_path / "record.txt")["layer"].scale.equal(expected.scale)

    def test_nothing_finite_at_all(self, tmp_path: Path) -> None:
        op = amct.QuantCalibrationOp(str(tmp_path / "record.txt"), {"nonfinite": "skip"})
        with pytest.raises(RuntimeError, match=r"layer 'layer', batch 1.*no finite value"):
            op("layer", torch.full((2, 2), NAN))
        assert not (tmp_path / "record.txt").exists()

    def test_another_channel_count(self, op: amct.QuantCalibrationOp, tmp_path: Path) -> None:
        op("layer", tokens(1))
        with pytest.raises(RuntimeError, match=r"layer 'layer', batch 2: .* 8 channels.* 16"):
            op("layer", tokens(2)[..., :8])
        self._finish(op, tmp_path)

    def test_another_channel_count_in_a_model(self, tmp_path: Path) -> None:
        model = torch.nn.ModuleDict({"k": torch.nn.Linear(4, 6)})
        calibrated(tmp_path, model, ["k"], "batch_num: 2")
        model["k"](torch.ones(1, 4))
        model["k"].weight = torch.nn.Parameter(torch.ones(5, 4))
        model["k"].bias = None
        with pytest.raises(RuntimeError, match=r"layer 'k', batch 2: .*5 channels.*6"):
            model["k"](torch.ones(1, 4))
        assert amct.calibration_run(model).unfinished() == {"k": (1, 2)}
        assert (tmp_path / "record.txt").read_bytes() == b""

    @pytest.mark.parametrize("shape", [(0,), (0, 16), (2, 0, 16), (2, 8, 0)])
    def test_empty(self, shape: tuple[int, ...], op: amct.QuantCalibrationOp, tmp_path: Path) -> None:
        for seen in range(2):
            with pytest.raises(
                RuntimeError, match=rf"layer 'layer', batch {seen + 1}: .*shape \[.*no values"
            ):
                op("layer", torch.empty(shape))
            if seen == 0:
                op("layer", tokens(1))
        self._finish(op, tmp_path)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.complex64, torch.bool])
    def test_wrong_dtype_in_a_model(self, dtype: torch.dtype, tmp_path: Path) -> None:
        class Cast(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x).to(dtype)

        model = torch.nn.ModuleDict({"k": Cast(4, 4)})
        calibrated(tmp_path, model, ["k"])
        with pytest.raises(TypeError, match=rf"layer 'k'.*{dtype}.*torch\.float32"):
            model["k"](torch.ones(1, 4))
        assert amct.calibration_run(model).unfinished() == {"k": (0, 1)}
