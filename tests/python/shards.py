"""A model whose heads several processes share, with the bits of the whole one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from families import tiny


class Shard(torch.nn.Linear):
    """Some channels of a projection, computed together with the others, so that their bits are the same."""

    def __init__(self, whole: torch.nn.Linear, channels: slice) -> None:
        super().__init__(
            whole.in_features, channels.stop - channels.start, bias=False, dtype=whole.weight.dtype
        )
        self.weight = torch.nn.Parameter(whole.weight[channels].detach().clone())
        self._whole, self._channels = [whole], channels  # in a list, so that it is no part of the model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._whole[0](x)[..., self._channels]


class Gathering(torch.nn.Module):
    """The output projection of all heads, which it gets from the other processes."""

    def __init__(self, whole: torch.nn.Linear, group: Any) -> None:
        super().__init__()
        self.whole, self._group = whole, group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return self.whole(torch.cat(parts, -1))


def sharded(model: torch.nn.Module, group: Any) -> torch.nn.Module:
    """Leave a llama the heads of this process: heads of keys may be fewer than processes, as in vLLM."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    config: Any = model.config
    heads, kv, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    own, own_kv = heads // size, max(1, kv // size)
    first = rank * kv // size if size <= kv else rank // (size // kv)
    of_keys = slice(first * width, (first + own_kv) * width)
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention = layer.self_attn
        attention.q_proj = Shard(attention.q_proj, slice(rank * own * width, (rank + 1) * own * width))
        attention.k_proj = Shard(attention.k_proj, of_keys)
        attention.v_proj = Shard(attention.v_proj, of_keys)
        attention.o_proj = Gathering(attention.o_proj, group)
        attention.num_key_value_groups = own // own_kv
    return model


def llama(dtype: torch.dtype, group: Any = None) -> torch.nn.Module:
    """The whole model, or what this process has of it."""
    model = tiny("llama").to(dtype)
    return model if group is None else sharded(model, group)
