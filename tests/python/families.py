"""Small models of the families that the project knows, with random weights."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 32,
    "pad_token_id": 0,
}
MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LLAMA_LIKE = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"]
try:  # newer transformers call it cache and warn of the old name
    from transformers import LlamaForCausalLM

    CACHE = (
        "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
    )
except ImportError:
    CACHE = "past_key_values"
ENCODERS = ("bert", "distilbert")
ENCODER_DECODERS = ("t5", "bart")


def _fused(path: str) -> list[str]:
    return [f"{path.format(i)}.{role}" for i in range(2) for role in ("key", "value")]


NEOX_LIKE = _fused("transformer.h.{}.self_attention.query_key_value")
BIGCODE_LIKE = _fused("transformer.h.{}.attn.c_attn")
# Sizes that a family's configuration does not know.
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
OLD_SIZES = {**NO_GROUPS, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 16, "n_positions": 64}
LATENT = {
    "head_dim": None,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
LATENT_LIKE = [
    f"model.layers.{i}.self_attn.{name}"
    for i in range(2)
    for name in ("kv_a_proj_with_mqa.key", "kv_a_layernorm")
]
# The family, what its configuration needs beside SIZES, the layers, the heads of each.
FAMILIES: dict[str, tuple[dict[str, Any], list[str], int]] = {
    **{
        family: ({}, LLAMA_LIKE, 2)
        for family in (
            "llama",
            "qwen2",
            "qwen3",
            "mistral",
            "gemma",
            "gemma2",
            "gemma3_text",
            "starcoder2",
            "olmo2",
            "cohere",
            "glm4",
        )
    },
    "mixtral": (MOE, LLAMA_LIKE, 2),
    "qwen3_moe": (MOE, LLAMA_LIKE, 2),
    "llama4_text": ({**MOE, "intermediate_size_mlp": 16}, LLAMA_LIKE, 2),
    "opt": (
        {"ffn_dim": 16, "word_embed_proj_dim": 32},
        [f"model.decoder.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"],
        4,
    ),
    "jamba": (
        {**MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        [f"model.layers.1.self_attn.{p}_proj" for p in "kv"],
        2,
    ),
    "phi3": ({}, _fused("model.layers.{}.self_attn.qkv_proj"), 2),
    "gpt2": (OLD_SIZES, BIGCODE_LIKE, 4),
    "gpt_bigcode": ({**OLD_SIZES, "multi_query": True}, BIGCODE_LIKE, 1),
    "gpt_bigcode/heads": ({**OLD_SIZES, "multi_query": False}, BIGCODE_LIKE, 4),
    "codegen": ({**OLD_SIZES, "rotary_dim": 4}, _fused("transformer.h.{}.attn.qkv_proj"), 4),
    "gpt_neox": (NO_GROUPS, _fused("gpt_neox.layers.{}.attention.query_key_value"), 4),
    "falcon": ({**NO_GROUPS, "multi_query": True, "new_decoder_architecture": False}, NEOX_LIKE, 1),
    "falcon/heads": ({**NO_GROUPS, "multi_query": False, "new_decoder_architecture": False}, NEOX_LIKE, 4),
    "falcon/new": ({**NO_GROUPS, "num_kv_heads": 2, "new_decoder_architecture": True}, NEOX_LIKE, 2),
    "bloom": ({**NO_GROUPS, "n_head": 4, "n_layer": 2}, NEOX_LIKE, 4),
    "persimmon": (NO_GROUPS, _fused("model.layers.{}.self_attn.query_key_value"), 4),
    "mpt": (
        {**NO_GROUPS, "d_model": 32, "n_heads": 4, "n_layers": 2},
        _fused("transformer.blocks.{}.attn.Wqkv"),
        4,
    ),
    "deepseek_v2": (LATENT, LATENT_LIKE, 1),
    "deepseek_v3": (LATENT, LATENT_LIKE, 1),
    "bert": (
        {},
        [f"bert.encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("key", "value")],
        4,
    ),
    "distilbert": (
        {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 16},
        [f"distilbert.transformer.layer.{i}.attention.{p}_lin" for i in range(2) for p in "kv"],
        4,
    ),
    "t5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_heads": 4, "num_layers": 2},
        [
            f"decoder.block.{i}.layer.{j}.{kind}.{p}"
            for i in range(2)
            for j, kind in enumerate(("SelfAttention", "EncDecAttention"))
            for p in "kv"
        ],
        4,
    ),
    "bart": (
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        },
        [
            f"model.decoder.layers.{i}.{kind}.{p}_proj"
            for i in range(2)
            for kind in ("self_attn", "encoder_attn")
            for p in "kv"
        ],
        4,
    ),
}


def tiny(family: str, **changes: Any) -> torch.nn.Module:
    """A small model of a family with random weights; `changes` are of its sizes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    # After a slash: a variant of the family.
    all_sizes = {**SIZES, **FAMILIES[family][0], **changes}
    sizes = {name: size for name, size in all_sizes.items() if size is not None}
    config = transformers.AutoConfig.for_model(family.partition("/")[0], **sizes)
    model: torch.nn.Module = getattr(transformers, _build_of(family)).from_config(config)
    return model.eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    """Two sequences for a model of a family."""
    ids = {"input_ids": torch.arange(1, 13).view(2, 6)}
    if family in ENCODER_DECODERS:
        ids["decoder_input_ids"] = torch.arange(11, 21).view(2, 5)
    return ids


def _build_of(family: str) -> str:
    if family in ENCODERS:
        return "AutoModelForMaskedLM"
    return "AutoModelForSeq2SeqLM" if family in ENCODER_DECODERS else "AutoModelForCausalLM"
