"""The command line, as a user calls it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import __version__
from command_line import error_of, run, saved_model, saved_skeleton, saved_tokenizer
from families import FAMILIES, tiny

transformers = pytest.importorskip("transformers")


class TestLayers:
    def test_table(self, tmp_path: Path) -> None:
        result = run("layers", saved_skeleton(tmp_path, "llama", head_dim=8))
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["layer", "role", "heads", "head_dim", "found", "from"]
        name = "model.layers.0.self_attn.k_proj"
        assert lines[1].split() == [name, "key", "2", "8", "LlamaAttention", "(k_proj,", "v_proj)"]
        assert lines[5:] == ["", "LlamaForCausalLM: 4 layers"]

    def test_json_and_the_class_that_the_model_was_saved_from(self, tmp_path: Path) -> None:
        result = run("layers", "--json", saved_skeleton(tmp_path, "bert", architectures=["BertForMaskedLM"]))
        layers = json.loads(result.stdout)["layers"]
        assert layers[0] == {
            "name": "bert.encoder.layer.0.attention.self.key",
            "role": "key",
            "heads": 4,
            "head_dim": 8,
            "source": "BertSelfAttention (key, value)",
            "slice": None,
            "total_heads": 4,
            "total_slice": None,
        }

    def test_the_folder_as_other_commands_take_it(self, tmp_path: Path) -> None:
        folder = saved_skeleton(tmp_path, "llama")
        assert run("layers", "--model", folder).stdout == run("layers", folder).stdout
        for wrong in ((), (folder, "--model", folder)):
            result = run("layers", *wrong)
            assert (result.exit_code, error_of(result)) == (2, "name one model: amct-pytorch layers FOLDER")

    def test_fused(self, tmp_path: Path) -> None:
        result = run("layers", "--json", saved_skeleton(tmp_path, "phi3", pad_token_id=0))
        key, value = json.loads(result.stdout)["layers"][:2]
        assert (key["name"], key["slice"]) == ("model.layers.0.self_attn.qkv_proj.key", [32, 48, 1])
        assert (value["name"], value["slice"]) == ("model.layers.0.self_attn.qkv_proj.value", [48, 64, 1])

    def test_hybrid(self, tmp_path: Path) -> None:
        folder = saved_skeleton(
            tmp_path, "jamba", attn_layer_period=2, attn_layer_offset=1, num_experts=2, num_experts_per_tok=1
        )
        assert (
            "1 layers keep a state instead and are left alone: model.layers.0.mamba"
            in run("layers", folder).stdout
        )

    def test_nothing_found(self, tmp_path: Path) -> None:
        config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
        config.save_pretrained(tmp_path)
        result = run("layers", str(tmp_path))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"amct-pytorch: no key or value projection was found in MambaForCausalLM of '{tmp_path}'\n"
        )

    def test_no_model(self, tmp_path: Path) -> None:
        assert error_of(run("layers", tmp_path / "none")) == f"there is no folder '{tmp_path}/none'"
        (tmp_path / "config.json").write_text("{}")
        message = f"'{tmp_path}' is not a model that transformers can read: "
        assert error_of(run("layers", tmp_path)).startswith(message)

    def test_without_transformers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = saved_skeleton(tmp_path, "llama")
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert error_of(run("layers", folder)) == "transformers is not installed: pip install transformers"


def test_installed_command() -> None:
    command = Path(sys.executable).with_name("amct-pytorch")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"amct-pytorch {__version__}\n"
    assert "layers" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout


class TestCalibrate:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_without_naming_a_layer(self, family: str, tmp_path: Path) -> None:
        record = tmp_path / "record.txt"
        result = run("calibrate", *saved_model(tmp_path, family), "--record", str(record))
        assert result.exit_code == 0, result.stderr
        assert list(amct.read_record(record)) == FAMILIES[family][1]
        assert result.stdout.splitlines()[-1] == f"{record}: {len(FAMILIES[family][1])} layers"

    def test_settings(self, tmp_path: Path) -> None:
        """What the command writes is what the calls write."""
        record = tmp_path / "record.txt"
        arguments = saved_model(tmp_path, "llama")
        settings = [
            "--tap",
            "cache",
            "--granularity",
            "per_channel",
            "--algorithm",
            "mse",
            "--max-position",
            "40",
        ]
        result = run("calibrate", *arguments, *settings, "--record", str(record), "--json")
        content = json.loads(result.stdout)
        assert [layer["layer"] for layer in content["layers"]] == FAMILIES["llama"][1]
        assert {layer["tap"] for layer in content["layers"]} == {"cache"}
        assert {layer["algorithm"] for layer in content["layers"]} == {"mse"}
        assert content["unfinished"] == []

        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        config, same = str(tmp_path / "config.json"), tmp_path / "same.txt"
        (tmp_path / "d.cfg").write_text(
            "batch_num: 3 kv_cache_quant_config { calibration_config { "
            "mse_quantize { quant_granularity: per_channel } } }"
        )
        amct.create_quant_cali_config(
            config, model, None, str(tmp_path / "d.cfg"), tap="cache", max_position=40
        )
        ids = torch.tensor(json.loads((tmp_path / "ids.json").read_text()))
        with amct.calibrate(model, config, str(same)), torch.inference_mode():
            for batch in ids[:72].view(3, 2, 12):
                model(batch, use_cache=True)
        assert record.read_bytes() == same.read_bytes()

        by_config = tmp_path / "by_config.txt"
        without_batches = [*arguments[:4], *arguments[6:]]
        result = run("calibrate", *without_batches, "--config", config, "--record", str(by_config))
        assert result.exit_code == 0, result.stderr
        assert by_config.read_bytes() == record.read_bytes()

    @pytest.mark.parametrize(
        ("options", "settings"),
        [
            (["--symmetric"], {"asymmetric": False}),
            (["--asymmetric", "--granularity", "per_head"], {"asymmetric": True}),
            (["--symmetric", "--algorithm", "kl"], {"asymmetric": False, "act_algo": "kl"}),
        ],
    )
    def test_offsets(self, options: list[str], settings: dict[str, Any], tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        config, record = tmp_path / "config.json", tmp_path / "record.txt"
        assert run("config", *arguments[:2], *options, "-o", config).exit_code == 0
        for name in FAMILIES["llama"][1]:
            written = json.loads(config.read_text())[name]["kv_data_quant_config"]
            assert written.items() >= settings.items()
        assert run("calibrate", *arguments, *options, "--record", record).exit_code == 0
        offsets = [any(factors.offset) for factors in amct.read_record(record).values()]
        assert any(offsets) == settings["asymmetric"]

    def test_by_tokens(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")[:4]
        sizes = ["--sequence-length", "12", "--batch-size", "2", "--num-tokens", "49"]
        result = run("calibrate", *arguments, *sizes, "--record", tmp_path / "record.txt", "--json")
        assert {(layer["batches"], layer["rows"]) for layer in json.loads(result.stdout)["layers"]} == {
            (3, 72)
        }

    def test_conversations_at_random(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        saved_tokenizer(tmp_path / "model")
        chats = tmp_path / "chats.jsonl"
        chats.write_text(
            "\n".join(json.dumps([{"role": "user", "content": " ".join(8 * letter)}]) for letter in "abcdef")
        )
        rows: dict[str, bytes] = {}
        for seed in ("1", "1", "2"):
            record = tmp_path / f"record{len(rows)}.txt"
            options = ["--jsonl", chats, "--seed", seed, "--batches", "2", "--sequence-length", "11"]
            result = run("calibrate", *arguments[:2], *options, "--record", record)
            assert result.exit_code == 0, result.stderr
            assert rows.setdefault(seed, record.read_bytes()) == record.read_bytes()
        assert rows["1"] != rows["2"]

    def test_windows_longer_than_the_model_is_made_for(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        config = tmp_path / "model" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4}))
        result = run("calibrate", *arguments, "--record", tmp_path / "record.txt")
        assert result.exit_code == 0
        assert "tokens, but the model is made for 4" in result.stderr

    def test_too_little_text(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        assert error_of(run("calibrate", *arguments, "--sequence-length", "100")) == (
            f"'{tmp_path}/ids.json' has 200 tokens, fewer than 6 windows of 100; "
            "give a longer one, or ask for less"
        )
        assert list(tmp_path.glob("record*")) == []

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ((), 2, "one of --text, --jsonl and --token-ids is needed"),
            (("--text", "a", "--jsonl", "b"), 2, "one of --text, --jsonl and --token-ids is enough"),
            (("--text", "a", "--query-weighted"), 2, "--query-weighted needs --tap cache"),
            (("--text", "{0}/none.txt"), 1, "cannot read '{0}/none.txt': No such file or directory"),
            (("--text", "{0}/text"), 1, "'{0}' has no tokenizer that transformers can read"),
            (("--token-ids", "{0}/ids.json"), 1, "'{0}' is not a model that transformers can read"),
            (("--text", "a", "--batches", "2", "--num-tokens", "8"), 2, "--batches and --num-tokens both"),
            (
                ("--text", "a", "--dst-type", "FP8_E4M3", "--asymmetric"),
                2,
                "FP8_E4M3 has no offsets; leave out --asymmetric",
            ),
            (
                ("--text", "a", "--config", "c", "--tap", "cache", "--asymmetric", "--num-tokens", "8"),
                2,
                "--config has all settings; leave out --asymmetric, --tap, --num-tokens",
            ),
            (
                ("--text", "a", "--definition", "d", "--tap", "cache", "--algorithm", "mse"),
                2,
                "--definition has settings; leave out --algorithm",
            ),
            (("--text", "a", "--device", "nonsense"), 1, "device 'nonsense' cannot be used: "),
        ],
    )
    def test_what_cannot_be_used(
        self, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
    ) -> None:
        saved_skeleton(tmp_path, "llama")
        (tmp_path / "text").write_text("words")
        (tmp_path / "ids.json").write_text(json.dumps([1] * 8192))
        result = run("calibrate", "--model", tmp_path, *(word.format(tmp_path) for word in arguments))
        assert error_of(result).startswith(message.format(tmp_path))
        assert result.exit_code == code
        assert list(tmp_path.glob("record*")) == []

    def test_no_traceback_in_a_terminal(self, tmp_path: Path) -> None:
        command = [Path(sys.executable).with_name("amct-pytorch"), "layers", "none"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "amct-pytorch: there is no folder 'none'\n"

    def test_token_ids_that_the_model_does_not_know(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        (tmp_path / "ids.json").write_text(json.dumps([5000] * 200))
        message = "token ids go from 5000 to 5000, but the model knows 0 to 31"
        assert error_of(run("calibrate", *arguments)) == message


class TestConfig:
    @pytest.mark.parametrize("family", ["llama", "phi3", "jamba", "t5", "bert"])
    def test_without_weights_as_with_them(self, family: str, tmp_path: Path) -> None:
        model = tiny(family)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(tmp_path)
        config = tmp_path / "made" / "config.json"
        result = run("config", "--model", tmp_path, "--batches", "3", "-o", config)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"{config}: {len(FAMILIES[family][1])} layers, 3 batches\n"
        result = run("config", "--model", tmp_path, "--batches", 2**32, "-o", config)
        assert error_of(result) == "a calibration has at most 4294967295 batches, not 4294967296"
        (tmp_path / "definition.cfg").write_text("batch_num: 3")
        same = tmp_path / "same.json"
        amct.create_quant_cali_config(str(same), model, None, str(tmp_path / "definition.cfg"))
        assert config.read_bytes() == same.read_bytes()

    def test_edited_and_used(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        config, record = tmp_path / "config.json", tmp_path / "record.txt"
        result = run("config", *arguments[:2], "--tap", "cache", "-o", config, "--batches", "2", "--json")
        names = FAMILIES["llama"][1]
        assert json.loads(result.stdout) == {"config": str(config), "batch_num": 2, "layers": names}
        edited = json.loads(config.read_text())
        edited[names[0]]["kv_data_quant_config"]["quant_granularity"] = 1
        del edited[names[1]]
        config.write_text(json.dumps(edited))
        result = run("calibrate", *arguments[:4], *arguments[6:], "--config", config, "--record", record)
        assert result.exit_code == 0, result.stderr
        factors = amct.read_record(record)
        assert list(factors) == [names[0], *names[2:]]
        assert [len(of_one.scale) for of_one in factors.values()] == [16, 1, 1]

    def test_a_definition(self, tmp_path: Path) -> None:
        folder, definition = saved_skeleton(tmp_path, "llama"), tmp_path / "definition.cfg"
        definition.write_text(
            'batch_num: 5 kv_cache_quant_config { quant_layers: "model.layers.1.*.[kv]_proj" '
            "calibration_config { mse_quantize { quant_granularity: per_channel } } }"
        )
        config = tmp_path / "made.json"
        options = ["--definition", definition, "--tap", "cache", "--sink-tokens", "4", "--max-position", "9"]
        options.append("--query-weighted")
        result = run("config", "--model", folder, *options, "-o", config)
        assert result.exit_code == 0, result.stderr
        written = json.loads(config.read_text())
        assert written["batch_num"] == 5
        settings = written["model.layers.1.self_attn.k_proj"]["kv_data_quant_config"]
        wanted = {"act_algo": "mse", "quant_granularity": 1, "tap": "cache", "sink_tokens": 4}
        assert settings.items() >= {**wanted, "max_position": 9, "query_weighted": True}.items()
        assert "model.layers.0.self_attn.k_proj" not in written
        refused = run("config", "--model", folder, "--definition", definition, "--batches", "3")
        assert error_of(refused).startswith("--definition says how many batches")

    def test_a_definition_with_an_error(self, tmp_path: Path) -> None:
        folder, definition = saved_skeleton(tmp_path, "llama"), tmp_path / "definition.cfg"
        definition.write_text("batch_num: 5\nbatches: 3")
        message = error_of(run("config", "--model", folder, "--definition", definition))
        assert message.startswith(f"{definition}: ")
        assert "line 2" in message
        assert not (tmp_path / "made.json").exists()


class TestMessages:
    def test_a_command_line_that_is_wrong(self) -> None:
        message = error_of(run("calibrate", "--foo"))
        assert message == "No such option: --foo (see amct-pytorch calibrate --help)"
        assert "Did you mean 'calibrate'? (see amct-pytorch --help)" in error_of(run("calibrat"))
        assert error_of(run("calibrate", "--model", "m", "--dst-type", "INT9")).startswith(
            "Invalid value for '--dst-type': 'INT9' is not one of 'INT8', 'INT4', "
        )
        assert run("calibrat").exit_code == 2

    def test_without_a_command(self) -> None:
        result = run()
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Exit codes: 0 done" in result.stderr

    @pytest.mark.parametrize(
        "arguments", [("-v", "layers", "{0}"), ("layers", "{0}", "--verbose"), ("-v", "layers", "{0}", "-v")]
    )
    def test_verbose(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        folder = saved_skeleton(tmp_path, "llama")
        result = run(*(word.format(folder) for word in arguments))
        assert result.exit_code == 0
        assert re.match(r"\d\d:\d\d:\d\d built \S+ without its weights: \d+\.\d s\n", result.stderr)
        assert run("layers", folder).stderr == ""

    def test_verbose_shows_the_traceback(self) -> None:
        lines = run("-v", "layers", "none").stderr.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "amct-pytorch: there is no folder 'none'"

    def test_what_is_found_and_loaded(self, tmp_path: Path) -> None:
        arguments = [*saved_model(tmp_path, "llama"), "--record", str(tmp_path / "record.txt")]
        messages = run("calibrate", *arguments, "-v", "--json").stderr
        for words in (
            "4 key and value layers found: model.layers.0.self_attn.k_proj (key, 2 heads of 8, of Llama",
            "read 6 windows of 12 tokens from",
            "LlamaForCausalLM: ",
            " parameters in float32 on cpu",
            "calibrated: ",
        ):
            assert words in messages
        quiet = run("calibrate", *arguments)
        assert quiet.stderr.splitlines() == [
            f"amct-pytorch: WARNING: record_file '{tmp_path}/record.txt' exists and will be overwritten"
        ]

    def test_help_has_examples_and_exit_codes(self) -> None:
        commands = ["layers", "config", "calibrate", "evaluate", "recommend", "report", "completion"]
        for command in commands:
            text = run(command, "--help").stdout
            assert f"\n  Example: amct-pytorch {command} " in text
            assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("known", [True, False], ids=["a known type", "a type of its own"])
def test_code_that_comes_with_a_model_is_not_run(known: bool, tmp_path: Path) -> None:
    """transformers would ask whether to, on standard input."""
    arguments = saved_model(tmp_path, "llama")
    folder = tmp_path / "model"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    config["architectures"] = ["TheirModel"]
    if not known:
        config["model_type"] = "theirs"
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "run"
    (folder / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    result = run("calibrate", *arguments, "--record", tmp_path / "record.txt", stdin="y\n" * 9)
    assert not marker.exists()
    if known:
        assert result.exit_code == 0
    else:
        assert "comes with Python code of its own (auto_map in config.json), which commands do not run" in (
            error_of(result)
        )


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    arguments = saved_model(tmp_path, "llama")
    weights = tmp_path / "model" / "model.safetensors"
    torch.save(tiny("llama").state_dict(), weights.with_name("pytorch_model.bin"))
    assert run("calibrate", *arguments, "--record", tmp_path / "record.txt").exit_code == 0
    weights.unlink()
    message = error_of(run("calibrate", *arguments, "--record", tmp_path / "other.txt"))
    assert "pickled files (*.bin), which could run code and are not read" in message
