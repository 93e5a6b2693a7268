"""Reports: whether factors can be shipped, and why, from a record and a counts file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amct_pytorch import _core, _report_text
from amct_pytorch._checks import require_other_files, require_path, require_type
from amct_pytorch._report_model import Report, read_layers
from amct_pytorch._report_verdict import judged, reason_of_loss, reasons_of, verdict_of
from amct_pytorch.evaluation import Evaluation

FORMATS = ("html", "json", "md")


def report(
    record_file: str | os.PathLike[str],
    counts_file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    compare: str | os.PathLike[str] | None = None,
    config_file: str | os.PathLike[str] | None = None,
    title: str | None = None,
    format: str = "html",  # noqa: A002  # what the command calls it
    evaluation: Evaluation | Mapping[str, Any] | None = None,
) -> Report:
    """Write a report of how the factors of a record sit on what a calibration saw.

    A verdict comes first: "good", "look" at some layers, or "bad", with reasons.

    A layer is to be looked at where its SQNR is below a limit of its format (INT8 30 dB, INT4 16, FP8_E4M3
    28, FP8_E5M2 23, HIF8 26), more than 2% of its values are clipped, it saw fewer batches than asked for,
    the counts file lacks it, it has channels over 10 times its median channel that share factors, or it is of
    keys per channel observed at the projection.

    It is bad below 20 dB (INT4 13, FP8_E5M2 and HIF8 18), with more than 10% clipped, where NaN or infinite
    values were seen, no batch reached it, or the record has no factors of it.

    Where `evaluation` has the record, by the name of its file, so does the growth of perplexity, less its
    standard error: above 1% it is to be looked at, above 5% it is bad.

    Parameters
    ----------
    record_file : str
        The factors.
    counts_file : str
        What `create_quant_cali_model`, `calibrate` or `amct merge` saved.
    output : str
        The file to write. One that is there is replaced.
    compare : str, optional
        Another record, of the same layers: both are held against the same counts.
    config_file : str, optional
        The configuration of the calibration, to name the layers that no batch reached.
    title : str, optional
        What the report is of (default: the name of the record file).
    format : {'html', 'json', 'md'}
        'html' is one page with nothing outside of it; it needs the packages of ``amct-pytorch[report]``.
        'json' has the fields of `Report`, those of its layers with their severity and ``sqnr_change_db``, and
        ``schema_version``, which is 1 and grows where a field changes its meaning or goes; numbers that are
        not finite or not known are null.
    evaluation : Evaluation or mapping, optional
        What `amct_pytorch.evaluation.evaluate` found, or ``amct-pytorch evaluate --json`` wrote. Other
        results are shown as they are: ``{"perplexity": 23.7}``.

    Returns
    -------
    Report
        What was written, as an object.

    Raises
    ------
    OSError
        A file cannot be read or written.
    ValueError
        A file is damaged or of another kind; record and counts are of different models; `format` is unknown.
    ImportError
        A package that 'html' needs is missing.

    Examples
    --------
    >>> amct.report("record.txt", "all.counts", "report.html").severity  # doctest: +SKIP
    <Severity.GOOD: 'good'>
    """
    if require_type("format", format, str) not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, not {format!r}")
    if format == "html":
        _require_packages()
    paths = {
        "record_file": require_path("record_file", record_file),
        "counts_file": require_path("counts_file", counts_file),
        "compare": None if compare is None else require_path("compare", compare),
        "config_file": None if config_file is None else require_path("config_file", config_file),
    }
    target = require_path("output", output)
    _core.check_output_path(target)
    require_other_files({"output": target}, paths)
    if title is not None:
        require_type("title", title, str)
    measured = evaluation.to_dict() if isinstance(evaluation, Evaluation) else evaluation or {}
    made = _report_of(paths, title, dict(require_type("evaluation", measured, Mapping)))  # type: ignore[type-abstract]
    if format == "html":
        from amct_pytorch import _report_html

        text = _report_html.render(made)
    else:
        text = _report_text.json_of(made) if format == "json" else _report_text.markdown_of(made)
    _core.write_file(target, text.encode("utf-8", "backslashreplace"))
    return made


def _report_of(paths: Mapping[str, str | None], title: str | None, evaluation: dict[str, Any]) -> Report:
    record, counts = paths["record_file"], paths["counts_file"]
    assert record is not None
    assert counts is not None
    layers, batch_num, written_by = read_layers(record, counts, paths["compare"], paths["config_file"])
    layers = [judged(layer, batch_num) for layer in layers]
    loss = reason_of_loss(evaluation, record)
    severity, verdict = verdict_of(layers, loss)
    return Report(
        title=Path(record).name if title is None else title,
        severity=severity,
        verdict=verdict,
        reasons=reasons_of(layers, loss),
        record_file=record,
        counts_file=counts,
        compare_file=paths["compare"],
        config_file=paths["config_file"],
        batch_num=batch_num,
        written_by=written_by,
        layers=layers,
        evaluation=evaluation,
    )


def _require_packages() -> None:
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"a report in HTML needs {' and '.join(missing)}: pip install 'amct-pytorch[report]'"
        )
