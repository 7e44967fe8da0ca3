"""The region of interest of a bundle: where in an image a defect counts.

It is a mask in the manifest, drawn on an image of the part and scaled to every other. With a region an image's score is
the largest value of its anomaly map inside, and outside of it there are no boxes. Thresholds of scores without a region
do not fit scores with one: whoever sets a region has to calibrate again.
"""

from __future__ import annotations

from typing import Annotated

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.bundle.part_place import PartPlace
from flawscope.bundle.small_drawing import decode_drawing
from flawscope.errors import ArgumentError, BundleError, ImageError
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.imaging.png import encode_mask
from flawscope.ranges import MAX_SIDE, Share, Side

LARGEST_SIDE = 1024
"""Masks are stored with sides up to this: finer than any anomaly map, and a few kilobytes."""
SMALLEST_SIDE = 8
"""As of every image."""
MOST_BYTES = 1 << 18
"""Largest PNG of a mask in a manifest."""


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A region of interest.

    Attributes:
        png: The mask, a grey PNG with 255 where a defect counts and 0 elsewhere; base64 in the JSON.
        size: Height and width in pixels of the image that the region was drawn on.
        share: Share of the image that counts.
        part: Where the part lies that the region follows; not written where it follows none.
    """

    # In the manifest and not a file of its own: it changes without any other file of the bundle.
    png: Annotated[bytes, msgspec.Meta(min_length=8, max_length=MOST_BYTES)]
    size: tuple[Side, Side]
    share: Share
    # UNSET and not None: manifests of before keep their bytes, which the digest covers.
    part: PartPlace | msgspec.UnsetType = msgspec.UNSET

    @property
    def followed(self) -> PartPlace | None:
        """Where the part lies that the region follows, or None where it follows none."""
        return None if self.part is msgspec.UNSET else self.part

    @property
    def line(self) -> str:
        """What it does, for people."""
        follows = "" if self.followed is None else f"; it {self.followed.line}"
        return f"defects count in {self.share:.1%} of the image{follows}"


def make_region(mask: BoolArray) -> Region:
    """Return the region of a mask bool [H, W], true where a defect counts.

    Raises:
        ArgumentError: If it counts nowhere or everywhere, is larger than any image of a bundle, or has too many
            details to be stored.
    """
    if mask.all() or not mask.any():
        what = "everywhere. Remove the region with --clear" if mask.all() else "nowhere. Draw what has to be inspected"
        raise ArgumentError(f"region: expected a mask with a part that counts and one that does not, got {what}.")
    height, width = mask.shape
    if min(height, width) < SMALLEST_SIDE or max(height, width) > MAX_SIDE:
        raise ArgumentError(
            f"region: expected sides from {SMALLEST_SIDE} to {MAX_SIDE} pixels, got {width}x{height}. Draw it on an "
            "image of the part."
        )
    # Averaged and compared with a half: by nearest pixels a thin line would break up.
    small = cv2.resize(mask.astype(np.float32), stored_size(mask.shape)[::-1], interpolation=cv2.INTER_AREA) >= 0.5
    if small.all() or not small.any():
        raise ArgumentError(f"region: expected parts of more than a few pixels, got {width}x{height} with less.")
    png = encode_mask(small)
    if len(png) > MOST_BYTES:
        raise ArgumentError(
            f"region: expected a mask that takes at most {MOST_BYTES >> 10} KiB as PNG, got {len(png) >> 10} KiB. "
            "Draw simpler outlines."
        )
    return Region(png, (height, width), float(small.mean()))


def stored_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width that a mask [H, W] is stored with."""
    height, width = shape
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return max(SMALLEST_SIDE, round(height * scale)), max(SMALLEST_SIDE, round(width * scale))


def region_mask(region: Region, where: str) -> BoolArray:
    """Return the mask of a region, bool [h, w], true where a defect counts; h and w are at most 1024.

    Args:
        region: The region.
        where: What its bundle is called in messages.

    Raises:
        BundleError: If its PNG is broken or larger, or counts everywhere or nowhere.
    """
    try:
        stored = decode_drawing(region.png, "region", LARGEST_SIDE)
    except ImageError as err:
        raise BundleError(f"{where}: expected a region of interest as PNG, got {err} Set it again.") from err
    if stored.ndim != 2:
        raise BundleError(f"{where}: expected a grey region of interest, got shape {list(stored.shape)}. Set it again.")
    mask = stored > 0
    if mask.all() or not mask.any():
        raise BundleError(f"{where}: expected a region of interest with two parts, got one. Set it again.")
    return mask


def mask_on_map(mask: BoolArray, spec: Preprocessing | None, shape: tuple[int, int]) -> BoolArray:
    """Return which pixels of an anomaly map lie in a region.

    Args:
        mask: That of the region, bool [h, w].
        spec: The geometry of the map; None where it shows the whole image, see `Manifest.map_spec`.
        shape: Height and width of the map.
    """
    if spec is not None:
        return prepare_mask(mask, spec)
    resized = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized > 0
