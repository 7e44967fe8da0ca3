"""Plot of the downstream benchmark: the gain in every figure, with its interval."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from flawscope.calibration.evaluation.paired_differences import FIGURES, Difference
from flawscope.calibration.extras import require


def draw_differences(differences: Mapping[str, Difference]) -> str:
    """Return differences as SVG text, a dot with its interval for each figure; the same bytes on every run."""
    matplotlib = require("matplotlib", "matplotlib", "drawing differences")
    figure_type: Any = require("matplotlib.figure", "matplotlib", "drawing differences").Figure
    # A user's own Matplotlib settings must not change the image; the backend is not used here.
    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    # A fixed salt: the ids in an SVG are random otherwise, and two runs would differ.
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "flawscope-judge", "axes.spines.top": False}
    with matplotlib.rc_context(settings | {"axes.spines.right": False, "axes.spines.left": False}):
        figure = figure_type(figsize=(7.0, 1.0 + 0.42 * len(differences)), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0.0, color="#888888", linewidth=1)
        for row, difference in enumerate(differences.values()):
            colour = "#1a7f37" if difference.is_gain else "#8a4b00"
            axis.plot([difference.interval.low, difference.interval.high], [row, row], color=colour, linewidth=2)
            axis.plot(list(difference.differences), [row + 0.22] * len(difference.differences), "|", color="#888888")
            axis.plot([difference.mean], [row], "o", color=colour)
        axis.set_yticks(range(len(differences)), [FIGURES.get(name, name) for name in differences])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(differences) - 0.5, -0.5)  # turned over: the first figure is at the top, as in the tables
        axis.set_xlabel("with synthetic images minus without; ticks are single seeds")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
