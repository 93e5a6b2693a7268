"""A report as Markdown and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_pytorch._report_model import Report, ReportLayer, Severity
from amct_pytorch._report_names import MINUS, NONE, decibel, number, percent, printable, signed
from amct_pytorch._report_verdict import is_number

MARKS = {Severity.GOOD: "ok", Severity.LOOK: "look", Severity.BAD: "**bad**"}

# Of what was evaluated.
CANDIDATE_COLUMNS = ("setting", "perplexity", "loss", "KL", "same top token", "bytes a token")
_FACTS = {
    "perplexity": "perplexity in full precision",
    "bytes_per_token": "bytes a token in full precision",
    "tokens": "tokens predicted",
}
_OF_CANDIDATE = (
    "name",
    "perplexity",
    "loss",
    "loss_error",
    "kl",
    "kl_error",
    "top1_agreement",
    "bytes_per_token",
)

# Layers that a reason names; the table has them all.
MOST_NAMED = 8


def json_of(report: Report) -> str:
    """The report as JSON, in ASCII."""
    return json.dumps(report.to_dict(), allow_nan=False) + "\n"


def markdown_of(report: Report) -> str:
    """The report as Markdown, without its charts."""
    lines = [f"# {escaped(report.title)}", "", f"**{escaped(report.verdict)}**", ""]
    for reason in report.reasons:
        names = [code(report.layers[place].name) for place in reason.layers[:MOST_NAMED]]
        more = len(reason.layers) - len(names)
        rest = f" and {more} more" if more else ""
        lines.append(
            f"- {MARKS[reason.severity]}: {reason.text}{': ' if names else ''}{', '.join(names)}{rest}"
        )
    lines += ["", *_table(("", ""), facts_of(report)), ""]
    if report.evaluation:
        measured = measured_of(report.evaluation)
        shown = [(escaped(key), escaped(value)) for key, value in measured.facts]
        lines += ["## Evaluation", "", *_table(("", ""), shown), ""]
        if measured.candidates:
            candidates = [[escaped(cell) for cell in row] for row in measured.candidates]
            lines += [*_table(CANDIDATE_COLUMNS, candidates), ""]
    compared = report.compare_file is not None
    head = ["layer", "SQNR dB", "clipped", "range", "rows", "batches", "non-finite", "verdict"]
    if compared:
        head[2:2] = ["other SQNR dB", "difference dB"]
    lines += ["## Layers", "", *_table(head, [_row(layer, compared) for layer in report.layers])]
    notes = [
        f"- {code(layer.name)}: {escaped(' '.join(finding.text for finding in layer.findings))}"
        for layer in report.layers
        if layer.findings
    ]
    if notes:
        lines += ["", "## Findings", "", *notes]
    return "\n".join(lines) + "\n"


def facts_of(report: Report) -> list[tuple[str, str]]:
    """What was read, for a table of two columns."""
    facts = [("record", code(report.record_file)), ("counts", code(report.counts_file))]
    if report.compare_file is not None:
        facts.append(("compared to", code(report.compare_file)))
    return [
        *facts,
        ("counts written by", escaped(report.written_by)),
        ("layers", str(len(report.layers))),
        ("batches asked for", str(report.batch_num)),
    ]


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, as text: `candidates` has the CANDIDATE_COLUMNS, `facts` all else by name."""

    facts: list[tuple[str, str]]
    candidates: list[list[str]]


def measured_of(evaluation: Mapping[str, Any]) -> Measured:
    """What is known of an evaluation; its candidates where it is that of `amct_pytorch.evaluation`."""
    candidates = evaluation.get("candidates")
    if not isinstance(candidates, Sequence) or not all(
        isinstance(candidate, Mapping)
        and all(
            name in candidate and (candidate[name] is None or name == "name" or is_number(candidate[name]))
            for name in _OF_CANDIDATE
        )
        for candidate in candidates
    ):
        return Measured(flat(evaluation), [])
    facts = flat({_FACTS.get(key, key): value for key, value in evaluation.items() if key != "candidates"})
    return Measured(facts, [_candidate(candidate) for candidate in candidates])


def _candidate(quality: Mapping[str, Any]) -> list[str]:
    def share(name: str, sign: str = "") -> str:
        value, error = quality[name], quality[f"{name}_error"]
        if value is None:
            return NONE
        around = "" if error is None else f" ± {error * 100:.3f}"
        return f"{value * 100:{sign}.3f}{around}%".replace("-", MINUS)

    agreement = quality["top1_agreement"]
    return [
        str(quality["name"]),
        number(quality["perplexity"], 5),
        share("loss", "+"),
        share("kl"),
        NONE if agreement is None else f"{agreement * 100:.2f}%",
        number(quality["bytes_per_token"], 5),
    ]


def flat(content: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as names with colons and values as text."""
    rows = []
    for key, value in content.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, name + ": ")
        elif isinstance(value, float):
            rows.append((name, number(value, 5)))
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((name, f"{value:,}"))
        else:
            rows.append((name, str(value)))
    return rows


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", printable(text))


def code(text: str) -> str:
    """Text as a code span, also in a table."""
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    space = " " if len(fence) > 1 or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _row(layer: ReportLayer, compared: bool) -> list[str]:
    quality, other = layer.quality, layer.compared
    seen = layer.histogram
    cells = [
        code(layer.name),
        NONE if quality is None else decibel(quality.sqnr_db, quality.mse),
        NONE if quality is None else percent(quality.clipped_fraction),
        NONE if seen is None else f"{number(seen.low)} to {number(seen.high)}",
        NONE if layer.rows is None else f"{layer.rows:,}",
        NONE if layer.batches is None else f"{layer.batches:,}",
        NONE if layer.non_finite is None else f"{layer.non_finite:,}",
        MARKS[layer.severity],
    ]
    if compared:
        cells[2:2] = [
            NONE if other is None else decibel(other.sqnr_db, other.mse),
            signed(layer.sqnr_change),
        ]
    return [cell.replace("<", "\\<") if cell.startswith("<") else cell for cell in cells]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
