"""A report as one HTML page with nothing outside of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from amct_pytorch import _report_charts as charts
from amct_pytorch._report_model import Quality, Report, ReportLayer, Severity
from amct_pytorch._report_names import NONE, compact, decibel, number, percent, printable, short_names, signed
from amct_pytorch._report_svg import STYLE
from amct_pytorch._report_text import CANDIDATE_COLUMNS, MOST_NAMED, measured_of
from amct_pytorch._report_verdict import (
    CLIPPED_BAD,
    CLIPPED_LOOK,
    LOSS_BAD,
    LOSS_LOOK,
    OTHER_SQNR_LIMITS,
    OUTLIER_RATIO,
    number_of,
    own_candidate,
    sqnr_limits,
)

_TEMPLATES = Path(__file__).parent / "templates"

# Outlier channels that a layer names.
_MOST_OUTLIERS = 16


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    measured = measured_of(report.evaluation)
    script = (_TEMPLATES / "report.js").read_text("utf-8")
    names = [printable(name) for name in short_names([layer.name for layer in report.layers])]
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.get_backend(), **STYLE}):
        return environment.get_template("report.html").render(
            report=report,
            names=names,
            style=Markup((_TEMPLATES / "report.css").read_text("utf-8")),
            script=Markup(script),
            # Nothing but this script runs, whatever a name might hold.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            reasons=[_reason(reason.layers, names) | {"reason": reason} for reason in report.reasons],
            tiles=_tiles(report, names),
            evaluation=[(printable(key), printable(value)) for key, value in measured.facts],
            candidate_columns=CANDIDATE_COLUMNS,
            candidates=[[printable(cell) for cell in row] for row in measured.candidates],
            rows=[_row(report, place, names[place]) for place in range(len(report.layers))],
            comparison=_comparison(report),
            compared_name=printable(Path(report.compare_file or "").name),
            overviews=[
                _svg(charts.sqnr_overview(report.layers, width)) for width in (charts.WIDTH, charts.WIDE)
            ],
            heat_maps={role: Markup(svg) for role, svg in charts.channel_overview(report.layers).items()},
            layers=_layers(report, names),
            roles={layer.role or "other" for layer in report.layers if layer.quality},
            limits=_limits(report),
            clipped=(f"{CLIPPED_LOOK:.0%}", f"{CLIPPED_BAD:.0%}"),
            loss=(f"{LOSS_LOOK:.0%}", f"{LOSS_BAD:.0%}"),
            judges_loss=bool(own_candidate(report.evaluation, report.record_file)),
            outlier_ratio=f"{OUTLIER_RATIO:g}",
        )


def _svg(chart: str | None) -> Markup | None:
    return None if chart is None else Markup(chart)


def _breakable(name: str) -> Markup:
    """A name that may be broken after its dots."""
    return Markup("<wbr>").join(escape(part) for part in name.replace(".", ".\n").split("\n"))


def _reason(places: list[int], names: list[str]) -> dict[str, Any]:
    return {
        "links": [(place, names[place]) for place in places[:MOST_NAMED]],
        "more": max(0, len(places) - MOST_NAMED),
    }


def _tiles(report: Report, names: list[str]) -> list[dict[str, Any]]:
    """The numbers of the summary."""
    known = [(place, layer, layer.quality) for place, layer in enumerate(report.layers) if layer.quality]
    if not known:
        return []
    formats = " + ".join(dict.fromkeys(quality.dst_type for _, _, quality in known))
    ways = dict.fromkeys(quality.granularity.replace("_", " ") for _, _, quality in known)
    taps = dict.fromkeys(layer.tap or "" for _, layer, _ in known)
    tiles: list[dict[str, Any]] = [
        {"label": "format", "value": formats, "note": f"{' + '.join(ways)}, tap {' + '.join(taps)}"},
        {"label": "layers", "value": str(len(report.layers)), "note": _roles(report)},
    ]
    sqnrs = [(quality.sqnr_db, place) for place, _, quality in known if quality.sqnr_db is not None]
    if sqnrs:
        lowest, place = min(sqnrs)
        tiles.append(
            {
                "label": "median SQNR",
                "value": f"{decibel(median(s for s, _ in sqnrs))} dB",
                "note": "of a layer",
            }
        )
        tiles.append(
            {
                "label": "lowest SQNR",
                "value": f"{decibel(lowest)} dB",
                "note": names[place],
                "place": place,
            }
        )
    values = sum(layer.values for _, layer, _ in known)
    clipped = sum(quality.clipped_fraction * layer.values for _, layer, quality in known) / max(values, 1)
    tiles.append({"label": "clipped", "value": percent(clipped), "note": f"of {compact(values)} values"})
    tokens = sorted({layer.rows or 0 for _, layer, _ in known if layer.role != "key" or layer.tap != "cache"})
    if tokens:
        shown = f"{tokens[-1]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        tiles.append(
            {
                "label": "tokens seen",
                "value": shown,
                "note": f"in {number_of(report.batch_num, 'batch', 'batches')}",
            }
        )
    return tiles


def _roles(report: Report) -> str:
    count = {role: sum(layer.role == role for layer in report.layers) for role in ("key", "value")}
    if sum(count.values()) < len(report.layers):
        return ""
    return ", ".join(f"{n} {role}" for role, n in count.items() if n)


def _row(report: Report, place: int, name: str) -> dict[str, Any]:
    """A line of the table: texts, and what it is sorted by."""
    layer = report.layers[place]
    quality, seen = layer.quality, layer.histogram
    largest = None if seen is None else max(abs(seen.low), abs(seen.high))
    few = layer.batches is None or layer.batches < report.batch_num
    return {
        "place": place,
        "name": _breakable(name),
        "full": printable(layer.name),
        "severity": layer.severity.value,
        "rank": [Severity.BAD, Severity.LOOK, Severity.GOOD].index(layer.severity),
        "role": layer.role or NONE,
        "sqnr": NONE if quality is None else decibel(quality.sqnr_db, quality.mse),
        "sqnr_sort": _sqnr_sort(quality),
        "clipped": NONE if quality is None else percent(quality.clipped_fraction),
        "clipped_sort": -1 if quality is None else quality.clipped_fraction,
        "largest": number(largest),
        "largest_sort": -1 if largest is None else largest,
        "outliers": str(len(layer.outliers)) if layer.channel_max_abs else NONE,
        "outliers_sort": len(layer.outliers),
        "rows": NONE if layer.rows is None else f"{layer.rows:,}",
        "rows_sort": layer.rows or 0,
        "batches": f"{layer.batches or 0:,}" if few else f"{layer.batches:,}",
        "few": few,
        "non_finite": NONE if layer.non_finite is None else f"{layer.non_finite:,}",
        "non_finite_sort": layer.non_finite or 0,
    }


def _sqnr_sort(quality: Quality | None) -> float:
    if quality is None:
        return -999.0
    return 999.0 if quality.sqnr_db is None else quality.sqnr_db


def _comparison(report: Report) -> dict[str, Any] | None:
    if report.compare_file is None:
        return None
    rows: list[dict[str, Any]] = []
    changes = []
    for place, layer in enumerate(report.layers):
        quality, other, change = layer.quality, layer.compared, layer.sqnr_change
        if change is not None:
            changes.append(change)
        rows.append(
            {
                "place": place,
                "here": NONE if quality is None else decibel(quality.sqnr_db, quality.mse),
                "here_sort": _sqnr_sort(quality),
                "there": NONE if other is None else decibel(other.sqnr_db, other.mse),
                "there_sort": _sqnr_sort(other),
                "change": signed(change),
                "change_sort": 0 if change is None else change,
                "clipped_here": percent(None if quality is None else quality.clipped_fraction),
                "clipped_there": percent(None if other is None else other.clipped_fraction),
                "clipped_here_sort": -1 if quality is None else quality.clipped_fraction,
                "clipped_there_sort": -1 if other is None else other.clipped_fraction,
            }
        )
    return {
        "rows": rows,
        "better": sum(change >= 0.05 for change in changes),
        "worse": sum(change <= -0.05 for change in changes),
        "same": sum(abs(change) < 0.05 for change in changes),
        "mean": signed(mean(changes)) if changes else NONE,
        "largest": max((abs(change) for change in changes), default=0) or 1,
    }


def _layers(report: Report, names: list[str]) -> Iterator[dict[str, Any]]:
    """One layer after the other, so that not all charts are held twice."""
    first = _shown_first(report)
    for place, layer in enumerate(report.layers):
        quality = layer.quality
        content: dict[str, Any] = {
            "place": place,
            "layer": layer,
            "name": _breakable(names[place]),
            "full": _breakable(printable(layer.name)),
            "open": place == first,
            "severity": layer.severity.value,
            "brief": _brief(layer),
            "facts": _facts(layer, report.batch_num),
            "charts": [],
            "outliers": _outliers(layer),
        }
        if quality is not None and layer.histogram is not None:
            content["charts"] = _charts(layer, quality)
        yield content


def _shown_first(report: Report) -> int:
    """The layer that is open: the worst one."""
    for reason in report.reasons:
        if reason.layers:
            return reason.layers[0]
    return min(range(len(report.layers)), key=lambda place: _sqnr_sort(report.layers[place].quality))


def _brief(layer: ReportLayer) -> str:
    quality = layer.quality
    if quality is None:
        return "no factors" if layer.batches is not None else "not seen"
    return f"{decibel(quality.sqnr_db, quality.mse)} dB"


def _charts(layer: ReportLayer, quality: Quality) -> list[dict[str, Any]]:
    several = len(quality.groups) > 1
    found = [
        {
            "title": "Values, clip range and levels",
            "svg": Markup(charts.histogram(layer)),
            "note": _histogram_note(quality),
        },
        {
            "title": "Cost of the clip range",
            "svg": Markup(charts.loss_curve(layer)),
            "note": (
                f"Line: every {'group is' if several else 'value is'} clipped at this share of its range. "
                f"Dot: as chosen, {quality.chosen_factor:.2f}{' in the median group' if several else ''}, "
                f"mean squared error {number(quality.mse)}."
            ),
        },
    ]
    profile = charts.channels(layer)
    if profile is not None:
        found.append(
            {
                "title": "Channels",
                "svg": Markup(profile),
                "note": "Blue: values. Lines: clip range. Beneath: faint is low, strong is high.",
            }
        )
    if layer.compared is not None:
        for chart in found:
            chart["note"] += " Orange: the other record."
    return found


def _histogram_note(quality: Quality) -> str:
    scale = number(charts.median_group(quality).scale)
    if quality.dst_type.startswith("INT"):
        levels = f"{2 ** int(quality.dst_type[3:])} levels, {scale} apart"
    else:
        levels = f"levels, denser near zero, of scale {scale}"
    if len(quality.groups) == 1:
        return f"Lines: clip range. Beneath: {levels}. Red: clipped."
    return (
        f"Solid: the widest of {len(quality.groups)} clip ranges. Dashed: the one of the median "
        f"scale; beneath, its {levels}. Red: beyond all."
    )


def _outliers(layer: ReportLayer) -> dict[str, Any] | None:
    if not layer.outliers:
        return None
    shown = layer.outliers[:_MOST_OUTLIERS]
    return {
        "count": len(layer.outliers),
        "shown": [(o.channel, number(o.max_abs), f"{o.ratio:.3g}") for o in shown],
        "more": len(layer.outliers) - len(shown),
    }


def _facts(layer: ReportLayer, batch_num: int) -> list[tuple[str, str, bool]]:
    """(name, value, whether it is bad news)."""
    facts: list[tuple[str, str, bool]] = []
    if layer.batches is not None:
        few = layer.batches < batch_num
        facts.append(("batches", f"{layer.batches:,} of {batch_num:,}", few))
    elif layer.quality is None:
        facts.append(("batches", f"0 of {batch_num:,}", True))
    if layer.rows is not None:
        turned = layer.role == "key" and layer.tap == "cache"
        name = "tokens, at all positions counted" if turned else "tokens"
        facts.append((name, f"{layer.rows:,}", layer.rows == 0))
    if layer.channels:
        facts.append(("channels", f"{layer.channels:,}", False))
    if layer.non_finite is not None:
        facts.append(("NaN or infinite", f"{layer.non_finite:,}", layer.non_finite > 0))
    quality = layer.quality
    if quality is not None:
        scales = [group.scale for group in quality.groups]
        shown = number(scales[0]) if len(scales) == 1 else f"{number(min(scales))} to {number(max(scales))}"
        facts += [
            ("format", f"{quality.dst_type} {quality.granularity.replace('_', ' ')}", False),
            ("clipped", percent(quality.clipped_fraction), quality.clipped_fraction > CLIPPED_LOOK),
            ("scale", shown, False),
        ]
    if layer.tap is not None:
        facts.append(("tap", layer.tap, False))
    if layer.algorithm is not None:
        facts.append(("calibrated by", layer.algorithm, False))
    if layer.is_sketch:
        facts.append(("values", "sketched: numbers are near ones", False))
    return facts


def _limits(report: Report) -> list[tuple[str, str, str]]:
    formats = dict.fromkeys(layer.quality.dst_type for layer in report.layers if layer.quality)
    rows = [(name, sqnr_limits(name)) for name in formats] or [("any", OTHER_SQNR_LIMITS)]
    return [(name, f"{limits.look:g} dB", f"{limits.bad:g} dB") for name, limits in rows]
