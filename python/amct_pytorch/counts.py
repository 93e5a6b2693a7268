"""Observe once, solve many: other factors from what a calibration saw, without the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from amct_pytorch import _core
from amct_pytorch._checks import require_other_files, require_path
from amct_pytorch._core import LayerResult

_GRANULARITIES = ("per_tensor", "per_channel", "per_head")


def solve_counts(
    counts_file: str | os.PathLike[str],
    record_file: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> list[LayerResult]:
    """Search the factors of every layer in a counts file.

    Parameters
    ----------
    counts_file : str
        What `create_quant_cali_model`, `calibrate` or `amct merge` saved.
    record_file : str, optional
        Where to write the factors; a file that is there is replaced.
    **settings
        Settings of the configuration file, which replace those of the calibration for all layers:
        ``act_algo``, ``dst_type``, ``num_bits``, ``asymmetric``, ``quant_granularity`` ('per_tensor',
        'per_channel', 'per_head' or its number), ``head_num``, and those of the algorithm. A new ``act_algo``
        starts from its defaults.

    Returns
    -------
    list of LayerResult
        In the order of the configuration.

    Raises
    ------
    OSError
        A file cannot be read or written.
    ValueError
        The file is damaged or is no counts file, or is `record_file`, too; a setting is wrong; the
        granularity is finer than what was observed.
    RuntimeError
        A layer has no finite value, or its heads do not divide its channels.

    Examples
    --------
    >>> amct.solve_counts("all.counts", "int4.txt", act_algo="mse", num_bits=4)  # doctest: +SKIP
    """
    path = require_path("counts_file", counts_file)
    target = None if record_file is None else require_path("record_file", record_file)
    if target is not None:
        _core.check_output_path(target)
        require_other_files({"record_file": target}, {"counts_file": path})
    if (word := settings.get("quant_granularity")) in _GRANULARITIES:
        settings["quant_granularity"] = _GRANULARITIES.index(word)
    results = _core.solve_counts(path, settings)
    if target is not None:
        _core.write_record(target, results)
    return results


def merge_counts(counts_files: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Add up counts files: as if one calibration had seen what all of them have.

    Parameters
    ----------
    counts_files : iterable of str
        At least one; layers that some of them lack are taken from the others.
    output : str
        The file to write; none of those that are read.

    Raises
    ------
    OSError
        A file cannot be read or written.
    ValueError
        A file is damaged, given twice or the output, there is none, or a layer was observed in different
        ways.
    RuntimeError
        A layer has different numbers of channels.
    """
    paths = [require_path("counts_files", path) for path in counts_files]
    if not paths:
        raise ValueError("counts_files is empty; name the files to merge")
    target = require_path("output", output)
    # Added to one of its parts, a sum counts that part again where it is made again.
    for number, path in enumerate(paths):
        require_other_files({"output": target}, {f"counts_files[{number}]": path})
    _core.merge_counts(paths, target)
