"""Crops around boxes: the window of an image that the model sees, the same in training and at run time.

A latent cell covers 8 x 8 pixels, so a defect of 16 pixels is two cells wide. Cropped with its surroundings and
enlarged, a small defect is drawn with as many cells as a large one.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array, check_array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import check_image


class Crop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window of an image and the size at which the model sees it.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
        size: Height and width in pixels of the model's input.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def crop_around(
    mask: BoolArray, size: tuple[int, int], *, fill: float = 0.5, max_zoom: float = 4.0, feather_px: int = 4
) -> Crop:
    """Return the window in which a box is drawn: as small as the box allows, in the shape of the model's input.

    The box with its feather takes at most `fill` of the window's height and width; the rest is context for the model.
    The window is centred on the box and shifted where it would leave the image. Where the image is too small along one
    axis, the window takes all of it and the two axes are scaled differently.

    Args:
        mask: Box or coarse mask, bool [H, W].
        size: Height and width in pixels of the model's input.
        fill: Largest share of the window's sides that the box takes, above 0 up to 1.
        max_zoom: Largest enlargement, at least 1; beyond it the model would see more blur than in training.
        feather_px: The feather of the paste, in pixels of the image, which must fit in the window.

    Raises:
        ArgumentError: If the mask is empty or a number is outside its range.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    check_feather(feather_px)
    if min(size) < 1:
        raise ArgumentError(f"size: expected a height and width of at least 1 pixel, got {list(size)}.")
    if not 0.0 < fill <= 1.0:
        raise ArgumentError(f"fill: expected a share above 0 up to 1, got {fill}.")
    if not 1.0 <= max_zoom < math.inf:
        raise ArgumentError(f"max_zoom: expected a factor of at least 1, got {max_zoom}.")
    if not mask.any():
        raise ArgumentError("mask: expected at least one white pixel, got an all-black mask. Draw a box first.")
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    # One factor for both sides: pixels of the image per pixel of the model's input.
    needed = max((height + 2 * feather_px) / size[0], (width + 2 * feather_px) / size[1]) / fill
    factor = max(needed, 1.0 / max_zoom)
    rows, columns = (
        # max: rounding of the factor must not make the window smaller than the box with its feather.
        min(image, max(math.ceil(side * factor), box + 2 * feather_px))
        for image, side, box in zip(mask.shape, size, (height, width), strict=True)
    )
    top = min(max(0, y + (height - rows) // 2), mask.shape[0] - rows)
    left = min(max(0, x + (width - columns) // 2), mask.shape[1] - columns)
    return Crop(top, left, rows, columns, (int(size[0]), int(size[1])))


def cut_image(image: UInt8Array, crop: Crop) -> UInt8Array:
    """Return the window at the model's size, uint8 [*crop.size, 3]: by area where both sides shrink, else bicubic.

    Raises:
        ArgumentError: If the window is not in the image.
    """
    check_image(image)
    check_crop(crop, image.shape[:2])
    return np.asarray(resize_window(image[crop.window], crop.size), np.uint8)


def cut_mask(mask: BoolArray, crop: Crop) -> BoolArray:
    """Return a mask in the window at the model's size, bool [*crop.size]: a pixel is marked where any part of it is.

    Raises:
        ArgumentError: If the window is not in the mask.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    check_crop(crop, mask.shape)
    # Not cv2.resize: nearest can drop a thin box when it shrinks, and area or linear would move the edges of an
    # enlarged one. A summed-area table counts the source pixels below each target pixel exactly.
    rows, columns = (
        _spans(length, target) for length, target in zip((crop.height, crop.width), crop.size, strict=True)
    )
    inside = mask[crop.window].astype(np.int32)
    sums = np.pad(inside.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    high, low = np.ix_(rows[1], columns[1]), np.ix_(rows[0], columns[0])
    counts = sums[high] + sums[low] - sums[np.ix_(rows[1], columns[0])] - sums[np.ix_(rows[0], columns[1])]
    return np.asarray(counts > 0)


def resize_window(image: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.generic]:
    """Return an image at another height and width: by area where both sides shrink, else bicubic."""
    if image.shape[:2] == tuple(size):
        return image.copy()
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    # A window is a strided view, which OpenCV may refuse. Its sizes are (width, height).
    return cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=method)


def _spans(length: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return first and one-past-last source pixel that each of `target` pixels covers; in integers, hence exact."""
    index = np.arange(target, dtype=np.int64)
    # -(-a // b) rounds up.
    return index * length // target, -(-(index + 1) * length // target)


def check_crop(crop: Crop, size: tuple[int, ...]) -> None:
    """Raise ArgumentError unless a window lies in an image of this height and width."""
    fits = (
        crop.height >= 1
        and crop.width >= 1
        and 0 <= crop.top <= size[0] - crop.height
        and 0 <= crop.left <= size[1] - crop.width
    )
    if not fits:
        raise ArgumentError(
            f"crop: expected a window inside {size[1]}x{size[0]} pixels, got {crop.width}x{crop.height} at column "
            f"{crop.left}, row {crop.top}. Cut it from an image of this size."
        )


def check_feather(feather_px: int) -> None:
    """Raise ArgumentError if a feather is negative."""
    if feather_px < 0:
        raise ArgumentError(f"feather_px: expected a number of pixels of at least 0, got {feather_px}.")
