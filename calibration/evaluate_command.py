"""`flawscope evaluate`: measure a bundle on labelled images."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from flawscope.bundle import PRECISIONS
from flawscope.calibration.evaluate import evaluate_bundle, record_accuracy
from flawscope.calibration.figures import Figures
from flawscope.calibration.intervals import Interval, Rate
from flawscope.datasets import open_dataset
from flawscope.files import write_bytes
from flawscope.terminal import command_line, progress_bars

_NAMES = (
    ("image_auroc", "image AUROC"),
    ("image_ap", "image AP"),
    ("image_f1_max", "image F1, best"),
    ("pixel_auroc", "pixel AUROC"),
    ("pixel_ap", "pixel AP"),
    ("aupro", "AU-PRO"),
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset whose test pictures are used.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
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
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap intervals.")
@click.option("--no-record", is_flag=True, help="Leave the bundle as it is: add no evidence.")
def evaluate(
    bundle: Path,
    data: Path,
    category: str | None,
    backend: str,
    graph_path: str,
    precision: str,
    json_file: Path | None,
    report: Path | None,
    seed: int,
    no_record: bool,
) -> int:
    """Measure BUNDLE on the labelled test pictures of a dataset, through the runtime.

    The figures go into the bundle's evidence, in place of older ones of the same dataset and backend. The exit status
    is 1 when a picture could not be scored; it counts as not accepted.
    """
    if report is not None:
        from flawscope.calibration.report import check_report_packages

        check_report_packages()
    with progress_bars() as progress:
        result = evaluate_bundle(
            bundle,
            open_dataset(data, category),
            backend=backend,
            graph_path=graph_path,
            precision=precision,
            command=command_line(),
            seed=seed,
            progress=progress,
        )
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(msgspec.json.encode(result.figures), indent=2) + b"\n")
    if report is not None:
        from flawscope.calibration.report import write_report

        written = write_report(result, report)
    if not no_record:
        record_accuracy(bundle, result.figures)
    _print(result.figures)
    if report is not None:
        click.echo(f"report: {written}")
    return 1 if result.figures.faults else 0


def _print(figures: Figures) -> None:
    console = Console(highlight=False, markup=False, emoji=False)  # names and reasons are text, also with brackets
    latency = figures.latency_ms
    precision = "" if figures.precision == "fp32" else f", {figures.precision.upper()}"
    speed = f", {latency.p50:.1f} ms a picture (p99 {latency.p99:.1f})" if latency else ""
    console.print(
        f"{figures.bundle.name} on {figures.dataset.category}: {figures.images} pictures, {figures.anomalous} "
        f"defective, backend {figures.backend}{precision}{speed}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval")
    for key, name in _NAMES:
        table.add_row(name, _number(getattr(figures, key)), _span(figures.intervals.get(key)))
    if figures.confusion is not None:
        table.add_row("false rejects", *_rate(figures.confusion.false_reject))
        table.add_row("missed defects", *_rate(figures.confusion.miss))
    console.print(table)
    if figures.defects:
        console.print(_defect_table(figures))
    for note in figures.notes:
        click.echo(f"note: {note}", err=True)
    for fault in figures.faults:
        click.echo(f"fault: {fault.image}: {fault.reason}", err=True)


def _defect_table(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("defect")
    for title in ("pictures", "found", "image AUROC", "pixel AUROC"):
        table.add_column(title, justify="right")
    for row in figures.defects:
        found = row.detection
        table.add_row(
            row.defect,
            str(row.images),
            "-" if found is None or found.value is None else f"{found.value:.1%}",
            _number(row.image_auroc),
            _number(row.pixel_auroc),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _rate(seen: Rate) -> tuple[str, str]:
    if seen.value is None or seen.low is None or seen.high is None:
        return "-", ""
    return f"{seen.count}/{seen.n}", f"{seen.value:.2%} ({seen.low:.2%} to {seen.high:.2%})"
