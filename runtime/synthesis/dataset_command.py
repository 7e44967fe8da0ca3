"""Command `flawscope synth dataset`: make a dataset of drawn and of real images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from flawscope.datasets import open_dataset
from flawscope.datasets.data_options import CATEGORY, PATH, data_option
from flawscope.datasets.defects.set_files import SHEET
from flawscope.datasets.defects.support_set import read_support
from flawscope.output_options import OVERWRITE
from flawscope.runtime.synthesis.mixed_datasets import DatasetLayout, Labels, write_synth_dataset
from flawscope.terminal import echo, progress_bars


@click.command()
@click.argument("generated", type=PATH)
@data_option("The real dataset.", required=True)
@CATEGORY
@click.option(
    "--layout",
    type=click.Choice(["mvtec", "anogen"]),
    default="mvtec",
    show_default=True,
    help="mvtec: generated and real images; anogen: generated images as AnoGen's makeDataset names them.",
)
@click.option(
    "--labels",
    type=click.Choice(["precise", "box"]),
    default="precise",
    show_default=True,
    help="Precise masks, or the boxes that were asked for.",
)
@click.option(
    "--support",
    type=PATH,
    metavar="DIR",
    help="Support set: leave near duplicates of its images out of the test split, too.",
)
@click.option("--out", "--outdir", "out", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@OVERWRITE
def dataset(
    generated: Path,
    data: Path,
    category: str | None,
    layout: DatasetLayout,
    labels: Labels,
    support: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Make a dataset of the accepted images of GENERATED and of real images.

    Drawn images are training images. Images that the bundle learned defects from are left out of the test split;
    DIR/dataset.json names them.
    """
    real = open_dataset(data, category)
    with progress_bars() as report:
        record = write_synth_dataset(
            generated,
            real,
            out,
            layout=layout,
            labels=labels,
            support=None if support is None else read_support(support),
            progress=partial(report, "writing images"),
            overwrite=overwrite,
        )
    # Keys are CATEGORY/SPLIT/DEFECT; drawn images are counted under the split `drawn`.
    drawn = sum(count for key, count in record.pictures.items() if key.split("/")[1] == "drawn")
    echo(f"dataset: {out}, {drawn} drawn and {sum(record.pictures.values()) - drawn} real images")
    echo(f"left out: {record.rejected} rejected drawings, {len(record.left_out)} real images (dataset.json)")
    echo(f"overview: {out / SHEET}")
