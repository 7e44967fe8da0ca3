"""`flawscope bundle bank add`, `remove` and `prune`: upkeep of the memory bank of an exported bundle."""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.imaging.image_files import images_in, is_folder
from flawscope.output_options import OVERWRITE
from flawscope.runtime.upkeep.addition import Scored, add_images
from flawscope.runtime.upkeep.removal import Removal, prune_bank, remove_images
from flawscope.terminal import command_line, echo, progress_bars

_PATH = click.Path(path_type=Path)
_OUT = click.option("--out", type=_PATH, required=True, help="Bundle folder to write (NAME.flaw).")


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("images", nargs=-1, required=True, type=_PATH, metavar="IMAGE...")
@_OUT
@click.option("--rows", type=int, help="Most rows to add.  [default: as many an image as the training has kept]")
@click.option(
    "--all-good",
    is_flag=True,
    help="All images are known to be good: add also what the bundle rejects, or cannot judge without thresholds.",
)
@click.option("--product", metavar="NAME", help="Product whose own thresholds say what is rejected.")
@click.option("--no-overlay", is_flag=True, help="Judge by the bundle's own thresholds what is rejected.")
@OVERWRITE
@trusted_keys_option
def add(
    bundle: Path,
    images: tuple[Path, ...],
    out: Path,
    rows: int | None,
    all_good: bool,
    product: str | None,
    no_overlay: bool,
    overwrite: bool,
) -> None:
    """Add normal images, or all images of folders, to the memory bank of BUNDLE, and write the bundle OUT.

    The patches that are farthest from the bank become rows of it, as in training, within the room that the bank was
    exported with. Images that the bundle rejects are refused unless all of them are known to be good.
    """
    files = [file for image in images for file in (images_in(image) if is_folder(image) else [image])]
    with progress_bars() as progress:
        done = add_images(
            bundle,
            files,
            out,
            rows=rows,
            all_good=all_good,
            product=product,
            use_overlay=not no_overlay,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
    known = f" ({done.known} left out: learned before, or given twice)" if done.known else ""
    echo(f"added {done.images} images{known}: {_rows(done.rows)} rows, room for {_rows(done.room)} more")
    if any(row < asked for row, asked in zip(done.rows, done.asked, strict=True)):
        why = "the bank is full" if min(done.room) == 0 else "what is left of the images is in the bank already"
        echo(f"note: {_rows(done.asked)} rows were wanted; {why}.", err=True)
    echo(f"scores before: {_scores(done.before)}")
    echo(f"scores after:  {_scores(done.after)}; it has learned them, so this says nothing about new images")
    for note in done.notes:
        echo(f"note: {note}", err=True)
    echo(f"take them out again: flawscope bundle bank remove {out} --number {done.number} --out EARLIER.flaw")
    _uncalibrated(out)


@click.command()
@click.argument("bundle", type=_PATH)
@_OUT
@click.option("--number", type=int, help="Number of the addition to take out, see flawscope bundle info.")
@click.option("--image", "images", multiple=True, type=_PATH, help="An image that was added; may be repeated.")
@OVERWRITE
@trusted_keys_option
def remove(bundle: Path, out: Path, number: int | None, images: tuple[Path, ...], overwrite: bool) -> None:
    """Take an addition, or single images that were added, out of the memory bank of BUNDLE; write the bundle OUT.

    If nothing was added since, OUT is the bundle of before the addition: the same files, scores and thresholds.
    """
    if (number is None) == (not images):
        got = "neither" if number is None else "both"
        raise click.UsageError(f"Expected --number N, or --image FILE, got {got}.")
    with progress_bars() as progress:
        done = remove_images(
            bundle,
            out,
            number=number,
            images=images,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
    echo(f"took out {done.images} images: {_change(done)} rows")
    if done.restored:
        echo(f"{out}: the bundle of before the addition, {done.manifest.digest}; without what was set since")
        return
    _uncalibrated(out)


@click.command()
@click.argument("bundle", type=_PATH)
@_OUT
@click.option("--rows", type=int, required=True, help="Rows to keep in each memory bank.")
@OVERWRITE
@trusted_keys_option
def prune(bundle: Path, out: Path, rows: int, overwrite: bool) -> None:
    """Keep the rows of the memory bank of BUNDLE that cover all of them best, and write the bundle OUT.

    The rows that go leave room for others. What was added before cannot be taken out afterwards.
    """
    with progress_bars() as progress:
        done = prune_bank(bundle, out, rows, command=command_line(), progress=progress, overwrite=overwrite)
    echo(f"pruned: {_change(done)} rows")
    _uncalibrated(out)


def _rows(rows: tuple[int, ...]) -> str:
    return " and ".join(f"{count:,}" for count in rows)


def _change(done: Removal) -> str:
    return f"{_rows(done.before)} -> {_rows(done.after)}"


def _scores(scored: Scored) -> str:
    against = ""
    if scored.threshold is not None:
        against = f", {scored.above} above the threshold {scored.threshold:.4g} of before"
    elif scored.is_judged:  # by zone
        against = f", {len(scored.rejected)} rejected"
    return f"median {statistics.median(scored.scores):.4g}, largest {max(scored.scores):.4g}{against}"


def _uncalibrated(out: Path) -> None:
    echo(
        f"{out}: written without thresholds and accuracy, which were of other scores. Set them with flawscope "
        "calibrate, on normal images that it has not learned."
    )
