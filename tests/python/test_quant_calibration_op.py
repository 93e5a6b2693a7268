"""QuantCalibrationOp: its parameters, its errors, and what it does with tensors."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import numpy as np
import pytest
import reference
import torch
from amct_pytorch.nn.module.quantization.quant_calibration_op import QuantCalibrationOp
from helpers import DTYPES, columns_of, factors_of, record_of, tokens


def test_names_and_defaults() -> None:
    assert amct.QuantCalibrationOp is QuantCalibrationOp
    parameters = inspect.signature(QuantCalibrationOp).parameters
    assert list(parameters) == ["record_file", "quant_algo_params", "quant_method", "memory_budget"]
    assert parameters["memory_budget"].kind is inspect.Parameter.KEYWORD_ONLY  # an extension
    assert parameters["record_file"].default is inspect.Parameter.empty
    assert parameters["quant_algo_params"].default is None
    assert parameters["quant_method"].default == "kv_cache_quant"
    assert list(inspect.signature(QuantCalibrationOp.forward).parameters) == ["self", "layer_name", "x"]


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    data = [tokens()]
    spelled_out = {
        "act_algo": "ifmr",
        "num_bits": 8,
        "batch_num": 1,
        "asymmetric": True,
        "with_offset": True,
        "quant_granularity": "per_tensor",
        "max_percentile": 0.999999,
        "min_percentile": 0.999999,
        "search_range": [0.7, 1.3],
        "search_step": 0.01,
    }
    assert record_of(tmp_path, data) == record_of(tmp_path, data, **spelled_out)
    hfmg = {"act_algo": "hfmg", "num_of_bins": 4096}
    assert record_of(tmp_path, data, act_algo="hfmg") == record_of(tmp_path, data, **hfmg)


# A value of each Python type; `float` stands for one that no range allows an int in its place.
VALUES: dict[str, Any] = {
    "bool": True,
    "int": 8,
    "float": 0.9,
    "str": "x",
    "list": [0.8, 1.2],
    "NoneType": None,
    "dict": {},
    "bytes": b"8",
    "ndarray": np.ones(2),
    "Tensor": torch.ones(1),
    "object": object(),
}
# The types each parameter takes; an int stands for a float, as everywhere in Python, a bool for neither.
TYPES = {
    "act_algo": ("str",),
    "num_bits": ("int",),
    "batch_num": ("int",),
    "asymmetric": ("bool",),
    "with_offset": ("bool",),
    "quant_granularity": ("str",),
    "max_percentile": ("float", "int"),
    "min_percentile": ("float", "int"),
    "search_range": ("list",),
    "search_step": ("float", "int"),
    "num_of_bins": ("int",),
    "nonfinite": ("str",),
}
ALGORITHM = {"num_of_bins": {"act_algo": "hfmg"}}


@pytest.mark.parametrize(
    ("key", "kind"), [(key, kind) for key, kinds in TYPES.items() for kind in VALUES if kind not in kinds]
)
def test_wrong_type(key: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=key):
        QuantCalibrationOp(str(tmp_path / "record.txt"), {**ALGORITHM.get(key, {}), key: VALUES[kind]})


@pytest.mark.parametrize("element", ["a", None, True, [1.0], {}])
def test_wrong_type_in_search_range(element: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="search_range"):
        QuantCalibrationOp(str(tmp_path / "record.txt"), {"search_range": [0.7, element]})


@pytest.mark.parametrize("key", [1, None, ("batch_num",), b"batch_num"])
def test_wrong_type_of_a_key(key: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="key"):
        QuantCalibrationOp(str(tmp_path / "record.txt"), {key: 1})


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("act_algo", "IFMR"),
    ("act_algo", ""),
    ("act_algo", "ifmr "),
    ("num_bits", 5),
    ("dst_type", "INT5"),
    ("num_bits", 16),
    ("num_bits", -8),
    ("num_bits", 2**70),
    ("batch_num", 0),
    ("batch_num", -1),
    ("batch_num", -(2**70)),
    ("quant_granularity", "per_head"),
    ("quant_granularity", "2"),
    ("quant_granularity", ""),
    *(
        (key, v)
        for key in ("max_percentile", "min_percentile")
        for v in (0.5, 0.0, -1.0, 1.0000001, 2, NAN, INF)
    ),
    ("search_range", []),
    ("search_range", [0.7]),
    ("search_range", [0.7, 1.0, 1.3]),
    ("search_range", [1.3, 0.7]),
    ("search_range", [1.0, 1.0]),
    ("search_range", [0.0, 1.0]),
    ("search_range", [-0.1, 1.0]),
    ("search_range", [NAN, 1.0]),
    ("search_range", [0.5, NAN]),
    ("search_range", [0.5, INF]),
    ("search_step", 0.0),
    ("search_step", 0),
    ("search_step", -0.01),
    ("search_step", 0.61),
    ("search_step", NAN),
    ("search_step", INF),
    ("num_of_bins", 0),
    ("num_of_bins", 1000),
    ("num_of_bins", 16384),
    ("num_of_bins", -4096),
    ("nonfinite", "ignore"),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_out_of_range(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=key):
        QuantCalibrationOp(str(tmp_path / "record.txt"), {**ALGORITHM.get(key, {}), key: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_percentile", 1),
        ("max_percentile", 1.0),
        ("min_percentile", 0.5000001),
        ("search_range", (0.7, 1.3)),
        ("search_range", [1, 2]),
        ("search_step", 0.6),
        ("batch_num", 2**40),
        ("quant_granularity", "0"),
        ("quant_granularity", "1"),
        *(("num_of_bins", bins) for bins in (1024, 2048, 4096, 8192)),
    ],
)
def test_in_range(key: str, value: Any, tmp_path: Path) -> None:
    op = QuantCalibrationOp(str(tmp_path / "record.txt"), {**ALGORITHM.get(key, {}), key: value})
    op("layer", tokens())
    assert len(op.results()) == (0 if key == "batch_num" else 1)


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"batchnum": 1}, "did you mean 'batch_num'"),
        ({"max_percentil": 0.9}, "did you mean 'max_percentile'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"": 1}, "unknown key ''"),
        ({"num_of_bins": 4096}, "'num_of_bins' is a setting of act_algo 'hfmg'"),
        ({"act_algo": "hfmg", "max_percentile": 0.9}, "'max_percentile' is a setting of act_algo 'ifmr'"),
        ({"act_algo": "hfmg", "min_percentile": 0.9}, "'min_percentile' is a setting of act_algo 'ifmr'"),
        ({"act_algo": "hfmg", "search_range": [0.7, 1.3]}, "'search_range' is a setting of act_algo 'ifmr'"),
        ({"act_algo": "hfmg", "search_step": 0.01}, "'search_step' is a setting of act_algo 'ifmr'"),
        ({"act_algo": "minmax", "num_of_bins": 4096}, "'num_of_bins' is a setting of act_algo 'hfmg'"),
    ],
)
def test_unknown_and_foreign_keys(params: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"quant_algo_params") as caught:
        QuantCalibrationOp(str(tmp_path / "record.txt"), params)
    assert word in str(caught.value)


def test_search_step_must_fit_the_range(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"search_step.*search_range"):
        QuantCalibrationOp(str(tmp_path / "r"), {"search_range": [0.9, 1.1], "search_step": 0.3})


def test_quant_method(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"quant_method.*'kv_cache_quant'.*'other'"):
        QuantCalibrationOp(str(tmp_path / "record.txt"), {}, "other")
    for value in (None, 1, b"kv_cache_quant"):
        with pytest.raises(TypeError, match="quant_method"):
            QuantCalibrationOp(str(tmp_path / "record.txt"), quant_method=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [[], "act_algo", 1, [("batch_num", 1)]])
def test_params_must_be_a_dict(params: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="quant_algo_params"):
        QuantCalibrationOp(str(tmp_path / "record.txt"), params)


@pytest.mark.parametrize("name", [None, 1, b"record.txt", ["record.txt"]])
def test_record_file_of_a_wrong_type(name: Any) -> None:
    with pytest.raises(TypeError, match="record_file"):
        QuantCalibrationOp(name)


def test_record_file_of_a_wrong_name(tmp_path: Path) -> None:
    for name in ("", str(tmp_path), str(tmp_path) + "/", "r" * 256, f"{'d' * 256}/r", "nul\0inside"):
        with pytest.raises(ValueError, match=r"name|folder"):
            QuantCalibrationOp(name)
    QuantCalibrationOp(str(tmp_path / ("r" * 255)))("layer", tokens())
    assert (tmp_path / ("r" * 255)).exists()


def test_a_record_file_that_is_no_record_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    with pytest.raises(ValueError, match=r"notes\.txt.*ScaleOffsetRecord.*line 1"):
        QuantCalibrationOp(str(file))
    assert file.read_text() == "my notes"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        QuantCalibrationOp(str(file))


@pytest.mark.parametrize("name", [None, 1, b"layer"])
def test_layer_name_of_a_wrong_type(name: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="layer_name"):
        QuantCalibrationOp(str(tmp_path / "record.txt"))(name, tokens())


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "minmax"])
def test_asymmetric_wins_over_with_offset(algorithm: str, tmp_path: Path) -> None:
    data, params = [tokens() + 1], {"act_algo": algorithm}
    symmetric = record_of(tmp_path, data, **params, asymmetric=False)
    offset = record_of(tmp_path, data, **params, asymmetric=True)
    assert b"offset: 0\n" in symmetric
    assert b"offset: 0\n" not in offset
    assert record_of(tmp_path, data, **params, with_offset=False) == symmetric
    assert record_of(tmp_path, data, **params, with_offset=True) == offset
    assert record_of(tmp_path, data, **params, asymmetric=False, with_offset=True) == symmetric
    assert record_of(tmp_path, data, **params, with_offset=True, asymmetric=False) == symmetric
    assert record_of(tmp_path, data, **params, asymmetric=True, with_offset=False) == offset


@pytest.mark.parametrize(("word", "number"), [("per_tensor", "0"), ("per_channel", "1")])
def test_granularity_by_word_and_number(word: str, number: str, tmp_path: Path) -> None:
    data = [tokens()]
    record = record_of(tmp_path, data, quant_granularity=word)
    assert record == record_of(tmp_path, data, quant_granularity=number)
    assert record.count(b"scale") == (1 if number == "0" else 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("with_offset", [True, False])
def test_factors_are_those_of_the_reference(
    dtype: torch.dtype, granularity: str, with_offset: bool, tmp_path: Path
) -> None:
    batches = [(tokens(seed) * (seed + 1)).to(dtype) for seed in range(3)]
    for algorithm, search in (("ifmr", reference.ifmr), ("hfmg", reference.hfmg)):
        factors = factors_of(
            tmp_path, batches, act_algo=algorithm, quant_granularity=granularity, with_offset=with_offset
        )
        columns = columns_of(batches, granularity == "per_channel")
        for column, scale, offset in zip(columns, factors.scale, factors.offset, strict=True):
            wanted_scale, wanted_offset, _ = search(column, with_offset)
            assert scale.item() == pytest.approx(wanted_scale, rel=2.5e-7)
            assert offset.item() == wanted_offset


@pytest.mark.parametrize("count", [100_000, 100_001, 250_001])
def test_hfmg_cuts_off_more_at_a_time_where_there_are_more_values(count: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, generator=generator).pow(3)
    factors = factors_of(tmp_path, [x], act_algo="hfmg")
    scale, offset, _ = reference.hfmg(x.numpy())
    assert factors.scale.item() == pytest.approx(scale, rel=1e-6)
    assert factors.offset.item() == offset


def test_ifmr_leaves_out_the_outermost_of_a_million_values(tmp_path: Path) -> None:
    x = torch.randn(2_500_000, generator=torch.Generator().manual_seed(0))
    x[:5] = torch.tensor([100.0, 50.0, 25.0, -80.0, -40.0])
    # 2,500,000 - int(0.999999 * 2,500,000) = 3: the third of either end is where the search begins.
    low, high = reference.ifmr_bounds(x.numpy(), 0.999999, 0.999999)
    assert (low, high) == (x[5:].min().item(), 25.0)
    factors = factors_of(tmp_path, [x], search_range=[0.9, 1.1], search_step=0.1)
    scale, offset, _ = reference.ifmr(x.numpy(), start=0.9, end=1.1, step=0.1)
    assert factors.scale.item() == pytest.approx(scale, rel=2.5e-7)
    assert factors.offset.item() == offset


def test_minmax(tmp_path: Path) -> None:
    batch = tokens()
    factors = factors_of(tmp_path, [batch], act_algo="minmax")
    scale, offset = reference.minmax_params(batch.min().item(), batch.max().item())
    assert (factors.scale.item(), factors.offset.item()) == (scale, offset)


class TestTensors:
    """The tensor is passed on as it is, whatever it is like."""

    def test_the_same_object_in_the_same_graph(self, tmp_path: Path) -> None:
        op = QuantCalibrationOp(str(tmp_path / "record.txt"))
        weight = torch.randn(4, 4, requires_grad=True)
        y = tokens(width=4) @ weight
        before = y.clone()
        assert op("layer", y) is y
        assert torch.equal(y, before)
        assert y._version == 0
        y.square().sum().backward()
        assert weight.grad is not None
        assert op("parameter", weight) is weight

    def test_any_rank(self, tmp_path: Path) -> None:
        values = torch.linspace(-1, 2, 24)
        shapes = ((24,), (1, 24), (24, 1), (2, 3, 4), (1, 2, 1, 3, 1, 4))
        records = {record_of(tmp_path, [values.reshape(shape)]) for shape in shapes}
        assert len(records) == 1
        factors = factors_of(tmp_path, [torch.tensor(2.5)], act_algo="minmax")
        assert factors.scale.item() == np.float32(2.5) / np.float32(255)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
    def test_non_contiguous(self, dtype: torch.dtype, granularity: str, tmp_path: Path) -> None:
        base = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
        views = {
            "transposed": base.transpose(0, 1),
            "channels first": base.permute(2, 0, 1),
            "every other row": base[:, ::2],
            "every other channel": base[..., ::2],
            "some channels": base[..., 2:5],
            "heads": base.unflatten(-1, (2, 4)).transpose(1, 2),
            "expanded": base[:, :1].expand(-1, 7, -1),
            "expanded channels": base[..., :1].expand(-1, -1, 5),
            "offset": base.flatten()[3:].as_strided((5, 4), (17, 2)),
            "flipped": base.flip(0),
        }
        for name, view in views.items():
            # A contiguous copy of the view is what numpy and the reference would see.
            copied = record_of(
                tmp_path, [view.clone(memory_format=torch.contiguous_format)], quant_granularity=granularity
            )
            assert record_of(tmp_path, [view], quant_granularity=granularity) == copied, name

    def test_lazily_negated(self, tmp_path: Path) -> None:
        """The imaginary part of a conjugate is a view whose memory holds the opposite numbers."""
        complex_ = torch.complex(tokens(1), tokens(2).abs())
        view = complex_.conj().imag
        assert view.is_neg()
        assert record_of(tmp_path, [view]) == record_of(tmp_path, [-tokens(2).abs()])

    def test_inference_mode_and_no_grad(self, tmp_path: Path) -> None:
        expected = record_of(tmp_path, [tokens()])
        with torch.inference_mode():
            assert record_of(tmp_path, [tokens().clone()]) == expected
        with torch.no_grad():
            assert record_of(tmp_path, [tokens()]) == expected

    def test_a_later_change_of_the_tensor_does_not_matter(self, tmp_path: Path) -> None:
        """The model may reuse its buffers between batches."""
        expected = record_of(tmp_path, [tokens(1), tokens(2)])
        op = QuantCalibrationOp(str(tmp_path / "other.txt"), {"batch_num": 2})
        buffer = tokens(1)
        op("layer", buffer)
        buffer.copy_(tokens(2))
        op("layer", buffer)
        assert (tmp_path / "other.txt").read_bytes() == expected

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.float64,
            torch.int8,
            torch.int32,
            torch.int64,
            torch.uint8,
            torch.bool,
            torch.complex64,
            torch.complex128,
        ],
    )
    def test_wrong_dtype(self, dtype: torch.dtype, tmp_path: Path) -> None:
        op = QuantCalibrationOp(str(tmp_path / "record.txt"))
        with pytest.raises(TypeError, match=rf"layer 'a\.b'.*{dtype}.*float32.*float16.*bfloat16"):
            op("a.b", torch.ones(2, 2, dtype=dtype))
        assert not (tmp_path / "record.txt").exists()
        op("a.b", torch.ones(2, 2))
        assert list(amct.read_record(tmp_path / "record.txt")) == ["a.b"]

    @pytest.mark.parametrize("value", [None, 1.0, [1.0], np.ones(3, np.float32), (torch.ones(2),)])
    def test_no_tensor(self, value: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"layer 'a'.*tensor"):
            QuantCalibrationOp(str(tmp_path / "record.txt"))("a", value)

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
    @pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
    def test_sparse(self, make: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"layer 'a'.*dense"):
            QuantCalibrationOp(str(tmp_path / "record.txt"))("a", make(torch.eye(3)))


class TestRecord:
    def test_several_names_in_one_op(self, tmp_path: Path) -> None:
        record_file = tmp_path / "record.txt"
        op = QuantCalibrationOp(str(record_file), {"batch_num": 2})
        op("b", tokens(1))
        op("a", tokens(2))
        assert not record_file.exists()
        assert op.unfinished() == {"a": (1, 2), "b": (1, 2)}
        op("a", tokens(3))
        assert list(amct.read_record(record_file)) == ["a"]
        op("b", tokens(4))
        assert list(amct.read_record(record_file)) == ["a", "b"]
        assert op.unfinished() == {}
        assert [result.name for result in op.results()] == ["a", "b"]
        alone = factors_of(tmp_path / "alone", [tokens(1), tokens(4)])
        assert amct.read_record(record_file)["b"].scale.equal(alone.scale)

    def test_several_ops_on_one_file(self, tmp_path: Path) -> None:
        record_file = tmp_path / "record.txt"
        first = QuantCalibrationOp(str(record_file))
        second = QuantCalibrationOp(str(record_file), {"act_algo": "hfmg", "quant_granularity": "1"})
        first("k", tokens(1))
        after_first = record_file.read_text()
        second("v", tokens(2))
        assert record_file.read_text().startswith(after_first)
        first("o", tokens(3))
        factors = amct.read_record(record_file)
        assert {name: layer.scale.numel() for name, layer in factors.items()} == {"k": 1, "v": 16, "o": 1}

    def test_names_that_text_must_escape(self, tmp_path: Path) -> None:
        names = ['quote"', "back\\slash", "new\nline", "Schlüssel", "键", "", "a b", "\t"]
        op = QuantCalibrationOp(str(tmp_path / "record.txt"))
        for name in names:
            op(name, tokens())
        assert list(amct.read_record(tmp_path / "record.txt")) == names

    def test_batches_after_the_last_one_are_passed_on_unseen(self, tmp_path: Path) -> None:
        record_file = tmp_path / "record.txt"
        op = QuantCalibrationOp(str(record_file))
        op("layer", tokens(1))
        before = (record_file.read_bytes(), record_file.stat().st_mtime_ns, record_file.stat().st_ino)
        for x in (tokens(2) * 100, torch.full((2, 5), NAN), torch.empty(0, 7)):
            assert op("layer", x) is x
        assert (record_file.read_bytes(), record_file.stat().st_mtime_ns, record_file.stat().st_ino) == before
        assert op.results()[0].batches == 1

    def test_overwriting_a_layer_warns(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        record_file = tmp_path / "record.txt"
        with caplog.at_level(logging.DEBUG, "amct_pytorch"):
            QuantCalibrationOp(str(record_file))("layer", tokens(1))
            QuantCalibrationOp(str(record_file))("other", tokens(1))
        assert caplog.records == []
        with caplog.at_level(logging.DEBUG, "amct_pytorch"):
            QuantCalibrationOp(str(record_file))("layer", tokens(2) * 3)
        (warning,) = caplog.records
        assert warning.name == "amct_pytorch"
        assert warning.levelno == logging.WARNING
        assert "'layer'" in warning.getMessage()
        assert "will be overwritten" in warning.getMessage()
        assert str(record_file) in warning.getMessage()
        factors = amct.read_record(record_file)
        assert list(factors) == ["layer", "other"]
        assert factors["layer"].scale > factors["other"].scale

    def test_what_others_wrote_stays(self, tmp_path: Path) -> None:
        record_file = tmp_path / "record.txt"
        foreign = (
            'record {\n  key: "conv"\n  value {\n    scale_d: 0.5\n    offset_d: -3\n    scale_w: 0.25\n'
            '    shift_bit: 4\n    skip_fusion: true\n    dst_type: "INT4"\n    scale_h: 2.0\n  }\n}\n'
        )
        prune = (
            'prune_record {\n  producer {\n    name: "p"\n    attr {\n      name: "type"\n'
            '      type: STRING\n      s: "Conv\\377"\n    }\n  }\n}\n'
        )
        record_file.write_text(foreign + prune)
        op = QuantCalibrationOp(str(record_file))
        op("layer", tokens())
        text = record_file.read_text()
        assert text.startswith(foreign)
        assert text.endswith(prune)
        op("conv", tokens())  # a layer that others know too
        text = record_file.read_text()
        assert text.startswith(foreign.removesuffix("}\n") + "  kv_cache_value {\n    scale: ")
        assert text.endswith(prune)
        assert list(amct.read_record(record_file)) == ["conv", "layer"]

    def test_comments_and_odd_layout_are_read(self, tmp_path: Path) -> None:
        record_file = tmp_path / "record.txt"
        record_file.write_text(
            "# by hand\nrecord: < key: 'a' kv_cache_value { scale: [0.5, 1] offset: [1, 2] } >"
        )
        QuantCalibrationOp(str(record_file))("b", tokens())
        factors = amct.read_record(record_file)
        assert factors["a"].scale.tolist() == [0.5, 1.0]
        assert factors["a"].offset.tolist() == [1, 2]
        assert list(factors) == ["a", "b"]


class TestModule:
    """The op is a module without state that may sit inside a model."""

    def test_inside_a_model(self, tmp_path: Path) -> None:
        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.k_proj = torch.nn.Linear(16, 8)
                self.calibrate = QuantCalibrationOp(str(tmp_path / "record.txt"))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.calibrate("k_proj", self.k_proj(x))

        model = Model()
        assert list(model.state_dict()) == ["k_proj.weight", "k_proj.bias"]
        model.load_state_dict(model.state_dict())
        out = model(tokens())
        out.sum().backward()
        assert model.k_proj.weight.grad is not None
        assert str(tmp_path / "record.txt") in repr(model)
        model.eval().to(torch.bfloat16)
        assert list(amct.read_record(tmp_path / "record.txt")) == ["k_proj"]

    def test_compiled(self, tmp_path: Path) -> None:
        op = QuantCalibrationOp(str(tmp_path / "record.txt"), {"batch_num": 2})

        @torch.compile(backend="eager")
        def step(x: torch.Tensor) -> torch.Tensor:
            return op("layer", x * 2) + 1

        for seed in (1, 2, 3):
            assert torch.equal(step(tokens(seed)), tokens(seed) * 2 + 1)
        expected = factors_of(tmp_path / "eager", [tokens(1) * 2, tokens(2) * 2])
        assert amct.read_record(tmp_path / "record.txt")["layer"].scale.equal(expected.scale)

    def test_copies_are_refused(self, tmp_path: Path) -> None:
        op = torch.nn.Sequential(QuantCalibrationOp(str(tmp_path / "record.txt")))
        with pytest.raises(RuntimeError, match=r"QuantCalibrationOp cannot be copied.*record"):
            copy.deepcopy(op)
        with pytest.raises(RuntimeError, match=r"QuantCalibrationOp cannot be pickled.*state_dict"):
            pickle.dumps(op)
        with pytest.raises(RuntimeError, match="cannot be pickled"):
            torch.save(op, io.BytesIO())

    def test_a_layer_left_unfinished_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        op = QuantCalibrationOp(str(tmp_path / "record.txt"), {"batch_num": 2})
        op("done", tokens())
        op("done", tokens())
        op("half", tokens())
        del op
        gc.collect()
        (message,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert "half (1 of 2 batches)" in message
        assert "done" not in message
        assert str(tmp_path / "record.txt") in message
