"""Two bundles compared, as text for the terminal."""

from __future__ import annotations

from rich.table import Table

from flawscope.calibration.evaluation.comparison import NAMES, Comparison, comparison_verdict
from flawscope.calibration.evaluation.drift_text import span_of
from flawscope.calibration.evaluation.evaluation_text import headline
from flawscope.calibration.evaluation.rounding import figure, limits
from flawscope.rich_console import PlainConsole
from flawscope.terminal import echo


def print_comparison(comparison: Comparison) -> None:
    """Print differences and verdict to stdout; diagnosis and notes of both to stderr."""
    console = PlainConsole()  # names are text, also with brackets
    for letter, side in (("A", comparison.first), ("B", comparison.second)):
        console.print(f"{letter}: {headline(side)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure")
    for title in ("A", "B", "B minus A"):
        table.add_column(title, justify="right")
    table.add_column("95% interval")
    for name, change in comparison.figures.items():
        table.add_row(
            NAMES[name],
            figure(change.before),
            figure(change.after),
            f"{change.change:+.3f}",
            span_of(change.interval, "{:+.3f}"),
        )
    console.print(table)
    if comparison.changed is not None:
        moves = ", ".join(f"{count} {move}" for move, count in comparison.decisions.items())
        rate = comparison.changed
        console.print(
            f"other decisions: {rate.count} of {rate.n} ({limits(rate)})" + (f": {moves}" if moves else ""),
            soft_wrap=True,
        )
    verdict = comparison_verdict(comparison)
    console.print(f"verdict: {verdict.title}. {verdict.text}", soft_wrap=True)
    console.print(f"next step: {verdict.step}", soft_wrap=True)
    for note in comparison.notes:
        echo(f"note: {note}", err=True)
    for letter, side in (("A", comparison.first), ("B", comparison.second)):
        for text in side.diagnosis:
            echo(f"diagnosis of {letter}: {text}", err=True)
        for note in side.notes:
            echo(f"note on {letter}: {note}", err=True)
        for fault in side.faults:
            echo(f"fault of {letter}: {fault.image}: {fault.reason}", err=True)
