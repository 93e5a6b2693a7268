"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amct_pytorch import __version__
from amct_pytorch.cli import app
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
