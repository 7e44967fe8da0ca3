"""Figures of an evaluation as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.table import Table

from flawscope.calibration.evaluation.drift_text import drift_line, drift_table, paired_lines
from flawscope.calibration.evaluation.figures import Drift, Fault, Figures, LeakFigures, ProductFigures, ZoneFigures
from flawscope.calibration.evaluation.rounding import figure, limits, number, percent, share, span
from flawscope.calibration.evaluation.verdict import verdict_of
from flawscope.rich_console import PlainConsole
from flawscope.terminal import echo
from flawscope.text import printable

_NAMES = (
    ("image_auroc", "image AUROC"),
    ("image_ap", "image AP"),
    ("image_f1_max", "image F1, best"),
    ("pixel_auroc", "pixel AUROC"),
    ("pixel_ap", "pixel AP"),
    ("aupro", "AU-PRO"),
    ("aupro_05", "AU-PRO, 5%"),
    ("pixel_f1", "pixel F1"),
    ("pixel_recall", "pixel recall"),
)


def all_faults(figures: Figures) -> tuple[Fault, ...]:
    """Return every image that could not be decided, also those that a support set leaves out of the figures."""
    return figures.faults if figures.support is None else figures.support.with_leak.faults


def headline(figures: Figures) -> str:
    """Return what was measured on which images, in one line."""
    latency = figures.latency_ms
    precision = "" if figures.precision == "fp32" else f", {figures.precision.upper()}"
    speed = f", {number(latency.p50)} ms an image (p99 {number(latency.p99)})" if latency else ""
    return (
        f"{figures.bundle.name} on {figures.dataset.category}: {figures.images} images, {figures.anomalous} "
        f"anomalous, backend {figures.backend}{precision}{speed}"
    )


def verdict_lines(figures: Figures) -> tuple[str, str]:
    """Return what an evaluation comes to and what to do next, a line each."""
    verdict = verdict_of(figures)
    return f"verdict: {verdict.title}. {verdict.text}", f"next step: {verdict.step}"


def print_figures(figures: Figures) -> None:
    """Print figures and verdict to stdout; diagnosis, notes and faults to stderr."""
    console = PlainConsole()  # names and reasons are text, also with brackets
    console.print(headline(figures), soft_wrap=True)
    if (table := _figure_table(figures)).row_count:
        console.print(table)
    if figures.defects:
        console.print(_defect_table(figures))
    if figures.recall_by_size:
        console.print(_size_table(figures))
    if figures.zones is not msgspec.UNSET:
        console.print(_zone_table(figures.zones))
    if figures.products is not msgspec.UNSET:
        console.print(_product_table(figures.products))
    for drift in figures.drift:
        _print_drift(console, drift)
    for line in verdict_lines(figures):
        console.print(line, soft_wrap=True)
    for text in figures.diagnosis:
        echo(f"diagnosis: {text}", err=True)
    for note in figures.notes:
        echo(f"note: {note}", err=True)
    for fault in all_faults(figures):
        echo(f"fault: {fault.image}: {fault.reason}", err=True)


def _print_drift(console: PlainConsole, drift: Drift) -> None:
    if drift.paired is None:
        console.print(drift_line(drift), soft_wrap=True)
        return
    first, *rest = paired_lines(drift, drift.paired)
    console.print(first, soft_wrap=True)
    if drift.figures:
        console.print(drift_table(drift))
    for line in rest:
        console.print(line, soft_wrap=True)


def _figure_table(figures: Figures) -> Table:
    """Return the figures with their intervals, beside those with leak where images of a support set were left out."""
    support, confusion = figures.support, figures.confusion
    leak = support.with_leak if support is not None and support.left_out else None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure")
    for title in ("value", "with leak")[: 2 if leak else 1]:
        table.add_column(title, justify="right")
        table.add_column("95% interval")
    for key, name in _NAMES:
        columns = [column for column in (figures, leak) if column]
        # What is undefined has no row; the notes say why.
        if any(getattr(column, key) is not None for column in columns):
            table.add_row(name, *(cell for column in columns for cell in _cells(column, key)))
    if confusion is not None:
        for name, rate, rate_with_leak in (
            ("false rejects", confusion.false_reject, leak.false_reject if leak else None),
            ("missed defects", confusion.miss, leak.miss if leak else None),
        ):
            # With leak the share itself is not printed, so that the table fits into 80 columns.
            if not (rate.n or (rate_with_leak is not None and rate_with_leak.n)):
                continue
            both = (share(rate), f"{percent(rate.value)} ({limits(rate)})" if rate.n else "")
            leaked = () if rate_with_leak is None else (share(rate_with_leak), limits(rate_with_leak))
            table.add_row(name, *both, *leaked)
    return table


def _cells(figures: Figures | LeakFigures, key: str) -> tuple[str, str]:
    return figure(getattr(figures, key)), span(figures.intervals.get(key))


def _defect_table(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("defect")
    has_pixels = any(row.pixel_auroc is not None for row in figures.defects)
    for title in ("images", "found", "image AUROC", *(["pixel AUROC"] if has_pixels else [])):
        table.add_column(title, justify="right")
    for row in figures.defects:
        detection = row.detection
        table.add_row(
            printable(row.defect),
            str(row.images),
            percent(None if detection is None else detection.value),
            figure(row.image_auroc),
            *([figure(row.pixel_auroc)] if has_pixels else []),
        )
    return table


def _size_table(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("defect size, px of the input", "images", "found"):
        table.add_column(title, justify="right")
    table.add_column("95% interval")
    for row in figures.recall_by_size:
        sizes = f"{row.smallest_px:.1f} to {row.largest_px:.1f}"
        table.add_row(sizes, str(row.detection.n), percent(row.detection.value), limits(row.detection))
    return table


def _zone_table(zones: Sequence[ZoneFigures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("zone")
    for title in ("threshold", "normal rejected", "defective rejected"):
        table.add_column(title, justify="right")
    for row in zones:
        table.add_row(printable(row.zone), number(row.image_threshold), share(row.false_reject), share(row.detection))
    return table


def _product_table(products: Sequence[ProductFigures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("product")
    for title in ("threshold", "bound", "false rejects", "missed defects"):
        table.add_column(title, justify="right")
    for row in products:
        threshold, rates = row.confusion.image_threshold, (row.confusion.false_reject, row.confusion.miss)
        table.add_row(
            printable(row.product),
            number(threshold.value),
            percent(threshold.upper_bound),
            *(share(rate) for rate in rates),
        )
    return table
