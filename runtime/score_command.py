"""`flawscope score`: decide on images, as text or JSON lines, with heat maps where asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from flawscope.bundle import PRECISIONS
from flawscope.bundle.threshold_overlay_options import threshold_overlay_options
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError, DataError, FlawscopeError
from flawscope.files import check_new_files, free_name, storage_errors
from flawscope.imaging.image_files import images_in, is_folder
from flawscope.imaging.images import prepare, read_image
from flawscope.imaging.learned_images import summarize_differences
from flawscope.imaging.png import write_png
from flawscope.output_options import OVERWRITE
from flawscope.path_kinds import is_bundle, kind_of_path
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.backends.cores_options import cores_options
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.overlay import draw_overlay
from flawscope.runtime.reconstruction_strip import write_reconstruction
from flawscope.runtime.results import Result
from flawscope.runtime.scorers.scorer import PATHS
from flawscope.terminal import echo, echo_json

_AHEAD = 2
"""Batches that are read while others are inspected."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--path", "path", type=click.Choice(PATHS), default="auto", show_default=True, help="How maps are made.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--product", metavar="NAME", help="Product whose own thresholds hold.  [default: the common ones]")
@click.option("--batch", type=int, default=1, show_default=True, help="Images per inference.")
@cores_options
@click.option(
    "--strict",
    is_flag=True,
    help="An image unlike all those that the bundle learned from (size, shape, colours, bits, brightness) is a fault.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line per image.")
@click.option("--maps", type=click.Path(path_type=Path), help="Folder for heat maps over the images (PNG).")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    help="Folder for input, reconstruction and maps (PNG); for ddad and dsad, which then compute twice.",
)
@OVERWRITE
@threshold_overlay_options
@trusted_keys_option
def score(
    bundle: Path,
    images: tuple[Path, ...],
    backend: str,
    path: str,
    precision: str,
    product: str | None,
    batch: int,
    threads: int | None,
    streams: int | None,
    strict: bool,
    as_json: bool,
    maps: Path | None,
    pictures: Path | None,
    overwrite: bool,
    threshold_overlay: Path | None,
    no_overlay: bool,
) -> int:
    """Decide on images, or on all images of folders.

    An image that cannot be read is a fault, never an accept; the others are still scored, and the exit status is 1.
    A map or picture that cannot be written is an error; the images are still scored, and the exit status is 2.
    """
    _check_order(bundle, images)
    sources = _expand(images)
    for folder in (maps, pictures):
        check_new_files(folder, overwrite=overwrite)
        if folder is not None and any(
            isinstance(source, Path) and source.absolute().parent == folder.absolute() for source in sources
        ):
            raise ArgumentError(f"{folder}: expected another folder than that of the images. Choose another name.")
    counts: Counter[str] = Counter()
    notes: list[tuple[str, ...]] = []
    names: set[str] = set()
    missing = 0
    with Inspector.load(
        bundle,
        backend,
        path,
        precision,
        strict=strict,
        threshold_overlay=threshold_overlay,
        use_overlay=not no_overlay,
        product=product,
        threads=threads,
        streams=streams,
    ) as inspector:
        inspector.check_batch(batch)
        if pictures is not None:
            inspector.check_reconstructs()
        # Only now, after bundle, backend and batch proved valid: a refused command must not leave empty folders.
        for folder in (maps, pictures):
            if folder is not None:
                with storage_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
        # To stderr: stdout carries one line per image and nothing else.
        if not as_json or backend == "auto":  # what runs is said, unless it was named
            echo(f"backend {inspector.backend} ({inspector.backend_reason})", err=True)
        if not as_json and inspector.in_force.revision:
            echo(f"thresholds: {inspector.in_force.source}", err=True)
        scored = inspector.stream([source for source in sources if isinstance(source, Path)], batch, ahead=_AHEAD)
        for source in sources:
            result = next(scored) if isinstance(source, Path) else source
            counts[result.decision] += 1
            notes.append(result.notes)
            if as_json:
                echo_json(result.to_json())
            else:
                echo(_line(result))
            # NaN has no colour: the cast to uint8 would draw it as any value.
            if isinstance(source, Result) or result.anomaly_map is None or not np.isfinite(result.anomaly_map).all():
                continue
            name = free_name(source.stem, names) if maps is not None or pictures is not None else ""
            try:
                if maps is not None:
                    _write_map(maps / f"{name}.png", source, result, result.anomaly_map, inspector)
                if pictures is not None:
                    image = prepare(read_image(source, inspector.manifest.input.bits), inspector.manifest.input)
                    reconstructed = inspector.reconstruct(image[None])
                    write_reconstruction(pictures, name, image, reconstructed, _reference(inspector))
            except FlawscopeError as err:
                # A picture that is missing is no reason to leave the other parts without a decision.
                missing += 1
                echo(f"error: {err} It was decided on, but not drawn.", err=True)
    for note in summarize_differences(notes):
        echo(f"note: {note}", err=True)
    if not as_json:
        total = ", ".join(f"{counts[decision]} {decision}" for decision in ("accept", "reject", "fault"))
        echo(f"{len(sources)} images: {total}", err=True)
    if missing:
        return 2
    return 1 if counts["fault"] else 0


def _check_order(bundle: Path, images: tuple[Path, ...]) -> None:
    if is_bundle(bundle):
        return
    # Not swapped silently: what decides is said, never guessed.
    if meant := next((image for image in images if is_bundle(image)), None):
        kind = kind_of_path(bundle) or "something else"
        raise ArgumentError(
            f"{bundle}: expected a bundle, got {kind}, and the bundle {meant} behind it. "
            f"The bundle comes first: flawscope score {meant} {bundle}"
        )


def _expand(images: tuple[Path, ...]) -> list[Path | Result]:
    """Return the images named, folders replaced by the images in them, sorted; a fault for what cannot be listed."""
    sources: list[Path | Result] = []
    for image in images:
        if not is_folder(image):
            sources.append(image)  # also what does not exist: it becomes a fault with its reason, the others are scored
            continue
        try:
            sources.extend(images_in(image))
        except DataError as err:
            sources.append(Result(str(image), "fault", reason=str(err)))
    return sources


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


def _reference(inspector: Inspector) -> float:
    """Return the map value in the middle of every colour scale; with zones the largest of their thresholds."""
    if inspector.thresholds is not None:
        return inspector.thresholds.pixel.value
    # Without thresholds the scale is anchored at the largest map value of the golden images.
    return max(golden.map_max for golden in inspector.manifest.golden_of(inspector.precision, inspector.backend))


def _write_map(
    path: Path, source: Path, result: Result, anomaly_map: npt.NDArray[np.float32], inspector: Inspector
) -> None:
    spec = inspector.manifest.map_spec
    image = read_image(source, inspector.manifest.input.bits)
    # With zones each has its own threshold in the middle of the scale.
    reference = _reference(inspector) if inspector.thresholds is None else inspector.pixel_thresholds(anomaly_map)
    lines = [f"{zone.name}: {zone.score:.4g} > {zone.threshold:.4g}" for zone in result.zones if zone.is_rejected]
    shown = draw_overlay(image, anomaly_map, spec, reference, result.boxes, lines)
    if result.part_shift is not None and inspector.region is not None:
        # Only where it follows the part: where it does not, it lies where it was drawn.
        shown = inspector.region.at(result.part_shift).outline_on(shown)
    write_png(path, shown)
