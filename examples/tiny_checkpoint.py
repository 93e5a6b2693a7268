"""Write a tiny checkpoint to try things on: a Llama of two layers with random weights, and a text.

    python examples/tiny_checkpoint.py model

Makes the folder `model` (config.json, model.safetensors, tokenizer) and `book.txt`, Python's own language
reference, which the tokenizer is made from. What comes out of such a model is nonsense; the files are not.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte pairs of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_model() -> LlamaForCausalLM:
    """Two layers of four heads that share two key/value heads of 32 channels."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "model")
    text = "\n\n".join(pydoc_data.topics.topics.values())[:200_000]
    make_tokenizer(text).save_pretrained(folder)
    make_model().save_pretrained(folder)
    Path("book.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: a Llama of two layers with random weights; book.txt: {len(text)} characters")


if __name__ == "__main__":
    main()
