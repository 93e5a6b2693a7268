"""create_quant_cali_config and create_quant_cali_model: the contract of SPEC section 1."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import amct_pytorch
import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import calibration
from helpers import (
    DECODER_LAYERS,
    Decoder,
    calibrated,
    config_for,
    factors_of,
    mode_of,
    run_python,
    tokens,
)


class TestInterface:
    def test_arguments(self) -> None:
        config = inspect.signature(amct.create_quant_cali_config)
        assert list(config.parameters) == [
            "config_file",
            "model",
            "quant_layers",
            "config_defination",
            "split_fused",
            "tap",
            "max_position",
            "sink_tokens",
            "query_weighted",
        ]
        for name in list(config.parameters)[4:]:  # extensions
            assert config.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert config.parameters["quant_layers"].default is None
        assert config.parameters["config_defination"].default is None
        model = inspect.signature(amct.create_quant_cali_model)
        assert list(model.parameters) == [
            "config_file",
            "record_file",
            "model",
            "memory_budget",
            "counts_file",
            "snapshot_file",
            "snapshot_batches",
            "snapshot_minutes",
            "snapshot_data",
            "resume",
        ]
        assert model.parameters["memory_budget"].kind is inspect.Parameter.KEYWORD_ONLY  # an extension
        for signature, count in ((config, 2), (model, 3)):
            for parameter in list(signature.parameters.values())[:count]:
                assert parameter.default is inspect.Parameter.empty

    def test_import_paths(self) -> None:
        # Spelled as a user would; the names are the contract.
        assert (
            amct_pytorch.nn.module.quantization.quant_calibration_op.QuantCalibrationOp
            is amct.QuantCalibrationOp
        )
        for name in ("create_quant_cali_config", "create_quant_cali_model", "QuantCalibrationOp"):
            assert name in amct.__all__

    def test_the_snippet_of_the_manual(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def build_model() -> torch.nn.Module:
            return Decoder()

        monkeypatch.chdir(tmp_path)
        state_dict_path = tmp_path / "weights.pt"
        torch.save(Decoder(seed=7).state_dict(), state_dict_path)
        TMP = str(tmp_path / "tmp")  # noqa: N806
        (tmp_path / "configs").mkdir()
        config_for(tmp_path / "configs", build_model())

        # The lines of the manual, as they stand there.
        model = build_model()
        model.load_state_dict(torch.load(state_dict_path))
        record_file = os.path.join(TMP, 'kv_cache.txt')  # fmt: skip  # noqa: PTH118
        calibration_model = amct.create_quant_cali_model(config_file="./configs/config.json", record_file=record_file, model=model)  # fmt: skip  # noqa: E501

        assert calibration_model is model
        calibration_model(tokens())
        assert list(amct.read_record(record_file)) == DECODER_LAYERS
        outputs: list[torch.Tensor] = []
        plain = Decoder(seed=7)
        plain.layers[1].self_attn.v_proj.register_forward_hook(lambda m, i, out: outputs.append(out))
        plain(tokens())
        expected = factors_of(tmp_path / "alone", outputs)
        assert amct.read_record(record_file)[DECODER_LAYERS[3]].scale.equal(expected.scale)

    def test_path_objects_are_taken(self, tmp_path: Path) -> None:
        config_file, record_file = tmp_path / "c.json", tmp_path / "r.txt"
        model = Decoder()
        amct.create_quant_cali_config(config_file, model)  # type: ignore[arg-type]
        amct.create_quant_cali_model(config_file, record_file, model)(tokens())  # type: ignore[arg-type]
        assert list(amct.read_record(record_file)) == DECODER_LAYERS

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            *((name, value) for name in ("config_file", "model") for value in (None, 1, b"name", ["name"])),
            *(
                (name, value)
                for name in ("quant_layers", "config_defination")
                for value in (1, b"name", ["x"])
            ),
            ("quant_layers", "name"),
            ("config_defination", {"name": 1}),
        ],
    )
    def test_config_type_errors(self, argument: str, value: Any, tmp_path: Path) -> None:
        arguments = {"config_file": str(tmp_path / "c.json"), "model": Decoder(), argument: value}
        with pytest.raises(TypeError, match=argument):
            amct.create_quant_cali_config(**arguments)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("value", [None, 1, b"name", ["name"]])
    @pytest.mark.parametrize("argument", ["config_file", "record_file", "model"])
    def test_model_type_errors(self, argument: str, value: Any, tmp_path: Path) -> None:
        model = Decoder()
        arguments = {
            "config_file": config_for(tmp_path, model),
            "record_file": str(tmp_path / "record.txt"),
            "model": model,
            argument: value,
        }
        with pytest.raises(TypeError, match=argument):
            amct.create_quant_cali_model(**arguments)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    @pytest.mark.parametrize("names", [None, "k_proj", {"k_proj"}, [1], ["layers.0.self_attn.k_proj", None]])
    def test_quant_layers_type_errors(self, names: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="kv_cache_quant_layers"):
            amct.create_quant_cali_config(str(tmp_path / "c"), Decoder(), {"kv_cache_quant_layers": names})

    @pytest.mark.parametrize("extra", [{}, {"layers": []}, {"kv_cache_quant_layers": [], "more": []}])
    def test_quant_layers_key_errors(self, extra: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="kv_cache_quant_layers"):
            amct.create_quant_cali_config(str(tmp_path / "c"), Decoder(), extra)

    def test_bad_names(self, tmp_path: Path) -> None:
        model = Decoder()
        good = config_for(tmp_path, model)
        bad = ("", str(tmp_path), f"{tmp_path}/", "n" * 256, str(tmp_path / ("n" * 256)), f"{'n' * 256}/c")
        for name in bad:
            with pytest.raises(ValueError, match=r"name|folder"):
                amct.create_quant_cali_config(name, model)
            with pytest.raises(ValueError, match=r"name|folder"):
                amct.create_quant_cali_config(str(tmp_path / "c"), model, config_defination=name)
            with pytest.raises(ValueError, match=r"name|folder"):
                amct.create_quant_cali_model(name, str(tmp_path / "r"), model)
            with pytest.raises(ValueError, match=r"name|folder"):
                amct.create_quant_cali_model(good, name, model)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
        assert not model.layers[0].self_attn.k_proj._forward_hooks

    def test_config_and_record_must_be_two_files(self, tmp_path: Path) -> None:
        model = Decoder()
        config_file = config_for(tmp_path, model)
        before = Path(config_file).read_bytes()
        (tmp_path / "link").symlink_to(config_file)
        for name in (config_file, f"{tmp_path}/./config.json", str(tmp_path / "link")):
            with pytest.raises(ValueError, match="both"):
                amct.create_quant_cali_model(config_file, name, model)
        assert Path(config_file).read_bytes() == before


class TestFiles:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077, 0o777])
    def test_modes(self, umask: int, tmp_path: Path) -> None:
        model = Decoder()
        before = os.umask(umask)
        try:
            config = tmp_path / "a" / "b" / "config.json"
            record = tmp_path / "c" / "d" / "record.txt"
            amct.create_quant_cali_config(str(config), model)
            amct.create_quant_cali_model(str(config), str(record), model)
            assert record.read_bytes() == b""
            assert mode_of(record) == 0o640
            model(tokens())
            op = amct.QuantCalibrationOp(str(tmp_path / "e" / "f" / "record.txt"))
            op("layer", tokens())
        finally:
            os.umask(before)
        files = (config, record, tmp_path / "e" / "f" / "record.txt")
        assert [mode_of(file) for file in files] == [0o640] * 3
        folders = [tmp_path / name for name in ("a", "a/b", "c", "c/d", "e", "e/f")]
        assert [mode_of(folder) for folder in folders] == [0o750] * 6
        # Nothing but these is left.
        assert sorted(tmp_path.rglob("*")) == sorted([*files, *folders])

    def test_existing_folders_keep_their_mode(self, tmp_path: Path) -> None:
        folder = tmp_path / "wide"
        folder.mkdir()
        folder.chmod(0o777)
        config_for(folder, Decoder())
        assert mode_of(folder) == 0o777

    def test_existing_files_are_replaced(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        config, record = tmp_path / "config.json", tmp_path / "record.txt"
        for file in (config, record):
            file.write_text("an older file that is much longer than the new one " * 1000)
            file.chmod(0o666)
        reader = config.open()  # who reads the old file goes on reading it
        model = Decoder()
        amct.create_quant_cali_config(str(config), model)
        assert json.loads(config.read_text())["batch_num"] == 1
        with reader:
            assert reader.read().startswith("an older file")
        assert mode_of(config) == 0o640
        amct.create_quant_cali_model(str(config), str(record), model)
        assert record.read_text() == ""
        assert mode_of(record) == 0o640
        assert f"'{record}' exists and will be overwritten" in caplog.text
        model(tokens())
        assert list(amct.read_record(record)) == DECODER_LAYERS

    def test_a_bare_name_goes_to_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        model = Decoder()
        amct.create_quant_cali_config("config.json", model)
        amct.create_quant_cali_model("config.json", "record.txt", model)(tokens())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "record.txt"]


class TestLayers:
    """Which layers are configured, and from which source."""

    def test_none_named_finds_keys_and_values(self, tmp_path: Path) -> None:
        config = json.loads(Path(config_for(tmp_path, Decoder())).read_text())
        assert list(config) == ["batch_num", "activation_offset", *DECODER_LAYERS]

    def test_none_found(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"Sequential.*kv_cache_quant_layers"):
            config_for(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 2)))
        assert list(tmp_path.iterdir()) == []

    def test_a_definition_of_globals_alone_combines_with_quant_layers(self, tmp_path: Path) -> None:
        definition = (
            "batch_num: 3 activation_offset: false\n"
            "kv_cache_quant_config { calibration_config { hfmg_quantize { num_of_bins: 1024 } } }"
        )
        names = [DECODER_LAYERS[3], DECODER_LAYERS[0]]
        config = json.loads(Path(config_for(tmp_path, Decoder(), names, definition)).read_text())
        assert list(config) == ["batch_num", "activation_offset", *names]
        assert (config["batch_num"], config["activation_offset"]) == (3, False)
        settings = {"act_algo": "hfmg", "num_of_bins": 1024, "quant_granularity": 0}
        assert [config[name]["kv_data_quant_config"] for name in names] == [settings] * 2

    def test_a_definition_of_globals_alone_combines_with_what_is_found(self, tmp_path: Path) -> None:
        config = json.loads(Path(config_for(tmp_path, Decoder(), None, "batch_num: 5")).read_text())
        assert list(config)[2:] == DECODER_LAYERS
        assert config["batch_num"] == 5

    def test_an_empty_definition_is_all_defaults(self, tmp_path: Path) -> None:
        written = Path(config_for(tmp_path, Decoder(), None, "")).read_bytes()
        assert written == Path(config_for(tmp_path, Decoder())).read_bytes()

    def test_override_wins_field_by_field(self, tmp_path: Path) -> None:
        k, v = DECODER_LAYERS[:2]
        definition = f"""
            activation_offset: false
            kv_cache_quant_config {{ quant_layers: '{k}' quant_layers: '{v}' calibration_config {{
              ifmr_quantize {{ search_step: 0.02 max_percentile: 0.999 quant_granularity: per_channel }} }} }}
            override_layers_configs {{ layer_name: '{v}' kv_data_quant_config {{
              ifmr_quantize {{ search_step: 0.03 asymmetric: true }} }} }}
        """
        config = json.loads(Path(config_for(tmp_path, Decoder(), None, definition)).read_text())
        common = {
            "act_algo": "ifmr",
            "max_percentile": 0.999,
            "min_percentile": 0.999999,
            "search_range": [0.7, 1.3],
            "search_step": 0.02,
            "quant_granularity": 1,
        }
        assert config[k]["kv_data_quant_config"] == common
        assert config[v]["kv_data_quant_config"] == {**common, "search_step": 0.03, "asymmetric": True}

    def test_one_override_names_several_layers(self, tmp_path: Path) -> None:
        names = " ".join(f"layer_name: '{name}'" for name in DECODER_LAYERS[1:3])
        definition = (
            f"kv_cache_quant_config {{ quant_layers: '{DECODER_LAYERS[3]}' }}"
            f"override_layers_configs {{ {names} kv_data_quant_config {{ hfmg_quantize {{ }} }} }}"
        )
        config = json.loads(Path(config_for(tmp_path, Decoder(), None, definition)).read_text())
        assert list(config)[2:] == [DECODER_LAYERS[3], *DECODER_LAYERS[1:3]]
        algorithms = [config[name]["kv_data_quant_config"]["act_algo"] for name in list(config)[2:]]
        assert algorithms == ["ifmr", "hfmg", "hfmg"]

    def test_floats_are_as_short_as_they_were_typed(self, tmp_path: Path) -> None:
        definition = (
            f"kv_cache_quant_config {{ quant_layers: '{DECODER_LAYERS[0]}'"
            " calibration_config { ifmr_quantize {"
            " max_percentile: 0.99995 min_percentile: 1 search_range_start: 0.05 search_range_end: 3"
            " search_step: 0.00625 } } }"
        )
        text = Path(config_for(tmp_path, Decoder(), None, definition)).read_text()
        for part in (
            '"max_percentile":0.99995,',
            '"min_percentile":1.0,',
            "0.05,\n",
            " 3.0\n",
            '"search_step":0.00625,',
        ):
            assert part in text

    def test_two_names_of_one_module(self, tmp_path: Path) -> None:
        model = torch.nn.Module()
        model.k_proj = torch.nn.Linear(4, 4)
        model.alias = model.k_proj
        amct.create_quant_cali_config(str(tmp_path / "one"), model, {"kv_cache_quant_layers": ["alias"]})
        config_file = config_for(tmp_path, model, ["k_proj", "alias"])
        with pytest.raises(ValueError, match=r"config\.json.*'k_proj' and 'alias'"):
            amct.create_quant_cali_model(config_file, str(tmp_path / "r"), model)

    def test_the_model_is_not_changed_by_making_a_configuration(self, tmp_path: Path) -> None:
        model = Decoder()
        before = {name: id(module) for name, module in model.named_modules()}
        config_for(tmp_path, model)
        assert {name: id(module) for name, module in model.named_modules()} == before
        assert all(not module._forward_hooks for module in model.modules())
        amct.create_quant_cali_config(str(tmp_path / "again"), calibrated(tmp_path, model))


class TestRun:
    def test_batches_are_counted_and_the_rest_costs_nothing(self, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder(), None, "batch_num: 3")
        run = amct.calibration_run(model)
        record = tmp_path / "record.txt"
        for seen in range(3):
            assert record.read_bytes() == b""
            assert run.unfinished() == dict.fromkeys(DECODER_LAYERS, (seen, 3))
            model(tokens(seed=seen))
        assert run.unfinished() == {}
        assert all(not module._forward_hooks for module in model.modules())
        before = record.read_bytes()
        model(tokens(seed=9) * 1000)
        model(torch.full((1, 3, 16), float("nan")))
        assert record.read_bytes() == before
        assert [(result.batches, result.tokens) for result in run.results()] == [(3, 48)] * 4
        assert "finished=4" in repr(run)

    @pytest.mark.parametrize("forward", [False, True])
    def test_what_is_finished_is_written_by_the_end(self, forward: bool, tmp_path: Path) -> None:
        """When the model's forward returns, or where only parts of it are called, when it is released."""
        model = calibrated(tmp_path, Decoder(blocks=30))
        first = list(model.layers[:20])
        model.forward = torch.nn.Sequential(*first).forward
        model(tokens()) if forward else model.forward(tokens())
        if not forward:
            del model, first
            gc.collect()
        assert len(amct.read_record(tmp_path / "record.txt")) == 40

    def test_the_model_keeps_no_hook(self, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder())
        assert len(model._forward_hooks) > 0
        model(tokens())
        assert len(model._forward_hooks) == 0
        amct.remove_quant_cali(model)
        calibrated(tmp_path, model)
        amct.remove_quant_cali(model)
        assert len(model._forward_hooks) == 0

    def test_a_record_that_cannot_be_written_at_the_end_of_a_forward(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        record = folder / "record.txt"
        model = calibrated(folder, Decoder())
        model.forward = lambda x: model.layers[0](x)
        blocks = [lambda *_: shutil.rmtree(folder), lambda *_: folder.write_text("no folder")]
        hooks = [model.layers[0].register_forward_hook(block) for block in blocks]
        with pytest.raises(OSError, match=r"kept; mend this, then call write_record\(\)"):
            model(tokens())
        folder.unlink()
        for hook in hooks:
            hook.remove()
        amct.calibration_run(model).write_record()
        # The first layer is in the lost file, where its search was done before the second layer came.
        assert DECODER_LAYERS[1] in amct.read_record(record)

    def test_each_layer_is_written_as_it_finishes_where_there_is_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration, "_WRITING_SHARE", 1)
        model = calibrated(tmp_path, Decoder())
        written: list[list[str]] = []
        for block in model.layers:
            block.register_forward_hook(
                lambda m, i, o: written.append(list(amct.read_record(tmp_path / "record.txt")))
            )
        model(tokens())
        assert written == [DECODER_LAYERS[:2], DECODER_LAYERS]

    def test_the_record_is_in_the_order_of_the_configuration(self, tmp_path: Path) -> None:
        names = [DECODER_LAYERS[i] for i in (3, 1, 0, 2)]
        model = calibrated(tmp_path, Decoder(), names)
        model(tokens())  # finishes them in another order
        assert list(amct.read_record(tmp_path / "record.txt")) == names
        assert [result.name for result in amct.calibration_run(model).results()] == names

    def test_activation_offset_false(self, tmp_path: Path) -> None:
        calibrated(tmp_path, Decoder(), None, "activation_offset: false")(tokens())
        assert {f.offset.item() for f in amct.read_record(tmp_path / "record.txt").values()} == {0}

    def test_refused_when_calibrated_already(self, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder())
        record = tmp_path / "record.txt"
        for finished in (False, True):
            with pytest.raises(
                RuntimeError, match=r"already.*layers\.0\.self_attn\.k_proj.*remove_quant_cali"
            ):
                amct.create_quant_cali_model(str(tmp_path / "config.json"), str(tmp_path / "other"), model)
            assert not (tmp_path / "other").exists()
            if not finished:
                model(tokens())
        assert list(amct.read_record(record)) == DECODER_LAYERS
        amct.remove_quant_cali(model)
        amct.create_quant_cali_model(str(tmp_path / "config.json"), str(tmp_path / "other"), model)(tokens())
        assert (tmp_path / "other").read_bytes() == record.read_bytes()

    def test_refused_when_part_of_it_is_calibrated(self, tmp_path: Path) -> None:
        inner = calibrated(tmp_path, Decoder())
        outer = torch.nn.ModuleDict({"inner": inner})
        config_file = config_for(tmp_path, outer, [f"inner.{DECODER_LAYERS[0]}"])
        with pytest.raises(RuntimeError, match=r"inner\.layers\.0"):
            amct.create_quant_cali_model(config_file, str(tmp_path / "other"), outer)

    def test_refused_when_it_holds_an_operator(self, tmp_path: Path) -> None:
        model = Decoder()
        model.layers[0].calibrate = amct.QuantCalibrationOp(str(tmp_path / "r"))
        config_file = config_for(tmp_path, model)
        with pytest.raises(RuntimeError, match=r"already.*layers\.0\.calibrate"):
            amct.create_quant_cali_model(config_file, str(tmp_path / "record.txt"), model)

    def test_remove(self, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder(), None, "batch_num: 2")
        model(tokens())
        amct.remove_quant_cali(model)
        assert all(not module._forward_hooks for module in model.modules())
        assert set(model.layers[0].self_attn.k_proj.__dict__) == set(torch.nn.Linear(1, 1).__dict__)
        model(tokens())
        assert (tmp_path / "record.txt").read_bytes() == b""
        with pytest.raises(RuntimeError, match="holds no calibration"):
            amct.calibration_run(model)
        amct.remove_quant_cali(model)  # nothing to do
        for call in (amct.remove_quant_cali, amct.calibration_run):
            with pytest.raises(TypeError, match="model"):
                call(None)  # type: ignore[arg-type]

    def test_two_models_at_a_time(self, tmp_path: Path) -> None:
        models = [calibrated(tmp_path / str(i), Decoder(seed=i), None, "batch_num: 2") for i in range(2)]
        for seed in (1, 2):
            for model in models:
                model(tokens(seed))
        alone = calibrated(tmp_path / "alone", Decoder(seed=1), None, "batch_num: 2")
        for seed in (1, 2):
            alone(tokens(seed))
        records = [(tmp_path / name / "record.txt").read_bytes() for name in ("0", "1", "alone")]
        assert records[1] == records[2] != records[0]

    def test_a_layer_of_the_record_that_was_written_again_warns(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = calibrated(tmp_path, Decoder())
        # Somebody else writes the layer between the start and its end.
        amct.QuantCalibrationOp(str(tmp_path / "record.txt"))(DECODER_LAYERS[1], tokens())
        with caplog.at_level(logging.WARNING, "amct_pytorch"):
            model(tokens())
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 1
        assert DECODER_LAYERS[1] in messages[0]
        assert "will be overwritten" in messages[0]
        assert list(amct.read_record(tmp_path / "record.txt")) == DECODER_LAYERS


class TestUnfinished:
    DEFINITION = "batch_num: 2"

    def test_named_when_the_model_is_released(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        model = calibrated(tmp_path, Decoder(), None, self.DEFINITION)
        model(tokens())
        model.layers[0](tokens())
        caplog.clear()
        del model
        (record,) = caplog.records
        message = record.getMessage()
        assert (record.name, record.levelno) == ("amct_pytorch", logging.WARNING)
        assert str(tmp_path / "record.txt") in message
        for name in DECODER_LAYERS[2:]:
            assert f"{name} (1 of 2 batches)" in message
        for name in DECODER_LAYERS[:2]:
            assert name not in message

    def test_named_when_calibration_is_taken_off(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = calibrated(tmp_path, Decoder())
        amct.remove_quant_cali(model)
        assert f"{DECODER_LAYERS[3]} (0 of 1 batches)" in caplog.text

    def test_silent_when_all_is_done(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        model = calibrated(tmp_path, Decoder())
        model(tokens())
        run = amct.calibration_run(model)
        del model, run
        assert caplog.records == []

    @pytest.mark.parametrize("kind", ["model", "op"])
    def test_named_at_the_end_of_the_program(self, kind: str, tmp_path: Path) -> None:
        script = """
            import sys, torch
            import amct_pytorch as amct

            class Attention(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.k_proj, self.v_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

            if sys.argv[1] == "model":
                model = Attention()
                model.myself = [model]  # a cycle, so that only the end of the program releases it
                amct.create_quant_cali_config("c.json", model)
                amct.create_quant_cali_model("c.json", "r.txt", model)
                model.k_proj(torch.randn(2, 4))
            else:
                op = amct.QuantCalibrationOp("r.txt", {"batch_num": 2})
                op("k_proj", torch.randn(2, 4)), op("k_proj", torch.randn(2, 4))
                op("v_proj", torch.randn(2, 4))
        """
        result = run_python(script, kind, cwd=tmp_path)
        assert f"v_proj ({'0 of 1' if kind == 'model' else '1 of 2'} batches)" in result.stderr
        assert "r.txt" in result.stderr
        assert "k_proj (" not in result.stderr
        assert "Traceback" not in result.stderr
        assert list(amct.read_record(tmp_path / "r.txt")) == ["k_proj"]
