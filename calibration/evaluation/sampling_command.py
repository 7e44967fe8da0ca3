"""`flawscope sampling`: what fewer steps cost, and the bundle that takes them."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from flawscope.bundle import open_bundle
from flawscope.calibration.evaluation.few_steps import (
    SamplingFigures,
    compare_samplings,
    reconstruction_head,
    resample_bundle,
)
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.terminal import command_line, progress_bars


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
) -> None:
    """Compare samplings of BUNDLE (ddad, dsad) on labelled images, or write it with another one.

    Fewer steps are faster; what they cost is measured here, on the bundle itself. A bundle that is written has no
    thresholds: its scores are others, so calibrate it.
    """
    if data is None and out is None:
        raise click.UsageError("Expected --data to compare samplings, or --out to write a bundle, got neither.")
    with open_bundle(bundle) as opened:
        own = reconstruction_head(opened.manifest).sampling
    given = {"spacing": spacing, "weight": weight, "eta": eta}
    fixed = {name: value for name, value in given.items() if value is not None}
    asked = [
        msgspec.structs.replace(own, **fixed, steps=count, start=level)
        for level in _numbers("--start", start, own.start)
        for count in _numbers("--steps", steps, own.steps)
    ]
    dataset = None if data is None else open_dataset(data, category)
    if out is not None:
        if len(asked) != 1 or asked[0] == own:
            got = "its own" if len(asked) == 1 else f"{len(asked)} of them"
            raise ArgumentError(f"--out: expected one sampling other than the bundle's, got {got}. Name one.")
        with progress_bars() as progress:
            written = resample_bundle(
                bundle, out, asked[0], dataset, backend=backend, command=command_line(), progress=progress
            )
        for change in written.evidence.sampling:
            before = SamplingFigures(change.before, change.image_auroc, change.pixel_auroc, change.milliseconds)
            pixel = None if change.pixel_auroc is None else change.pixel_auroc + (change.pixel_auroc_change or 0.0)
            after = SamplingFigures(
                change.after, change.image_auroc + change.image_auroc_change, pixel, change.milliseconds_after
            )
            _print([before, after], change.backend, change.images)
        click.echo(f"bundle: {out}, not calibrated yet")
        return
    assert dataset is not None
    with progress_bars() as progress:
        taken, found = compare_samplings(
            bundle, [own, *(one for one in asked if one != own)], dataset, backend, progress
        )
    _print(found, taken, len(dataset.test))


def _numbers(option: str, text: str | None, own: int) -> list[int]:
    """Return the numbers of an option with commas, or the bundle's own."""
    if text is None:
        return [own]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"{option}: expected whole numbers with commas, such as 1,5,10, got {text!r}.") from None


def _print(found: list[SamplingFigures], backend: str, images: int) -> None:
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
    first = found[0]
    for one in found:
        known = one.sampling
        pixel = ("-", "-")
        if one.pixel_auroc is not None and first.pixel_auroc is not None:
            pixel = (f"{one.pixel_auroc:.4f}", f"{one.pixel_auroc - first.pixel_auroc:+.4f}")
        table.add_row(
            str(known.steps),
            str(known.start),
            known.spacing,
            f"{known.eta:g}",
            f"{known.weight:g}",
            f"{one.image_auroc:.4f}",
            f"{one.image_auroc - first.image_auroc:+.4f}",
            *pixel,
            f"{one.milliseconds:.1f}",
        )
    Console(highlight=False, markup=False, emoji=False).print(table)
    click.echo(f"{images} labelled images, backend {backend}; changes are against the first row, the bundle's own")
