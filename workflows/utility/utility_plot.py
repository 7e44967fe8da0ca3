"""Plot of the downstream benchmark: the gain of every arm in every figure, with its interval."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from flawscope.calibration.evaluation.paired_differences import FIGURES, Difference
from flawscope.calibration.extras import require


def draw_differences(arms: Mapping[str, Mapping[str, Difference]]) -> str:
    """Return differences as SVG text, a dot with its interval for each arm and figure; the same bytes on every run.

    Args:
        arms: Name of an arm -> figure -> its difference to the arm without drawn images.
    """
    matplotlib = require("matplotlib", "matplotlib", "drawing differences")
    figure_type: Any = require("matplotlib.figure", "matplotlib", "drawing differences").Figure
    rows = [
        (f"{name}: {FIGURES.get(figure, figure)}" if len(arms) > 1 else FIGURES.get(figure, figure), difference)
        for name, differences in arms.items()
        for figure, difference in differences.items()
    ]
    # A user's own Matplotlib settings must not change the image; the backend is not used here.
    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    # A fixed salt: the ids in an SVG are random otherwise, and two runs would differ.
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "flawscope-judge", "axes.spines.top": False}
    with matplotlib.rc_context(settings | {"axes.spines.right": False, "axes.spines.left": False}):
        figure = figure_type(figsize=(7.0, 1.0 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0.0, color="#888888", linewidth=1)
        for row, (_, difference) in enumerate(rows):
            colour = "#1a7f37" if difference.is_gain else "#8a4b00"
            axis.plot([difference.interval.low, difference.interval.high], [row, row], color=colour, linewidth=2)
            axis.plot(list(difference.differences), [row + 0.22] * len(difference.differences), "|", color="#888888")
            axis.plot([difference.mean], [row], "o", color=colour)
        # Names of folders may have a $, which would begin a formula.
        axis.set_yticks(range(len(rows)), [title.replace("$", r"\$") for title, _ in rows])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)  # turned over: the first figure is at the top, as in the tables
        axis.set_xlabel("with synthetic images minus without; ticks are single seeds")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
