"""Drift as text: one line against figures in a bundle's evidence, a table where single scores were compared."""

from __future__ import annotations

from rich.table import Table

from flawscope.calibration.evaluation.figures import Drift, PairedScores
from flawscope.calibration.evaluation.intervals import Interval

DRIFT_NAMES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AU-PRO",
    "aupro_05": "AU-PRO at 5%",
    "pixel_f1": "pixel F1",
    "pixel_recall": "pixel recall",
    "recall": "recall",
    "false_rejects": "false rejects",
}
"""Figure of a drift -> its title."""


def drift_line(drift: Drift) -> str:
    """Return the differences from figures whose single scores are not known, in one line."""
    named = (f"{DRIFT_NAMES[name]} {change.change:+.4f}" for name, change in drift.figures.items())
    differences = ", ".join(named) or "no figure is known on both sides"
    return f"drift from {drift.against} of {drift.when[:10]}: {differences} (plain differences; intervals: --against)"


def drift_table(drift: Drift) -> Table:
    """Return the figures of both sides and their differences, with intervals where there are some."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("drift")
    for title in ("there", "here", "change"):
        table.add_column(title, justify="right")
    table.add_column("95% interval")
    for name, change in drift.figures.items():
        numbers = f"{change.before:.4f}", f"{change.after:.4f}", f"{change.change:+.4f}"
        table.add_row(DRIFT_NAMES[name], *numbers, span_of(change.interval, "{:+.4f}"))
    return table


def paired_lines(drift: Drift, paired: PairedScores) -> tuple[str, ...]:
    """Return what was compared, how many decisions changed, and by how much scores differ, a line each."""
    lines = [f"drift from {drift.against} of {drift.when[:10]}: {paired.images} images in both"]
    if paired.changed is not None and paired.changed.value is not None:
        moves = ", ".join(f"{number} {move}" for move, number in paired.decisions.items())
        low_high = f"{paired.changed.low:.1%} to {paired.changed.high:.1%}"
        lines.append(
            f"decisions changed: {paired.changed.count} of {paired.changed.n} ({low_high})"
            + (f": {moves}" if moves else "")
        )
    if paired.largest_relative is not None and paired.median_relative is not None:
        middle = f"median {paired.median_relative:.2g} ({span_of(paired.median_interval, '{:.2g}')})"
        rank = "undefined"
        if paired.rank_correlation is not None:
            limits = span_of(paired.rank_correlation_interval, "{:.4f}")
            rank = f"{paired.rank_correlation:.4f}" + (f" ({limits})" if limits else "")
        lines.append(
            f"scores: relative difference at most {paired.largest_relative:.2g}, {middle}, rank correlation {rank}"
        )
    return tuple(lines)


def span_of(interval: Interval | None, form: str) -> str:
    """Return an interval with both ends in the format `form`; empty without one."""
    return "" if interval is None else f"{form.format(interval.low)} to {form.format(interval.high)}"
