"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import __version__
from amct_pytorch.cli import app
from families import FAMILIES, tiny
from typer.testing import CliRunner, Result

transformers = pytest.importorskip("transformers")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def saved(folder: Path, family: str, **more: Any) -> str:
    """A folder with the configuration of a tiny model, and no weights."""
    config = transformers.AutoConfig.for_model(
        family,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=16,
        vocab_size=32,
        **more,
    )
    config.save_pretrained(folder)
    return str(folder)


class TestLayers:
    def test_table(self, tmp_path: Path) -> None:
        result = run("layers", saved(tmp_path, "llama", head_dim=8))
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["layer", "role", "heads", "head_dim", "found", "from"]
        name = "model.layers.0.self_attn.k_proj"
        assert lines[1].split() == [name, "key", "2", "8", "LlamaAttention", "(k_proj,", "v_proj)"]
        assert lines[5:] == ["", "LlamaForCausalLM: 4 layers"]

    def test_json_and_the_class_that_the_model_was_saved_from(self, tmp_path: Path) -> None:
        result = run("layers", "--json", saved(tmp_path, "bert", architectures=["BertForMaskedLM"]))
        layers = json.loads(result.stdout)["layers"]
        assert layers[0] == {
            "name": "bert.encoder.layer.0.attention.self.key",
            "role": "key",
            "heads": 4,
            "head_dim": 8,
            "source": "BertSelfAttention (key, value)",
            "slice": None,
        }

    def test_fused(self, tmp_path: Path) -> None:
        result = run("layers", "--json", saved(tmp_path, "phi3", pad_token_id=0))
        key, value = json.loads(result.stdout)["layers"][:2]
        assert (key["name"], key["slice"]) == ("model.layers.0.self_attn.qkv_proj.key", [32, 48, 1])
        assert (value["name"], value["slice"]) == ("model.layers.0.self_attn.qkv_proj.value", [48, 64, 1])

    def test_hybrid(self, tmp_path: Path) -> None:
        folder = saved(
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

    def test_no_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        result = run("layers", str(tmp_path))
        assert result.exit_code == 1
        assert result.stderr.startswith(
            f"amct-pytorch: '{tmp_path}' is not a model that transformers can read: "
        )

    def test_without_transformers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        result = run("layers", str(tmp_path))
        assert (result.exit_code, result.stderr) == (
            1,
            "amct-pytorch: transformers is not installed: pip install transformers\n",
        )


def test_installed_command() -> None:
    command = Path(sys.executable).with_name("amct-pytorch")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"amct-pytorch {__version__}\n"
    assert "layers" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout


def saved_model(folder: Path, family: str) -> list[str]:
    """A tiny model with weights, and token ids: the arguments that name them."""
    model = tiny(family)
    model.save_pretrained(folder / "model")
    ids = torch.randint(1, 32, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "ids.json").write_text(json.dumps(ids))
    sizes = ["--batches", "3", "--batch-size", "2", "--tokens", "12"]
    return ["--model", str(folder / "model"), "--token-ids", str(folder / "ids.json"), *sizes]


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
        result = run("calibrate", *arguments, "--config", config, "--record", str(by_config))
        assert result.exit_code == 0, result.stderr
        assert by_config.read_bytes() == record.read_bytes()

    def test_too_little_text(self, tmp_path: Path) -> None:
        result = run("calibrate", *saved_model(tmp_path, "llama"), "--tokens", "100")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "amct-pytorch: the text has 200 tokens, fewer than 3 batches of 2 x 100; "
            "give a longer one, or ask for less\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "one of --text and --token-ids is needed"),
            (("--text", "{0}/none.txt"), "'{0}/none.txt' cannot be read: [Errno 2]"),
            (("--token-ids", "{0}/text.json"), "'{0}/text.json' must hold a JSON list of token ids"),
            (("--token-ids", "{0}/bad.json"), "'{0}/bad.json' cannot be read: Expecting value"),
            (("--text", "{0}/text.json"), "'{0}' has no tokenizer that transformers can read"),
            (
                ("--token-ids", "{0}/ids.json", "--tokens", "2"),
                "'{0}' is not a model that transformers can read",
            ),
        ],
    )
    def test_what_cannot_be_used(self, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
        (tmp_path / "text.json").write_text('["words"]')
        (tmp_path / "bad.json").write_text("words")
        (tmp_path / "ids.json").write_text(json.dumps(list(range(100))))
        given = [argument.format(tmp_path) for argument in arguments]
        result = run("calibrate", "--model", str(tmp_path), *given)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"amct-pytorch: {message.format(tmp_path)}")
        assert result.stderr.count("\n") == 1
        assert list(tmp_path.glob("record*")) == []

    def test_a_device_that_is_not_there(self, tmp_path: Path) -> None:
        result = run("calibrate", *saved_model(tmp_path, "llama"), "--device", "nonsense")
        assert result.exit_code == 1
        assert result.stderr.startswith("amct-pytorch: device 'nonsense': ")

    def test_no_traceback_in_a_terminal(self, tmp_path: Path) -> None:
        command = [
            str(Path(sys.executable).with_name("amct-pytorch")),
            "calibrate",
            "--model",
            "/nonexistent",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "amct-pytorch: one of --text and --token-ids is needed\n"

    def test_token_ids_that_the_model_does_not_know(self, tmp_path: Path) -> None:
        arguments = saved_model(tmp_path, "llama")
        (tmp_path / "ids.json").write_text(json.dumps([5000] * 200))
        result = run("calibrate", *arguments)
        assert result.stderr.endswith("token ids go from 5000 to 5000, but the model knows 0 to 31\n")

    def test_a_configuration_and_settings(self, tmp_path: Path) -> None:
        result = run("calibrate", *saved_model(tmp_path, "llama"), "--config", "c.json", "--tap", "cache")
        assert result.stderr.startswith("amct-pytorch: --config has all settings; leave out --tap")


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
        ("options", "words"),
        [
            ([], "name what to evaluate"),
            (["--compare", "int9"], "'int9' is no format"),
            (["--compare", "int8", "--windows", "90"], "fewer than 92 windows"),
        ],
    )
    def test_what_is_refused(self, options: list[str], words: str, tmp_path: Path) -> None:
        result = run("evaluate", *self._arguments(tmp_path), *options)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


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

    def test_what_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bad").write_text("nothing")
        result = run("report", "--record", "none", "--counts", "none", "--evaluation", str(tmp_path / "bad"))
        assert result.exit_code == 1
        assert "is not JSON" in result.stderr
