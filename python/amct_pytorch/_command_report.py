"""The command `amct-pytorch report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amct_pytorch._command import InputError, echo_json, refuse_one_file_for_two, with_errors_in_a_line
from amct_pytorch._compat import StrEnum
from amct_pytorch._json import read as read_json
from amct_pytorch._options import Json, Verbose
from amct_pytorch.report import report as write_report


class ReportFormat(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"
    json = "json"


@with_errors_in_a_line
def report(
    record: Annotated[Path, typer.Option(help="Record to report on.")],
    counts: Annotated[Path, typer.Option(help="Counts file of the calibration (`calibrate --counts`).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
    compare: Annotated[Path | None, typer.Option(help="Another record, to compare with.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration, which names layers that were never reached.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What `evaluate --json` wrote, for the summary.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    output_format: Annotated[
        ReportFormat, typer.Option("--format", help="What to write.")
    ] = ReportFormat.html,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    r"""Show how factors sit on what was seen.

    A verdict, then layers, histograms and channels.

    Example: amct-pytorch report --record record.txt --counts all.counts \
      -o report.html
    """
    refuse_one_file_for_two(
        {"--output": output},
        {
            "--record": record,
            "--counts": counts,
            "--compare": compare,
            "--config": config,
            "--evaluation": evaluation,
        },
    )
    measured = None
    if evaluation is not None:
        measured = read_json(evaluation)
        if not isinstance(measured, dict):
            raise InputError(f"'{evaluation}' is not what `evaluate --json` writes")
    found = write_report(
        record,
        counts,
        output,
        compare=compare,
        config_file=config,
        title=title,
        format=output_format.value,
        evaluation=measured,
    )
    if as_json:
        reasons = [reason.text for reason in found.reasons]
        echo_json(
            {"report": output, "severity": found.severity, "verdict": found.verdict, "reasons": reasons}
        )
        return
    typer.echo(f"{output}: {found.verdict}")
