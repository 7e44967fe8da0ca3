"""Command `flawscope synth dataset`: make a dataset of drawn and of real images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from flawscope.datasets import open_dataset
from flawscope.datasets.data_options import CATEGORY, PATH, data_option
from flawscope.datasets.defects.drawing_options import OUT
from flawscope.datasets.defects.drawn_set import SOURCES, DrawnSource, read_learned
from flawscope.datasets.defects.set_files import SHEET
from flawscope.datasets.defects.support_set import read_support
from flawscope.output_options import OVERWRITE
from flawscope.progress import Progress
from flawscope.runtime.scale.shard_options import is_sharded, read_part, saying_how_to_go_on, shard_options
from flawscope.runtime.synthesis.mixed_datasets import (
    DatasetLayout,
    DatasetPlan,
    Labels,
    SynthDatasetRecord,
    plan_dataset,
    write_synth_dataset,
)
from flawscope.stored_paths import stored_path
from flawscope.terminal import command_line, echo, progress_bars


@click.command()
@click.argument("generated", type=PATH, nargs=-1, required=True)
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
    "--take",
    "takes",
    multiple=True,
    metavar="SOURCE=N",
    help=f"Take at most N images of a source ({', '.join(SOURCES)}), shared out among the defect types; may be given "
    "again.  [default: all]",
)
@click.option(
    "--support",
    type=PATH,
    metavar="DIR",
    help="Support set: leave near duplicates of its images out of the test split, too.",
)
@OUT
@OVERWRITE
@shard_options
def dataset(
    generated: tuple[Path, ...],
    data: Path,
    category: str | None,
    layout: DatasetLayout,
    labels: Labels,
    takes: tuple[str, ...],
    support: Path | None,
    out: Path,
    overwrite: bool,
    **sharding: Any,
) -> None:
    """Make a dataset of the accepted images of GENERATED and of real images.

    GENERATED are folders of synth generate, synth paste and synth perlin, one or several. Drawn images are training
    images. Images that defects were learned from are left out of the test split; DIR/dataset.json names them.

    With --on, --workers, --shard-size or --shard it works in shards, by several processes or machines, and can be
    resumed; the dataset is the same: docs/scale.md. What is not finished lies in DIR.parts.
    """
    take = _parse_takes(takes)
    real = open_dataset(data, category)
    known = None if support is None else read_support(support)
    with progress_bars() as report:
        if is_sharded(out, sharding["on"], sharding["workers"]):
            written = _write_in_shards(
                partial(
                    plan_dataset,
                    generated,
                    real,
                    layout=layout,
                    labels=labels,
                    take=take,
                    support=known,
                    are_files_checked=False,
                ),
                {"layout": layout, "labels": labels, "take": take, "support": known and known.digest},
                out,
                sharding,
                report,
                sources={
                    "generated": [stored_path(folder) for folder in generated],
                    "data": stored_path(data),
                    "category": category,
                    "support": None if support is None else stored_path(support),
                },
                overwrite=overwrite,
            )
            if written is None:
                return
            record = written
        else:
            record = write_synth_dataset(
                generated,
                real,
                out,
                layout=layout,
                labels=labels,
                take=take,
                support=known,
                progress=partial(report, "writing images"),
                overwrite=overwrite,
            )
    end_dataset(record, out)
    learned = frozenset[str]().union(*map(read_learned, generated))
    if learned and support is None and layout == "mvtec":
        echo(
            f"warning: near duplicates of the {len(learned)} support images are not known and stay in the test split. "
            "Name the support set with --support.",
            err=True,
        )
    echo(f"overview: {out / SHEET}")


def end_dataset(record: SynthDatasetRecord, out: Path) -> None:
    """Say what a dataset came to."""
    # Keys are CATEGORY/SPLIT/DEFECT; drawn images are counted under the split `drawn`.
    drawn = sum(count for key, count in record.pictures.items() if key.split("/")[1] == "drawn")
    echo(f"dataset: {out}, {drawn} drawn and {sum(record.pictures.values()) - drawn} real images")
    echo("sources: " + ", ".join(f"{source} {count}" for source, count in record.sources.items()))
    rejected, spare = (sum(getattr(one, name) for one in record.generated) for name in ("rejected", "spare"))
    more = f", {spare} accepted ones beyond --take" if spare else ""
    echo(f"left out: {rejected} rejected drawings{more}, {len(record.left_out)} real images (dataset.json)")


def _write_in_shards(
    make: Callable[[], DatasetPlan],
    asked: dict[str, Any],
    out: Path,
    sharding: dict[str, Any],
    report: Progress,
    *,
    sources: dict[str, Any],
    overwrite: bool,
) -> SynthDatasetRecord | None:
    # Here and not at the top: one process needs none of it.
    from flawscope.runtime.scale.dataset_run import parts_of, write_in_shards
    from flawscope.runtime.scale.placement import make_placement
    from flawscope.runtime.scale.plan import PLAN

    part, parts = read_part(sharding["shard"]), parts_of(out)
    with saying_how_to_go_on(parts / PLAN, lambda: f"what is whole stays in {parts}"):
        return write_in_shards(
            make,
            asked,
            out,
            make_placement(sharding["on"], sharding["workers"], sharding["gpus_per_worker"]),
            shard_size=sharding["shard_size"],
            part=part.pair,
            is_resumed=sharding["resume"],
            is_shared=part.is_given,
            plan_only=sharding["plan_only"],
            overwrite=overwrite,
            sources=sources,
            report=report,
            command=command_line(),
        )


def _parse_takes(takes: tuple[str, ...]) -> dict[DrawnSource, int]:
    parsed: dict[DrawnSource, int] = {}
    for text in takes:
        name, _, number = text.partition("=")
        source = next((known for known in SOURCES if known == name), None)
        if source is None or not number.isdecimal():
            raise click.UsageError(
                f"Expected --take SOURCE=N with a source of {', '.join(SOURCES)} and a whole number, got {text!r}."
            )
        if source in parsed:
            raise click.UsageError(f"Expected every source once, got --take {source} twice. Leave one out.")
        parsed[source] = int(number)
    return parsed
