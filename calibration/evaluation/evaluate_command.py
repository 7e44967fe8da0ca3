"""`flawscope evaluate`: measure a bundle on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.table import Table

from flawscope.bundle import PRECISIONS
from flawscope.bundle.threshold_overlay_options import threshold_overlay_options
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.calibration.evaluation.drift_text import drift_line, drift_table, paired_lines
from flawscope.calibration.evaluation.evaluate import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.evaluation_outputs import check_report, why_not_recorded
from flawscope.calibration.evaluation.figures import Drift, Fault, Figures, LeakFigures, ProductFigures, ZoneFigures
from flawscope.calibration.evaluation.intervals import Rate
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.files import check_new_file, write_bytes
from flawscope.output_options import OVERWRITE
from flawscope.rich_console import PlainConsole
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import encode_json, printable

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


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset whose test images are used.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
@click.option("--product", metavar="NAME", help="Product whose own thresholds hold.  [default: the common ones]")
@click.option("--by-product", is_flag=True, help="With --category all: judge each category by its own thresholds.")
@click.option(
    "--support",
    "support_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Support set: its images, and those that probably show the same parts, are left out.",
)
@click.option("--backend", default="auto", show_default=True, help="Backend to measure.")
@click.option(
    "--path",
    "graph_path",
    type=click.Choice(["auto", "graph", "kernel"]),
    default="auto",
    show_default=True,
    help="The whole graph, or features and native kernel.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures as JSON.")
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/report.html.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with what --json wrote elsewhere: on another machine, or with another backend or precision.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap intervals.")
@click.option("--no-record", is_flag=True, help="Leave the bundle as it is: add no evidence.")
@OVERWRITE
@threshold_overlay_options
@trusted_keys_option
def evaluate(
    bundle: Path,
    data: Path,
    category: str | None,
    product: str | None,
    by_product: bool,
    support_folder: Path | None,
    backend: str,
    graph_path: str,
    precision: str,
    json_file: Path | None,
    report: Path | None,
    against: Path | None,
    seed: int,
    no_record: bool,
    overwrite: bool,
    threshold_overlay: Path | None,
    no_overlay: bool,
) -> int:
    """Measure BUNDLE on the labelled test images of a dataset, through the runtime.

    The figures go into the bundle's evidence, in place of older ones of the same dataset and backend. The exit status
    is 1 when an image could not be scored; it counts as not accepted. Where a threshold overlay changes the thresholds,
    figures are at those, and are not put into the bundle.

    A bundle that has learned from defects drawn after a support set needs --support: its images and their near
    duplicates are then left out, and the figures on all test images are reported beside, as "with leak".

    Drift: the differences from figures in the evidence with another backend or precision are printed, and with
    --against those from another machine, image by image, with intervals.
    """
    check_new_file(json_file, overwrite=overwrite, kind="json")
    support = None
    if support_folder is not None:
        from flawscope.datasets.defects.support_set import read_support

        support = read_support(support_folder)
    if report is not None:
        report_file = check_report(report, overwrite=overwrite)
        if json_file is not None and json_file.absolute() == report_file.absolute():
            raise ArgumentError(f"--json {json_file}: expected another file than the report. Choose another name.")
    if not no_record and (why := why_not_recorded(bundle, threshold_overlay)) is not None:
        echo(f"note: {why}", err=True)
        no_record = True
    with progress_bars() as progress:
        result = evaluate_bundle(
            bundle,
            open_dataset(data, category),
            backend=backend,
            graph_path=graph_path,
            precision=precision,
            support=support,
            threshold_overlay=threshold_overlay,
            use_overlay=not no_overlay,
            product=product,
            by_product=by_product,
            against=against,
            command=command_line(),
            seed=seed,
            progress=progress,
        )
    # Printed first: a file that cannot be written must not throw away what took minutes to measure.
    _print(result.figures)
    # The bundle last: an output folder that cannot be written leaves it unchanged.
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(encode_json(result.figures), indent=2) + b"\n")
    if report is not None:
        from flawscope.calibration.evaluation.report import write_report

        echo(f"report: {write_report(result, report)}")
    if not no_record:
        record_accuracy(bundle, result)
    return 1 if _faults(result.figures) else 0


def _faults(figures: Figures) -> tuple[Fault, ...]:
    """Return every image that could not be decided, also those that a support set leaves out of the figures."""
    return figures.faults if figures.support is None else figures.support.with_leak.faults


def _print(figures: Figures) -> None:
    console = PlainConsole()  # names and reasons are text, also with brackets
    latency = figures.latency_ms
    precision = "" if figures.precision == "fp32" else f", {figures.precision.upper()}"
    speed = f", {latency.p50:.1f} ms an image (p99 {latency.p99:.1f})" if latency else ""
    console.print(
        f"{figures.bundle.name} on {figures.dataset.category}: {figures.images} images, {figures.anomalous} "
        f"anomalous, backend {figures.backend}{precision}{speed}",
        soft_wrap=True,
    )
    console.print(_figure_table(figures))
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
    for text in figures.diagnosis:
        echo(f"diagnosis: {text}", err=True)
    for note in figures.notes:
        echo(f"note: {note}", err=True)
    for fault in _faults(figures):
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
        table.add_row(name, *(cell for column in (figures, leak) if column for cell in _cells(column, key)))
    if confusion is not None:
        for name, rate, rate_with_leak in (
            ("false rejects", confusion.false_reject, leak.false_reject if leak else None),
            ("missed defects", confusion.miss, leak.miss if leak else None),
        ):
            # With leak the share itself is not printed, so that the table fits into 80 columns.
            cells = *_rate(rate, "{:.2%} ({:.2%} to {:.2%})"), *_rate(rate_with_leak, "{1:.2%} to {2:.2%}")
            table.add_row(name, *cells)
    return table


def _cells(figures: Figures | LeakFigures, key: str) -> tuple[str, str]:
    interval = figures.intervals.get(key)
    return _number(getattr(figures, key)), "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _defect_table(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("defect")
    for title in ("images", "found", "image AUROC", "pixel AUROC"):
        table.add_column(title, justify="right")
    for row in figures.defects:
        detection = row.detection
        table.add_row(
            printable(row.defect),
            str(row.images),
            "-" if detection is None or detection.value is None else f"{detection.value:.1%}",
            _number(row.image_auroc),
            _number(row.pixel_auroc),
        )
    return table


def _size_table(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("defect size, px of the input", "images", "found"):
        table.add_column(title, justify="right")
    table.add_column("95% interval")
    for row in figures.recall_by_size:
        found, interval = _rate(row.detection, "{1:.1%} to {2:.1%}")
        sizes = f"{row.smallest_px:.1f} to {row.largest_px:.1f}"
        table.add_row(sizes, str(row.detection.n), found, interval)
    return table


def _zone_table(zones: Sequence[ZoneFigures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("zone")
    for title in ("threshold", "normal rejected", "defective rejected"):
        table.add_column(title, justify="right")
    for row in zones:
        counts = (f"{rate.count}/{rate.n}" for rate in (row.false_reject, row.detection))
        table.add_row(printable(row.zone), f"{row.image_threshold:.6g}", *counts)
    return table


def _product_table(products: Sequence[ProductFigures]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("product")
    for title in ("threshold", "bound", "false rejects", "missed defects"):
        table.add_column(title, justify="right")
    for row in products:
        threshold, rates = row.confusion.image_threshold, (row.confusion.false_reject, row.confusion.miss)
        bound = "-" if threshold.upper_bound is None else f"{threshold.upper_bound:.2%}"
        table.add_row(
            printable(row.product), f"{threshold.value:.6g}", bound, *(f"{rate.count}/{rate.n}" for rate in rates)
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(rate: Rate | None, form: str) -> tuple[str, ...]:
    """Return the cells of a rate, with value and interval in the format `form`; none where there is no such column."""
    if rate is None:
        return ()
    if rate.value is None:
        return "-", ""
    return f"{rate.count}/{rate.n}", form.format(rate.value, rate.low, rate.high)
