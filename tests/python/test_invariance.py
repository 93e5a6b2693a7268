"""The same data give the same bytes, however they are cut, ordered and spread over threads."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import amct_pytorch as amct
import pytest
import torch
from helpers import DTYPES, Decoder, config_for, record_of, tokens

ALGORITHMS = ("ifmr", "hfmg", "minmax")
GRANULARITIES = ("per_tensor", "per_channel")


def _rows(dtype: torch.dtype) -> torch.Tensor:
    """120 rows of 8 channels of different spreads, with ties, zeros of both signs and outliers."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(120, 8, generator=generator) * torch.logspace(-3, 3, 8)
    x[::7] = 0.0
    x[3::7] = -0.0
    x[5, 2] = 1e4
    x[50] = x[51]
    return x.to(dtype)


SPLITS = {
    "one": [120],
    "two": [60, 60],
    "four": [30] * 4,
    "ragged": [1, 50, 2, 37, 29, 1],
    "tokens": [1] * 120,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("with_offset", [True, False])
def test_batches(
    dtype: torch.dtype, algorithm: str, granularity: str, with_offset: bool, tmp_path: Path
) -> None:
    rows = _rows(dtype)
    params = {"act_algo": algorithm, "quant_granularity": granularity, "with_offset": with_offset}
    expected = record_of(tmp_path, [rows], **params)
    assert expected.count(b"scale") == (1 if granularity == "per_tensor" else 8)
    shuffle = random.Random(0)
    for name, sizes in SPLITS.items():
        batches = list(rows.split(sizes))
        for _ in range(3):
            # A batch may have any leading dimensions.
            shaped = [batch.unsqueeze(0) if shuffle.random() < 0.5 else batch for batch in batches]
            assert record_of(tmp_path, shaped, **params) == expected, name
            shuffle.shuffle(batches)
    permuted = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    assert record_of(tmp_path, [permuted], **params) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
def test_threads(dtype: torch.dtype, algorithm: str, granularity: str, threads: int, tmp_path: Path) -> None:
    rows = _rows(dtype)
    params = {"act_algo": algorithm, "quant_granularity": granularity}
    expected = record_of(tmp_path, [rows], **params)
    record_file = tmp_path / "threads.txt"
    batches = list(rows.split(SPLITS["ragged"])) + list(rows.split(4))
    op = amct.QuantCalibrationOp(str(record_file), {**params, "batch_num": len(batches)})
    start = threading.Barrier(threads)

    def work(share: list[torch.Tensor]) -> None:
        start.wait()
        for batch in share:
            op("layer", batch)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [batches[i::threads] for i in range(threads)]))
    doubled = record_of(tmp_path, [rows, rows], **params)
    assert record_file.read_bytes() == doubled
    assert op.results()[0].batches == len(batches)
    if algorithm == "minmax":
        assert doubled == expected


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_finish_layers_of_one_model(threads: int, tmp_path: Path) -> None:
    """Layers finish in any order and write at the same time; the file is in order and whole."""
    inputs = [tokens(seed) for seed in range(8)]
    records = []
    for count in (1, threads):
        model = Decoder(blocks=6)
        config_file = config_for(tmp_path, model, None, "batch_num: 8")
        record_file = tmp_path / f"record{count}.txt"
        amct.create_quant_cali_model(config_file, str(record_file), model)
        with ThreadPoolExecutor(count) as pool, torch.no_grad():
            list(pool.map(model, inputs))
        assert amct.calibration_run(model).unfinished() == {}
        records.append(record_file.read_bytes())
    assert records[0] == records[1]
    assert len(amct.read_record(tmp_path / "record1.txt")) == 12


@pytest.mark.parametrize("threads", [1, 8])
def test_ops_of_several_threads_share_a_file(threads: int, tmp_path: Path) -> None:
    """Each thread has an op of its own; no layer that another writes is lost."""
    record_file = tmp_path / "record.txt"

    def work(thread: int) -> None:
        op = amct.QuantCalibrationOp(str(record_file))
        for i in range(8):
            op(f"{thread}.{i}", tokens(i))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    factors = amct.read_record(record_file)
    assert sorted(factors) == sorted(f"{t}.{i}" for t, i in itertools.product(range(threads), range(8)))
    assert factors["0.3"].scale.equal(factors[f"{threads - 1}.3"].scale)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_of_torch(threads: int, tmp_path: Path) -> None:
    x = _rows(torch.float32)
    expected = record_of(tmp_path, [x])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert record_of(tmp_path, [x]) == expected
    finally:
        torch.set_num_threads(before)


def test_data_larger_than_the_sorting_buffers(tmp_path: Path) -> None:
    """A million values, in one call and in one-token calls of many channels."""
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    for granularity in GRANULARITIES:
        params = {"act_algo": "minmax", "quant_granularity": granularity}
        expected = record_of(tmp_path, [x], **params)
        assert record_of(tmp_path, list(x.split(1)), **params) == expected
    assert record_of(tmp_path, [x]) == record_of(tmp_path, list(x.flip(0).split(1)))


def test_runs_of_a_model_in_other_batches(tmp_path: Path) -> None:
    """One batch of eight sequences, or eight of one: rows do not depend on their neighbours here."""
    x = tokens(batch=8)
    model = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(16, 8), "v_proj": torch.nn.Linear(16, 8)})
    for layer in model.values():  # exact products, so that no batch size rounds otherwise
        layer.weight.data = torch.eye(8, 16)
        layer.bias.data.zero_()
    records = []
    for parts in (1, 2, 8):
        config_file = config_for(tmp_path, model, None, f"batch_num: {parts}")
        record_file = tmp_path / f"{parts}.txt"
        amct.create_quant_cali_model(config_file, str(record_file), model)
        for part in x.chunk(parts):
            model["k_proj"](part)
            model["v_proj"](part)
        amct.remove_quant_cali(model)
        records.append(record_file.read_bytes())
    assert records[0] == records[1] == records[2]
