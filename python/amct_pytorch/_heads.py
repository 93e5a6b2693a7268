"""How many heads attention modules have, in this process and in the whole model."""

from __future__ import annotations

from typing import Any

import torch

# What attention modules and configurations call their numbers of heads.
_QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attention_heads_per_partition")
_KV_HEADS = (
    "num_multi_query_groups_per_partition",
    "num_key_value_heads",
    "num_kv_heads",
    "kv_heads",
    "kv_n_heads",
)
# The same of whole models: on a module that processes share (vLLM), and in configurations.
_TOTAL_KV_HEADS_OF_MODULE = ("total_num_kv_heads", "total_num_key_value_heads")
_TOTAL_KV_HEADS_OF_CONFIG = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "kv_n_heads",
    "multi_query_group_num",
    "num_query_groups",
)
_TOTAL_HEADS_OF_CONFIG = (
    "decoder_attention_heads",
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
)
# Where attention modules and configurations of transformers keep the channels of a head.
_HEAD_DIM_OF_MODULE = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEAD_DIM_OF_CONFIG = ("head_dim", "d_kv")


def query_heads(attention: torch.nn.Module) -> int | None:
    """The heads of queries that an attention module says it has."""
    return _number_of((attention, getattr(attention, "config", None)), _QUERY_HEADS)


def kv_heads(attention: torch.nn.Module) -> int | None:
    """The heads of keys that an attention module says it has; None where it tells none from queries."""
    return _number_of((attention, getattr(attention, "config", None)), _KV_HEADS)


def total_kv_heads(attention: torch.nn.Module, config: Any, own: int) -> int | None:
    """The heads of keys of all processes that share an attention module, where that is known.

    Parameters
    ----------
    attention : torch.nn.Module
        The module.
    config : Any
        The configuration of its model, for modules without.
    own : int
        The heads of this process: a smaller number is one of something else.
    """
    told = _number_of((attention,), _TOTAL_KV_HEADS_OF_MODULE)
    if told is not None:
        return told
    config = getattr(attention, "config", None) or config
    shared = getattr(config, "multi_query", False) is True or getattr(attention, "multi_query", False) is True
    if shared and not getattr(config, "new_decoder_architecture", False):
        return 1
    if any(isinstance(getattr(config, name, None), (list, tuple)) for name in _TOTAL_KV_HEADS_OF_CONFIG):
        return None  # a number for each layer
    for names in (_TOTAL_KV_HEADS_OF_CONFIG, _TOTAL_HEADS_OF_CONFIG):
        number = _number_of((config,), names)
        if number is not None and number >= own:
            return number
    return None


def head_dim_of(attention: torch.nn.Module) -> int | None:
    """The channels of a head, from the attention module or its configuration."""
    config = getattr(attention, "config", None)
    for owner, names in ((attention, _HEAD_DIM_OF_MODULE), (config, _HEAD_DIM_OF_CONFIG)):
        head_dim = _number_of((owner,), names)
        if head_dim is not None:
            return head_dim
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0:
        return hidden // heads
    return None


def _number_of(owners: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    for owner in owners:
        for name in names:
            number = getattr(owner, name, None)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return number
    return None
