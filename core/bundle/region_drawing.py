"""What users draw on an image of the part: masks in files, and polygons as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import read_stored
from flawscope.imaging.masks import read_mask

CORNERS = '"X,Y X,Y X,Y ..."'
"""How the corners of a polygon are written."""
_LEAST_CORNERS = 3
_MOST_BETWEEN = 0.05
"""Share of a mask between black and white: soft edges have less, photos more."""


def drawn_mask(path: Path) -> BoolArray:
    """Return the mask of a file of two levels, whose edges may be soft, bool [H, W].

    Raises:
        ArgumentError: If much of it lies between black and white.
        ImageError: If it cannot be read.
    """
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


def corners_of(text: str, size: tuple[int, ...], option: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Return the corners of a polygon as OpenCV takes them, int32 [K, 2].

    Args:
        text: Pairs X,Y in pixels with spaces between them.
        size: Height and width of the image.
        option: What the polygon is called in messages.

    Raises:
        ArgumentError: If it is no polygon, or leaves the image.
    """
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
            f"{option}: expected at least {_LEAST_CORNERS} corners {CORNERS} within {width}x{height} pixels, got "
            f"{text!r}."
        )
    corners_px = np.rint(points).astype(np.int32)
    if cv2.contourArea(corners_px) < 1.0:
        raise ArgumentError(f"{option}: expected corners around an area, got {text!r}, which are on one line.")
    return corners_px


def zone_masks(
    polygons: Sequence[tuple[str, str]], masks: Sequence[tuple[str, BoolArray]], size: tuple[int, int]
) -> dict[str, BoolArray]:
    """Return the mask of each zone, bool [H, W], in the order in which their names come first.

    Args:
        polygons: Names and corners; those of one name are taken together, as are its masks.
        masks: Names and masks, bool [H, W].
        size: Height and width of the image that they were drawn on.
    """
    drawn: dict[str, BoolArray] = {}
    for name, text in polygons:
        one = np.zeros(size, np.uint8)
        cv2.fillPoly(one, [corners_of(text, size, f"--zone {name}")], 1)
        drawn[name] = drawn.get(name, np.zeros(size, np.bool_)) | (one > 0)
    for name, mask in masks:
        drawn[name] = drawn.get(name, np.zeros(size, np.bool_)) | mask
    return drawn


def outlined(photo: UInt8Array, zones: Mapping[str, BoolArray]) -> UInt8Array:
    """Return an image with the outline of each zone in yellow, uint8 [H, W, 3] RGB."""
    shown, thickness = photo.copy(), max(1, round(max(photo.shape[:2]) / 400))
    for mask in zones.values():
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, (255, 210, 0), thickness)
    return shown
