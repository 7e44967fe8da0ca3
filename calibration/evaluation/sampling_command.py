"""`flawscope sampling`: compare few-step samplings of a bundle, or write the bundle with another one."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from flawscope.bundle import open_bundle
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.calibration.evaluation.few_steps import (
    SamplingFigures,
    compare_samplings,
    reconstruction_head,
    resample_bundle,
)
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.output_options import OVERWRITE
from flawscope.rich_console import PlainConsole
from flawscope.terminal import command_line, echo, progress_bars


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", metavar="N[,N...]", help="Network calls an image; several are compared.")
@click.option("--start", metavar="N[,N...]", help="Noise level of the start; several are compared.")
@click.option(
    "--spacing",
    type=click.Choice(["leading", "trailing", "linspace"]),
    help="Where the calls lie; trailing begins at the start, which few steps need.",
)
@click.option("--weight", type=float, help="Strength of the conditioning.")
@click.option("--eta", type=float, help="0 is DDIM, 1 is DDPM.")
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images to measure on.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
@click.option("--backend", default="auto", show_default=True, help="Backend that is measured.")
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder to write, for a single sampling.")
@OVERWRITE
@trusted_keys_option
def sampling(
    bundle: Path,
    steps: str | None,
    start: str | None,
    spacing: str | None,
    weight: float | None,
    eta: float | None,
    data: Path | None,
    category: str | None,
    backend: str,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Compare samplings of BUNDLE (ddad, dsad) on labelled images, or write it with another one.

    Fewer steps are faster; what they cost in accuracy is measured here, on the bundle itself. A bundle that is written
    has no thresholds, because its scores differ: calibrate it.
    """
    # Neither option alone is required, so Click cannot check it.
    if data is None and out is None:
        raise click.UsageError("Expected --data to compare samplings, or --out to write a bundle, got neither.")
    with open_bundle(bundle) as opened:
        bundle_sampling = reconstruction_head(opened.manifest).sampling
    options = {"spacing": spacing, "weight": weight, "eta": eta}
    fixed = {name: value for name, value in options.items() if value is not None}
    samplings = [
        msgspec.structs.replace(bundle_sampling, **fixed, steps=count, start=level)
        for level in _numbers("--start", start, bundle_sampling.start)
        for count in _numbers("--steps", steps, bundle_sampling.steps)
    ]
    dataset = None if data is None else open_dataset(data, category)
    if out is not None:
        if len(samplings) != 1 or samplings[0] == bundle_sampling:
            got = "its own" if len(samplings) == 1 else f"{len(samplings)} of them"
            raise ArgumentError(f"--out: expected one sampling other than the bundle's, got {got}. Name one.")
        with progress_bars() as progress:
            written = resample_bundle(
                bundle,
                out,
                samplings[0],
                dataset,
                backend=backend,
                command=command_line(),
                progress=progress,
                overwrite=overwrite,
            )
        # Evidence holds the first figures and the changes: the row of the new sampling is their sum.
        for change in written.evidence.sampling:
            before = SamplingFigures(change.before, change.image_auroc, change.pixel_auroc, change.milliseconds)
            pixel = None if change.pixel_auroc is None else change.pixel_auroc + (change.pixel_auroc_change or 0.0)
            after = SamplingFigures(
                change.after, change.image_auroc + change.image_auroc_change, pixel, change.milliseconds_after
            )
            _print([before, after], change.backend, change.images)
        echo(f"bundle: {out}, not calibrated yet")
        return
    assert dataset is not None, "without --out there is --data"
    with progress_bars() as progress:
        others = (sampling for sampling in samplings if sampling != bundle_sampling)
        # The bundle's own comes first: changes in the table are against the first row.
        measured_on, rows = compare_samplings(bundle, [bundle_sampling, *others], dataset, backend, progress)
    _print(rows, measured_on, len(dataset.test))


def _numbers(option: str, text: str | None, default: int) -> list[int]:
    """Return the numbers of an option, which commas separate, or the default where it was not given."""
    if text is None:
        return [default]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"{option}: expected whole numbers with commas, such as 1,5,10, got {text!r}.") from None


def _print(rows: list[SamplingFigures], backend: str, images: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "steps",
        "start",
        "spacing",
        "eta",
        "weight",
        "image AUROC",
        "change",
        "pixel AUROC",
        "change",
        "ms an image",
    ):
        table.add_column(title, justify="right", min_width=8 if title == "spacing" else None)
    first = rows[0]
    for row in rows:
        taken_sampling = row.sampling
        pixel = ("-", "-")
        if row.pixel_auroc is not None and first.pixel_auroc is not None:
            pixel = (f"{row.pixel_auroc:.4f}", f"{row.pixel_auroc - first.pixel_auroc:+.4f}")
        table.add_row(
            str(taken_sampling.steps),
            str(taken_sampling.start),
            taken_sampling.spacing,
            f"{taken_sampling.eta:g}",
            f"{taken_sampling.weight:g}",
            f"{row.image_auroc:.4f}",
            f"{row.image_auroc - first.image_auroc:+.4f}",
            *pixel,
            f"{row.milliseconds:.1f}",
        )
    PlainConsole().print(table)
    echo(f"{images} labelled images, backend {backend}; changes are against the first row, the bundle's own")
