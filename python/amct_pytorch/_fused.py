"""Fused projections: which channels of their output are keys, and which are values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from amct_pytorch._heads import head_dim_of, kv_heads, query_heads
from amct_pytorch._projection import ChannelSlice, out_features, total_features


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
    # Of all processes that share the projection: None where this one has it by itself, for all that it says.
    total: FusedPair | None = None


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
        The projection, or the part of it that this process has.
    """
    channels, total = out_features(projection), total_features(projection)
    query = query_heads(attention)
    if channels is None or total is None or query is None or type(attention).__name__ in _OTHERS:
        return None
    if getattr(attention, "is_cross_attention", False):
        query, kv = 0, query  # queries have a projection of their own
    else:
        kv = kv_heads(attention) or query
    if query % kv != 0:
        return None
    all_heads = query + 2 * kv
    head_dim = head_dim_of(attention) if total == channels else total // all_heads
    if head_dim is not None and head_dim * all_heads != channels:
        for share in range(2, max(query, kv) + 1):
            own = _shared(Heads(query, kv, head_dim), share)
            if own is not None and (own.query + 2 * own.kv) * head_dim == channels:
                return _shared_pair(attention, fused.layout, Heads(query, kv, head_dim), own, share)
    head_dim, rest = divmod(channels, all_heads)
    if rest != 0 or head_dim == 0:
        return None
    return _pair(attention, fused.layout, Heads(query, kv, head_dim), channels)


def _pair(attention: torch.nn.Module, layout: Layout, heads: Heads, channels: int) -> FusedPair | None:
    key, value = layout(attention, heads)
    if not (key.fits(channels) and value.fits(channels)):
        return None
    return FusedPair(key, value, heads.kv, heads.head_dim)


def _shared(heads: Heads, share: int) -> Heads | None:
    """The heads of one of so many processes; None where they cannot be shared by so many.

    Heads of keys may be fewer than processes: neighbouring ones then have the same.
    """
    if heads.query % share != 0 or (heads.kv % share != 0 and share % heads.kv != 0):
        return None
    return Heads(heads.query // share, max(1, heads.kv // share), heads.head_dim)


def _shared_pair(
    attention: torch.nn.Module, layout: Layout, heads: Heads, own: Heads, share: int
) -> FusedPair | None:
    """The pair of a process that has one of `share` shares."""
    total = _pair(attention, layout, heads, (heads.query + 2 * heads.kv) * heads.head_dim)
    if total is None:
        return None
    if total.key.groups > 1 and total.key.groups % share == 0:  # so many groups, each as it was
        key, value = (part._replace(groups=part.groups // share) for part in (total.key, total.value))
        return FusedPair(key, value, own.kv, own.head_dim, total)
    pair = _pair(attention, layout, own, (own.query + 2 * own.kv) * own.head_dim)
    return None if pair is None else replace(pair, total=total)
