"""`flawscope bundle region`: set or remove the region of interest and the zones of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle.manifest import Manifest
from flawscope.bundle.opening import open_bundle
from flawscope.bundle.part_learning import look_at_part
from flawscope.bundle.region import Region, make_region, mask_on_map, region_mask
from flawscope.bundle.region_drawing import CORNERS, corners_of, drawn_mask, outlined, zone_masks
from flawscope.bundle.writing import change_bundle, check_changeable
from flawscope.bundle.zones import Zones, describe_zones, make_zones
from flawscope.errors import ArgumentError
from flawscope.files import check_new_file
from flawscope.imaging.aspect_ratios import stretch_of
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import with_outline
from flawscope.imaging.png import write_png
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo

_ALIKE = 1.05
"""Aspect ratios that differ by less are the same, as in `data inspect`."""
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--mask", type=_PATH, metavar="FILE", help="Image that is white where defects count.")
@click.option("--ignore-mask", type=_PATH, metavar="FILE", help="Image that is white where they do not count.")
@click.option("--polygon", "polygons", multiple=True, metavar=CORNERS, help="Outline of what counts; may be repeated.")
@click.option("--ignore", "ignored", multiple=True, metavar=CORNERS, help="Outline of what does not; may be repeated.")
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
@click.option(
    "--zone",
    "zones",
    nargs=2,
    multiple=True,
    metavar=f"NAME {CORNERS}",
    help="Outline of a zone, which gets a threshold of its own; may be repeated, also for one zone.",
)
@click.option(
    "--zone-mask",
    "zone_files",
    nargs=2,
    type=(str, _PATH),
    multiple=True,
    metavar="NAME FILE",
    help="Image that is white in a zone; may be repeated.",
)
@click.option("--clear", is_flag=True, help="Remove region and zones: defects count everywhere, alike.")
@click.option("--preview", type=_PATH, metavar="PNG", help="Write the image of --on with region and zones on it.")
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
    zones: tuple[tuple[str, str], ...],
    zone_files: tuple[tuple[str, Path], ...],
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

    Zones have thresholds of their own, and so has what lies in none of them (the zone rest). They take the place of the
    zones before, and so does a region without zones; zones alone leave the region as it is.
    """
    drawn = bool(mask or ignore_mask or polygons or ignored)
    if clear == bool(drawn or zones or zone_files):
        both = "got both" if clear else "got neither"
        raise click.UsageError(
            f"Expected --mask, --ignore-mask, --polygon, --ignore, --zone or --zone-mask, or else --clear, {both}."
        )
    if clear and (normals or follow_px is not None):
        raise click.UsageError("Expected no --follow and --normal with --clear.")
    if not drawn and (normals or follow_px is not None):
        raise click.UsageError("Expected a region, by --mask, --polygon or the like, with --follow and --normal.")
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
    if clear and manifest.region is None and manifest.drawn_zones is None:
        echo(f"{bundle}: had no region; nothing was changed.")
        return
    made, made_zones = None, None
    said: tuple[str, ...] = ()
    if not clear:
        paths = [path for path in (mask, ignore_mask, *(path for _, path in zone_files)) if path is not None]
        cornered = [
            name for name, given in (("--polygon", polygons), ("--ignore", ignored), ("--zone", zones)) if given
        ]
        masks, size = _read_masks(paths, photo, cornered)
        _check_shape(size, manifest)
        counted = _counted(mask, ignore_mask, polygons, ignored, masks, size)
        made = manifest.region
        if drawn:
            made = _region_of(counted, manifest)
            part, said = look_at_part(counted, image, normals, follow_px, manifest)
            made = msgspec.structs.replace(made, part=part)
        outlines = zone_masks([*zones], [(name, masks[path]) for name, path in zone_files], size)
        if outlines:
            if made is not None and made.followed is not None:
                raise ArgumentError(
                    f"{bundle}: expected zones in a region that stays, got one that follows the part, which zones do "
                    "not. Draw the region without --follow, or leave the zones out."
                )
            inside = None if made is None else region_mask(made, str(bundle))
            made_zones = make_zones(outlines, inside, manifest.map_spec)
        if preview is not None and photo is not None:
            shown = _preview(photo, counted) if drawn else photo
            write_png(preview, outlined(shown, outlines))
    change_bundle(bundle, manifest, lambda current: _with_region(current, made, made_zones))
    echo(_summary(bundle, made, made_zones, manifest))
    for line in said:
        echo(line, err=True)


def _read_masks(
    paths: Sequence[Path], photo: UInt8Array | None, cornered: Sequence[str]
) -> tuple[dict[Path, BoolArray], tuple[int, int]]:
    """Return the masks of files, bool [H, W], and the height and width that they and the image have.

    Args:
        paths: The files.
        photo: The image of `--on`.
        cornered: Options that were given with corners, which take an image or a mask.
    """
    masks = {path: drawn_mask(path) for path in paths}
    sizes = {str(path): (read.shape[0], read.shape[1]) for path, read in masks.items()}
    if photo is not None:
        sizes["--on"] = photo.shape[0], photo.shape[1]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} of {width}x{height}" for name, (height, width) in sizes.items())
        raise ArgumentError(f"region: expected masks and image of one size, got {listed}.")
    if cornered and not sizes:
        raise ArgumentError(f"{' and '.join(cornered)}: expected --on IMAGE, whose pixels the corners are, got none.")
    return masks, next(iter(sizes.values()))


def _counted(
    mask: Path | None,
    ignore_mask: Path | None,
    polygons: tuple[str, ...],
    ignored: tuple[str, ...],
    masks: Mapping[Path, BoolArray],
    size: tuple[int, int],
) -> BoolArray:
    """Return where defects count, bool [H, W] of the image that it was drawn on."""
    inside = np.zeros(size, np.uint8)
    if mask is not None:
        inside[masks[mask]] = 1
    for text in polygons:
        cv2.fillPoly(inside, [corners_of(text, size, "--polygon")], 1)
    if mask is None and not polygons:
        inside[:] = 1
    for text in ignored:
        cv2.fillPoly(inside, [corners_of(text, size, "--ignore")], 0)
    if ignore_mask is not None:
        inside[masks[ignore_mask]] = 0
    return inside > 0


def _region_of(counted: BoolArray, manifest: Manifest) -> Region:
    """Return the region of a mask, of which something is inspected."""
    made, spec = make_region(counted), manifest.map_spec
    if spec is not None and not mask_on_map(counted, spec, spec.size).any():
        raise ArgumentError(
            "region: expected a part of the image that is inspected, got one that the crop of the bundle cuts off, or "
            "that is smaller than a pixel of the map. Draw another."
        )
    return made


def _check_shape(size: tuple[int, int], manifest: Manifest) -> None:
    """Refuse what was drawn on an image unlike those of the bundle."""
    height, width = size
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


def _with_region(manifest: Manifest, made: Region | None, zones: Zones | None) -> Manifest:
    """Return a manifest with another region and zones, and without what was set or measured on scores of the old."""
    return msgspec.structs.replace(
        manifest,
        region=made,
        zones=msgspec.UNSET if zones is None else zones,
        thresholds=None,
        precisions={
            name: msgspec.structs.replace(precision, thresholds=None) for name, precision in manifest.precisions.items()
        },
        evidence=msgspec.structs.replace(manifest.evidence, accuracy=()),
    )


def _preview(photo: UInt8Array, counted: BoolArray) -> UInt8Array:
    """Return an image with what does not count darkened, and the outline of what counts in green."""
    return with_outline(np.where(counted[..., None], photo, photo // 3).astype(np.uint8), counted)


def _summary(bundle: Path, made: Region | None, zones: Zones | None, before: Manifest) -> str:
    what = "no region, defects count everywhere" if made is None else made.line
    if zones is not None:
        what += f"; zones {describe_zones(zones)}"
    elif before.drawn_zones is not None:
        what += "; its zones were removed"
    removed = "Its thresholds were removed; set new ones" if before.thresholds is not None else "Set thresholds"
    return f"{bundle}: {what}. {removed} with flawscope calibrate."
