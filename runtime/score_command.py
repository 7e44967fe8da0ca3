"""`flawscope score`: decide on images, as text or JSON lines, with tables and heat maps where asked for.

Its exit status tells of faults, and of rejects where asked to.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from flawscope.bundle import PRECISIONS
from flawscope.bundle.threshold_overlay_options import threshold_overlay_options
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.former_names import CommandWithFormerNames
from flawscope.given_options import given_option, is_given
from flawscope.imaging.learned_images import summarize_differences
from flawscope.output_options import OVERWRITE
from flawscope.path_kinds import is_bundle, kind_of_path
from flawscope.progress import Progress, no_progress
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.backends.cores_options import cores_options
from flawscope.runtime.image_sources import Source
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Result
from flawscope.runtime.scale.inputs import Item, Reader
from flawscope.runtime.scale.inputs.results import results_of
from flawscope.runtime.scale.inputs.urls import shown
from flawscope.runtime.scale.shard_options import PARAMETERS, is_sharded, shard_options
from flawscope.runtime.score_files import RESULTS, Drawings, Records, check_outputs_apart
from flawscope.runtime.score_inputs import Inputs, check_apart, find_inputs
from flawscope.runtime.score_summary import Summary
from flawscope.runtime.scorers.scorer import PATHS
from flawscope.terminal import command_line, echo, echo_json, progress_bars

_AHEAD = 2
"""Batches that are read while others are inspected."""
_IN_SHARDS = ("shard_maps", "hash")
"""Parameters of work in shards alone, beside those of `shard_options`."""


@click.command(cls=CommandWithFormerNames, former={"--pictures": "--reconstructions"})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(), metavar="IMAGE...")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="What computes.")
@click.option("--path", "path", type=click.Choice(PATHS), default="auto", show_default=True, help="How maps are made.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Graphs.")
@click.option("--product", metavar="NAME", help="Product whose own thresholds hold.  [default: the common ones]")
@click.option("--batch", type=int, default=1, show_default=True, help="Images per inference.")
@cores_options
@click.option(
    "--strict",
    is_flag=True,
    help="An image unlike all those that the bundle learned from (size, shape, colours, bits, brightness) is a fault.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line per image.")
@click.option(
    "--csv", "table", type=click.Path(path_type=Path), metavar="FILE", help="Write a table, a row an image (CSV)."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for results.jsonl and report.json.")
@click.option(
    "--maps",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for heat maps over the images (PNG), with the folders that the images lie in.",
)
@click.option(
    "--reconstructions",
    "drawn",
    envvar=("FLAWSCOPE_SCORE_RECONSTRUCTIONS", "FLAWSCOPE_SCORE_PICTURES"),
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for input, reconstruction and maps (PNG); for ddad and dsad, which then compute twice.",
)
@click.option("--column", metavar="NAME", help="Column of images in Parquet tables.  [default: by type and name]")
@shard_options
@click.option("--shard-maps", is_flag=True, help="Heat maps of each shard in one zip file beside it, below --out.")
@click.option("--hash", is_flag=True, help="In shards: note the SHA-256 of every image; one changed since is a fault.")
@click.option("--fail-on-reject", is_flag=True, help="Exit with status 1 where an image is rejected, too.")
@OVERWRITE
@threshold_overlay_options
@trusted_keys_option
def score(
    bundle: Path,
    images: tuple[str, ...],
    batch: int,
    as_json: bool,
    table: Path | None,
    out: Path | None,
    maps: Path | None,
    drawn: Path | None,
    column: str | None,
    fail_on_reject: bool,
    overwrite: bool,
    no_overlay: bool,
    **loading: Any,
) -> int:
    """Decide on images, or on all images of folders and of the folders below.

    IMAGE is a file, a folder, a pattern in quotes ('lot*/**.png'), a list (@FILE, or - for standard input: a path or
    URL a line), a .tar or .parquet with images, or a URL (s3://bucket/folder/).

    An image that cannot be read is a fault, never an accept; the others are still scored, and the exit status is 1.
    A map or another image that cannot be written is an error; the images are still scored, and the exit status is 2.

    With --on, --workers, --shard-size or --shard it works in shards, by several processes or machines, and can be
    resumed: docs/scale.md. flawscope merge DIR (also flawscope score merge DIR) joins what jobs of an array made.
    """
    sharding = {name: loading.pop(name) for name in (*PARAMETERS, *_IN_SHARDS)}
    if str(bundle) == "merge" and len(images) == 1 and not bundle.exists():
        return _merge(Path(images[0]))
    _check_order(bundle, [Path(image) for image in images])
    if is_sharded(out, sharding["on"], sharding["workers"]) or any(sharding[name] for name in _IN_SHARDS):
        listing = {"column": column}
        request = {"batch": batch, "use_overlay": not no_overlay, "overwrite": overwrite, "listing": listing, **loading}
        return _in_shards(bundle, images, out, sharding, request, fail_on_reject=fail_on_reject)
    if not images:
        raise click.UsageError("Missing argument 'IMAGE...'.")
    inputs = find_inputs(images, column)
    drawings, records = Drawings(maps, drawn), Records(table, out, overwrite=overwrite)
    drawings.check(overwrite=overwrite)
    records.check()
    check_outputs_apart({"--csv": table, "--out": out, "--maps": maps, "--reconstructions": drawn})
    for folder in (maps, drawn):
        check_apart(inputs, folder)
    for passed in inputs.masks:
        echo(f"note: {passed}: masks of a dataset, passed over. Name it to score what is in it.", err=True)
    with Inspector.load(bundle, use_overlay=not no_overlay, **loading) as inspector:
        inspector.check_batch(batch)
        if drawn is not None:
            inspector.check_reconstructs()
        # Only now, after bundle, backend and batch proved valid: a refused command must not leave empty folders.
        drawings.make_folders()
        # To stderr: stdout carries one line per image and nothing else.
        if not as_json or loading["backend"] == "auto":  # what runs is said, unless it was named
            echo(f"backend {inspector.backend} ({inspector.backend_reason})", err=True)
        if not as_json and inspector.in_force.revision:
            echo(f"thresholds: {inspector.in_force.source}", err=True)
        summary = Summary()
        with records.opened(), Reader() as reader, _progress() as show:
            missing = _score_all(inspector, inputs, reader.read_now, batch, as_json, drawings, records, summary, show)
            options = {
                "images": [shown(name) for name in images],
                "batch": batch,
                "strict": loading["strict"],
                "masks_passed_over": [str(path) for path in inputs.masks],
            }
            records.finish(summary.report(inspector, options, shown(command_line())))
    # A program that reads lines needs none; whoever looks at a terminal does.
    if not as_json or sys.stderr.isatty():
        for line in summary.lines():
            echo(line, err=True)
    if missing:
        return 2
    return 1 if summary.counts["fault"] or (fail_on_reject and summary.counts["reject"]) else 0


def _in_shards(
    bundle: Path,
    images: Sequence[str],
    out: Path | None,
    sharding: dict[str, Any],
    request: dict[str, Any],
    *,
    fail_on_reject: bool,
) -> int:
    # Here and not at the top: one process needs none of it.
    from flawscope.runtime.scale.placement import make_placement
    from flawscope.runtime.scale.score_plan import ScoreRequest
    from flawscope.runtime.scale.shard_options import read_part
    from flawscope.runtime.scale.shards_command import score_in_shards

    if (option := given_option(("as_json", "table", "maps", "drawn"))) is not None:
        raise ArgumentError(
            f"{option}: expected what shards write, {RESULTS} below --out and heat maps with --shard-maps, got another "
            "output. Leave it out, or what asks for shards."
        )
    if out is None:
        option = given_option(_IN_SHARDS)
        raise ArgumentError(f"{option}: expected --out DIR beside it, the folder of shards, got none. Name one.")
    part = read_part(sharding["shard"])
    # By what was typed, not by values: a plan that goes on has its own for the rest.
    options = {"maps": "shard_maps", "use_overlay": "no_overlay"}
    names = ("backend", "path", "precision", "product", "strict", "batch", "maps", "use_overlay", "hash")
    asked = ScoreRequest(
        bundle=bundle,
        images=images,
        out=out,
        placement=make_placement(sharding["on"], sharding["workers"], sharding["gpus_per_worker"]),
        maps=sharding["shard_maps"],
        has_hashes=sharding["hash"],
        shard_size=sharding["shard_size"],
        is_resumed=sharding["resume"],
        is_shared=part.is_given,
        left_open=frozenset(name for name in names if not is_given(options.get(name, name))),
        **request,
    )
    return score_in_shards(asked, part, plan_only=sharding["plan_only"], fail_on_reject=fail_on_reject)


def _merge(folder: Path) -> int:
    from flawscope.runtime.scale.merge_command import merge_folder

    return merge_folder(folder)


def _score_all(
    inspector: Inspector,
    inputs: Inputs,
    read: Callable[[Item], Source],
    batch: int,
    as_json: bool,
    drawings: Drawings,
    records: Records,
    summary: Summary,
    show: Progress,
) -> int:
    """Score all images, print and record each, and return how many could not be drawn."""
    missing = 0
    notes: list[tuple[str, ...]] = []
    stream = partial(inspector.stream, batch=batch, ahead=_AHEAD)
    for number, (item, image, result) in enumerate(results_of(inputs.items, read, stream, _AHEAD * batch), 1):
        summary.add(result)
        notes.append(result.notes)
        if as_json:
            echo_json(result.to_json())
        else:
            echo(_line(result))
        place = None
        if image is not None:
            try:
                place = drawings.draw(item, image, result, inspector)
            except FlawscopeError as err:
                # A drawing that is missing is no reason to leave the other parts without a decision.
                missing += 1
                echo(f"error: {err} It was decided on, but not drawn.", err=True)
        records.add(result, place)
        show("images", number, len(inputs.items))
    for note in summarize_differences(notes):
        echo(f"note: {note}", err=True)
    return missing


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Yield what shows progress; where the lines of the images can be seen, they are it."""
    if sys.stdout.isatty():
        yield no_progress
        return
    with progress_bars() as show:
        yield show


def _check_order(bundle: Path, images: Sequence[Path]) -> None:
    if is_bundle(bundle):
        return
    # Not swapped silently: what decides is said, never guessed.
    if meant := next((image for image in images if is_bundle(image)), None):
        kind = kind_of_path(bundle) or "something else"
        raise ArgumentError(
            f"{bundle}: expected a bundle, got {kind}, and the bundle {meant} behind it. "
            f"The bundle comes first: flawscope score {meant} {bundle}"
        )


def _line(result: Result) -> str:
    if result.decision == "fault":
        return f"fault   {result.image}  {result.reason}"
    boxes = f"  {len(result.boxes)} region{'s' if len(result.boxes) != 1 else ''}" if result.boxes else ""
    if (shift := result.part_shift) is not None:
        right, down = (round(pixels, 1) + 0.0 for pixels in (shift.right, shift.down))  # no -0.0
        boxes += f"  part shifted x {right:+.1f} y {down:+.1f}"
    zone = "" if result.zone is None else f"  zone {result.zone}"
    against = f"score {_number(result.score)} threshold {_number(result.threshold)}{zone}"
    return f"{result.decision:<7} {result.image}  {against}{boxes}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
