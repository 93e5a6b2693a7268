"""Writing records for inference runtimes, and reading them back as the runtime does."""

from __future__ import annotations

import os
from typing import TypeVar

from amct_pytorch import _core
from amct_pytorch._checks import require_other_files, require_path, require_type
from amct_pytorch._core import ExportReport, Runtime, Unrepresentable, VerifyReport

__all__ = [
    "ExportReport",
    "Runtime",
    "Unrepresentable",
    "VerifyReport",
    "export_record",
    "runtimes",
    "verify_export",
]

T = TypeVar("T")


def runtimes() -> dict[str, Runtime]:
    """The runtimes that records can be exported to, by name, with what each can be told.

    Returns
    -------
    dict of str to Runtime
        'lmdeploy', 'vllm-ascend', 'vllm' (compressed-tensors), 'modelopt', 'tensorrt-llm', 'sglang',
        'msmodelslim', and the plain formats 'json' and 'npz'. A `Runtime` has ``name``, ``summary``,
        ``readers``, ``writes_folder``, ``dst_types``, ``granularities`` and ``with_offset``.
    """
    return {runtime.name: runtime for runtime in _core.runtimes()}


def export_record(
    record_file: str | os.PathLike[str],
    to: str,
    output: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    heads: int | None = None,
    head_dim: int | None = None,
    model_dtype: str | None = None,
    model_type: str | None = None,
    ranks: int = 1,
    allow_linear_tap: bool = False,
) -> ExportReport:
    """Write the factors of a record in the form that an inference runtime reads.

    Layers go by their number in the model, the key before the value, whatever their order in the record.
    What the runtime has another form for is converted where nothing is lost: the sign of offsets, factors
    per tensor or head where it has them per channel.

    Parameters
    ----------
    record_file : str
        The record.
    to : str
        A name of `runtimes`.
    output : str, optional
        The file or folder to write. Without it, what a checkpoint lacks is added to the one in `model`: a
        file of factors first, then its index, then its configuration; what was in these stays.
    model : str, optional
        A checkpoint folder: config.json and ``*.safetensors``. It tells the names of weights and what is
        left out below; 'vllm-ascend' cannot do without.
    heads : int, optional
        Key/value heads.
    head_dim : int, optional
        Channels of a head.
    model_dtype : {'float32', 'float16', 'bfloat16'}, optional
        Element type of the model, in which some runtimes keep the factors.
    model_type : str, optional
        As in config.json: 'llama'. For 'sglang'.
    ranks : int, optional
        Size of the tensor parallelism. For 'sglang'.
    allow_linear_tap : bool, optional
        Whether keys may have been observed at their projection where the runtime stores them after rotary
        embedding or normalization: right for models that have neither.

    Returns
    -------
    ExportReport
        ``files`` (each with ``path`` and ``what``), ``notes`` and ``warnings``.

    Raises
    ------
    Unrepresentable
        The runtime cannot be told what the record says; its attributes are the nearest setting that it
        can. A ValueError.
    ValueError
        The number or role of a layer cannot be told, a key or value is missing, an argument is missing
        or makes no sense, or the checkpoint is quantized already.
    OSError
        A file cannot be read or written.
    """
    record, target = require_path("record_file", record_file), _path("output", output)
    require_other_files({"output": target}, {"record_file": record})
    return _core.export_record(
        record,
        require_type("to", to, str),
        output=target,
        model_folder=_path("model", model),
        heads=_optional("heads", heads, int),
        head_dim=_optional("head_dim", head_dim, int),
        model_dtype=_optional("model_dtype", model_dtype, str),
        model_type=_optional("model_type", model_type, str) or "",
        ranks=require_type("ranks", ranks, int),
        allow_linear_tap=require_type("allow_linear_tap", allow_linear_tap, bool),
    )


def verify_export(
    path: str | os.PathLike[str],
    as_runtime: str,
    record: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    layers: int | None = None,
    heads: int | None = None,
    head_dim: int | None = None,
    model_dtype: str | None = None,
    ranks: int = 1,
) -> VerifyReport:
    """Read a file or checkpoint by the runtime's own rule: what it would use, pass over, and get wrong.

    Parameters
    ----------
    path : str
        The file or folder that the runtime is given, whoever wrote it.
    as_runtime : str
        A name of `runtimes`.
    record : str, optional
        The record that it was made from, to compare with.
    model : str, optional
        The checkpoint folder, where `path` is not one.
    layers : int, optional
        Layers with a cache.
    heads : int, optional
        Key/value heads.
    head_dim : int, optional
        Channels of a head.
    model_dtype : {'float32', 'float16', 'bfloat16'}, optional
        Element type of the model.
    ranks : int, optional
        Size of the tensor parallelism.

    Returns
    -------
    VerifyReport
        ``ok``; ``findings``, each with ``verdict`` ('used', 'ignored', 'wrong' or 'fatal'), ``key``,
        ``value`` and ``why``; ``layers``, each with ``layer``, ``role``, ``scale``, ``offset``, ``match``
        and ``difference``; ``notes``. ``str()`` gives it as text, ``to_json()`` as JSON.

    Raises
    ------
    ValueError
        The runtime is not known, or the record cannot be used.
    OSError
        `path` or the record is not there or cannot be read.
    """
    return _core.verify_export(
        require_path("path", path),
        require_type("as_runtime", as_runtime, str),
        record_file=None if record is None else require_path("record", record),
        model_folder=_path("model", model),
        layers=_optional("layers", layers, int),
        heads=_optional("heads", heads, int),
        head_dim=_optional("head_dim", head_dim, int),
        model_dtype=_optional("model_dtype", model_dtype, str),
        ranks=require_type("ranks", ranks, int),
    )


def _path(name: str, value: str | os.PathLike[str] | None) -> str:
    return "" if value is None else require_path(name, value)


def _optional(name: str, value: T | None, expected: type[T]) -> T | None:
    return None if value is None else require_type(name, value, expected)
