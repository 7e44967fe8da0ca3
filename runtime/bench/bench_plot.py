"""Plots of `bench` as SVG files; the same figures give the same bytes."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import write_text
from flawscope.runtime.bench.rounds import STAGES, configuration_name
from flawscope.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1c2126", "#5b6670", "#dde2e6"
# Neighbours differ in lightness, too, for grey print and colour-blind readers.
_SERIES = ("#2f6690", "#d08c2f", "#5a9367", "#9b5a8c", "#7a8790", "#b5543f")
_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller files, and numbers that can be searched
    "svg.hashsalt": "flawscope-bench",  # without a salt the identifiers are random
    "text.parse_math": False,  # a name with two $ would be read as a formula
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def check_plot(path: Path) -> None:
    """Check before measuring that the plot can be drawn afterwards.

    Raises:
        ArgumentError: If the name does not end in `.svg`.
        MissingExtra: If Matplotlib is not installed.
    """
    if path.suffix.lower() != ".svg":
        raise ArgumentError(f"plot: expected a file name that ends in .svg, got {path}.")
    _matplotlib()


def write_plot(path: Path, figures: Mapping[str, Any]) -> None:
    """Draw the figures of `sweep`, `compare` or `soak` to an SVG file.

    Raises:
        ArgumentError: If the name does not end in `.svg`.
        MissingExtra: If Matplotlib is not installed.
        StorageError: If the system refuses to write.
    """
    check_plot(path)
    matplotlib = _matplotlib()
    # A user's own matplotlibrc must not change the plot. `backend` is left out: setting it would import one, and a
    # figure that is saved needs none.
    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**settings, **_STYLE}):
        figure = draw(figures)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )  # not repeatable
    write_text(path, buffer.getvalue())


def draw(figures: Mapping[str, Any]) -> Figure:
    """Return the plot of the figures of `sweep`, `compare` or `soak`."""
    if "series" in figures:
        return _draw_soak(figures)
    if "compare" in figures:
        rows = [(configuration_name(row), row["latency_ms"]) for row in figures["compare"]]
        # Numbered, because the same configuration may be there twice.
        rows = [(f"{number}. {name}", latency) for number, (name, latency) in enumerate(rows, start=1)]
        figure, axes = _figure([_height(len(rows))])
        _stages(axes[0], rows)
        _title(figure, f"{figures['bundle']}, batch {figures['batch']}, in alternation")
        return figure
    rows = [(f"batch {row['batch']}", row["latency_ms"]) for row in figures["sweep"]]
    figure, axes = _figure([_height(len(rows)), *([2.4] if len(rows) > 1 else [])])
    _stages(axes[0], rows)
    batch = "" if len(rows) > 1 else f", batch {figures['batch']}"
    _title(figure, f"{figures['bundle']} on {configuration_name(figures)}{batch}")
    if len(rows) > 1:
        _throughput(axes[1], figures["sweep"])
    return figure


def _stages(axis: Axes, rows: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]]) -> None:
    """Draw a group of bars per stage: the bar ends at p50, the whisker at p99."""
    thickness = 0.8 / len(rows)
    longest = max(latency[stage]["p99"] for _, latency in rows for stage in STAGES)
    for number, (name, latency) in enumerate(rows):
        colour = _SERIES[number % len(_SERIES)]
        heights = [stage - 0.4 + thickness * (number + 0.5) for stage in range(len(STAGES))]  # a group takes 0.8
        medians = [latency[stage]["p50"] for stage in STAGES]
        tails = [latency[stage]["p99"] for stage in STAGES]
        axis.barh(heights, medians, height=0.82 * thickness, color=colour, label=name)
        axis.hlines(heights, medians, tails, color=colour, linewidth=1.2)
        axis.plot(tails, heights, "|", color=colour, markersize=7, markeredgewidth=1.4)
        for height, median, tail in zip(heights, medians, tails, strict=True):
            axis.annotate(
                f"{_short(median)} / {_short(tail)}",
                (tail, height),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=_MUTED,
                fontsize=8.5,
            )
    axis.set_yticks(range(len(STAGES)), STAGES)
    axis.invert_yaxis()  # first stage on top
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.22 * longest)  # room for the numbers behind the longest bar
    axis.set_xlabel("milliseconds for one batch")
    axis.set_title("Latency per stage: p50 (bar) / p99 (mark)")
    axis.grid(True, axis="x")
    if len(rows) > 1:
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _throughput(axis: Axes, sweep: Sequence[Mapping[str, Any]]) -> None:
    batches = [row["batch"] for row in sweep]
    rates = [row["images_per_second"] for row in sweep]
    axis.plot(batches, rates, "o-", color=_SERIES[0], linewidth=1.8, markersize=5)
    for batch, rate in zip(batches, rates, strict=True):
        axis.annotate(
            _short(rate), (batch, rate), xytext=(0, 7), textcoords="offset points", ha="center", color=_MUTED,
            fontsize=8.5,
        )  # fmt: skip
    axis.set_xticks(batches)
    axis.set_ylim(0, 1.22 * max(rates))
    axis.set_xlabel("images per batch")
    axis.set_title("Images per second")
    axis.grid(True, axis="y")


def _draw_soak(figures: Mapping[str, Any]) -> Figure:
    """Draw memory and latency over the scorings; the warm-up, which no slope is fitted to, is shaded."""
    series = figures["series"]
    thousands = [count / 1e3 for count in series["scorings"]]
    panels = [("latency", "Median latency of a round, ms", series["latency_ms"], _SERIES[1])]
    if series["resident_kib"] is not None:
        resident = [kib / 1024 for kib in series["resident_kib"]]
        panels.insert(0, ("memory", "Resident memory, MiB", resident, _SERIES[0]))
    figure, axes = _figure([2.3] * len(panels), share_x=True)
    for axis, (name, title, values, colour) in zip(axes, panels, strict=True):
        axis.plot(thousands, values, color=colour, linewidth=1.3)
        axis.axvspan(0, figures["warm_up_share"] * thousands[-1], color=_GRID, alpha=0.6, linewidth=0)
        # Matplotlib would stretch noise over the whole height: the axis spans at least 5 % of the values.
        low, high = min(values), max(values)
        room = max(0.1 * (high - low), 0.025 * high)
        axis.set_ylim(max(0.0, low - room), high + room)
        axis.ticklabel_format(axis="y", useOffset=False)  # "+1.234e2" beside an axis is not readable
        axis.set_title(f"{title} · slope {figures[name]['verdict']}")
        axis.grid(True, axis="y")
    axes[-1].set_xlim(0, thousands[-1])
    axes[-1].set_xlabel("thousand scorings; shaded: warm-up, left out of the slopes")
    _title(figure, f"{figures['bundle']} on {configuration_name(figures)}, batch {figures['batch']}")
    return figure


def _figure(heights: Sequence[float], *, share_x: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with axes of the given heights, in inches, above each other."""
    # Not pyplot: it keeps every figure in a global list, and may open a window system.
    figure_type: Any = importlib.import_module("matplotlib.figure").Figure
    figure = figure_type(figsize=(7.6, 0.6 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=share_x, gridspec_kw={"height_ratios": heights})
    return figure, list(axes[:, 0])


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(printable(text), x=0.01, ha="left", fontsize=12, fontweight="bold")


def _height(series: int) -> float:
    return 1.1 + len(STAGES) * max(0.38, 0.2 * series)


def _short(value: float) -> str:
    """Return a number with about three significant digits: 0.042, 1.53, 27.4, 312."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _matplotlib() -> Any:
    try:
        module: Callable[[str], Any] = importlib.import_module
        return module("matplotlib")
    except ImportError as err:
        raise MissingExtra("drawing a plot", "matplotlib", "calibrate") from err
