"""The configuration files that the existing toolkit wrote, byte for byte, and the errors it raised."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import _core
from helpers import GOLDEN

FOLDER = GOLDEN / "config"
CASES = sorted(path for path in FOLDER.iterdir() if path.is_dir())
WRITTEN = [case for case in CASES if (case / "expected.json").exists()]
REFUSED = [case for case in CASES if (case / "expected_error.txt").exists()]
KINDS: dict[str, Any] = {
    "Linear": lambda: torch.nn.Linear(4, 4),
    "LayerNorm": lambda: torch.nn.LayerNorm(4),
    "Conv1d": lambda: torch.nn.Conv1d(4, 4, 3),  # with a kernel of 1 it is a projection
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The model whose layers model_layers.json lists."""
    root = torch.nn.Module()
    for name, kind in json.loads((FOLDER / "model_layers.json").read_text()):
        *parents, leaf = name.split(".")
        parent = root
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, KINDS[kind]())
    return root


def _arguments(case: Path) -> dict[str, Any]:
    layers, definition = case / "quant_layers.json", case / "quant.cfg"
    return {
        "quant_layers": json.loads(layers.read_text()) if layers.exists() else None,
        "config_defination": str(definition) if definition.exists() else None,
    }


def test_every_case_is_one_of_the_two() -> None:
    assert (len(WRITTEN), len(REFUSED), len(CASES)) == (11, 15, 26)


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_written(case: Path, model: torch.nn.Module, tmp_path: Path) -> None:
    config_file = tmp_path / "config.json"
    amct.create_quant_cali_config(str(config_file), model, **_arguments(case))
    assert config_file.read_bytes() == (case / "expected.json").read_bytes()


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_read_back(case: Path, tmp_path: Path) -> None:
    """Reading loses nothing: what is read is written again as it stood."""
    config = _core.read_config(str(case / "expected.json"))
    assert config.to_json() == (case / "expected.json").read_text()
    assert config.layer_names == list(json.loads((case / "expected.json").read_text()))[2:]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_taken_by_create_quant_cali_model(case: Path, tmp_path: Path) -> None:
    config = json.loads((case / "expected.json").read_text())
    root = torch.nn.Module()
    for name in list(config)[2:]:
        parent = root
        *parents, leaf = name.split(".")
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, torch.nn.Linear(4, 4))
    amct.create_quant_cali_model(str(case / "expected.json"), str(tmp_path / "record.txt"), root)
    for _ in range(config["batch_num"]):
        for name in list(config)[2:]:
            root.get_submodule(name)(torch.randn(2, 3, 4))
    factors = amct.read_record(tmp_path / "record.txt")
    assert list(factors) == list(config)[2:]
    for name, layer in factors.items():
        settings = config[name]["kv_data_quant_config"]
        assert layer.scale.numel() == (4 if settings["quant_granularity"] else 1)
        if not settings.get("asymmetric", config["activation_offset"]):
            assert layer.offset.tolist() == [0] * layer.offset.numel()
    amct.remove_quant_cali(root)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(case: Path, model: torch.nn.Module, tmp_path: Path) -> None:
    config_file = tmp_path / "config.json"
    config_file.write_text("as it was")
    expected = getattr(builtins, (case / "expected_error.txt").read_text().strip())
    with pytest.raises(expected) as caught:
        amct.create_quant_cali_config(str(config_file), model, **_arguments(case))
    assert type(caught.value) is expected
    assert config_file.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [config_file]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("cfg_bad_bins", ("quant.cfg", "matmul1", "num_of_bins", "1024, 2048, 4096 or 8192", "1000")),
        ("cfg_bad_percentile", ("quant.cfg", "matmul1", "max_percentile", "(0.5, 1]", "0.4")),
        ("cfg_bad_range", ("quant.cfg", "matmul1", "search_range", "[1.3, 0.7]")),
        ("cfg_bad_step", ("quant.cfg", "matmul1", "search_step", "0.0")),
        ("cfg_batch_zero", ("quant.cfg", "batch_num", "> 0")),
        ("cfg_not_text_format", ("quant.cfg", "line 1, column ")),
        ("cfg_override_twice", ("quant.cfg", "matmul2", "overridden twice")),
        ("cfg_unknown_field", ("quant.cfg", "line 1, column ", "colour")),
        ("cfg_unknown_layer", ("quant.cfg", "'nope'")),
        ("dict_duplicate", ("quant_layers", "matmul1", "twice")),
        ("dict_empty_list", ("quant_layers", "nothing to quantize")),
        ("dict_norm", ("quant_layers", "blocks.0.norm", "LayerNorm", "Linear")),
        ("dict_not_linear", ("quant_layers", "conv", "Conv1d", "Linear")),
        ("dict_unknown_layer", ("quant_layers", "matmul9", "did you mean 'matmul")),
        ("dict_wrong_key", ("kv_cache_quant_layers", "'layers'")),
    ],
)
def test_the_message_names_what_is_wrong(
    case: str, words: tuple[str, ...], model: torch.nn.Module, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        amct.create_quant_cali_config(str(tmp_path / "config.json"), model, **_arguments(FOLDER / case))
    for word in words:
        assert word in str(caught.value)
