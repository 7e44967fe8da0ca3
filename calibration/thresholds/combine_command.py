"""`flawscope bundle combine`: several detectors in one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click
from rich.table import Table

from flawscope.bundle import EnsembleHead
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.calibration.thresholds.combine import Combination, combine_bundles
from flawscope.calibration.thresholds.ensemble_scales import MAP_QUANTILE, SCORE_QUANTILE
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.output_options import OVERWRITE
from flawscope.rich_console import PlainConsole
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import printable


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE BUNDLE...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write (NAME.flaw).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset whose normal images are used.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
@click.option("--weights", metavar="W,W,...", help="One a bundle, above 0.  [default: 1 each]")
@click.option("--backend", default="auto", show_default=True, help="Backend that makes the maps.")
@OVERWRITE
@trusted_keys_option
def combine(
    bundles: tuple[Path, ...],
    out: Path,
    data: Path,
    category: str | None,
    weights: str | None,
    backend: str,
    overwrite: bool,
) -> None:
    """Combine several detectors to one bundle.

    Its maps and scores are weighted sums of those of its members. Members measure in different units: the values that
    become 0 and 1 are measured once for each, on normal images that no member has learned from, and stay fixed.
    Calibrate the new bundle before it decides.
    """
    if len(bundles) < 2:
        raise click.UsageError("Expected two bundles or more, got one.")
    shares = None if weights is None else _parsed(weights)
    dataset = open_dataset(data, category)
    with progress_bars() as progress:
        result = combine_bundles(
            bundles,
            out,
            dataset,
            weights=shares,
            backend=backend,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
    _print(result, out)


def _parsed(weights: str) -> list[float]:
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError as err:
        raise ArgumentError(f"--weights: expected numbers with commas between them, got {weights!r}.") from err


def _print(result: Combination, out: Path) -> None:
    head = cast("EnsembleHead", result.manifest.head)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("member")
    table.add_column("method")
    for title in ("weight", "map center", "spread", "score center", "spread"):
        table.add_column(title, justify="right")
    for member in head.members:
        numbers = (member.weight, member.map_center, member.map_spread, member.score_center, member.score_spread)
        table.add_row(printable(member.name), member.method, *(f"{number:.5g}" for number in numbers))
    console = PlainConsole()  # names and reasons are text, also with brackets
    console.print(table)
    console.print(
        f"Measured on {head.images} normal images that no member has learned from, backend {result.backend}: 0 is the "
        f"median, 1 the {MAP_QUANTILE:.1%} quantile of map pixels and the {SCORE_QUANTILE:.0%} quantile of scores.",
        soft_wrap=True,
    )
    for reason, count in result.left_out:
        console.print(f"left out: {count} {reason}", soft_wrap=True)
    for note in result.notes:
        echo(f"note: {note}", err=True)
    size = sum(entry.size for entry in result.manifest.files.values())
    console.print(f"{out}: {size / 2**20:.1f} MiB; set its thresholds with flawscope calibrate", soft_wrap=True)
