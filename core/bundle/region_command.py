"""`flawscope bundle region`: set, show or remove the region of interest of a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle.manifest import Manifest
from flawscope.bundle.opening import open_bundle
from flawscope.bundle.part_learning import look_at_part
from flawscope.bundle.region import Region, make_region, mask_on_map
from flawscope.bundle.writing import change_bundle, check_changeable
from flawscope.errors import ArgumentError
from flawscope.files import check_new_file
from flawscope.imaging.aspect_ratios import stretch_of
from flawscope.imaging.images import read_image, read_stored
from flawscope.imaging.masks import read_mask, with_outline
from flawscope.imaging.png import write_png
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo

_ALIKE = 1.05
"""Aspect ratios that differ by less are the same, as in `data inspect`."""
_LEAST_CORNERS = 3
_MOST_BETWEEN = 0.05
"""Share of a mask between black and white: soft edges have less, photos more."""
_PATH = click.Path(path_type=Path)
_CORNERS = '"X,Y X,Y X,Y ..."'


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--mask", type=_PATH, metavar="FILE", help="Image that is white where defects count.")
@click.option("--ignore-mask", type=_PATH, metavar="FILE", help="Image that is white where they do not count.")
@click.option("--polygon", "polygons", multiple=True, metavar=_CORNERS, help="Outline of what counts; may be repeated.")
@click.option("--ignore", "ignored", multiple=True, metavar=_CORNERS, help="Outline of what does not; may be repeated.")
@click.option("--on", "image", type=_PATH, metavar="IMAGE", help="Image that the corners are pixels of.")
@click.option(
    "--follow",
    "follow_px",
    type=float,
    metavar="PX",
    help="Move the region with the part, up to PX pixels; a part further off is a fault.",
)
@click.option(
    "--normal",
    "normals",
    type=_PATH,
    multiple=True,
    metavar="PATH",
    help="Normal image, or a folder of them, to measure how far the part shifts; may be repeated.",
)
@click.option("--clear", is_flag=True, help="Remove the region: defects count everywhere.")
@click.option("--preview", type=_PATH, metavar="PNG", help="Write the image of --on with the region on it.")
@OVERWRITE
def region(
    bundle: Path,
    mask: Path | None,
    ignore_mask: Path | None,
    polygons: tuple[str, ...],
    ignored: tuple[str, ...],
    image: Path | None,
    follow_px: float | None,
    normals: tuple[Path, ...],
    clear: bool,
    preview: Path | None,
    overwrite: bool,
) -> None:
    """Say where in an image of BUNDLE defects count; its thresholds are removed, as they are of other scores.

    The score is then the largest value of the anomaly map inside the region, and there are no boxes outside of it. What
    counts is the mask and the polygons together, or the whole image where neither is given, without what is ignored.
    Masks and polygons are drawn on an image of the part as the camera gives it, and scaled to images of another size.

    The region stays where it was drawn, unless --follow moves it with the part: by the shift of each image against --on
    and the normal images. A part whose place cannot be told, or which lies further off, is then a fault.
    """
    drawn = bool(mask or ignore_mask or polygons or ignored)
    if clear == drawn:
        both = "got both" if clear else "got neither"
        raise click.UsageError(f"Expected --mask, --ignore-mask, --polygon or --ignore, or else --clear, {both}.")
    if clear and (normals or follow_px is not None):
        raise click.UsageError("Expected no --follow and --normal with --clear.")
    if preview is not None:
        if image is None or clear:
            raise click.UsageError("Expected --on IMAGE with --preview, and no --clear.")
        check_new_file(preview, overwrite=overwrite, kind="png")
    photo = None if image is None else read_image(image)
    # It is not run here, and its signature is dropped with the change.
    with open_bundle(bundle, check_signature=False) as opened:
        manifest = opened.manifest
    if manifest.kind != "score":
        raise ArgumentError(f"{bundle}: expected a bundle that scores, got one that draws defects.")
    check_changeable(bundle)
    if clear and manifest.region is None:
        echo(f"{bundle}: had no region; nothing was changed.")
        return
    made = None
    said: tuple[str, ...] = ()
    if drawn:
        counted = _counted(mask, ignore_mask, polygons, ignored, photo)
        made = make_region(counted)
        _check_fits(counted, manifest)
        part, said = look_at_part(counted, image, normals, follow_px, manifest)
        made = msgspec.structs.replace(made, part=part)
        if preview is not None and photo is not None:
            write_png(preview, _preview(photo, counted))
    had_thresholds = manifest.thresholds is not None
    change_bundle(bundle, manifest, lambda current: _with_region(current, made))
    echo(_summary(bundle, made, had_thresholds=had_thresholds))
    for line in said:
        echo(line, err=True)


def _counted(
    mask: Path | None,
    ignore_mask: Path | None,
    polygons: tuple[str, ...],
    ignored: tuple[str, ...],
    photo: UInt8Array | None,
) -> BoolArray:
    """Return where defects count, bool [H, W] of the image that it was drawn on."""
    masks = {path: _read_mask(path) for path in (mask, ignore_mask) if path is not None}
    sizes = {str(path): read.shape for path, read in masks.items()}
    if photo is not None:
        sizes["--on"] = photo.shape[:2]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} of {width}x{height}" for name, (height, width) in sizes.items())
        raise ArgumentError(f"region: expected masks and image of one size, got {listed}.")
    if (polygons or ignored) and not sizes:
        raise ArgumentError("--polygon: expected --on IMAGE, whose pixels the corners are, got none.")
    size = next(iter(sizes.values()))
    inside = np.zeros(size, np.uint8)
    if mask is not None:
        inside[masks[mask]] = 1
    for text in polygons:
        cv2.fillPoly(inside, [_corners(text, size)], 1)
    if mask is None and not polygons:
        inside[:] = 1
    for text in ignored:
        cv2.fillPoly(inside, [_corners(text, size)], 0)
    if ignore_mask is not None:
        inside[masks[ignore_mask]] = 0
    return inside > 0


def _read_mask(path: Path) -> BoolArray:
    """Return the mask of a file of two levels, whose edges may be soft."""
    stored = read_stored(path)
    grey = stored if stored.ndim == 2 else stored[..., :3].max(axis=2)
    share = grey.astype(np.float64) / max(1, int(grey.max()))
    between = float(((share > 0.1) & (share < 0.9)).mean())
    if between > _MOST_BETWEEN:
        raise ArgumentError(
            f"{path}: expected a mask, black and white, got an image of which {between:.0%} lies between. Draw the "
            "mask in an image of its own."
        )
    return read_mask(path)


def _corners(text: str, size: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Return the corners of a polygon as OpenCV takes them, int32 [K, 2]."""
    try:
        corners = [tuple(float(number) for number in pair.split(",")) for pair in text.split()]
        points = np.array(corners, np.float64)
    except ValueError:
        points = np.empty(0)
    height, width = size[:2]
    is_inside = points.ndim == 2 and points.shape[1] == 2 and len(points) >= _LEAST_CORNERS
    # NaN fails both comparisons.
    is_inside = is_inside and bool(((points >= 0) & (points <= (width, height))).all())
    if not is_inside:
        raise ArgumentError(
            f"--polygon: expected at least {_LEAST_CORNERS} corners {_CORNERS} within {width}x{height} pixels, got "
            f"{text!r}."
        )
    corners_px = np.rint(points).astype(np.int32)
    if cv2.contourArea(corners_px) < 1.0:
        raise ArgumentError(f"--polygon: expected corners around an area, got {text!r}, which are on one line.")
    return corners_px


def _check_fits(counted: BoolArray, manifest: Manifest) -> None:
    """Refuse a region that was drawn on an image unlike those of the bundle, or of which nothing is inspected."""
    height, width = counted.shape
    if manifest.learned is not None:
        low, high = manifest.learned.aspects
        aspect = width / height
        if not low / _ALIKE <= aspect <= high * _ALIKE:
            nearest = low if aspect < low else high
            raise ArgumentError(
                f"region: expected a mask as wide by high as the images that the bundle learned from ({low:.3g} to "
                f"{high:.3g}), got {width}x{height}, which would be stretched "
                f"{stretch_of((height, width), (1000, round(1000 * nearest))):.2f} times. Draw it on such an image."
            )
    spec = manifest.map_spec
    if spec is not None and not mask_on_map(counted, spec, spec.size).any():
        raise ArgumentError(
            "region: expected a part of the image that is inspected, got one that the crop of the bundle cuts off, or "
            "that is smaller than a pixel of the map. Draw another."
        )


def _with_region(manifest: Manifest, made: Region | None) -> Manifest:
    """Return a manifest with another region, and without what was set or measured on scores of the old one."""
    return msgspec.structs.replace(
        manifest,
        region=made,
        thresholds=None,
        precisions={
            name: msgspec.structs.replace(precision, thresholds=None) for name, precision in manifest.precisions.items()
        },
        evidence=msgspec.structs.replace(manifest.evidence, accuracy=()),
    )


def _preview(photo: UInt8Array, counted: BoolArray) -> UInt8Array:
    """Return an image with what does not count darkened, and the outline of what counts in green."""
    return with_outline(np.where(counted[..., None], photo, photo // 3).astype(np.uint8), counted)


def _summary(bundle: Path, made: Region | None, *, had_thresholds: bool) -> str:
    what = "no region, defects count everywhere" if made is None else made.line
    removed = "Its thresholds were removed; set new ones" if had_thresholds else "Set thresholds"
    return f"{bundle}: {what}. {removed} with flawscope calibrate."
