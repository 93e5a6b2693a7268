"""Models and texts of the command line. Needs transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


class InputError(Exception):
    """Something that the user named cannot be used; the message says what, in one line."""


def skeleton(folder: str, gguf: str | None) -> torch.nn.Module:
    """The model of a folder without its weights."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **_source(gguf))
        with torch.device("meta"):
            model: torch.nn.Module = _build_of(transformers, config)(config)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(folder, error) from error
    return model


def load(folder: str, gguf: str | None, dtype: str, device: str) -> torch.nn.Module:
    """The model of a folder, for evaluation.

    Parameters
    ----------
    folder : str
        A folder of a transformers model.
    gguf : str or None
        Name of a GGUF file in it, where that is the model.
    dtype : str
        Name of a type of torch, or 'auto': that of the weights.
    device : str
        A device of torch.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **_source(gguf))
        kind = getattr(_build_of(transformers, config), "__self__", transformers.AutoModelForCausalLM)
        torch_dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
        model: torch.nn.Module = kind.from_pretrained(folder, dtype=torch_dtype, **_source(gguf))
        return model.eval().to(device)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(folder, error) from error
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}': {_first_line(error)}") from error


def token_ids(text: Path | None, ids: Path | None, folder: str, gguf: str | None) -> torch.Tensor:
    """The token ids of a text, or those in a JSON file: int64, ``[tokens]``."""
    if (text is None) == (ids is None):
        raise InputError("one of --text and --token-ids is needed")
    try:
        if ids is not None:
            content = json.loads(ids.read_text("utf-8"))
            if not isinstance(content, list) or not all(type(token) is int for token in content):
                raise InputError(f"'{ids}' must hold a JSON list of token ids")
            return torch.tensor(content, dtype=torch.int64)
        assert text is not None
        words = text.read_text("utf-8")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"'{ids or text}' cannot be read: {_first_line(error)}") from error
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_source(gguf))
    except (OSError, ValueError, ImportError) as error:
        message = f"'{folder}' has no tokenizer that transformers can read, so --token-ids is needed"
        raise InputError(f"{message}: {_first_line(error)}") from error
    return torch.tensor(tokenizer(words, verbose=False)["input_ids"], dtype=torch.int64)


def check_token_ids(ids: torch.Tensor, model: torch.nn.Module) -> None:
    """Raise InputError for token ids that the model has no embedding of."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    count = getattr(embeddings, "num_embeddings", None)
    if count is not None and not (int(ids.min()) >= 0 and int(ids.max()) < count):
        raise InputError(
            f"token ids go from {int(ids.min())} to {int(ids.max())}, but the model knows 0 to {count - 1}"
        )


def inputs_of(model: torch.nn.Module, window: torch.Tensor) -> dict[str, Any]:
    """The arguments of a forward over a window of token ids ``[batch, tokens]``."""
    config = getattr(model, "config", None)
    arguments: dict[str, Any] = {"input_ids": window}
    if getattr(config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = window
    return arguments


def _build_of(transformers: Any, config: Any) -> Any:
    """What builds a model: its class where the configuration names one, else a causal language model."""
    known = [name for name in config.architectures or () if hasattr(transformers, name)]
    if known:
        return getattr(transformers, known[0])._from_config
    return transformers.AutoModelForCausalLM.from_config


def _source(gguf: str | None) -> dict[str, Any]:
    return {} if gguf is None else {"gguf_file": gguf}


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError("transformers is not installed: pip install transformers") from None
    if not sys.stderr.isatty():
        logging: Any = transformers.utils.logging
        logging.disable_progress_bar()
    return transformers


def _unreadable(folder: str, error: Exception) -> InputError:
    return InputError(f"'{folder}' is not a model that transformers can read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
