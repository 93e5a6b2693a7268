"""What speaks against factors, by thresholds that are stated in every report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from amct_pytorch._report_model import Finding, Outlier, Reason, ReportLayer, Severity, worst


@dataclass(frozen=True)
class Limits:
    """SQNR in dB below which a layer is to be looked at, and below which it is bad."""

    look: float
    bad: float


# 20 dB is an error of 1% of the signal's power, 13 dB is 5%. The best that a normal distribution can get is
# 40 dB of INT8, 20 of INT4, 31 of three bits of mantissa, 25 of two. The perplexity of SmolLM2-135M rises by
# 3% with INT4 per channel (18 to 26 dB a layer), and by 24% per tensor (12 to 18 dB).
SQNR_LIMITS = {
    "INT8": Limits(30, 20),
    "INT4": Limits(16, 13),
    "FP8_E4M3": Limits(28, 20),
    "FP8_E4M3FNUZ": Limits(28, 20),
    "FP8_E5M2": Limits(23, 18),
    "FP8_E5M2FNUZ": Limits(23, 18),
    "HIF8": Limits(26, 18),
}
# Of a format that is not listed.
OTHER_SQNR_LIMITS = Limits(28, 18)

# What clipping costs is in the SQNR; a search by the error itself clips some 1% in INT4.
CLIPPED_LOOK = 0.02
CLIPPED_BAD = 0.10

# Growth of perplexity, less its standard error: some 0.1% is usual for INT8.
LOSS_LOOK = 0.01
LOSS_BAD = 0.05

# A channel this many times as large as its layer's median channel is an outlier.
OUTLIER_RATIO = 10.0


def sqnr_limits(dst_type: str) -> Limits:
    """The limits of a number format."""
    return SQNR_LIMITS.get(dst_type, OTHER_SQNR_LIMITS)


def judged(layer: ReportLayer, batch_num: int) -> ReportLayer:
    """The layer with its outliers and findings."""
    layer = dataclasses.replace(layer, outliers=_outliers(layer.channel_max_abs))
    findings = [*_of_counts(layer, batch_num), *_of_quality(layer), *_of_outliers(layer), *_of_tap(layer)]
    findings.sort(key=lambda finding: finding.severity != Severity.BAD)
    return dataclasses.replace(layer, findings=findings)


def _outliers(channel_max_abs: Sequence[float]) -> list[Outlier]:
    if not channel_max_abs:
        return []
    middle = median(channel_max_abs)
    if middle <= 0:
        return []
    found = [
        Outlier(channel, largest, largest / middle)
        for channel, largest in enumerate(channel_max_abs)
        if largest > OUTLIER_RATIO * middle
    ]
    return sorted(found, key=lambda outlier: -outlier.ratio)


def _of_counts(layer: ReportLayer, batch_num: int) -> list[Finding]:
    findings = []
    if layer.batches is None:
        if layer.quality is None and layer.tap is None:
            text = "No batch reached it, so it has no factors."
            findings.append(Finding(Severity.BAD, "not_reached", text))
        else:
            text = "The counts file does not have it, so nothing is known of its factors."
            findings.append(Finding(Severity.LOOK, "no_counts", text))
        return findings
    if layer.quality is None:
        text = "It was observed, but the record has no factors of it."
        findings.append(Finding(Severity.BAD, "no_factors", text))
    if layer.batches < batch_num:
        text = f"It saw {layer.batches:,} of {batch_num:,} batches."
        findings.append(Finding(Severity.LOOK, "few_batches", text))
    if layer.non_finite:
        text = f"{layer.non_finite:,} values were NaN or infinite, and left out."
        findings.append(Finding(Severity.BAD, "non_finite", text))
    return findings


def _of_quality(layer: ReportLayer) -> list[Finding]:
    quality = layer.quality
    if quality is None:
        return []
    findings = []
    limits = sqnr_limits(quality.dst_type)
    sqnr = math.inf if quality.sqnr_db is None else quality.sqnr_db
    if sqnr < limits.look:
        bad = sqnr < limits.bad
        limit = limits.bad if bad else limits.look
        text = f"SQNR is {sqnr:.1f} dB, below {limit:g} dB."
        findings.append(Finding(Severity.BAD if bad else Severity.LOOK, "sqnr", text))
    if quality.clipped_fraction > CLIPPED_LOOK:
        bad = quality.clipped_fraction > CLIPPED_BAD
        limit = CLIPPED_BAD if bad else CLIPPED_LOOK
        text = f"{quality.clipped_fraction:.2%} of its values are clipped, more than {limit:.0%}."
        findings.append(Finding(Severity.BAD if bad else Severity.LOOK, "clipped", text))
    return findings


def _of_outliers(layer: ReportLayer) -> list[Finding]:
    # With factors of their own they take nothing from other channels.
    if not layer.outliers or layer.quality is None or layer.quality.granularity == "per_channel":
        return []
    first = layer.outliers[0]
    shared = layer.quality.granularity.replace("_", " ")
    text = (
        f"Channel {first.channel} reaches {first.max_abs:.4g}, {first.ratio:.3g} times the median channel, "
        f"and factors are {shared}."
    )
    return [Finding(Severity.LOOK, "outliers", text)]


def _of_tap(layer: ReportLayer) -> list[Finding]:
    quality = layer.quality
    if (
        quality is None
        or layer.role != "key"
        or layer.tap != "linear"
        or quality.granularity != "per_channel"
    ):
        return []
    text = (
        "Keys per channel were observed at the projection: wrong for a cache that stores them after rotary "
        "embedding."
    )
    return [Finding(Severity.LOOK, "tap", text)]


# Reasons stand in this order; {} is how many layers there are of it.
_REASONS = {
    "not_reached": "{} not reached by any batch",
    "no_factors": "{} without factors in the record",
    "non_finite": "{} with NaN or infinite values",
    "sqnr": "{} with low SQNR",
    "clipped": "{} with many clipped values",
    "few_batches": "{} with fewer batches than asked for",
    "outliers": "{} with outlier channels that share factors",
    "no_counts": "{} of the record without counts",
    "tap": "{} of keys per channel taken before rotary embedding",
}


def reason_of_loss(evaluation: Mapping[str, Any], record_file: str) -> Reason | None:
    """What the evaluation of the record itself says against it, where it is one of those evaluated."""
    candidate = own_candidate(evaluation, record_file)
    loss, error = (candidate.get(name) for name in ("loss", "loss_error"))
    if not is_number(loss):
        return None
    surely = loss - (error if is_number(error) else 0.0)
    if surely <= LOSS_LOOK:
        return None
    severity = Severity.BAD if surely > LOSS_BAD else Severity.LOOK
    return Reason(severity, "loss", f"perplexity grows by {loss:.1%} with the cache quantized", [])


def own_candidate(evaluation: Mapping[str, Any], record_file: str) -> Mapping[str, Any]:
    """What was measured of the record, by the name of its file; empty where it was not."""
    candidates = evaluation.get("candidates")
    if not isinstance(candidates, Sequence):
        return {}
    named = [candidate for candidate in candidates if isinstance(candidate, Mapping)]
    own = [c for c in named if Path(str(c.get("name"))).name == Path(record_file).name]
    return own[0] if own else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def reasons_of(layers: Sequence[ReportLayer], loss: Reason | None = None) -> list[Reason]:
    """What was measured of the whole, then findings of all layers, by severity and kind."""
    reasons = [] if loss is None else [loss]
    for severity in (Severity.BAD, Severity.LOOK):
        for kind, text in _REASONS.items():
            places = [
                place
                for place, layer in enumerate(layers)
                if any(f.kind == kind and f.severity == severity for f in layer.findings)
            ]
            if places:
                places.sort(key=lambda place: _badness(layers[place], kind), reverse=True)
                reasons.append(Reason(severity, kind, text.format(number_of(len(places), "layer")), places))
    return sorted(reasons, key=lambda reason: reason.severity != Severity.BAD)


def _badness(layer: ReportLayer, kind: str) -> float:
    """What layers of one reason are sorted by."""
    quality = layer.quality
    if kind == "sqnr" and quality is not None and quality.sqnr_db is not None:
        return -quality.sqnr_db
    if kind == "clipped" and quality is not None:
        return quality.clipped_fraction
    if kind == "outliers" and layer.outliers:
        return layer.outliers[0].ratio
    if kind == "non_finite":
        return float(layer.non_finite or 0)
    return 0.0


def verdict_of(layers: Sequence[ReportLayer], loss: Reason | None = None) -> tuple[Severity, str]:
    """The verdict, and a sentence that says it."""
    severity = worst([layer.severity for layer in layers])
    affected = sum(layer.severity == severity for layer in layers)
    if loss is not None and worst([severity, loss.severity]) == loss.severity:
        lead = "Do not ship" if loss.severity == Severity.BAD else "Look again before you ship these factors"
        return loss.severity, f"{lead}: {loss.text}."
    if severity == Severity.GOOD:
        return severity, "Good: the calibration saw what it should, and every layer keeps within the limits."
    if severity == Severity.LOOK:
        return severity, f"Look at {number_of(affected, 'layer')} before you ship these factors."
    are = "is" if affected == 1 else "are"
    return severity, f"Do not ship: {affected} of {number_of(len(layers), 'layer')} {are} bad."


def number_of(count: int, noun: str, nouns: str = "") -> str:
    """'1 layer', '2 layers'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {nouns or noun + 's'}"
