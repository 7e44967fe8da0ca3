"""Plots of the report: SVG text that takes its colours from the page and is the same on every run."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flawscope.arrays import BoolArray, Float64Array
from flawscope.calibration.extras import require
from flawscope.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins: each is replaced by a colour variable of the page, so that light and dark need one drawing only.
_INK, _MUTED, _GRID, _GOOD, _BAD, _MARK = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _GOOD: "var(--good)",
    _BAD: "var(--bad)",
    _MARK: "var(--mark)",
}
_BINS = 48  # bars between the lowest and the highest score
_STYLE = {
    "svg.fonttype": "none",  # text stays text: the page's font, and it can be searched
    "text.parse_math": False,  # a defect type may have a dollar sign in its name
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def _draw(name: str, title: str, rows: int, size: tuple[float, float], paint: Callable[[Sequence[Axes]], None]) -> str:
    """Return an SVG element: `rows` axes above each other with one x axis, filled by `paint`."""
    matplotlib = require("matplotlib", "matplotlib", "drawing the report")
    figure_type: Any = require("matplotlib.figure", "matplotlib", "drawing the report").Figure
    # A user's own Matplotlib settings must not change the report; the backend is not used here.
    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    # The salt makes element ids the same on every run; Matplotlib would take a random one.
    settings |= {**_STYLE, "svg.hashsalt": f"flawscope-{name}"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser draws the text: whether Matplotlib's own font has every letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Figure itself, not pyplot: that would choose a backend, perhaps one with windows, and keep every figure.
        figure = figure_type(figsize=size, layout="constrained")
        paint(list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]))
        buffer = io.StringIO()
        # Without date and version, which would differ from run to run.
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, title)


def _inline(text: str, name: str, title: str) -> str:
    """Turn an SVG file into an element of a page: page fonts and colours, own ids, scaled by the page."""
    text = text[text.index("<svg") :]
    # A style sheet inside an inline SVG would apply to the whole page.
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"(font-family: |(?<=px) )'[^;\"]*", lambda m: "font-family: inherit" if m[1][0] == "f" else " inherit", text
    )
    # Width and height in points go, so that the page scales the plot.
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1, flags=re.DOTALL)
    # Several plots share one page, and Matplotlib gives all of them ids such as axes_1: each gets its plot's name.
    for reference in (' id="', '"#', "url(#"):
        text = text.replace(reference, f"{reference}{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{title}" ', 1)


def score_histogram(scores: Float64Array, kinds: Sequence[str], good: str, threshold: float | None) -> str:
    """Return one row of bars for the normal images and one for each defect type, over one score axis.

    Args:
        scores: float64 [N], scored images only.
        kinds: The type of each image.
        good: Which of the types is the normal one.
        threshold: Drawn as a line through all rows, where there is one.
    """
    types = np.array(kinds)
    names = [name for name in [good, *sorted(set(kinds) - {good})] if (types == name).any()]
    edges = _edges(scores, threshold)

    def paint(axes: Sequence[Axes]) -> None:
        for axis, name in zip(axes, names, strict=True):
            values = scores[types == name]
            axis.hist(values, bins=list(edges), color=_GOOD if name == good else _BAD, rwidth=0.88)
            axis.set_ylabel(f"{printable(name)}\n{values.size}", rotation=0, ha="right", va="center", labelpad=8)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="x", length=0)
            if threshold is not None:
                axis.axvline(threshold, color=_MARK, linewidth=1.4)
        if threshold is not None:
            axes[0].annotate(
                "threshold: rejected to the right",
                (threshold, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(6, -2),
                textcoords="offset points",
                va="top",
                color=_MARK,
            )
        axes[-1].set_xlabel("anomaly score")
        axes[0].set_xlim(edges[0], edges[-1])

    return _draw("scores", "Scores by type of image", len(names), (8.6, 0.9 + 0.75 * len(names)), paint)


def _edges(scores: Float64Array, threshold: float | None) -> Float64Array:
    """Return bin edges of equal width; the threshold lies on one of them, so that no bar is on both sides of it."""
    ends = [float(scores.min()), float(scores.max()), *([threshold] if threshold is not None else [])]
    low, high = min(ends), max(ends)
    width = (high - low) / _BINS or 1.0
    # A bar holds its left edge and not its right one, and a score at the threshold is accepted: one float further.
    origin = low if threshold is None else float(np.nextafter(threshold, np.inf))
    first, last = np.floor((low - origin) / width) - 1, np.ceil((high - origin) / width) + 1
    return np.asarray(origin + np.arange(first, last + 1) * width)


def roc_curve(scores: Float64Array, labels: BoolArray, threshold: float | None) -> str:
    """Return the ROC curve, with the axes in terms of the line: good parts rejected, defective parts found."""
    metrics = require("sklearn.metrics", "scikit-learn", "drawing the report")
    false_rejects, detected, _ = metrics.roc_curve(labels, scores)

    def paint(axes: Sequence[Axes]) -> None:
        axis = axes[0]
        axis.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        axis.plot(false_rejects, detected, color=_GOOD, linewidth=2)
        if threshold is not None:
            point = (float((scores[~labels] > threshold).mean()), float((scores[labels] > threshold).mean()))
            _mark_point(axis, point, is_left=point[0] > 0.6)
        _unit_square(axis, "share of good parts rejected", "share of defective parts found")

    return _draw("roc", "ROC curve", 1, (4.2, 3.9), paint)


def precision_recall_curve(scores: Float64Array, labels: BoolArray, threshold: float | None) -> str:
    """Return the precision-recall curve: of the rejected parts, how many are anomalous."""
    metrics = require("sklearn.metrics", "scikit-learn", "drawing the report")
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)

    def paint(axes: Sequence[Axes]) -> None:
        axis = axes[0]
        # Steps, not lines: precision between two thresholds is not linear in recall, and AP is the area of the steps.
        axis.step(recall, precision, where="pre", color=_GOOD, linewidth=2)
        called = scores > threshold if threshold is not None else np.zeros(len(scores), np.bool_)
        if called.any():
            point = (float(called[labels].mean()), float(labels[called].mean()))
            _mark_point(axis, point, is_left=point[0] > 0.35)
        _unit_square(axis, "share of defective parts found", "share of rejects that are anomalous")

    return _draw("pr", "Precision-recall curve", 1, (4.2, 3.9), paint)


def _mark_point(axis: Axes, point: tuple[float, float], *, is_left: bool) -> None:
    axis.plot(*point, "o", color=_MARK, markersize=8, clip_on=False, zorder=5)
    axis.annotate(
        "at the threshold",
        point,
        xytext=(-9 if is_left else 9, -9),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="top",
        color=_MARK,
    )


def _unit_square(axis: Axes, x: str, y: str) -> None:
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.02)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(True)
