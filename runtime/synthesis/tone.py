"""Brightness of a drawing and of the image that it is drawn on: gain and offset, fitted where nothing was drawn.

A network that draws a window from noise gives all of it a tone of its own. Pasted as it is, a box of that tone would
show as a grey rectangle, whatever was drawn in it.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.imaging.images import check_image

BAND_PX = 8
"""Pixels around the region that count neither as noise nor as spill: a feathered paste may change them."""

_ENOUGH = 64
"""Fewest pixels outside the region from which noise and a change of brightness are estimated."""

_TEXTURE = (2.0 / 255.0) ** 2
"""Variance below which the outside is too flat to separate gain and offset; the change then counts as an offset."""


def match_tone(drawn: UInt8Array, known: UInt8Array, region: BoolArray) -> UInt8Array:
    """Return a drawing at the brightness of the same window without a defect, uint8 [H, W, 3].

    Args:
        drawn: The window as it was drawn, uint8 [H, W, 3].
        known: The same window without a defect, through the same decoder, uint8 [H, W, 3].
        region: Where the defect is, bool [H, W]; gain and offset are fitted outside it. If it fills the window there is
            nothing to fit, and the drawing is returned as it is.

    Raises:
        ArgumentError: If shapes or dtypes differ.
    """
    check_image(drawn, "drawn")
    check_array(known, "known", drawn.shape, np.uint8)
    check_array(region, "mask", drawn.shape[:2], np.bool_)
    image, target = (array.astype(np.float32) / np.float32(255.0) for array in (drawn, known))
    matched = np.rint(align(image, target, outside_of(region)) * np.float32(255.0))
    return np.asarray(matched, np.uint8)


def outside_of(region: BoolArray) -> BoolArray:
    """Return where nothing was drawn: beyond the band around the region, else right beside it, else nowhere.

    Args:
        region: Where something was drawn, bool [H, W].
    """
    size = 2 * BAND_PX + 1
    for near in (cv2.dilate(region.astype(np.uint8), np.ones((size, size), np.uint8)) > 0, region):
        if np.count_nonzero(~near) >= _ENOUGH:
            return np.asarray(~near)
    return np.zeros_like(region)


def align(image: Float32Array, target: Float32Array, outside: BoolArray) -> Float32Array:
    """Return an image at the brightness of another: gain and offset per channel, fitted twice.

    The second fit leaves out outliers of the first. The gain is pulled to 1 where the outside is flat.

    Args:
        image: float32 [H, W, 3], 0 to 1.
        target: The image whose brightness it gets, float32 [H, W, 3], 0 to 1.
        outside: Where the two show the same, bool [H, W]; if it is empty the image is returned as it is.
    """
    if not outside.any():
        return image
    aligned = np.empty_like(image)
    for channel in range(3):
        x = image[..., channel][outside].astype(np.float64)
        y = target[..., channel][outside].astype(np.float64)
        # Clipped pixels do not follow the gain, and would flatten the fitted line.
        clipped = (np.minimum(x, y) <= 0.0) | (np.maximum(x, y) >= 1.0)
        if np.count_nonzero(~clipped) >= _ENOUGH:
            x, y = x[~clipped], y[~clipped]
        gain, offset = _fit(x, y)
        error = np.abs(y - gain * x - offset)
        near = error <= 3.0 * np.median(error) + 1e-6  # the constant keeps pixels where the median is 0
        gain, offset = _fit(x[near], y[near])
        aligned[..., channel] = np.clip(gain * image[..., channel] + offset, 0.0, 1.0)
    return aligned


def _fit(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    # Least squares, with _TEXTURE in numerator and denominator: as the variance goes to 0 the gain goes to 1.
    gain = (float(np.mean((x - x.mean()) * (y - y.mean()))) + _TEXTURE) / (float(x.var()) + _TEXTURE)
    return gain, float(y.mean() - gain * x.mean())
