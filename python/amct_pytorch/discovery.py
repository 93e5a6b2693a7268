"""Finding the layers whose output is cached as keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Role = Literal["key", "value"]


@dataclass(frozen=True)
class KVLayer:
    """A projection whose output goes into the cache.

    Attributes
    ----------
    name : str
        Path of the module in the model: ``"model.layers.0.self_attn.k_proj"``.
    role : {'key', 'value'}
        What its output is.
    """

    name: str
    role: Role


@dataclass(frozen=True)
class ProjectionPair:
    """How one group of model families names the two projections inside its attention module."""

    key: str
    value: str
    families: str


# To support another family whose attention has two separate projections, add a line.
PROJECTION_PAIRS = (
    ProjectionPair("k_proj", "v_proj", "Llama, Qwen, Mistral, Mixtral, Gemma, OPT, BART and relatives"),
    ProjectionPair("key", "value", "BERT, RoBERTa, ViT and other encoders"),
)


def is_supported(module: torch.nn.Module) -> bool:
    """Whether a module can be calibrated: it is an ``nn.Linear`` or a subclass."""
    return isinstance(module, torch.nn.Linear)


def find_kv_layers(model: torch.nn.Module) -> list[KVLayer]:
    """Find the key and value projections of a model by the names its attention modules give them.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; see ``PROJECTION_PAIRS`` for the names that are known.

    Returns
    -------
    list of KVLayer
        In the order of the model's modules, the key before the value of each attention module. Empty
        where nothing is found.
    """
    return [layer for name, module in model.named_modules() for layer in _layers_of(name, module)]


def _layers_of(name: str, module: torch.nn.Module) -> Iterator[KVLayer]:
    """The projections that `module`, called `name`, holds as its own children."""
    children = dict(module.named_children())
    prefix = f"{name}." if name else ""
    for pair in PROJECTION_PAIRS:
        key, value = children.get(pair.key), children.get(pair.value)
        if key is not None and value is not None and is_supported(key) and is_supported(value):
            yield KVLayer(prefix + pair.key, "key")
            yield KVLayer(prefix + pair.value, "value")
