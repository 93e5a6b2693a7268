"""The charts of a report. Sizes are pixels of a page as wide as a phone's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from amct_pytorch._core import find_grid
from amct_pytorch._report_model import Group, Quality, ReportLayer
from amct_pytorch._report_names import MINUS, compact, number
from amct_pytorch._report_svg import Sheet, grid, mark
from amct_pytorch._report_verdict import OUTLIER_RATIO, sqnr_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

WIDTH = 360.0
WIDE = 1100.0
_LEFT, _RIGHT = 52.0, 10.0
_INNER = WIDTH - _LEFT - _RIGHT

# Levels nearer to each other than this are drawn as a bar, which is what ticks would look like.
_LEVEL_GAP = 2.5
# Columns of a heat map: more are joined, the largest value of each, since outliers are what it is for.
_MOST_COLUMNS = 512


def histogram(layer: ReportLayer) -> str:
    """How often values occur, where they are clipped, and which can be read back."""
    assert layer.histogram is not None
    assert layer.quality is not None
    seen = layer.histogram
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    counts = np.array(seen.counts, dtype=float)
    sheet = Sheet(WIDTH, 198)
    axes = sheet.axes(_LEFT, 10, _INNER, 140)
    low, high = _shown_range(layer)
    axes.set_xlim(low, high)
    top = 10 ** math.ceil(math.log10(max(counts.max(), 1) * 1.2))
    axes.set_yscale("log")
    axes.set_ylim(0.7, top)
    axes.minorticks_off()
    _decades(axes, top)
    grid(axes)
    mark(axes.stairs(np.maximum(counts, 0.7), edges, baseline=0.7, fill=True), "bars")
    widest = _clip_of(layer.quality.groups)
    for begin, end in ((seen.low, min(widest[0], seen.high)), (max(widest[1], seen.low), seen.high)):
        if begin < end:
            mark(axes.axvspan(begin, end, ymin=0, ymax=1), "clipped")
    _clip_lines(axes, layer.quality, "clip", (low, high))
    if layer.compared is not None:
        _clip_lines(axes, layer.compared, "clip other", (low, high))
    _label(axes, "values in a bin (log)")
    axes.set_xticklabels([])
    _levels(sheet, layer.quality, (low, high))
    return sheet.svg(
        f"Histogram of {layer.values:,} values from {number(seen.low)} to {number(seen.high)}; clip range "
        f"{number(widest[0])} to {number(widest[1])}"
    )


def loss_curve(layer: ReportLayer) -> str:
    """What wider and narrower clip ranges would have cost, and the chosen one."""
    assert layer.quality is not None
    sheet = Sheet(WIDTH, 198)
    axes = sheet.axes(_LEFT, 10, _INNER, 150)
    qualities = [(layer.quality, "")] if layer.compared is None else [
        (layer.compared, " other"),
        (layer.quality, ""),
    ]  # fmt: skip
    losses = [loss for quality, _ in qualities for _, loss in quality.curve if loss > 0]
    losses += [quality.mse for quality, _ in qualities if quality.mse > 0]
    if not losses:
        losses = [1.0]
    axes.set_yscale("log")
    axes.set_ylim(min(losses) / 1.5, max(losses) * 1.5)
    axes.minorticks_off()
    _log_ticks(axes, min(losses) / 1.5, max(losses) * 1.5)
    most = max([1.25, *(min(quality.chosen_factor, 2.0) for quality, _ in qualities)])
    axes.set_xlim(0.1, most + 0.03)
    axes.set_xticks([0.25, 0.5, 0.75, 1.0, 1.25], ["¼", "½", "¾", "1", "1¼"])
    grid(axes)
    mark(axes.axvline(1.0), "zero")
    for quality, kind in qualities:
        points = [(factor, loss) for factor, loss in quality.curve if loss > 0]
        if points:
            (line,) = axes.plot(*zip(*points, strict=True))
            mark(line, "curve" + kind)
        if quality.mse > 0:
            (dot,) = axes.plot([min(quality.chosen_factor, most)], [quality.mse], "o")
            mark(dot, "chosen" + kind)
    _label(axes, "mean squared error (log)")
    axes.set_xlabel("clip range, as a share of the range of the values")
    return sheet.svg(
        f"Error by width of the clip range; chosen {layer.quality.chosen_factor:.2f} of the range, "
        f"mean squared error {number(layer.quality.mse)}"
    )


def channels(layer: ReportLayer) -> str | None:
    """The range and clip range of each group; beneath, what differs between channels as a heat map."""
    assert layer.quality is not None
    groups = layer.quality.groups
    largest = np.array(layer.channel_max_abs)
    if len(groups) == 1 and not len(largest):
        return None
    rows = _heat_rows(groups, largest)
    count = len(largest) or len(groups)
    sheet = Sheet(WIDTH, 178 + _ROW * len(rows))
    axes = sheet.axes(_LEFT, 10, _INNER, 120)
    axes.set_xlim(0, count)
    axes.set_xticks([])
    if len(groups) > 1:
        lows, highs = ([getattr(group, end) for group in groups] for end in ("min", "max"))
        edges = np.arange(len(groups) + 1) * count / len(groups)
        mark(axes.stairs(highs, edges, baseline=lows, fill=True), "bars")
    else:
        mark(axes.stairs(largest, np.arange(count + 1), baseline=-largest, fill=True), "bars")
    for quality, kind in ((layer.compared, "clip other"), (layer.quality, "clip")):
        if quality is not None:
            _clip_steps(axes, quality, count, kind)
    grid(axes)
    _label(axes, "value")
    for place, (name, values, ends) in enumerate(rows):
        top = 152 + _ROW * place
        strip = sheet.axes(_LEFT, top, _INNER, 12)
        _heat(strip, values[None, :])
        strip.set_yticks([])
        strip.set_xticks([])
        mark(strip.text(0, 1.25, name, transform=strip.transAxes), "small")
        mark(strip.text(1, 1.25, ends, transform=strip.transAxes, ha="right"), "small")
    ticks = sheet.axes(_LEFT, 142 + _ROW * len(rows), _INNER, 1)
    ticks.set_xlim(0, count)
    ticks.set_yticks([])
    ticks.set_xlabel("channel")
    _whole_ticks(ticks, count)
    return sheet.svg(f"Ranges and clip ranges of {count} channels")


def sqnr_overview(layers: Sequence[ReportLayer], width: float) -> str | None:
    """SQNR of all layers in their order, keys and values apart, with the limits of their format."""
    shown = [layer for layer in layers if layer.quality is not None and layer.quality.sqnr_db is not None]
    if len(shown) < 2:
        return None
    sheet = Sheet(width, 240)
    axes = sheet.axes(_LEFT, 12, width - _LEFT - 36, 180)
    series = _by_role(layers)
    values = [_sqnr(layer) for layer in shown] + [
        _sqnr(layer, other=True) for layer in shown if layer.compared is not None
    ]
    finite = [value for value in values if not math.isnan(value)]
    formats = {layer.quality.dst_type for layer in shown if layer.quality is not None}
    bounds = list(finite)
    if len(formats) == 1:
        limits = sqnr_limits(*formats)
        bounds += [limits.look]
    low, high = min(bounds), max(bounds)
    margin = max(1.0, 0.08 * (high - low))
    axes.set_ylim(low - margin, high + margin)
    longest = max(len(places) for places in series.values())
    axes.set_xlim(-0.6, longest - 0.4)
    grid(axes)
    if len(formats) == 1:
        for limit, kind in ((limits.look, "limit look"), (limits.bad, "limit bad")):
            if low - margin < limit < high + margin:
                mark(axes.axhline(limit), kind)
                text = axes.text(1 + 6 / width, limit, kind.removeprefix("limit "), va="center")
                text.set_transform(axes.get_yaxis_transform())
                mark(text, kind)
    for role, places in series.items():
        for other in (True, False):
            points = [(x, _sqnr(layers[place], other)) for x, place in enumerate(places)]
            if any(not math.isnan(y) for _, y in points):
                (line,) = axes.plot(*zip(*points, strict=True), *(() if other else ("o-",)))
                mark(line, f"series {role}" + (" before" if other else ""))
    _label(axes, "SQNR in dB")
    _whole_ticks(axes, longest)
    axes.set_xlabel("key and value layers, in their order" if len(series) > 1 else "layers, in their order")
    return sheet.svg(f"SQNR of {len(shown)} layers: {min(finite):.1f} to {max(finite):.1f} dB")


def channel_overview(layers: Sequence[ReportLayer]) -> dict[str, str]:
    """By role a heat map of how far channels reach beyond their layer's median channel."""
    maps = {}
    for role, places in _by_role(layers).items():
        own = [np.array(layers[place].channel_max_abs) for place in places]
        widths = [len(row) for row in own if len(row)]
        if not widths:
            continue
        width = max(set(widths), key=widths.count)
        rows = [_ratios(row) if len(row) == width else np.zeros(width) for row in own]
        height = max(4.0, min(12.0, 240 / len(rows))) * len(rows)
        sheet = Sheet(WIDTH, height + 50)
        axes = sheet.axes(_LEFT, 8, _INNER, height)
        # Up to the ratio that makes an outlier, which is then as dark as can be.
        darkness = np.log(np.maximum(np.stack(rows), 1)) / math.log(OUTLIER_RATIO)
        _heat(axes, np.clip(darkness, 0, 1), (width, len(rows)))
        _label(axes, "layer")
        axes.set_xlabel("channel")
        _whole_ticks(axes, width)
        step = max(1, math.ceil(len(rows) / 6))
        axes.set_yticks(
            [len(rows) - 0.5 - place for place in range(0, len(rows), step)],
            [str(place) for place in range(0, len(rows), step)],
        )
        maps[role] = sheet.svg(f"Largest magnitudes of {width} channels in {len(rows)} {role} layers")
    return maps


_ROW = 32.0

HeatRow = tuple[str, npt.NDArray[np.float64], str]


def _by_role(layers: Sequence[ReportLayer]) -> dict[str, list[int]]:
    series: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        series.setdefault(layer.role or "other", []).append(place)
    return series


def _sqnr(layer: ReportLayer, other: bool = False) -> float:
    quality = layer.compared if other else layer.quality
    return math.nan if quality is None or quality.sqnr_db is None else quality.sqnr_db


def _clip_of(groups: Sequence[Group]) -> tuple[float, float]:
    return min(group.clip_low for group in groups), max(group.clip_high for group in groups)


def _shown_range(layer: ReportLayer) -> tuple[float, float]:
    """All values, and clip ranges as far as they do not squeeze the values."""
    assert layer.histogram is not None
    assert layer.quality is not None
    low, high = layer.histogram.low, layer.histogram.high
    width = high - low
    for quality in (layer.quality, layer.compared):
        if quality is not None:
            clip = _clip_of(quality.groups)
            low = max(min(low, clip[0]), layer.histogram.low - width / 2)
            high = min(max(high, clip[1]), layer.histogram.high + width / 2)
    return low - width * 0.02, high + width * 0.02


def _clip_lines(axes: Axes, quality: Quality, kind: str, shown: tuple[float, float]) -> None:
    """The ends of the clip range; of several groups those of the widest and of the median one."""
    clips = [(_clip_of(quality.groups), kind)]
    if len(quality.groups) > 1 and kind == "clip":
        clips.append((_clip_of([median_group(quality)]), "clip middle"))
    for ends, name in clips:
        for value in ends:
            if shown[0] < value < shown[1]:
                mark(axes.axvline(value), name)


def _clip_steps(axes: Axes, quality: Quality, count: int, kind: str) -> None:
    edges = np.arange(len(quality.groups) + 1) * count / len(quality.groups)
    for end in ("clip_low", "clip_high"):
        mark(axes.stairs([getattr(g, end) for g in quality.groups], edges, baseline=None), kind)


def levels_of(dst_type: str, group: Group) -> npt.NDArray[np.float64]:
    """The values that can be read back, ascending."""
    grid_ = find_grid(dst_type)
    if grid_.is_float:
        magnitudes = np.array(grid_.magnitudes) * group.scale
        return np.unique(np.concatenate([-magnitudes, magnitudes]))
    return np.arange(grid_.qmin, grid_.qmax + 1, dtype=np.float64) * group.scale - group.offset * group.scale


def median_group(quality: Quality) -> Group:
    """The group whose scale is the middle one."""
    return sorted(quality.groups, key=lambda group: group.scale)[len(quality.groups) // 2]


def _levels(sheet: Sheet, quality: Quality, shown: tuple[float, float]) -> None:
    axes = sheet.axes(_LEFT, 154, _INNER, 8)
    axes.set_xlim(*shown)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("value, and beneath the bars the levels")
    levels = levels_of(quality.dst_type, median_group(quality))
    levels = levels[(levels >= shown[0]) & (levels <= shown[1])]
    pixels = (levels - shown[0]) / (shown[1] - shown[0]) * _INNER
    apart = np.flatnonzero(np.diff(pixels) >= _LEVEL_GAP)
    begins = np.concatenate([[0], apart + 1]) if len(levels) else np.array([], dtype=int)
    ends = np.concatenate([apart, [len(levels) - 1]]) if len(levels) else begins
    ticks = [levels[begin] for begin, end in zip(begins, ends, strict=True) if begin == end]
    if ticks:
        x = np.repeat(ticks, 3)
        y = np.tile([0.0, 1.0, np.nan], len(ticks))
        (lines,) = axes.plot(x, y)
        mark(lines, "levels")
    for begin, end in zip(begins, ends, strict=True):
        if begin < end:
            mark(axes.axvspan(levels[begin], levels[end]), "level-bar")


def _heat_rows(groups: Sequence[Group], largest: npt.NDArray[np.float64]) -> list[HeatRow]:
    """(name, darkness from 0 to 1, what light and dark are) of what differs between channels."""
    rows: list[HeatRow] = []
    if len(largest):
        rows.append(("largest magnitude", *_shades(largest, logarithmic=True)))
    if len(groups) > 1:
        rows.append(("scale", *_shades(np.array([g.scale for g in groups]), logarithmic=True)))
        sqnr = np.array([math.nan if g.sqnr_db is None else g.sqnr_db for g in groups])
        if not np.isnan(sqnr).all():
            darkness, ends = _shades(-sqnr)
            light, dark = (end.replace(MINUS, "") for end in ends.split(" to "))
            rows.append(("SQNR, strong is low", darkness, f"{light} to {dark} dB"))
    return rows


def _shades(
    values: npt.NDArray[np.float64], logarithmic: bool = False
) -> tuple[npt.NDArray[np.float64], str]:
    low, high = np.nanmin(values), np.nanmax(values)
    ends = f"{number(float(low))} to {number(float(high))}"
    if logarithmic:
        values = np.log(np.maximum(values, max(high * 1e-4, 1e-300)))
        low, high = np.nanmin(values), np.nanmax(values)
    if high <= low:
        return np.zeros(len(values)), ends
    return np.nan_to_num((values - low) / (high - low)), ends


def _ratios(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    middle = median(row)
    return row / middle if middle > 0 else np.zeros(len(row))


def _heat(axes: Axes, darkness: npt.NDArray[np.float64], size: tuple[int, int] | None = None) -> None:
    """Rows of values from 0 to 1, as more or less of one colour, which shows on light and on dark pages."""
    columns = darkness.shape[1]
    if columns > _MOST_COLUMNS:
        joined = math.ceil(columns / _MOST_COLUMNS)
        padded = np.pad(darkness, ((0, 0), (0, -columns % joined)))
        darkness = padded.reshape(len(darkness), -1, joined).max(axis=2)
    pixels = np.empty((*darkness.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (57, 124, 224)
    pixels[..., 3] = np.round(20 + 235 * darkness)
    width, height = size or (darkness.shape[1], darkness.shape[0])
    image = axes.imshow(pixels, aspect="auto", interpolation="none", extent=(0, width, 0, height))
    mark(image, "heat")


def _whole_ticks(axes: Axes, count: int) -> None:
    step = next(s for s in (1, 2, 5, 10, 16, 32, 64, 128, 256, 512, 1024, 4096, 10**9) if count / s <= 8)
    ticks = list(range(0, count, step))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _decades(axes: Axes, top: float) -> None:
    exponents = range(round(math.log10(top)) + 1)
    step = 1 if len(exponents) <= 5 else 2
    ticks = [10.0**exponent for exponent in exponents][::step]
    axes.set_yticks(ticks, [compact(tick) for tick in ticks])


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    """A few ticks that are plain numbers: decades, and between them where there are few of these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**e for e in range(first, last + 1) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 6)] if ticks else [low, high]
    axes.set_yticks(ticks, [number(tick, 1) if tick >= 1e-2 else _power(tick) for tick in ticks])


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def _label(axes: Axes, text: str) -> None:
    """Name the vertical axis, at one place in all charts."""
    axes.set_ylabel(text)
    axes.yaxis.set_label_coords(12 - _LEFT, 0.5, transform=_pixels(axes))


def _pixels(axes: Axes) -> Transform:
    """From the left end of the axes in pixels, and their height."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    left = axes.get_position().x0 * axes.figure.bbox.width
    return blended_transform_factory(Affine2D().translate(left, 0), axes.transAxes)
