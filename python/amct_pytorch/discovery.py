"""Finding the layers whose output is cached as keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from amct_pytorch._cache_watch import LATENT_NORM
from amct_pytorch._fused import FUSED_PROJECTIONS, fused_pair
from amct_pytorch._heads import head_dim_of, total_kv_heads
from amct_pytorch._projection import (
    ChannelSlice,
    InAttention,
    is_projection,
    out_features,
    total_features,
)
from amct_pytorch._shards import note_plan

Role = Literal["key", "value"]


@dataclass(frozen=True)
class KVLayer(InAttention):
    """A projection whose output goes into the cache, or the part of one that does.

    Attributes
    ----------
    name : str
        Path of the module in the model: ``"model.layers.0.self_attn.k_proj"``. For a part: the path of the
        fused projection, then ``.key`` or ``.value``.
    role : {'key', 'value'}
        What its output is.
    heads : int or None
        Heads it has in this process, where the model says how wide one is.
    head_dim : int or None
        Channels of a head.
    source : str
        What it was found from: the class of the attention module and the names of the projections in it.
    slice : ChannelSlice or None
        Which channels of a fused projection it is.
    total_heads : int or None
        Heads that it has in all processes that share the model (tensor parallelism), where that is known.
    total_slice : ChannelSlice or None
        `slice` in a process that has all of the fused projection; None where it is `slice`, or not known.
    """

    name: str
    role: Role
    heads: int | None = None
    head_dim: int | None = None
    source: str = ""
    slice: ChannelSlice | None = None
    total_heads: int | None = None
    total_slice: ChannelSlice | None = None


@dataclass(frozen=True)
class ProjectionPair:
    """How one group of model families names the two projections inside its attention module.

    A pair counts only where the module also has all of `beside`, for names that others use, too.
    """

    key: str
    value: str
    families: str
    beside: tuple[str, ...] = ()


# To support another family whose attention has two separate projections, add a line.
PROJECTION_PAIRS = (
    ProjectionPair("k_proj", "v_proj", "Llama, Qwen, Mistral, Mixtral, Gemma, OPT, BART and relatives"),
    ProjectionPair("key", "value", "BERT, RoBERTa, ViT and other encoders"),
    ProjectionPair("k", "v", "T5 and relatives", beside=("q", "o")),
    ProjectionPair("k_lin", "v_lin", "DistilBERT"),
    ProjectionPair("key_proj", "value_proj", "DeBERTa"),
)

# Of multi-head latent attention this projection's rotary part is cached, and what LATENT_NORM puts out.
LATENT_PROJECTION = "kv_a_proj_with_mqa"


def find_kv_layers(model: torch.nn.Module, *, split_fused: bool = True) -> list[KVLayer]:
    """Find the key and value projections of a model by the names its attention modules give them.

    The encoder of an encoder-decoder model is left out, as is the part of a multimodal model that reads
    images or sound: what they compute is not cached token by token.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; see ``PROJECTION_PAIRS`` and ``FUSED_PROJECTIONS`` for the names that are known.
    split_fused : bool
        Whether key and value of a fused projection are layers of their own. If not, it is one layer, of
        role 'key', with one factor for queries, keys and values together.

    Returns
    -------
    list of KVLayer
        In the order of the model's modules, the key before the value of each attention module. Empty
        where nothing is found.
    """
    note_plan(model)
    uncached = _uncached_parts(model)
    config = getattr(model, "config", None)
    config = getattr(config, "get_text_config", lambda: config)()
    return [
        layer
        for name, module in model.named_modules()
        if not any(name == part or name.startswith(f"{part}.") for part in uncached)
        for layer in _layers_of(name, module, config, split_fused)
    ]


def find_state_layers(model: torch.nn.Module) -> list[str]:
    """The names of modules that keep a recurrent state in place of keys and values: Mamba and its relatives.

    They are not calibrated; hybrid models (Jamba, Falcon-H1) have them beside attention.
    """
    return [
        name
        for name, module in model.named_modules()
        if "A_log" in dict(module.named_parameters(recurse=False))
    ]


def _layers_of(name: str, module: torch.nn.Module, config: Any, split_fused: bool) -> Iterator[KVLayer]:
    """The projections that `module`, called `name`, holds as its own children; `config`: the model's."""
    children = dict(module.named_children())
    prefix = f"{name}." if name else ""
    for pair in PROJECTION_PAIRS:
        key, value = children.get(pair.key), children.get(pair.value)
        if key is None or value is None or not all(other in children for other in pair.beside):
            continue
        if is_projection(key) and is_projection(value):
            source = f"{type(module).__name__} ({pair.key}, {pair.value})"
            heads, head_dim, total = _heads(module, key, config)
            yield KVLayer(prefix + pair.key, "key", heads, head_dim, source, total_heads=total)
            heads, head_dim, total = _heads(module, value, config)
            yield KVLayer(prefix + pair.value, "value", heads, head_dim, source, total_heads=total)
    yield from _latent_layers(prefix, module)
    for fused in FUSED_PROJECTIONS:
        projection = children.get(fused.name)
        if projection is None or not is_projection(projection):
            continue
        found = fused_pair(module, fused, projection)
        if found is None:
            continue
        path, source = prefix + fused.name, f"{type(module).__name__} ({fused.name})"
        if not split_fused:
            yield KVLayer(path, "key", source=source)
            continue
        shared = found.total
        of_all = total_kv_heads(module, config, found.heads) if shared is None else shared.heads
        in_all = (None, None) if shared is None else (shared.key, shared.value)
        sizes = found.heads, found.head_dim, source
        yield KVLayer(f"{path}.key", "key", *sizes, found.key, of_all, in_all[0])
        yield KVLayer(f"{path}.value", "value", *sizes, found.value, of_all, in_all[1])


def _latent_layers(prefix: str, attention: torch.nn.Module) -> Iterator[KVLayer]:
    """What multi-head latent attention (DeepSeek-V2, -V3) caches.

    The rotary part of the key, which all heads share, and the latent after its norm, which keys and values
    are computed from.
    """
    projection = getattr(attention, LATENT_PROJECTION, None)
    if not isinstance(getattr(attention, LATENT_NORM, None), torch.nn.Module) or projection is None:
        return
    channels = out_features(projection)
    rank = getattr(attention, "kv_lora_rank", None)
    if channels is None or not isinstance(rank, int) or not 0 < rank < channels:
        return
    source = f"{type(attention).__name__} ({LATENT_PROJECTION}, {LATENT_NORM})"
    rotary = ChannelSlice(rank, channels)
    yield KVLayer(f"{prefix}{LATENT_PROJECTION}.key", "key", 1, rotary.channels, source, rotary, 1)
    yield KVLayer(f"{prefix}{LATENT_NORM}", "value", 1, rank, source, total_heads=1)


def _heads(
    attention: torch.nn.Module, projection: torch.nn.Module, config: Any
) -> tuple[int | None, int | None, int | None]:
    """(heads, head_dim, heads of all processes) of a projection; None where its channels do not fit."""
    channels, head_dim = out_features(projection), head_dim_of(attention)
    if channels is None or head_dim is None or channels % head_dim != 0:
        return None, None, None
    heads, declared = channels // head_dim, total_features(projection) or 0
    if declared > channels:  # it says itself of what it is a part
        return heads, head_dim, declared // head_dim
    return heads, head_dim, total_kv_heads(attention, config, heads)


def _uncached_parts(model: torch.nn.Module) -> list[str]:
    """The names of modules below which nothing is cached."""
    config = getattr(model, "config", None)
    parts = []
    for name, module in model.named_modules():
        is_encoder = name.rpartition(".")[2] == "encoder" and getattr(config, "is_encoder_decoder", False)
        if name and (is_encoder or _reads_other_media(config, getattr(module, "config", None))):
            parts.append(name)
    return parts


def _reads_other_media(config: Any, part: Any) -> bool:
    """Whether the configuration of a part is that of a model's eyes or ears."""
    others = (getattr(config, f"{medium}_config", None) for medium in ("vision", "audio"))
    return part is not None and any(part is other for other in others)
