"""What a report says, apart from how it looks: read from a record and a counts file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from amct_pytorch import _core
from amct_pytorch._compat import StrEnum
from amct_pytorch._json import plain

# Of the JSON rendering: a number is added where a field changes its meaning or goes.
SCHEMA_VERSION = 1

HISTOGRAM_BINS = 128


class Severity(StrEnum):
    """How bad a finding is, and with the worst of its findings a layer or a report."""

    GOOD = "good"
    LOOK = "look"
    BAD = "bad"


_ORDER = list(Severity)


def worst(severities: Sequence[Severity]) -> Severity:
    """The worst of them, or GOOD where there is none."""
    return max(severities, key=_ORDER.index, default=Severity.GOOD)


@dataclass(frozen=True)
class Finding:
    """Something about a layer that speaks against using its factors.

    Attributes
    ----------
    severity : Severity
        LOOK or BAD.
    kind : str
        'sqnr', 'clipped', 'outliers', 'few_batches', 'not_reached', 'no_factors', 'no_counts', 'non_finite'
        or 'tap'.
    text : str
        A sentence about this layer.
    """

    severity: Severity
    kind: str
    text: str


@dataclass(frozen=True)
class Outlier:
    """A channel whose largest magnitude is far above that of the layer's median channel."""

    channel: int
    max_abs: float
    ratio: float


@dataclass(frozen=True)
class Group:
    """Values that share factors, and how these sit on them."""

    min: float
    max: float
    scale: float
    offset: int
    clip_low: float
    clip_high: float
    mse: float
    sqnr_db: float | None
    clipped_fraction: float


@dataclass(frozen=True)
class Quality:
    """How the factors of one record do on the values of a layer.

    Attributes
    ----------
    dst_type, granularity : str
        What the cache stores, and what shares factors.
    mse, clipped_fraction : float
        Mean squared error, and the share of clipped values.
    sqnr_db : float or None
        None where there is no error: `mse` is 0.
    groups : list of Group
        One, or one a channel or head.
    curve : list of (float, float)
        Mean squared errors of clip ranges that are the values' own times a factor.
    chosen_factor : float
        What the chosen clip range is as such a factor; of several groups the median.
    """

    dst_type: str
    granularity: str
    mse: float
    sqnr_db: float | None
    clipped_fraction: float
    groups: list[Group]
    curve: list[tuple[float, float]]
    chosen_factor: float


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


@dataclass(frozen=True)
class ReportLayer:
    """One layer of a report. What the files do not say is None, and lists are empty.

    Attributes
    ----------
    name : str
        As the files have it; not fit for a page or a terminal as it is.
    role, tap, algorithm : str or None
        'key' or 'value'; 'linear' or 'cache'; the search of the calibration.
    batches, rows, channels, non_finite : int or None
        What was observed. Rows are tokens; keys that are turned to other positions count again.
    is_sketch : bool
        Whether float32 values were sketched, so that all numbers are near ones.
    quality, compared : Quality or None
        Of the record's factors, and of those of the other record.
    channel_max_abs : list of float
        Largest magnitude of each channel, where the layer was observed per channel.
    outliers : list of Outlier
        The largest first.
    """

    name: str
    role: str | None = None
    tap: str | None = None
    algorithm: str | None = None
    batches: int | None = None
    rows: int | None = None
    channels: int | None = None
    non_finite: int | None = None
    is_sketch: bool = False
    values: int = 0
    quality: Quality | None = None
    compared: Quality | None = None
    histogram: Histogram | None = None
    channel_max_abs: list[float] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """That of the worst finding."""
        return worst([finding.severity for finding in self.findings])

    @property
    def sqnr_change(self) -> float | None:
        """SQNR in dB minus that of the other record; None where either has none."""
        if self.quality is None or self.compared is None:
            return None
        if self.quality.sqnr_db is None or self.compared.sqnr_db is None:
            return None
        return self.quality.sqnr_db - self.compared.sqnr_db


@dataclass(frozen=True)
class Reason:
    """Findings of one kind and severity: the layers by their places in `Report.layers`, the worst first."""

    severity: Severity
    kind: str
    text: str
    layers: list[int]


@dataclass(frozen=True)
class Report:
    """What a record and a counts file say of a calibration.

    Attributes
    ----------
    title : str
        What the report is of.
    severity : Severity
        The verdict.
    verdict : str
        The same in a sentence.
    reasons : list of Reason
        Why, the worst first.
    record_file, counts_file, compare_file, config_file : str or None
        What was read.
    batch_num : int
        Batches that the calibration was to see.
    written_by : str
        The program that wrote the counts.
    layers : list of ReportLayer
        In the order of the calibration; layers that only the record has come last.
    evaluation : dict
        What was handed in of a model's evaluation.
    """

    title: str
    severity: Severity
    verdict: str
    reasons: list[Reason]
    record_file: str
    counts_file: str
    compare_file: str | None
    config_file: str | None
    batch_num: int
    written_by: str
    layers: list[ReportLayer]
    evaluation: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it; see the docstring of `amct_pytorch.report`."""
        layers = []
        for layer in self.layers:
            content = dataclasses.asdict(layer)
            content |= {"severity": layer.severity, "sqnr_change_db": layer.sqnr_change}
            layers.append(content)
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        own["reasons"] = [dataclasses.asdict(reason) for reason in self.reasons]
        own["layers"] = layers
        result: dict[str, Any] = plain({"schema_version": SCHEMA_VERSION, **own})
        return result


def read_layers(
    record_file: str, counts_file: str, compare_file: str | None, config_file: str | None
) -> tuple[list[ReportLayer], int, str]:
    """The layers of the files without findings, batch_num, and who wrote the counts.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        A file is damaged or of another kind, or the files have no layer in common.
    """
    counts = _core.inspect_counts(counts_file)
    factors = {layer.name: layer for layer in _core.read_record(record_file)}
    analyses = {a.name: a for a in _core.analyse_files(record_file, counts_file, HISTOGRAM_BINS)}
    others: dict[str, tuple[_core.LayerRecord, _core.LayerAnalysis]] = {}
    if compare_file is not None:
        records = {layer.name: layer for layer in _core.read_record(compare_file)}
        found = _core.analyse_files(compare_file, counts_file, 1)
        others = {analysis.name: (records[analysis.name], analysis) for analysis in found}
    counted = {layer.name: layer for layer in counts.layers}
    names = dict.fromkeys([*counted, *factors])
    roles: dict[str, str | None] = {}
    if config_file is not None:
        roles = {name: role for name, _, role, *_ in _core.read_config(config_file).places()}
        names = dict.fromkeys([*roles, *names])
    layers = []
    for name in names:
        layer = ReportLayer(name, role=roles.get(name))
        if (seen := counted.get(name)) is not None:
            layer = dataclasses.replace(
                layer,
                role=seen.role,
                tap=seen.tap,
                algorithm=seen.algorithm,
                batches=seen.batches,
                rows=seen.rows,
                channels=seen.channels,
                non_finite=seen.non_finite,
                is_sketch=seen.is_sketch,
            )
        if (record := factors.get(name)) is not None:
            layer = dataclasses.replace(layer, role=record.role or layer.role, tap=record.tap)
            if (analysis := analyses.get(name)) is not None:
                layer = _with_analysis(layer, record, analysis)
        if (other := others.get(name)) is not None:
            layer = dataclasses.replace(layer, compared=_quality(*other))
        layers.append(layer)
    return layers, counts.batch_num, counts.written_by


def granularity_of(record: _core.LayerRecord) -> str:
    """What shares the factors of a layer."""
    if record.per_head:
        return "per_head"
    return "per_tensor" if len(record.scales) == 1 else "per_channel"


def _with_analysis(
    layer: ReportLayer, record: _core.LayerRecord, analysis: _core.LayerAnalysis
) -> ReportLayer:
    histogram = Histogram(analysis.histogram_low, analysis.histogram_high, list(analysis.histogram))
    return dataclasses.replace(
        layer,
        values=int(analysis.total),
        quality=_quality(record, analysis),
        histogram=histogram,
        channel_max_abs=list(analysis.channel_max_abs),
    )


def _quality(record: _core.LayerRecord, analysis: _core.LayerAnalysis) -> Quality:
    groups = [
        Group(
            min=group.min,
            max=group.max,
            scale=group.scale,
            offset=group.offset,
            clip_low=group.clip_low,
            clip_high=group.clip_high,
            mse=group.mse,
            sqnr_db=_finite(group.sqnr_db),
            clipped_fraction=group.clipped_fraction,
        )
        for group in analysis.groups
    ]
    return Quality(
        dst_type=record.dst_type,
        granularity=granularity_of(record),
        mse=analysis.mse,
        sqnr_db=_finite(analysis.sqnr_db),
        clipped_fraction=analysis.clipped_fraction,
        groups=groups,
        curve=list(analysis.curve),
        chosen_factor=median(map(_factor_of, groups)),
    )


def _factor_of(group: Group) -> float:
    """A clip range over the range of the values, both as factors cover them: with zero, or symmetric."""
    if group.offset:
        own = max(group.max, 0.0) - min(group.min, 0.0)
        clip = group.clip_high - group.clip_low
    else:
        own = max(abs(group.min), abs(group.max))
        clip = max(abs(group.clip_low), abs(group.clip_high))
    return clip / own if own > 0 else 1.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
