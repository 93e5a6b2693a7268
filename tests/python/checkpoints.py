"""Checkpoints of a tiny Llama, and records of its layers."""

from __future__ import annotations

from pathlib import Path

import amct_pytorch as amct
import numpy as np
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, HEAD_DIM = 3, 2, 8
SHARD = "kv_cache_factors.safetensors"


def save_llama(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        vocab_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def names() -> list[str]:
    return [f"model.layers.{i}.self_attn.{half}_proj" for i in range(LAYERS) for half in "kv"]


def write_record(folder: Path, count: int = 1, offset: int = 0, more: str = "tap: cache") -> Path:
    """A record of `count` factors a layer, in an order that no runtime wants."""
    rng = np.random.default_rng(0)
    text = ""
    for name in reversed(names()):
        scales = rng.uniform(1e-5, 0.1, count).astype(np.float32)
        factors = "".join(f"scale: {scale} " for scale in scales) + f"offset: {offset} " * count
        text += f"record {{ key: '{name}' kv_cache_value {{ {factors} {more} }} }}\n"
    path = folder / "record.txt"
    path.write_text(text)
    return path


def record_for(runtime: str, folder: Path) -> Path:
    fp8 = "dst_type: 'FP8_E4M3'" if "FP8_E4M3" in amct.runtimes()[runtime].dst_types[:1] else ""
    return write_record(folder, more=f"tap: cache {fp8}")


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
