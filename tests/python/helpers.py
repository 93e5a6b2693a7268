"""What several test files share: golden data, small models, scripts run in an interpreter of their own."""

from __future__ import annotations

import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import numpy as np
import numpy.typing as npt
import torch
from amct_pytorch._formats import grid_of

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def mode_of(path: Path) -> int:
    """The permission bits of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def run_python(
    script: str, *args: object, cwd: Path | None = None, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; it must succeed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **env},
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result


def columns_of(batches: list[torch.Tensor], per_channel: bool) -> list[npt.NDArray[np.float32]]:
    """The sample sets that share factors: one, or one a channel."""
    rows = np.concatenate([b.detach().float().reshape(-1, b.shape[-1]).numpy() for b in batches])
    return list(rows.T) if per_channel else [rows.ravel()]


def record_of(folder: Path, batches: list[torch.Tensor], **params: Any) -> bytes:
    """The record file after the batches went through a QuantCalibrationOp."""
    record_file = folder / "record.txt"
    record_file.unlink(missing_ok=True)
    op = amct.QuantCalibrationOp(str(record_file), {"batch_num": len(batches), **params})
    for batch in batches:
        assert op("layer", batch) is batch
    return record_file.read_bytes()


def factors_of(folder: Path, batches: list[torch.Tensor], **params: Any) -> amct.KVFactors:
    """The factors a QuantCalibrationOp finds for the batches."""
    record_of(folder, batches, **params)
    return amct.read_record(folder / "record.txt")["layer"]


def spread_factors(heads: int, head_dim: int, granularity: str, dst_type: str) -> amct.KVFactors:
    """Factors that no two groups share, and that clip some normal values."""
    count = {"per_tensor": 1, "per_head": heads}.get(granularity, heads * head_dim)
    scale = torch.linspace(0.01, 0.02, count) * (6 if dst_type == "INT4" else 1)
    offset = torch.arange(count, dtype=torch.int32) % 5 - 2
    if grid_of(dst_type).is_float:
        offset = torch.zeros_like(offset)
    return amct.KVFactors(scale, offset, granularity == "per_head", dst_type)


def config_for(
    folder: Path, model: torch.nn.Module, layers: list[str] | None = None, definition: str | None = None
) -> str:
    """Write config.json and give its path."""
    folder.mkdir(exist_ok=True)
    definition_file = None
    if definition is not None:
        definition_file = folder / "definition.cfg"
        definition_file.write_text(definition)
    config_file = str(folder / "config.json")
    amct.create_quant_cali_config(
        config_file,
        model,
        None if layers is None else {"kv_cache_quant_layers": layers},
        None if definition_file is None else str(definition_file),
    )
    return config_file


def calibrated(
    folder: Path,
    model: torch.nn.Module,
    layers: list[str] | None = None,
    definition: str | None = None,
    **options: Any,
) -> torch.nn.Module:
    """Put calibration into a model; the record is record.txt in the folder."""
    config_file = config_for(folder, model, layers, definition)
    return amct.create_quant_cali_model(config_file, str(folder / "record.txt"), model, **options)


class Attention(torch.nn.Module):
    """Two key/value heads under four query heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(width, width)
        self.k_proj = torch.nn.Linear(width, width // 2)
        self.v_proj = torch.nn.Linear(width, width // 2)
        self.o_proj = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).unflatten(-1, (-1, x.shape[-1] // 4)).transpose(-2, -3)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(heads.transpose(-2, -3).flatten(-2))


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.self_attn = Attention(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.self_attn(self.norm(x))


class Decoder(torch.nn.Module):
    """A decoder in the manner of Llama: `layers.0.self_attn.k_proj` and so on."""

    def __init__(self, blocks: int = 2, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


DECODER_LAYERS = [f"layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "kv"]


def tokens(seed: int = 1, batch: int = 2, length: int = 8, width: int = 16) -> torch.Tensor:
    """Hidden states for a Decoder."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))
