"""Batches on devices give the same bits as in the host's memory, and no call waits for its device.

Without a GPU the same code runs on CPU tensors, which are sent the way of a device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
import torch
from amct_pytorch import _core, _device, _device_store, _observe
from helpers import DECODER_LAYERS, DTYPES, Decoder, calibrated, run_python, tokens
from torch.utils._python_dispatch import TorchDispatchMode

NAN, INF = float("nan"), float("inf")
GRANULARITIES = ("per_tensor", "per_channel")
ALGORITHMS = ("ifmr", "hfmg", "minmax", "percentile", "mse")
HALF = (torch.float16, torch.bfloat16)


class Route:
    """Says which tensors go the way of a device."""

    def __init__(self) -> None:
        self.on_device: Callable[[torch.Tensor], bool] = lambda x: True

    def __call__(self, x: torch.Tensor) -> bool:
        return self.on_device(x)


@pytest.fixture
def route(monkeypatch: pytest.MonkeyPatch) -> Route:
    route = Route()
    monkeypatch.setattr(_observe, "counts_on_device", route)
    return route


def _operator(folder: Path, batch_num: int, **params: Any) -> amct.QuantCalibrationOp:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "record.txt").unlink(missing_ok=True)
    return amct.QuantCalibrationOp(str(folder / "record.txt"), {"batch_num": batch_num, **params})


def _feed(op: amct.QuantCalibrationOp, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        op("layer", batch)


def _facts(result: amct.LayerResult) -> dict[str, Any]:
    """All of a result but how long it took."""
    names = [name for name in dir(result) if not name.startswith("_") and not name.endswith("_seconds")]
    assert "is_sketch" in names
    return {name: getattr(result, name) for name in names}


def _outcome(folder: Path, batches: list[torch.Tensor], **params: Any) -> tuple[bytes, dict[str, Any]]:
    """The record and the result of a layer that saw the batches."""
    op = _operator(folder, len(batches), **params)
    for i, batch in enumerate(batches):
        assert op.unfinished().get("layer", (0, 0))[0] == i
        assert op("layer", batch) is batch
    assert op.unfinished() == {}
    return (folder / "record.txt").read_bytes(), _facts(op.results()[0])


def _same_on_device(route: Route, folder: Path, batches: list[torch.Tensor], **params: Any) -> None:
    """The batches give the same on the host, on a device, and on both in turns."""
    route.on_device = lambda x: False
    expected = _outcome(folder, batches, **params)
    route.on_device = lambda x: True
    assert _outcome(folder, batches, **params) == expected
    for first in (True, False):
        turns = iter([first, not first] * len(batches))
        route.on_device = lambda x, turns=turns: next(turns)  # type: ignore[misc]
        assert _outcome(folder, batches, **params) == expected


def _batches(dtype: torch.dtype) -> list[torch.Tensor]:
    """Batches of 6 channels of different spreads: ties, zeros of both signs, an outlier, single tokens."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(90, 6, generator=generator) * torch.logspace(-3, 3, 6)
    x[::7] = 0.0
    x[3::7] = -0.0
    x[5, 2] = 1e4
    x[50] = x[51]
    x = x.to(dtype)
    return [x[:40].view(2, 4, 5, 6), x[40:41], x[41], x[42:89], x[89:].view(1, 1, 6)]


class TestSameBits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("with_offset", [True, False])
    def test_batches(
        self,
        dtype: torch.dtype,
        algorithm: str,
        granularity: str,
        with_offset: bool,
        route: Route,
        tmp_path: Path,
    ) -> None:
        params = {"act_algo": algorithm, "quant_granularity": granularity, "with_offset": with_offset}
        _same_on_device(route, tmp_path, _batches(dtype), **params)

    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_dtypes_that_change_from_batch_to_batch(
        self, algorithm: str, granularity: str, route: Route, tmp_path: Path
    ) -> None:
        batches = [batch for dtype in DTYPES for batch in _batches(dtype)[:2]]
        params = {"act_algo": algorithm, "quant_granularity": granularity}
        _same_on_device(route, tmp_path, [*batches[::2], *batches[1::2]], **params)

    @pytest.mark.parametrize("dtype", HALF)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_every_pattern(self, dtype: torch.dtype, granularity: str, route: Route, tmp_path: Path) -> None:
        patterns = torch.arange(-32768, 32768, dtype=torch.int16).view(dtype).view(-1, 2)
        _same_on_device(
            route, tmp_path, [patterns, patterns.flip(1)], quant_granularity=granularity, nonfinite="skip"
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_views(
        self, dtype: torch.dtype, algorithm: str, granularity: str, route: Route, tmp_path: Path
    ) -> None:
        base = torch.randn(6, 10, 24, generator=torch.Generator().manual_seed(3)).to(dtype)
        views = [
            base.transpose(0, 1),
            base.permute(2, 0, 1),
            base[:, ::2],
            base[..., ::2],
            base[..., 8:16],  # the keys of a fused qkv
            base[..., 8:16].unflatten(-1, (2, 4)).transpose(1, 2),
            base[:, :1].expand(-1, 7, -1),
            base[..., :1].expand(-1, -1, 5),
            base.flatten()[3:].as_strided((5, 4), (17, 2)),
            base.flip(0),
            base.flatten()[::3],
            base[0, 0, 0],
            base.view(6, 2, 5, 24).contiguous(memory_format=torch.channels_last),
        ]
        params = {"act_algo": algorithm, "quant_granularity": granularity}
        for view in views:
            _same_on_device(route, tmp_path, [view], **params)

    def test_lazily_negated(self, route: Route, tmp_path: Path) -> None:
        view = torch.complex(tokens(1), tokens(2).abs()).conj().imag
        assert view.is_neg()
        for algorithm in ALGORITHMS:
            _same_on_device(route, tmp_path, [view], act_algo=algorithm)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_bounds(
        self,
        dtype: torch.dtype,
        algorithm: str,
        granularity: str,
        route: Route,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """However often it is handed over, and in how small parts it is looked at."""
        monkeypatch.setattr(_device, "HELD", 4)
        monkeypatch.setattr(_device_store, "HELD", 4)
        monkeypatch.setattr(_device_store, "TILE", 4)
        for part in (1, 7, 30):
            monkeypatch.setattr(_device_store, "PART", part)
            batches = [*_batches(dtype), *_batches(dtype)[1].expand(9, -1).split(1)]
            params = {"act_algo": algorithm, "quant_granularity": granularity}
            _same_on_device(route, tmp_path, batches, **params)

    def test_float32_past_the_memory_budget(self, route: Route, tmp_path: Path) -> None:
        batches = [torch.randn(500, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        for granularity in GRANULARITIES:
            outcomes = []
            for on_device in (False, True):
                route.on_device = lambda x, on_device=on_device: on_device  # type: ignore[misc]
                (tmp_path / "record.txt").unlink(missing_ok=True)
                op = amct.QuantCalibrationOp(
                    str(tmp_path / "record.txt"),
                    {"batch_num": 3, "quant_granularity": granularity},
                    memory_budget=64 * 1000 * 4 * 4,
                )
                for batch in batches:
                    op("layer", batch)
                outcomes.append(_facts(op.results()[0]))
            assert outcomes[0]["is_sketch"]
            assert outcomes[0] == outcomes[1]

    def test_a_later_change_of_the_tensor_does_not_matter(self, route: Route, tmp_path: Path) -> None:
        for dtype in DTYPES:
            for granularity in GRANULARITIES:
                route.on_device = lambda x: False
                params = {"quant_granularity": granularity}
                expected = _outcome(tmp_path, [tokens(i).to(dtype) for i in range(3)], **params)
                route.on_device = lambda x: True
                op = _operator(tmp_path, 3, **params)
                buffer = torch.empty_like(tokens(), dtype=dtype)
                for i in range(3):
                    op("layer", buffer.copy_(tokens(i)))
                assert _facts(op.results()[0]) == expected[1]

    def test_defaults_of_torch(self, route: Route, tmp_path: Path) -> None:
        """Another default dtype and device than usual."""
        for dtype in DTYPES:
            for algorithm in ALGORITHMS:
                for granularity in GRANULARITIES:
                    batches = _batches(dtype)
                    params = {"act_algo": algorithm, "quant_granularity": granularity}
                    route.on_device = lambda x: False
                    expected = _outcome(tmp_path, batches, **params)
                    route.on_device = lambda x: True
                    torch.set_default_dtype(torch.float64)
                    try:
                        with torch.device("meta"):
                            assert _outcome(tmp_path, batches, **params) == expected
                    finally:
                        torch.set_default_dtype(torch.float32)

    def test_modes(self, route: Route, tmp_path: Path) -> None:
        """Batches with and without gradients, in inference mode and out of it."""
        batches = [tokens(i).bfloat16() for i in range(4)]
        for algorithm in ALGORITHMS:
            for granularity in GRANULARITIES:
                params = {"act_algo": algorithm, "quant_granularity": granularity}
                route.on_device = lambda x: False
                expected = _outcome(tmp_path, batches, **params)
                route.on_device = lambda x: True
                op = _operator(tmp_path, 4, **params)
                with torch.inference_mode():
                    op("layer", batches[0].clone())
                weight = batches[1].requires_grad_()
                assert op("layer", weight * 1).requires_grad
                with torch.no_grad():
                    op("layer", batches[2])
                with torch.inference_mode():
                    op("layer", batches[3])
                assert _facts(op.results()[0]) == expected[1]


class TestInAModel:
    def test_the_same_record(self, route: Route, tmp_path: Path) -> None:
        route.on_device = lambda x: False
        definition = "batch_num: 3"
        expected, model = Decoder().bfloat16(), Decoder().bfloat16()
        calibrated(tmp_path / "host", expected, None, definition)
        for seed in range(3):
            expected(tokens(seed).bfloat16())
        route.on_device = lambda x: True
        calibrated(tmp_path, model, None, definition)
        run = amct.calibration_run(model)
        for seed in range(3):
            assert run.unfinished() == dict.fromkeys(DECODER_LAYERS, (seed, 3))
            model(tokens(seed).bfloat16())
        assert run.unfinished() == {}
        assert run._layers._layers == {}  # the devices hold nothing any more
        assert all(not module._forward_hooks for module in model.modules())
        assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "host" / "record.txt").read_bytes()

    def test_lost_batches_are_reported(
        self, route: Route, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        op = _operator(tmp_path, 5)
        op("layer", tokens(1))
        op("layer", tokens(2))
        with caplog.at_level(logging.WARNING):
            del op
        assert "layer (2 of 5 batches)" in caplog.text

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_compiled(self, dtype: torch.dtype, route: Route, tmp_path: Path) -> None:
        torch._dynamo.reset()
        model = calibrated(tmp_path, Decoder().to(dtype), None, "batch_num: 2")
        op = _operator(tmp_path / "op", 2)

        @torch.compile(backend="eager")
        def step(x: torch.Tensor) -> torch.Tensor:
            return op("mine", model(x) * 2)

        for seed in range(3):
            x = tokens(seed).to(dtype)
            plain = Decoder().to(dtype)
            torch.testing.assert_close(step(x), plain(x) * 2)
        assert amct.calibration_run(model).unfinished() == op.unfinished() == {}

    def test_compiled_in_a_program_that_had_not_loaded_the_compiler(self, tmp_path: Path) -> None:
        run_python(
            """
            import sys, torch
            import amct_pytorch as amct
            from amct_pytorch import _observe
            _observe.counts_on_device = lambda x: True
            assert "torch._dynamo" not in sys.modules
            model = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(4, 4), "v_proj": torch.nn.Linear(4, 4)})
            definition = open("d.cfg", "w")
            definition.write("batch_num: 3")
            definition.close()
            amct.create_quant_cali_config("c.json", model, config_defination="d.cfg")
            amct.create_quant_cali_model("c.json", "r.txt", model)
            ops = [
                amct.QuantCalibrationOp("r.txt", {"batch_num": 3, "act_algo": a, "quant_granularity": g})
                for a in ("ifmr", "minmax") for g in ("per_tensor", "per_channel")
            ]

            @torch.compile(backend="eager")
            def step(x):
                y = model["k_proj"](x) * 2
                z = model["v_proj"](y) + y
                for i, op in enumerate(ops):
                    z = op(f"mine{i}", z.bfloat16()).float()
                return z

            for i in range(5):
                x = torch.randn(3, 4)
                y = torch.nn.functional.linear(x, model["k_proj"].weight, model["k_proj"].bias) * 2
                z = torch.nn.functional.linear(y, model["v_proj"].weight, model["v_proj"].bias) + y
                torch.testing.assert_close(step(x), z.bfloat16().float())
            results = amct.calibration_run(model).results() + [r for op in ops for r in op.results()]
            assert len(results) == 6 and {result.batches for result in results} == {3}
            """,
            cwd=tmp_path,
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("mixed", [False, True])
    def test_threads(
        self, dtype: torch.dtype, granularity: str, mixed: bool, route: Route, tmp_path: Path
    ) -> None:
        """Threads that meet in one layer, and in several."""
        threads, names = 4, ("a", "b", "c")
        batches = [tokens(seed).to(dtype) for seed in range(12)]
        params = {"quant_granularity": granularity}
        route.on_device = lambda x: False
        _, expected = _outcome(tmp_path, batches, **params)
        on_device = {id(batch) for batch in batches[:: 2 if mixed else 1]}
        route.on_device = lambda x: id(x) in on_device
        op = _operator(tmp_path, len(batches), **params)
        start = threading.Barrier(threads)

        def work(thread: int) -> None:
            start.wait()
            for batch in batches[thread::threads]:
                for name in names:
                    op(name, batch)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        assert {result.name for result in op.results()} == set(names)
        for result in op.results():
            # float32 samples are summed in the order they came.
            facts = {**_facts(result), "name": "layer", "sqnr_db": pytest.approx(result.sqnr_db, rel=1e-12)}
            assert facts == expected

    def test_a_device_batch_that_comes_while_the_host_counts(self, route: Route, tmp_path: Path) -> None:
        """The thread that is last finishes the layer, though neither saw the other begin."""

        class Meanwhile:
            def __init__(self, layers: _device.DeviceLayers) -> None:
                self.layers, self.session = layers, layers.session

            def __getattr__(self, name: str) -> Any:
                return getattr(self.session, name)

            def observe(self, name: str, x: torch.Tensor) -> Any:
                self.layers.observe_on_device(name, tokens(1).bfloat16())
                return self.session.observe(name, x)

        op = _operator(tmp_path, 2)
        op._layers.session = Meanwhile(op._layers)
        assert op._layers.observe("layer", tokens(2).bfloat16()) == (True, [])
        assert op.results()[0].batches == 2
        assert op._layers._layers == {}


class TestErrors:
    """The same errors as on the host, though later where only the device knows."""

    def _messages(self, folder: Path, batches: list[torch.Tensor], **params: Any) -> list[str]:
        """What a layer says of the batches, of which some are bad; then good ones finish it."""
        op = _operator(folder, len(batches), **params)
        messages = []
        rest = iter([*batches, *[tokens(20 + i).to(batches[0].dtype) for i in range(len(batches))]])
        while not op.results():
            try:
                op("layer", next(rest))
            except amct.NonFiniteError as error:
                messages.append(f"{error} ({error.count}, {error.first_index})")
                messages += [note.partition(": ")[2] for note in getattr(error, "__notes__", [])]
        assert op.results()[0].batches == len(batches)
        return messages

    def _same_errors(
        self, route: Route, folder: Path, batches: list[torch.Tensor], count: int, **params: Any
    ) -> None:
        route.on_device = lambda x: False
        expected = self._messages(folder, batches, **params)
        assert len(expected) == count
        record = (folder / "record.txt").read_bytes()
        route.on_device = lambda x: True
        # Of several errors at once, the others are notes of the first, without attributes.
        messages = self._messages(folder, batches, **params)
        assert messages[0] == expected[0]
        assert messages[1:] == [message.rpartition(" (")[0] for message in expected[1:]]
        assert (folder / "record.txt").read_bytes() == record

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("part", [3, 1 << 22])
    def test_not_finite(
        self,
        dtype: torch.dtype,
        algorithm: str,
        granularity: str,
        part: int,
        route: Route,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(_device_store, "PART", part)
        batches = [tokens(seed).to(dtype) for seed in range(6)]
        batches[1][1, 2, 3] = NAN
        batches[1][1, 7, 15] = -INF
        batches[3][0, 0, 0] = INF
        batches[4] = batches[4].transpose(0, 1)
        batches[4][5, 1, 9] = NAN
        params = {"act_algo": algorithm, "quant_granularity": granularity}
        self._same_errors(route, tmp_path, batches, 3, **params)

    def test_the_first_batch_and_all_of_them(self, route: Route, tmp_path: Path) -> None:
        bad = torch.full((2, 3, 16), NAN, dtype=torch.bfloat16)
        for algorithm in ("ifmr", "minmax"):
            for granularity in GRANULARITIES:
                params = {"act_algo": algorithm, "quant_granularity": granularity}
                self._same_errors(route, tmp_path, [bad, tokens().bfloat16()], 1, **params)
                self._same_errors(route, tmp_path, [bad, bad, bad], 3, **params)

    def test_a_batch_of_the_host_is_added_where_one_before_it_was_bad(
        self, route: Route, tmp_path: Path
    ) -> None:
        op = _operator(tmp_path, 4)
        bad = tokens(1)
        bad[0, 0, 5] = NAN
        op("layer", tokens(2))
        op("layer", bad)
        route.on_device = lambda x: False
        with pytest.raises(amct.NonFiniteError, match=r"layer 'layer', batch 2: 1 of 256 .* index 5 "):
            op("layer", tokens(3))
        assert op.unfinished() == {"layer": (2, 4)}
        with pytest.raises(amct.NonFiniteError, match=r"layer 'layer', batch 3: 1 of 256 .* index 5 "):
            op("layer", bad)
        op("layer", tokens(4))
        op("layer", tokens(5))
        assert op.results()[0].batches == 4

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_skipped(
        self, dtype: torch.dtype, algorithm: str, granularity: str, route: Route, tmp_path: Path
    ) -> None:
        batches = [tokens(seed).to(dtype) for seed in range(3)]
        batches[0][0, 0, :8] = NAN
        batches[0][0, 1, 8:] = INF
        batches[2][:, :, 2] = -INF
        params = {"act_algo": algorithm, "quant_granularity": granularity, "nonfinite": "skip"}
        _same_on_device(route, tmp_path, batches, **params)

    def test_nothing_finite_at_all(self, route: Route, tmp_path: Path) -> None:
        for dtype in DTYPES:
            for algorithm in ("ifmr", "minmax"):
                for granularity in GRANULARITIES:
                    params = {"nonfinite": "skip", "act_algo": algorithm, "quant_granularity": granularity}
                    messages = []
                    for on_device in (False, True):
                        route.on_device = lambda x, on_device=on_device: on_device  # type: ignore[misc]
                        op = _operator(tmp_path, 2, **params)
                        op("layer", torch.full((2, 2), NAN, dtype=dtype))
                        with pytest.raises(RuntimeError) as caught:
                            op("layer", torch.full((2, 2), NAN, dtype=dtype))
                        messages.append(str(caught.value))
                    assert messages[0] == messages[1]
                    assert "layer 'layer', batch 2: " in messages[0]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_what_the_host_knows_is_an_error_at_once(
        self, dtype: torch.dtype, granularity: str, route: Route, tmp_path: Path
    ) -> None:
        op = _operator(tmp_path, 3, quant_granularity=granularity)
        for seen in range(2):
            for shape in ((0,), (2, 0, 16), (2, 8, 0)):
                with pytest.raises(RuntimeError, match=rf"'layer', batch {seen + 1}: .*shape \[.*no values"):
                    op("layer", torch.empty(shape, dtype=dtype))
            if seen == 1:
                with pytest.raises(RuntimeError, match=r"layer 'layer', batch 2: .* 8 channels.* 16"):
                    op("layer", tokens(2).to(dtype)[..., :8])
            op("layer", tokens(seen).to(dtype))
            assert op.unfinished() == {"layer": (seen + 1, 3)}
        op("layer", tokens(2).to(dtype))
        route.on_device = lambda x: False
        batches = [tokens(seed).to(dtype) for seed in range(3)]
        expected = _outcome(tmp_path, batches, quant_granularity=granularity)
        assert _facts(op.results()[0]) == expected[1]

    def test_another_number_of_channels_than_on_the_host(self, route: Route, tmp_path: Path) -> None:
        op = _operator(tmp_path, 3)
        for on_device in (True, False):
            route.on_device = lambda x, on_device=on_device: on_device  # type: ignore[misc]
            op("layer", tokens())
            route.on_device = lambda x, on_device=on_device: not on_device  # type: ignore[misc]
            with pytest.raises(RuntimeError, match=r"layer 'layer', batch \d: .* 8 channels.* 16"):
                op("layer", tokens()[..., :8])

    def test_a_record_that_cannot_be_written(self, route: Route, tmp_path: Path) -> None:
        model = calibrated(tmp_path, Decoder(), [DECODER_LAYERS[0]], "batch_num: 2")
        record = tmp_path / "record.txt"
        record.unlink()
        record.mkdir()
        model(tokens(1))
        with pytest.raises(ValueError, match=r"record\.txt.*folder"):
            model(tokens(2))
        assert all(not module._forward_hooks for module in model.modules())
        record.rmdir()
        amct.calibration_run(model).write_record()
        assert list(amct.read_record(record)) == [DECODER_LAYERS[0]]

    def test_an_unknown_layer(self, route: Route) -> None:
        layers = _device.DeviceLayers(_core.Session(_core.default_config(["k"]), "record.txt", 0))
        with pytest.raises(ValueError, match="'q' is not in the calibration configuration"):
            _observe.observe(layers, "q", tokens())

    def test_meta_tensors(self, tmp_path: Path) -> None:
        op = _operator(tmp_path, 1)
        with pytest.raises(TypeError, match=r"layer 'layer'.*'meta'.*no values"):
            op("layer", torch.empty(2, 2, device="meta"))
        assert op.unfinished() == {}

    def test_a_finished_layer_costs_nothing(self, route: Route, tmp_path: Path) -> None:
        op = _operator(tmp_path, 1)
        op("layer", tokens())
        op("layer", torch.empty(0, 3))
        op("layer", tokens(width=3))
        assert op._layers._layers == {}


class NoSync(TorchDispatchMode):
    """Fails on whatever would make the host wait for a device."""

    WAITS = (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "unique",
        "_unique2",
        "bincount",
        "histc",
        "repeat_interleave",
        "allclose",
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, name
        moves = name in ("_to_copy", "copy_") and "device" in (kwargs or {})
        assert not moves, name
        # An index of bools has a result of unknown size.
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        assert all(i is None or i.dtype != torch.bool for i in indices), name
        return func(*args, **(kwargs or {}))


class TestNoWait:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("nonfinite", ["raise", "skip"])
    def test_before_the_last_batch(
        self,
        dtype: torch.dtype,
        algorithm: str,
        granularity: str,
        nonfinite: str,
        route: Route,
        tmp_path: Path,
    ) -> None:
        params = {"act_algo": algorithm, "quant_granularity": granularity, "nonfinite": nonfinite}
        op = _operator(tmp_path, 5, **params)
        batches = [tokens(seed).to(dtype) for seed in range(5)]
        with NoSync() as mode:
            for batch in batches[:2]:
                op("layer", batch)
            op("layer", batches[2].transpose(0, 1))
            op("layer", batches[3][:1, :1])
        assert mode.calls > 0

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("nonfinite", ["raise", "skip"])
    def test_on_a_device_without_values(
        self, dtype: torch.dtype, algorithm: str, granularity: str, nonfinite: str, tmp_path: Path
    ) -> None:
        """On 'meta' nothing can be read, and no tensor of the CPU may take part."""
        params = {"act_algo": algorithm, "quant_granularity": granularity, "nonfinite": nonfinite}
        op = _operator(tmp_path, 5, **params)
        for shape in ((2, 8, 16), (3, 16), (16,)):
            op._layers.observe_on_device("layer", torch.empty(shape, dtype=dtype, device="meta"))
        op._layers.observe_on_device("layer", torch.empty(16, 5, dtype=dtype, device="meta").t())
        assert op.unfinished() == {"layer": (4, 5)}
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # to hand over is to read
            op("layer", tokens().to(dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batches_that_fill_the_bound_are_not_copied(
        self, dtype: torch.dtype, route: Route, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies = []
        grow_to = _device_store._Rows._grow_to
        monkeypatch.setattr(
            _device_store._Rows, "_grow_to", lambda self, rows: (copies.append(rows), grow_to(self, rows))
        )
        op = _operator(tmp_path, 3, quant_granularity="per_channel")
        x = torch.randn(_device_store.HELD, 2).to(dtype)
        op("layer", x)
        assert copies == []
        op("layer", x[:-1])
        op("layer", x[:1])
        assert copies == [_device_store.HELD - 1, _device_store.HELD]
        assert op.results()[0].tokens == 2 * _device_store.HELD

    def test_device_memory_is_bounded(self, route: Route, tmp_path: Path) -> None:
        held = _device_store.HELD
        for dtype, granularity in ((torch.bfloat16, "per_channel"), (torch.float32, "per_tensor")):
            op = _operator(tmp_path, 10**6, quant_granularity=granularity)
            for rows in (1, 1, held // 2, held // 2 - 2, 1, 5, held - 1, 3, 2 * held, held - 1):
                op("layer", torch.ones(rows, 4, dtype=dtype))
                stores = op._layers._layers["layer"]._stores.values()
                assert sum(len(store._memory) for store in stores) <= held  # type: ignore[attr-defined]


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here; the tests above run the same code on CPU tensors")
    yield torch.device("cuda")
    torch.cuda.set_sync_debug_mode("default")


class TestCuda:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_same_bits_and_no_wait(
        self, dtype: torch.dtype, algorithm: str, granularity: str, cuda: torch.device, tmp_path: Path
    ) -> None:
        params = {"act_algo": algorithm, "quant_granularity": granularity}
        batches = [torch.randn(4, 500, 64).to(dtype) for _ in range(4)]
        expected = _outcome(tmp_path, batches, **params)
        op = _operator(tmp_path, 4, **params)
        there = [batch.to(cuda) for batch in batches]
        torch.cuda.set_sync_debug_mode("error")
        for batch in there[:3]:
            op("layer", batch)
        torch.cuda.set_sync_debug_mode("default")
        op("layer", there[3])
        assert ((tmp_path / "record.txt").read_bytes(), _facts(op.results()[0])) == expected

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_streams_and_the_host_at_once(
        self, dtype: torch.dtype, granularity: str, cuda: torch.device, tmp_path: Path
    ) -> None:
        params = {"quant_granularity": granularity}
        batches = [torch.randn(4, 500, 64).to(dtype) for _ in range(9)]
        expected = _outcome(tmp_path, batches, **params)
        op = _operator(tmp_path, 9, **params)
        there = [batch.to(cuda) for batch in batches[:6]]
        torch.cuda.synchronize()
        for i, batch in enumerate(there):
            with torch.cuda.stream(torch.cuda.Stream() if i % 2 else torch.cuda.current_stream()):
                op("layer", batch)
        for batch in batches[6:]:
            op("layer", batch)
        assert ((tmp_path / "record.txt").read_bytes(), _facts(op.results()[0])) == expected

    def test_not_finite(self, cuda: torch.device, tmp_path: Path) -> None:
        for dtype in DTYPES:
            for granularity in GRANULARITIES:
                messages = []
                for device in ("cpu", cuda):
                    op = _operator(tmp_path, 2, quant_granularity=granularity)
                    bad = torch.ones(3, 5, dtype=dtype)
                    bad[1, 2] = NAN
                    good = torch.ones(1, 5, dtype=dtype, device=device)
                    with pytest.raises(amct.NonFiniteError) as caught:  # at once, or with the last batch
                        _feed(op, [bad.to(device), good])
                    messages.append(str(caught.value))
                assert messages[0] == messages[1]
