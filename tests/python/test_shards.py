"""What a process knows of layers that it shares with others, by what its modules say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import amct_pytorch as amct
import pytest
import torch
import torch.distributed as dist
from amct_pytorch._heads import total_kv_heads
from amct_pytorch._projection import ChannelSlice
from amct_pytorch._shards import local_heads, local_part
from families import FAMILIES, tiny
from helpers import tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_alone_has_all_heads(family: str) -> None:
    for layer in amct.find_kv_layers(tiny(family)):
        assert layer.total_heads == layer.heads
        assert layer.total_slice is None


def fused(family: str, name: str, channels: int) -> amct.KVLayer:
    """The key layer of a model whose fused projections have so many channels in this process."""
    model: Any = tiny(family)
    for module in model.modules():
        if hasattr(module, name):
            setattr(module, name, torch.nn.Linear(32, channels))
    return amct.find_kv_layers(model)[0]


def test_shards_of_fused_projections() -> None:
    """Which channels are keys follows from the width of a head, which stays."""
    half = fused("gpt_neox", "query_key_value", 48)  # query, key, value of 2 heads of 4
    assert (half.slice, half.heads, half.head_dim) == (ChannelSlice(8, 16, 2), 2, 8)
    assert (half.total_slice, half.total_heads) == (ChannelSlice(8, 16, 4), 4)
    half = fused("phi3", "qkv_proj", 32)  # 2 heads of 4 of queries, 1 of 2 of keys
    assert (half.slice, half.heads, half.head_dim) == (ChannelSlice(16, 24), 1, 8)
    assert (half.total_slice, half.total_heads) == (ChannelSlice(32, 48), 2)
    quarter = fused("phi3", "qkv_proj", 24)  # a head of queries, and one of keys, which two processes have
    assert (quarter.slice, quarter.heads, quarter.total_heads) == (ChannelSlice(8, 16), 1, 2)
    shared = fused("codegen", "qkv_proj", 48)  # in 4 groups of query, value, key
    assert (shared.slice, shared.total_slice) == (ChannelSlice(16, 24, 2), ChannelSlice(16, 24, 4))


def test_what_says_how_many_heads_there_are() -> None:
    """The module before the configuration, and no number that is that of something else."""

    def total(own: int, module: dict[str, Any], **config: Any) -> int | None:
        attention: Any = torch.nn.Module()
        for name, value in module.items():
            setattr(attention, name, value)
        return total_kv_heads(attention, SimpleNamespace(**config), own)

    assert total(1, {"total_num_kv_heads": 8}, num_key_value_heads=2) == 8
    assert total(1, {"config": SimpleNamespace(num_kv_heads=4)}, num_key_value_heads=2) == 4
    assert total(1, {}, multi_query=True, num_attention_heads=8) == 1
    assert total(2, {}, multi_query=True, new_decoder_architecture=True, num_kv_heads=4) == 4
    assert total(4, {}, num_key_value_heads=2, num_attention_heads=8) == 8
    assert total(1, {}, num_key_value_heads=[1, 2], num_attention_heads=8) is None  # one for each layer
    assert total(16, {}, num_attention_heads=8) is None
    assert total(1, {}) is None


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_of_tensors_that_are_spread_the_own_part_is_taken(alone: Any, tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    x = torch.rand(2, 3, 4)
    for placement in (Shard(2), Shard(-1), Replicate()):
        assert local_part("a", DTensor.from_local(x, alone, [placement])).equal(x)
    for wrong in (Shard(1), Partial()):
        with pytest.raises(RuntimeError, match=r"layer 'a': a tensor of shape .* may share its channels"):
            local_part("a", DTensor.from_local(x, alone, [wrong]))
    states = torch.rand(2, 3, 4, 5)
    assert local_heads("a", DTensor.from_local(states, alone, [Shard(1)])).equal(states)
    with pytest.raises(RuntimeError, match="may share its channels"):
        local_heads("a", DTensor.from_local(states, alone, [Shard(2)]))
    assert local_part("a", None) is None

    class Spread(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return DTensor.from_local(super().forward(x), alone, [Shard(-1)])

    records = []
    for kind in (torch.nn.Linear, Spread):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"k_proj": kind(16, 8), "v_proj": kind(16, 8)})
        config = str(tmp_path / "config.json")
        amct.create_quant_cali_config(config, model)
        record = tmp_path / f"{kind.__name__}.txt"
        # Any group of one: there is nobody to share with.
        groups = {} if kind is torch.nn.Linear else {"tensor_parallel_group": dist.group.WORLD}
        with amct.calibrate(model, config, str(record), **groups), torch.no_grad():
            for projection in model.values():
                projection(tokens())
        records.append(record.read_bytes())
    assert records[0] == records[1]
