"""Small boxes: cut out their surroundings, enlarge them for the model, and paste back what it has drawn.

A latent cell covers 8 x 8 pixels, so that a defect of 16 pixels is two cells wide. Enlarged, it is drawn with as many
cells as a large one. What is written back is

    out = round(a · drawn + (1 - a) · good)

where the weight a is 1 on the mask, falls off to 0 over the feather around it, and is exactly 0 beyond: there the
bytes of the good picture stay as they are, whatever the model's decoder has made of them.
"""

from __future__ import annotations

import math

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import check_array
from flawscope.errors import ArgumentError
from flawscope.images import BoolArray, UInt8Array, check_image

Float32Array = npt.NDArray[np.float32]


class Crop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window of a picture and the size at which the model sees it.

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
        """Rows and columns of the picture."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def crop_around(
    mask: BoolArray, size: tuple[int, int], *, fill: float = 0.5, max_zoom: float = 4.0, feather_px: int = 4
) -> Crop:
    """Return the window in which a box is drawn: as small as the box allows, in the shape of the model's input.

    The box with its feather takes at most `fill` of the window's height and width; the rest shows the model what it
    continues. The window lies around the middle of the box, moved where the picture ends. Where the picture is too
    small in one direction the window ends with it, and the enlargement differs between the two.

    Args:
        mask: Box or coarse mask, bool [H, W].
        size: Height and width in pixels of the model's input.
        fill: Largest share of the window's sides that the box takes, above 0 up to 1.
        max_zoom: Largest enlargement, at least 1: more would show the model a blur it has never seen.
        feather_px: The feather of the paste, in pixels of the picture, which must fit in the window.

    Raises:
        ArgumentError: If the mask is empty or a number is outside its range.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    _check_feather(feather_px)
    if min(size) < 1:
        raise ArgumentError(f"size: expected a height and width of at least 1 pixel, got {list(size)}.")
    if not 0.0 < fill <= 1.0:
        raise ArgumentError(f"fill: expected a share above 0 up to 1, got {fill}.")
    if not 1.0 <= max_zoom < math.inf:
        raise ArgumentError(f"max_zoom: expected a factor of at least 1, got {max_zoom}.")
    if not mask.any():
        raise ArgumentError("mask: expected at least one white pixel, got an all-black mask. Draw a box first.")
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    # One factor for both sides: pixels of the picture per pixel of the model's input.
    needed = max((height + 2 * feather_px) / size[0], (width + 2 * feather_px) / size[1]) / fill
    factor = max(needed, 1.0 / max_zoom)
    rows, columns = (
        min(picture, max(math.ceil(side * factor), box + 2 * feather_px))
        for picture, side, box in zip(mask.shape, size, (height, width), strict=True)
    )
    top = min(max(0, y + (height - rows) // 2), mask.shape[0] - rows)
    left = min(max(0, x + (width - columns) // 2), mask.shape[1] - columns)
    return Crop(top, left, rows, columns, (int(size[0]), int(size[1])))


def cut_image(image: UInt8Array, crop: Crop) -> UInt8Array:
    """Return the window at the model's size, uint8 [*crop.size, 3]: by area where both sides shrink, else bicubic.

    Raises:
        ArgumentError: If the window is not in the picture.
    """
    check_image(image)
    _check_crop(crop, image.shape[:2])
    return np.asarray(_resized(image[crop.window], crop.size), np.uint8)


def cut_mask(mask: BoolArray, crop: Crop) -> BoolArray:
    """Return a mask in the window at the model's size, bool [*crop.size]: a pixel is marked where any part of it is.

    Raises:
        ArgumentError: If the window is not in the mask.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    _check_crop(crop, mask.shape)
    # Rows and columns on their own: a thin box must survive a shrinking, and enlarged edges must stay where they are.
    rows, columns = (
        _spans(length, target) for length, target in zip((crop.height, crop.width), crop.size, strict=True)
    )
    inside = mask[crop.window].astype(np.int32)
    sums = np.pad(inside.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    high, low = np.ix_(rows[1], columns[1]), np.ix_(rows[0], columns[0])
    counts = sums[high] + sums[low] - sums[np.ix_(rows[1], columns[0])] - sums[np.ix_(rows[0], columns[1])]
    return np.asarray(counts > 0)


def feather_mask(mask: BoolArray, feather_px: int) -> Float32Array:
    """Return the weight of a paste, float32 [H, W]: 1 on the mask, falling linearly to 0 at a distance, 0 beyond.

    Args:
        mask: bool [H, W]; where it is empty, so is the weight.
        feather_px: Pixels around the mask that are blended; 0 for a hard edge. At the distance `feather_px + 1` from
            the mask, Euclidean, the weight is exactly 0.

    Raises:
        ArgumentError: If the feather is negative.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    _check_feather(feather_px)
    if feather_px == 0 or not mask.any():
        return mask.astype(np.float32)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.clip(1.0 - distance / np.float32(feather_px + 1), 0.0, 1.0), np.float32)


def paste_drawn(image: UInt8Array, drawn: UInt8Array, crop: Crop, weight: Float32Array) -> UInt8Array:
    """Return the picture with what was drawn; where the weight is 0 its pixels are the input's, bit for bit.

    Args:
        image: The good picture, uint8 [H, W, 3]; it is not changed.
        drawn: What the model made of the window, uint8 [*crop.size, 3].
        crop: The window.
        weight: From `feather_mask`, float32 [H, W], 0 to 1; 0 outside the window.

    Raises:
        ArgumentError: If shapes differ, the weight is no weight, or it reaches beyond the window, which would leave a
            hard edge there.
    """
    check_image(image)
    check_array(drawn, "drawn", (*crop.size, 3), np.uint8)
    check_array(weight, "weight", image.shape[:2], np.float32, finite=True)
    _check_crop(crop, image.shape[:2])
    if weight.min() < 0.0 or weight.max() > 1.0:
        raise ArgumentError(f"weight: expected 0 to 1, got {weight.min():.3g} to {weight.max():.3g}.")
    inside = weight[crop.window]
    if np.count_nonzero(weight) > np.count_nonzero(inside):
        raise ArgumentError(
            f"weight: expected 0 outside the window of {crop.height} x {crop.width} pixels, got a feathered mask that "
            "reaches beyond it. Cut a larger window, or feather less."
        )
    result = image.copy()
    window = result[crop.window]
    patch = np.asarray(_resized(drawn, (crop.height, crop.width)), np.float32)
    touched = inside > 0
    share = inside[touched][:, None]
    mixed = share * patch[touched] + (np.float32(1.0) - share) * window[touched].astype(np.float32)
    window[touched] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return result


def _resized(image: UInt8Array, size: tuple[int, int]) -> npt.NDArray[np.generic]:
    if image.shape[:2] == tuple(size):
        return image.copy()
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=method)


def _spans(length: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last-but-one source pixel that each of `target` pixels covers, in integers, so exactly."""
    index = np.arange(target, dtype=np.int64)
    return index * length // target, -(-(index + 1) * length // target)


def _check_crop(crop: Crop, size: tuple[int, ...]) -> None:
    fits = (
        crop.height >= 1
        and crop.width >= 1
        and 0 <= crop.top <= size[0] - crop.height
        and 0 <= crop.left <= size[1] - crop.width
    )
    if not fits:
        raise ArgumentError(
            f"crop: expected a window inside {size[1]}x{size[0]} pixels, got {crop.width}x{crop.height} at column "
            f"{crop.left}, row {crop.top}. Cut it from a picture of this size."
        )


def _check_feather(feather_px: int) -> None:
    if feather_px < 0:
        raise ArgumentError(f"feather_px: expected a number of pixels of at least 0, got {feather_px}.")
