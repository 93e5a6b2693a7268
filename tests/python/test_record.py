"""Reading records, and their schema as other programs see it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import numpy as np
import pytest
import torch
from helpers import GOLDEN, factors_of, tokens


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "record.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_factors(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "record { key: 'b' kv_cache_value { scale: 0.1 offset: -3 } }\n"
        "record { key: 'weights' value { scale_d: 1.0 } }\n"
        "record { key: 'a' kv_cache_value { scale: 0.25 scale: 1e-3 offset: 127 offset: -128 } }\n",
    )
    for argument in (path, str(path)):
        factors = amct.read_record(argument)
        assert list(factors) == ["b", "a"]
        assert factors["b"].scale.dtype == torch.float32
        assert factors["b"].offset.dtype == torch.int32
        assert factors["b"].scale.shape == factors["b"].offset.shape == (1,)
        assert factors["b"].scale.item() == np.float32(0.1)
        assert factors["a"].scale.tolist() == [0.25, np.float32(1e-3)]
        assert factors["a"].offset.tolist() == [127, -128]
    with pytest.raises(AttributeError):
        factors["a"].scale = torch.ones(1)  # type: ignore[misc]


def test_the_golden_record() -> None:
    factors = amct.read_record(GOLDEN / "model" / "record.txt")
    assert [layer.scale.numel() for layer in factors.values()] == [1, 1, 16, 16]
    assert factors["layers.0.k_proj"].scale.item() == np.float32(0.05221764)
    assert factors["layers.0.k_proj"].offset.item() == -7


def test_an_empty_record(tmp_path: Path) -> None:
    assert amct.read_record(_write(tmp_path, "")) == {}
    assert amct.read_record(_write(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("what?", ("line 1, column",)),
        ("record { key: 'a'", ("line 1, column",)),
        ("record {\n  key: 'a'\n  colour: 1 }", ("line 3, column", "colour")),
        ("record { key: 'a' kv_cache_value { scale: 'x' } }", ("line 1, column",)),
        ("record { key: 'a' kv_cache_value { scale: 1 offset: 5000000000 } }", ("line 1, column",)),
        ("record { key: 'a' kv_cache_value { scale: 1 } }", ("'a'", "1 scales but 0 offsets", "calibrate")),
        ("record { key: 'a' kv_cache_value { offset: 1 } }", ("'a'", "0 scales but 1 offsets")),
        ("record { key: 'a' kv_cache_value { } }", ("'a'", "0 scales")),
        ("record { key: 'a' kv_cache_value { scale: 0 offset: 1 } }", ("'a'", "scale 0.0", "positive")),
        ("record { key: 'a' kv_cache_value { scale: -1 offset: 1 } }", ("'a'", "scale -1.0")),
        ("record { key: 'a' kv_cache_value { scale: nan offset: 1 } }", ("'a'", "scale nan")),
        ("record { key: 'a' kv_cache_value { scale: inf offset: 1 } }", ("'a'", "scale inf")),
        ("record { key: 'a' kv_cache_value { scale: 1 offset: 1 } }\n" * 2, ("'a'", "twice")),
        (b"\xff\xfe\x00", ("UTF-8",)),
        (b"record { key: '\xc3' }", ("UTF-8",)),
    ],
)
def test_what_cannot_be_used(text: str | bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ValueError, match=r"record\.txt") as caught:
        amct.read_record(path)
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        amct.read_record(tmp_path / "none.txt")
    assert caught.value.filename == str(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="folder"):
        amct.read_record(tmp_path)
    for value in (None, 3, b"record.txt"):
        with pytest.raises(TypeError, match="record_file"):
            amct.read_record(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("exponent", [-37, -20, -6, -4, -3, 0, 3, 15, 16, 30, 36])
def test_scales_read_back_bit_for_bit(exponent: int, tmp_path: Path) -> None:
    """The decimal in the file is the shortest that gives the float32 back, as numpy's is."""
    batch = tokens() * math.pow(10, exponent)
    factors = factors_of(tmp_path, [batch], act_algo="minmax", quant_granularity="per_channel")
    lines = (tmp_path / "record.txt").read_text().split()
    written = [lines[i + 1] for i, word in enumerate(lines) if word == "scale:"]
    assert [np.float32(number) for number in written] == factors.scale.tolist()
    for number in written:
        assert _digits(number) == _digits(str(np.float32(number)))


def _digits(number: str) -> str:
    return number.split("e")[0].replace(".", "").strip("0")


# Field numbers, labels and types of SPEC sections 3 and 4; R = repeated.
SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "AMCTPytorchProto.ScaleOffsetRecord": {"record": (1, "R message"), "prune_record": (2, "R message")},
    "AMCTPytorchProto.MapFiledEntry": {
        "key": (1, "string"),
        "value": (2, "message"),
        "kv_cache_value": (3, "message"),
    },
    "AMCTPytorchProto.SingleLayerKVCacheRecord": {"scale": (1, "R float"), "offset": (2, "R int32")},
    "AMCTPytorchProto.SingleLayerRecord": {
        "scale_d": (1, "float"),
        "offset_d": (2, "int32"),
        "scale_w": (3, "R float"),
        "offset_w": (4, "R int32"),
        "shift_bit": (5, "R uint32"),
        "tensor_balance_factor": (6, "R float"),
        "skip_fusion": (9, "bool"),
        "dst_type": (10, "string"),
        "act_type": (11, "string"),
        "wts_type": (12, "string"),
        "fakequant_precision_mode": (13, "string"),
        "scale_h": (21, "float"),
        "offset_h": (22, "int32"),
        "scale_r": (23, "R float"),
        "offset_r": (24, "R int32"),
    },
    "AMCTPytorchProto.PruneRecord": {
        "producer": (1, "R message"),
        "consumer": (2, "R message"),
        "selective_prune": (3, "message"),
    },
    "AMCTPytorchProto.PruneNode": {"name": (1, "required string"), "attr": (2, "R message")},
    "AMCTProto.AttrProto": {
        "name": (1, "string"),
        "type": (2, "enum"),
        "f": (3, "float"),
        "i": (4, "int64"),
        "s": (5, "bytes"),
        "floats": (6, "R float"),
        "ints": (7, "R int64"),
        "strings": (8, "R bytes"),
    },
    "AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig": {
        "batch_num": (1, "uint32"),
        "activation_offset": (2, "bool"),
        "kv_cache_quant_config": (10, "message"),
        "override_layers_configs": (110, "R message"),
    },
    "AMCTPytorchQuantCaliProto.CommonCalibrationConfig": {
        "quant_layers": (1, "R string"),
        "calibration_config": (2, "message"),
    },
    "AMCTPytorchQuantCaliProto.OverrideLayer": {
        "layer_name": (1, "R string"),
        "kv_data_quant_config": (2, "message"),
    },
    "AMCTPytorchQuantCaliProto.CalibrationConfig": {
        "ifmr_quantize": (1, "message"),
        "hfmg_quantize": (2, "message"),
    },
    "AMCTPytorchQuantCaliProto.FMRQuantize": {
        "search_range_start": (1, "float"),
        "search_range_end": (2, "float"),
        "search_step": (3, "float"),
        "max_percentile": (4, "float"),
        "min_percentile": (5, "float"),
        "asymmetric": (6, "bool"),
        "quant_granularity": (11, "enum"),
    },
    "AMCTPytorchQuantCaliProto.HFMGQuantize": {
        "num_of_bins": (1, "uint32"),
        "asymmetric": (2, "bool"),
        "quant_granularity": (11, "enum"),
    },
}
TYPES = {
    2: "float",
    3: "int64",
    5: "int32",
    8: "bool",
    9: "string",
    11: "message",
    12: "bytes",
    13: "uint32",
    14: "enum",
}
LABELS = {1: "", 2: "required ", 3: "R "}


@pytest.mark.parametrize("message", SCHEMA)
def test_schema(message: str, schema: Any) -> None:
    from google.protobuf import descriptor_pb2

    proto = descriptor_pb2.DescriptorProto()
    schema.descriptor(message).CopyToProto(proto)
    found = {
        field.name: (field.number, LABELS[field.label] + TYPES[field.type])
        for field in proto.field
        if field.number < 1001  # those beyond are extensions of this project
    }
    assert found == SCHEMA[message]


def test_schema_defaults(schema: Any) -> None:
    layer = schema.message("AMCTPytorchProto.SingleLayerRecord")()
    assert (layer.dst_type, layer.act_type, layer.wts_type) == ("INT8",) * 3
    assert layer.fakequant_precision_mode == "DEFAULT"
    config = schema.message("AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig")()
    assert (config.batch_num, config.activation_offset) == (1, True)
    ifmr = schema.message("AMCTPytorchQuantCaliProto.FMRQuantize")()
    assert (ifmr.search_range_start, ifmr.search_range_end, ifmr.search_step) == tuple(
        np.float32((0.7, 1.3, 0.01)).tolist()
    )
    assert ifmr.max_percentile == ifmr.min_percentile == np.float32(0.999999)
    assert schema.message("AMCTPytorchQuantCaliProto.HFMGQuantize")().num_of_bins == 4096
    calibration = schema.descriptor("AMCTPytorchQuantCaliProto.CalibrationConfig")
    (oneof,) = calibration.oneofs
    assert oneof.name == "acts_quant_algo"
    assert {"ifmr_quantize", "hfmg_quantize"} <= {field.name for field in oneof.fields}


def test_schema_enums(schema: Any) -> None:
    attribute = schema.descriptor("AMCTProto.AttrProto").enum_types_by_name["AttrType"]
    assert {value.name: value.number for value in attribute.values} == {
        "UNDEFINED": 0,
        "FLOAT": 1,
        "INT": 2,
        "STRING": 3,
        "FLOATS": 4,
        "INTS": 5,
        "STRINGS": 6,
    }
    granularity = schema.pool.FindEnumTypeByName("AMCTPytorchQuantCaliProto.QuantGranularity")
    names = {"per_tensor": 0, "per_channel": 1, "per_head": 2}  # the last is an extension
    assert {value.name: value.number for value in granularity.values} == names


def test_protobuf_reads_our_records(schema: Any, tmp_path: Path) -> None:
    from google.protobuf import text_format

    factors = factors_of(tmp_path, [tokens()], quant_granularity="per_channel")
    record = schema.message("AMCTPytorchProto.ScaleOffsetRecord")()
    text_format.Parse((tmp_path / "record.txt").read_text(), record)
    (entry,) = record.record
    assert entry.key == "layer"
    assert not entry.HasField("value")
    assert list(entry.kv_cache_value.scale) == factors.scale.tolist()
    assert list(entry.kv_cache_value.offset) == factors.offset.tolist()


def test_we_read_and_keep_records_of_protobuf(schema: Any, tmp_path: Path) -> None:
    from google.protobuf import text_format

    record = schema.message("AMCTPytorchProto.ScaleOffsetRecord")()
    entry = record.record.add(key='odd "name"\n')
    entry.kv_cache_value.scale.extend([0.1, 1e-30])
    entry.kv_cache_value.offset.extend([-128, 127])
    entry.value.scale_d = 1 / 3
    entry.value.shift_bit.extend([1, 4294967295])
    node = record.prune_record.add().producer.add(name="node")
    node.attr.add(name="a", type=6, strings=[b"\x00\xff", b"x"], i=-(2**63), f=0.1)
    (tmp_path / "record.txt").write_text(text_format.MessageToString(record))
    assert amct.read_record(tmp_path / "record.txt")['odd "name"\n'].offset.tolist() == [-128, 127]
    amct.QuantCalibrationOp(str(tmp_path / "record.txt"))("layer", tokens())
    merged = schema.message("AMCTPytorchProto.ScaleOffsetRecord")()
    text_format.Parse((tmp_path / "record.txt").read_text(), merged)
    assert merged.record.pop().key == "layer"
    assert merged == record
