"""How `bundle region` learns where the part lies on normal images, and how far it shifts there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.bundle.manifest import Manifest
from flawscope.bundle.part_place import PartPlace, edge_left, encode_thumbnail, part_box, reach_of
from flawscope.errors import ArgumentError
from flawscope.imaging.image_files import images_in, is_folder
from flawscope.imaging.images import read_image
from flawscope.imaging.part_reference import FEWEST, LEAST_CLEAR, PartShifts, Reference, learn_reference
from flawscope.imaging.part_shift import SIDE, PartFinder, part_thumbnail, thumbnail_size

_MOST_IMAGES = 64
_UNMEASURED = 0.3
"""Limit where no normal images were named: two textures of one kind reach 0.33 at most, where they are copies."""
_LOWEST = 0.15
"""Lowest limit: another part reaches 0.08, and shifts that are less clear than 0.1 can be wrong."""


def look_at_part(
    counted: BoolArray, drawn_on: Path | None, normals: Sequence[Path], follow_px: float | None, manifest: Manifest
) -> tuple[PartPlace | msgspec.UnsetType, tuple[str, ...]]:
    """Return what a region has to know to follow the part, if asked, and what is to be said of shifts, a line each.

    Args:
        counted: The region, bool [H, W] of the image that it was drawn on.
        drawn_on: That image; None takes the median place on the normal images for where the region was drawn.
        normals: Normal images, or folders of them.
        follow_px: Largest shift that is followed, in pixels of the drawn image; None leaves the region where it is.
        manifest: That of the bundle.

    Raises:
        ArgumentError: If there is no image, the shift is out of range, or no place can be told on the images.
        DataError: If a folder cannot be listed.
        ImageError: If an image cannot be read.
    """
    images, bits = normal_images(normals), manifest.input.bits
    if follow_px is None:
        if not images:
            return msgspec.UNSET, (
                "note: the region does not move with the part. --normal IMAGES says how far the part shifts, --follow "
                "PX moves it.",
            )
        return msgspec.UNSET, (_said(shifts_of_normals(counted, drawn_on, images, bits)),)
    learned = learn_place(counted, drawn_on, images, follow_px, bits)
    lines = [_followed(learned)]
    if learned.too_far:
        lines.append(
            f"note: {learned.too_far} of {learned.shifts.images} normal images lie further off than {follow_px:g} "
            "pixels: they would be faults."
        )
    step = math.ceil(follow_px)
    edges = [edge_left(counted, *by, manifest.map_spec) for by in ((-step, 0), (step, 0), (0, -step), (0, step))]
    if left := [edge for edge in edges if edge is not None]:
        lines.append(
            f"note: a shift of {step} pixels moves the region out of what is inspected at the {' and '.join(left)}, "
            "which would be a fault. Draw it smaller, or follow less."
        )
    return learned.place, tuple(lines)


class Learned(NamedTuple):
    """A part that was learned, and what was measured on the normal images."""

    place: PartPlace
    shifts: PartShifts
    too_far: int


def normal_images(named: Sequence[Path]) -> list[Path]:
    """Return images that were named, folders replaced by the images in them; 64 of more, evenly spread.

    Raises:
        DataError: If a folder cannot be listed.
        ArgumentError: If one has no images.
    """
    found = [image for path in named for image in (images_in(path) if is_folder(path) else [path])]
    if len(found) <= _MOST_IMAGES:
        return found
    return [found[int(row)] for row in np.linspace(0, len(found) - 1, _MOST_IMAGES).round()]


def learn_place(
    counted: BoolArray, drawn_on: Path | None, normals: Sequence[Path], follow_px: float, bits: int | None
) -> Learned:
    """Return what a region of interest has to know to follow the part.

    Args:
        counted: The region, bool [H, W] of the image that it was drawn on.
        drawn_on: That image; None takes the median place of the normal images for where the region was drawn.
        normals: Normal images.
        follow_px: Largest shift that is followed, in pixels of the drawn image.
        bits: As `Preprocessing.bits`.

    Raises:
        ArgumentError: If there is no image, the shift is out of range, or no place can be told on the images.
        ImageError: If an image cannot be read.
    """
    size = (counted.shape[0], counted.shape[1])
    reach, box = reach_of(follow_px, size), part_box(counted)
    paths = [*([] if drawn_on is None else [drawn_on]), *normals]
    if not paths:
        raise ArgumentError("--follow: expected --on IMAGE or --normal, which show where the part lies, got neither.")
    reference = _reference(paths, size, box, reach, bits, is_first=drawn_on is not None)
    first = 0 if drawn_on is None else 1
    shifts = reference.shifts(size, first)
    _check_told(reference, shifts, paths, first)
    # Of the image itself: one that is blank, or a regular pattern, is like itself at many places.
    itself = PartFinder(reference.image, box, reach).find(reference.image)
    if itself.clear < LEAST_CLEAR:
        raise ArgumentError(
            f"--follow: expected images that show where the part lies, got {paths[0]}, which is as alike itself "
            f"elsewhere (clear {itself.clear:.2f}, at least {LEAST_CLEAR:.2f} is needed). Leave --follow out."
        )
    clear = [row.clear for row in reference.found[first:] if row.clear >= LEAST_CLEAR]
    is_measured = len(normals) >= FEWEST
    limit = max(_LOWEST, 0.5 * min(clear)) if is_measured else _UNMEASURED
    scale = max(size) / SIDE
    too_far = sum(
        round(scale * max(abs(row.down), abs(row.right))) > follow_px
        for row in reference.found[first:]
        if row.clear >= LEAST_CLEAR
    )
    place = PartPlace(
        png=encode_thumbnail(reference.image),
        box=box,
        follow_px=float(follow_px),
        least_clear=round(limit, 4),
        images=reference.images,
        measured=len(normals) if is_measured else 0,
        median_px=round(shifts.median_px, 3) if is_measured else 0.0,
        largest_px=round(shifts.largest_px, 3) if is_measured else 0.0,
    )
    return Learned(place, shifts, too_far)


def shifts_of_normals(
    counted: BoolArray, drawn_on: Path | None, normals: Sequence[Path], bits: int | None
) -> PartShifts:
    """Return how far the part shifts on normal images, against where a region was drawn; arguments as `learn_place`.

    Raises:
        ImageError: If an image cannot be read.
    """
    size = (counted.shape[0], counted.shape[1])
    paths = [*([] if drawn_on is None else [drawn_on]), *normals]
    reference = _reference(paths, size, part_box(counted), SIDE // 4, bits, is_first=drawn_on is not None)
    return reference.shifts(size, 0 if drawn_on is None else 1)


def _reference(
    paths: Sequence[Path],
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    reach: int,
    bits: int | None,
    *,
    is_first: bool,
) -> Reference:
    small = thumbnail_size(*size)
    thumbnails = [part_thumbnail(read_image(path, bits), small) for path in paths]
    return learn_reference(thumbnails, box, reach, is_first=is_first)


def _check_told(reference: Reference, shifts: PartShifts, paths: Sequence[Path], first: int) -> None:
    """Refuse images of which most show no place of the part."""
    if shifts.images < FEWEST or shifts.are_told:
        return
    worst = min(range(first, len(paths)), key=lambda row: reference.found[row].clear)
    untold = f"{shifts.images - shifts.told} of {shifts.images}"
    raise ArgumentError(
        f"--follow: expected normal images on which the place of the part can be told, got {untold} on which it "
        f"cannot, the least clear {paths[worst]} ({reference.found[worst].clear:.2f}, at least "
        f"{LEAST_CLEAR:.2f} is needed). A texture has no place: leave --follow out, or draw the region around an edge "
        "of the part."
    )


def _followed(learned: Learned) -> str:
    place, shifts = learned.place, learned.shifts
    if not place.measured:
        return (
            f"note: fewer than {FEWEST} normal images were named, so the limit below which no place is told, "
            f"{place.least_clear:.2f}, was not measured. Name more with --normal."
        )
    return (
        f"note: the place of the part is told on {shifts.told} of {shifts.images} normal images; it shifts by "
        f"{shifts.median_px:.1f} pixels in the middle and {shifts.largest_px:.1f} at most. Less clear than "
        f"{place.least_clear:.2f} is a fault."
    )


def _said(shifts: PartShifts) -> str:
    if shifts.images < FEWEST:
        return f"note: expected at least {FEWEST} normal images to say how far the part shifts, got {shifts.images}."
    if not shifts.are_told:
        return (
            f"note: no shift of the part can be told on {shifts.images - shifts.told} of {shifts.images} normal "
            "images, as of a texture."
        )
    return (
        f"note: the part shifts by {shifts.median_px:.1f} pixels in the middle and {shifts.largest_px:.1f} at most, on "
        f"{shifts.told} normal images, and the region does not move: leave that margin around what counts, or use "
        f"--follow {math.ceil(shifts.largest_px) + 1}."
    )
