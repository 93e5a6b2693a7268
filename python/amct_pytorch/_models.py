"""Models of the command line. Needs transformers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amct_pytorch._command import InputError, is_verbose, timed
from amct_pytorch._log import logger


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies.

    Attributes
    ----------
    folder : Path
        A folder as transformers reads it.
    gguf : str or None
        Name of a GGUF file in it, where that is the model.
    """

    folder: Path
    gguf: str | None

    def __str__(self) -> str:
        return str(self.folder if self.gguf is None else self.folder / self.gguf)

    @property
    def source(self) -> dict[str, Any]:
        """The arguments of ``from_pretrained``."""
        # Left open, transformers would ask on standard input, which may be a file of answers.
        path = {"pretrained_model_name_or_path": str(self.folder), "trust_remote_code": False}
        return path if self.gguf is None else {**path, "gguf_file": self.gguf}


def find_model(model: str, gguf: str | None) -> ModelFiles:
    """Look where a model lies, without reading it.

    Parameters
    ----------
    model : str
        A folder, or a GGUF file.
    gguf : str or None
        Name of a GGUF file in the folder. Without it a folder that holds no config.json but one GGUF file
        is taken to mean that.
    """
    folder = Path(model)
    if folder.is_file() and gguf is None:
        if folder.suffix != ".gguf":
            raise InputError(f"'{model}' is a file, but neither a model's folder nor a GGUF file")
        return ModelFiles(folder.parent, folder.name)
    if not folder.is_dir():
        message = f"there is no folder '{model}'"
        is_repository = not folder.exists() and model.count("/") == 1 and not model.startswith((".", "/"))
        download = f"; a model of the hub is downloaded with: hf download {model} --local-dir FOLDER"
        raise InputError(message + download if is_repository else message)
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf is not None:
        if not (folder / gguf).is_file():
            there = f"it holds {', '.join(found)}" if found else "it holds no GGUF file"
            raise InputError(f"'{model}' has no file '{gguf}'; {there}")
        return ModelFiles(folder, gguf)
    if (folder / "config.json").is_file():
        return ModelFiles(folder, None)
    if len(found) > 1:
        raise InputError(f"'{model}' holds several GGUF files; add --gguf with one of {', '.join(found)}")
    if not found:
        raise InputError(f"'{model}' is not a model's folder: it has no config.json and no GGUF file")
    return ModelFiles(folder, found[0])


def skeleton(files: ModelFiles) -> torch.nn.Module:
    """A model without its weights."""
    transformers = _transformers(files)
    with timed(f"built {files} without its weights"), _reading(files):
        config = transformers.AutoConfig.from_pretrained(**files.source)
        with torch.device("meta"):
            model: torch.nn.Module = _build_of(transformers, config)(config)
    return model


def load(files: ModelFiles, like: torch.nn.Module, dtype: str, device: str) -> torch.nn.Module:
    """A model with its weights, for evaluation.

    Parameters
    ----------
    files : ModelFiles
        The model.
    like : torch.nn.Module
        The model without its weights; see `skeleton`.
    dtype : str
        Name of a type of torch, or 'auto': that of the weights.
    device : str
        A device of torch.
    """
    kind: Any = type(like)
    if files.gguf is None and not any(files.folder.glob("*.safetensors")) and any(files.folder.glob("*.bin")):
        raise InputError(
            f"'{files}' has its weights in pickled files (*.bin), which could run code and are not read; "
            "where you trust them, save them again as safetensors: from_pretrained(...).save_pretrained(...)"
        )
    with timed(f"loaded {files}"):
        with _reading(files):
            torch_dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
            model: torch.nn.Module = kind.from_pretrained(
                dtype=torch_dtype, use_safetensors=True, **files.source
            )
        try:
            model = model.eval().to(device)
        except RuntimeError as error:
            raise InputError(f"device '{device}': {_first_line(error)}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "%s: %s parameters in %s on %s",
        type(model).__name__,
        f"{parameters:,}",
        str(next(model.parameters()).dtype).removeprefix("torch."),
        device,
    )
    return model


def check_device(device: str) -> None:
    """Raise InputError for a device that cannot be used, before a model is read for it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device '{device}' cannot be used: {_first_line(error)}") from error


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer of a model."""
    transformers = _transformers(files)
    try:
        return transformers.AutoTokenizer.from_pretrained(**files.source)
    except Exception as error:
        raise InputError(
            f"'{files}' has no tokenizer that transformers can read (-v shows more), so give token ids: "
            "--token-ids FILE"
        ) from error


def warn_of_length(length: int, model: torch.nn.Module) -> None:
    """Say so where a window is longer than what a model was made for."""
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and length > positions:
        logger.warning("windows have %d tokens, but the model is made for %d", length, positions)


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
    return functools.partial(transformers.AutoModelForCausalLM.from_config, trust_remote_code=False)


@contextlib.contextmanager
def _reading(files: ModelFiles) -> Iterator[None]:
    """Name the model in whatever transformers raises for files that it cannot read."""
    try:
        yield
    except Exception as error:
        message = f"'{files}' is not a model that transformers can read: {_first_line(error)}"
        if "trust_remote_code" in str(error):
            message = (
                f"'{files}' comes with Python code of its own (auto_map in config.json), which commands do "
                "not run; where you trust it, load the model in a script and use amct_pytorch.calibrate()"
            )
        raise InputError(message) from error


def _transformers(files: ModelFiles) -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError("transformers is not installed: pip install transformers") from None
    log: Any = transformers.utils.logging
    log.set_verbosity(log.WARNING if is_verbose() else log.ERROR)
    if not sys.stderr.isatty():
        log.disable_progress_bar()
    if files.gguf is not None:
        with contextlib.suppress(ImportError):  # the one bar that does not heed the setting
            module: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
            module.tqdm = log.tqdm
    return transformers


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
