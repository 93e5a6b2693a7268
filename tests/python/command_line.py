"""What the tests of the command line share: a call as a user makes it, and the files that it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from amct_pytorch._log import logger
from amct_pytorch.cli import app
from families import tiny
from typer.testing import CliRunner, Result

# Of token ids from 0 on.
WORDS = ["<unk>", "</s>", "<s>", "<|user|>", "<|assistant|>", *"abcdefghijklmnopqrstuvwxyz"]
CHAT_TEMPLATE = "<s>{% for m in messages %} <|{{ m['role'] }}|> {{ m['content'] }} </s>{% endfor %}"


def run(*arguments: str | Path | int, stdin: str = "") -> Result:
    """Run the command, and leave the package's logger as it was."""
    handlers, level = logger.handlers, logger.level
    try:
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, prog_name="amct-pytorch")
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def error_of(result: Result) -> str:
    """The one line that a command that failed has to say."""
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    assert result.stderr.startswith("amct-pytorch: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("amct-pytorch: ").rstrip("\n")


def saved_skeleton(folder: Path, family: str, **more: Any) -> Path:
    """A folder with the configuration of a tiny model, and no weights."""
    import transformers

    config = transformers.AutoConfig.for_model(
        family,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=16,
        vocab_size=32,
        **more,
    )
    config.save_pretrained(folder)
    return folder


def saved_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A tokenizer of letters with spaces between, which puts <s> before a text."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


def saved_model(folder: Path, family: str) -> list[str]:
    """A tiny model with weights, and token ids: the arguments that name them."""
    tiny(family).save_pretrained(folder / "model")
    ids = torch.randint(1, 32, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "ids.json").write_text(json.dumps(ids))
    sizes = ["--batches", "3", "--batch-size", "2", "--sequence-length", "12"]
    return ["--model", str(folder / "model"), "--token-ids", str(folder / "ids.json"), *sizes]
