"""Fused projections: which channels of their output are keys, and which are values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from amct_pytorch._projection import ChannelSlice, out_features

# What attention modules and configurations call their numbers of heads.
_QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attention_heads_per_partition")
_KV_HEADS = (
    "num_multi_query_groups_per_partition",
    "num_key_value_heads",
    "num_kv_heads",
    "kv_heads",
    "kv_n_heads",
)


@dataclass(frozen=True)
class Heads:
    """The heads that a fused projection puts out."""

    query: int
    kv: int
    head_dim: int


@dataclass(frozen=True)
class FusedPair:
    """The key's and the value's part of a fused projection's output."""

    key: ChannelSlice
    value: ChannelSlice
    heads: int
    head_dim: int


Layout = Callable[[torch.nn.Module, Heads], tuple[ChannelSlice, ChannelSlice]]


@dataclass(frozen=True)
class FusedProjection:
    """What a group of model families calls its fused projection, and how that lies."""

    name: str
    families: str
    layout: Layout


def in_blocks(attention: torch.nn.Module, heads: Heads) -> tuple[ChannelSlice, ChannelSlice]:
    """All queries, then all keys, then all values."""
    query, width = heads.query * heads.head_dim, heads.kv * heads.head_dim
    return ChannelSlice(query, query + width), ChannelSlice(query + width, query + 2 * width)


def in_turns(attention: torch.nn.Module, heads: Heads) -> tuple[ChannelSlice, ChannelSlice]:
    """For each key head: the queries that share it, the key, the value."""
    key = heads.query // heads.kv * heads.head_dim
    value = key + heads.head_dim
    return ChannelSlice(key, value, heads.kv), ChannelSlice(value, value + heads.head_dim, heads.kv)


def _query_key_value(attention: torch.nn.Module, heads: Heads) -> tuple[ChannelSlice, ChannelSlice]:
    """GPT-NeoX, BLOOM, Persimmon and Falcon in turns; multi-query Falcon and ChatGLM in blocks."""
    shared = getattr(attention, "multi_query", False) or getattr(attention, "multi_query_attention", False)
    blocks = shared and not getattr(attention, "new_decoder_architecture", False)
    return (in_blocks if blocks else in_turns)(attention, heads)


def _c_attn(attention: torch.nn.Module, heads: Heads) -> tuple[ChannelSlice, ChannelSlice]:
    """GPT-2 and Qwen in blocks; StarCoder (GPT-BigCode) in turns where each head has keys of its own."""
    return (in_turns if getattr(attention, "multi_query", True) is False else in_blocks)(attention, heads)


def _qkv_proj(attention: torch.nn.Module, heads: Heads) -> tuple[ChannelSlice, ChannelSlice]:
    """Phi-3 in blocks; CodeGen in as many shares as it was trained on, each with query, value, key."""
    shares = getattr(attention, "mp_num", None)
    if shares is None:
        return in_blocks(attention, heads)
    width = heads.query * heads.head_dim // int(shares)
    return ChannelSlice(2 * width, 3 * width, shares), ChannelSlice(width, 2 * width, shares)


# To support another family whose attention has one projection for all three, add a line.
FUSED_PROJECTIONS = (
    FusedProjection("qkv_proj", "Phi-3, CodeGen", _qkv_proj),
    FusedProjection("query_key_value", "GPT-NeoX, BLOOM, Falcon, Persimmon, ChatGLM", _query_key_value),
    FusedProjection("c_attn", "GPT-2, GPT-BigCode, Qwen", _c_attn),
    FusedProjection("Wqkv", "MPT, DBRX", in_blocks),
    FusedProjection("W_pack", "Baichuan", in_blocks),
    FusedProjection("wqkv", "InternLM2", in_turns),
)
# Modules that have one of these names, and something else in it: linear attention, which keeps a state.
_OTHERS = ("MiniMaxLightningAttention",)


def fused_pair(
    attention: torch.nn.Module, fused: FusedProjection, projection: torch.nn.Module
) -> FusedPair | None:
    """Where keys and values lie in a fused projection, or None where that cannot be told.

    Parameters
    ----------
    attention : torch.nn.Module
        The module that holds it, with its numbers of heads, or those in its configuration.
    fused : FusedProjection
        What it is called.
    projection : torch.nn.Module
        The projection.
    """
    channels = out_features(projection)
    query = _number_of(attention, _QUERY_HEADS)
    if channels is None or query is None or type(attention).__name__ in _OTHERS:
        return None
    if getattr(attention, "is_cross_attention", False):
        query, kv = 0, query  # queries have a projection of their own
    else:
        kv = _number_of(attention, _KV_HEADS) or query
    head_dim, rest = divmod(channels, query + 2 * kv)
    if rest != 0 or head_dim == 0 or query % kv != 0:
        return None
    key, value = fused.layout(attention, Heads(query, kv, head_dim))
    if not (key.fits(channels) and value.fits(channels)):
        return None
    return FusedPair(key, value, kv, head_dim)


def _number_of(attention: Any, names: tuple[str, ...]) -> int | None:
    for owner in (attention, getattr(attention, "config", None)):
        for name in names:
            number = getattr(owner, name, None)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return number
    return None
