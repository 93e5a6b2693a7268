"""Draws results of the C++ benchmarks as PNG files.

    python bench/plot.py run.json                      # next to run.json
    python bench/plot.py new.json --old old.json --output charts

calibrate.png  ns an element of observing and searching, by granularity, algorithm and dtype
search.png     ms of a search from counts that are there
scaling.png    ms by the number of tokens, of channels and of threads

Axes are logarithmic. Black bars are the targets of issue 4; with --old, hollow diamonds and dashed lines are
the old result. A chart none of whose benchmarks are in the result is left out.

Exit status: 0, or 2 where a file is no result of a benchmark or matplotlib is not installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layout import digits
from results import Benchmark, NotAResultError, Run, Work, read_run, target_of, work_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRANULARITIES = {"per_tensor": "per tensor", "per_channel": "per channel"}
# Told apart by eyes that tell few colours apart, too (Okabe and Ito's palette).
COLOURS = {"bfloat16": "#0072B2", "float16": "#56B4E9", "float32": "#E69F00"}
SCALED = ("tokens", "channels", "threads")
_SCALING = re.compile(rf"(?P<scaled>{'|'.join(SCALED)})_(?P<algorithm>\w+)")
_STYLE: Any = {  # its keys are a type of matplotlib's own
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "figure.dpi": 150,
}

Value = Callable[[Benchmark], float | None]


@dataclass(frozen=True)
class Curve:
    """A line of the scaling chart: what is scaled (one of SCALED), and what is timed."""

    scaled: str
    label: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="JSON file of Google Benchmark")
    parser.add_argument("--old", type=Path, metavar="FILE", help="an earlier result to show beside it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: the folder of the result")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.result)
        old = None if options.old is None else read_run(options.old)
        written = draw(run, old, options.output or options.result.parent)
    except NotAResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed: scripts/venv.sh .venv python3 bench installs it",
            file=sys.stderr,
        )
        return 2
    for path in written:
        print(f"drawn: {path}")
    if not written:
        print(f"nothing drawn: {options.result} has no benchmark of calibrate, search or scaling")
    return 0


def draw(run: Run, old: Run | None, folder: Path) -> list[Path]:
    """Write the charts that the run has benchmarks for; returns their files."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for name, chart in (
            ("calibrate.png", draw_calibrate),
            ("search.png", draw_search),
            ("scaling.png", draw_scaling),
        ):
            figure = Figure(layout="constrained")
            if chart(figure, run, old):
                figure.savefig(folder / name)
                written.append(folder / name)
    return written


def draw_calibrate(figure: Figure, run: Run, old: Run | None) -> bool:
    """Observing and searching together, in ns an element."""
    figure.suptitle("Calibration: observing and searching 4 batches of 2048 x 1024 values")
    return draw_bars(figure, run, old, "calibrate", lambda one: one.ns_per_element, "ns an element")


def draw_search(figure: Figure, run: Run, old: Run | None) -> bool:
    """The search alone, in ms."""
    figure.suptitle("Search alone, from counts that are there: one tensor, or 1,024 channels")
    return draw_bars(figure, run, old, "search", lambda one: one.real_time / 1e6, "ms")


def draw_bars(figure: Figure, run: Run, old: Run | None, kind: str, value: Value, label: str) -> bool:
    """A panel a granularity, a group of bars an algorithm, a bar a dtype; whether there was any."""
    now = _values(run, kind, value)
    before = {} if old is None else _values(old, kind, value)
    granularities = [name for name in GRANULARITIES if any(work.granularity == name for work in now)]
    if not granularities:
        return False
    algorithms = list(dict.fromkeys(work.what for work in now))
    dtypes = [name for name in COLOURS if any(work.dtype == name for work in now)]
    figure.set_size_inches(2 + 1.35 * len(algorithms) * len(granularities) * max(len(dtypes), 2) / 3, 5)
    panels = figure.subplots(1, len(granularities), sharey=True, squeeze=False)[0]
    width = 0.84 / len(dtypes)
    for panel, granularity in zip(panels, granularities, strict=True):
        for position, algorithm in enumerate(algorithms):
            for shift, dtype in enumerate(dtypes):
                work = Work(kind, granularity, dtype, algorithm)
                if work in now:
                    x = position + (shift - (len(dtypes) - 1) / 2) * width
                    _draw_bar(panel, x, width, work, now[work], before.get(work))
        panel.set_title(GRANULARITIES[granularity])
        panel.set_xticks(range(len(algorithms)), algorithms)
        panel.tick_params(axis="x", length=0)
        panel.grid(visible=False, axis="x")
    shown = [*now.values(), *(before[work] for work in before.keys() & now.keys())]
    _fit_heights(panels[0], [*shown, *filter(None, map(target_of, now))])
    panels[0].set_ylabel(label)
    _draw_legend(figure, dtypes, targets=any(map(target_of, now)), old=bool(before.keys() & now.keys()))
    return True


def draw_scaling(figure: Figure, run: Run, old: Run | None) -> bool:
    """How the time grows, a panel for each of SCALED; whether there was any."""
    now = _curves(run)
    before = {} if old is None else _curves(old)
    scaled = [name for name in SCALED if any(curve.scaled == name for curve in now)]
    if not scaled:
        return False
    figure.set_size_inches(4.6 * len(scaled), 4.6)
    figure.suptitle("How the time of a calibration grows (dotted: in proportion)")
    for panel, name in zip(figure.subplots(1, len(scaled), squeeze=False)[0], scaled, strict=True):
        for index, curve in enumerate(curve for curve in now if curve.scaled == name):
            colour = f"C{index}"
            _draw_curve(panel, now[curve], marker="o", color=colour, label=curve.label)
            if curve in before:
                _draw_curve(panel, before[curve], marker="D", linestyle="--", color=colour, label="old")
            _draw_proportion(panel, now[curve], shrinking=name == "threads")
        points = [
            point for curve in now if curve.scaled == name for point in (*now[curve], *before.get(curve, ()))
        ]
        _fit_heights(panel, [y for _, y in points])
        ticks = sorted({x for x, _ in points})
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30 if ticks[-1] > 99_999 else 0)
        panel.minorticks_off()
        panel.set_xlabel(name)
        panel.set_ylabel("ms")
        panel.legend(fontsize=8)
    return True


def _values(run: Run, kind: str, value: Value) -> dict[Work, float]:
    """What the benchmarks of a kind show."""
    found = {}
    for benchmark in run.benchmarks.values():
        work, shown = work_of(benchmark.name), value(benchmark)
        if work is not None and work.kind == kind and shown is not None:
            found[work] = shown
    return found


def _curves(run: Run) -> dict[Curve, list[tuple[int, float]]]:
    """Sizes and ms of the benchmarks whose names end in a size, as `tokens_ifmr/per_tensor/bfloat16/256`."""
    curves: dict[Curve, list[tuple[int, float]]] = {}
    for benchmark in run.benchmarks.values():
        work = work_of(benchmark.name)
        match = _SCALING.fullmatch(work.kind) if work else None
        if work and match and work.what.isdecimal():
            label = f"{match['algorithm']} {GRANULARITIES[work.granularity]}, {work.dtype}"
            curves.setdefault(Curve(match["scaled"], label), []).append(
                (int(work.what), benchmark.real_time / 1e6)
            )
    return {curve: sorted(points) for curve, points in curves.items()}


def _draw_bar(panel: Axes, x: float, width: float, work: Work, value: float, before: float | None) -> None:
    """One bar with its number, its target, and what it was."""
    target = target_of(work)
    panel.bar(x, value, width * 0.92, color=COLOURS[work.dtype])
    if target is not None:
        panel.hlines(target, x - width / 2, x + width / 2, color="black", linewidth=2)
    if before is not None:
        panel.plot(x, before, marker="D", markersize=5, markerfacecolor="white", color="black")
    # The number stands on the bar, or on what would else cross it out.
    top = value
    for mark in sorted(mark for mark in (before, target) if mark is not None):
        top = mark if value < mark < 1.5 * top else top
    panel.annotate(
        digits(value, 2), (x, top), (0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=7
    )


def _draw_curve(panel: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    panel.plot(*zip(*points, strict=True), markersize=5, markerfacecolor="white", **style)


def _draw_proportion(panel: Axes, points: Sequence[tuple[int, float]], shrinking: bool) -> None:
    """From the largest size down, or from one thread up."""
    x, y = points[0] if shrinking else points[-1]
    line = [y * (x / size if shrinking else size / x) for size, _ in points]
    panel.plot([size for size, _ in points], line, linestyle=":", color="#888888", zorder=1)


def _fit_heights(panel: Axes, heights: Sequence[float]) -> None:
    """A logarithmic axis that shows all of the heights, with ticks that are plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    lowest, highest = min(heights), max(heights)
    panel.set_yscale("log")
    panel.set_ylim(lowest / 1.6, highest * 1.6)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 1000 * lowest else (1,)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _draw_legend(figure: Figure, dtypes: Sequence[str], targets: bool, old: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Line2D | Patch] = [Patch(color=COLOURS[dtype], label=dtype) for dtype in dtypes]
    if targets:
        entries.append(Line2D([], [], color="black", linewidth=2, label="target"))
    if old:
        entries.append(
            Line2D([], [], linestyle="", marker="D", markerfacecolor="white", color="black", label="old")
        )
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries))


if __name__ == "__main__":
    sys.exit(main())
