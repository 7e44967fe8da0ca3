"""Anomalies as DRAEM has them: a thresholded Perlin noise as the mask, and a texture blended into the image there.

    out = (1 - mask) · image + mask · ((1 - opacity) · image + opacity · texture)

Source: DRAEM (arXiv:2108.07610), with an opacity from 0.1 to 1. Departures: the mask is that of the pixels that really
change; the noise may be kept to the part; textures may be made here, where there is no folder of them.
"""

from __future__ import annotations

import math

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.datasets.drawing.changes import keep_changes
from flawscope.errors import ArgumentError
from flawscope.imaging.images import check_image

LEAST_PIXELS = 4
_OCTAVES = 6
"""The grid of the noise has 1, 2, 4, ... 32 cells along each axis, drawn apart for the two."""


class PerlinOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How Perlin anomalies are drawn.

    Attributes:
        opacity: Range of the share of the texture.
        threshold: The mask is where the noise is above it, 0.05 to 0.95.
        level: Least change that belongs to the mask, in grey levels of 8 bit; what changes less is left as it was.
    """

    opacity: tuple[float, float] = (0.1, 1.0)
    threshold: float = 0.5
    level: int = 4

    def __post_init__(self) -> None:
        low, high = self.opacity
        if not 0.01 <= low <= high <= 1.0:
            raise ArgumentError(f"opacity: expected two rising numbers from 0.01 to 1, got {low:g} and {high:g}.")
        if not 0.05 <= self.threshold <= 0.95:
            raise ArgumentError(f"threshold: expected a number from 0.05 to 0.95, got {self.threshold:g}.")
        if not 1 <= self.level <= 255:
            raise ArgumentError(f"level: expected 1 to 255 grey levels, got {self.level}.")


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    """Return Perlin noise, float32 [H, W], about -1 to 1.

    Args:
        size: Height and width.
        cells: Cells of the grid of gradients along each axis.
        rng: Random generator.
    """
    angles = rng.uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    y, x = _axis(size[0], cells[0]), _axis(size[1], cells[1])
    rows, columns = y.astype(np.int64), x.astype(np.int64)
    dy, dx = (y - rows).astype(np.float32)[:, None], (x - columns).astype(np.float32)[None, :]

    def along(row: int) -> Float32Array:
        """Return the noise of the grid's lines `row` below each pixel, blended along x."""
        # Rows of the grid, of which there are few, are spread along x first, then to all rows of the image.
        sines, cosines = np.sin(angles), np.cos(angles)
        fade = _fade(dx)
        left, right = np.s_[:, columns], np.s_[:, columns + 1]
        slope = sines[left] + fade * (sines[right] - sines[left])
        flat = cosines[left] * dx + fade * (cosines[right] * (dx - 1) - cosines[left] * dx)
        return np.asarray(slope[rows + row] * (dy - row) + flat[rows + row], np.float32)

    upper = along(0)
    return np.asarray(np.float32(math.sqrt(2)) * (upper + _fade(dy) * (along(1) - upper)), np.float32)


def _axis(length: int, cells: int) -> Float32Array:
    places = np.arange(length, dtype=np.float32) * np.float32(cells / length)
    # Below the last line by a little: rounding may not lead beyond the grid.
    return np.asarray(np.minimum(places, np.float32(cells - 1e-3)), np.float32)


def _fade(t: Float32Array) -> Float32Array:
    return np.asarray(t * t * t * (t * (t * 6 - 15) + 10), np.float32)


def perlin_mask(size: tuple[int, int], rng: np.random.Generator, threshold: float = 0.5) -> BoolArray:
    """Return a random mask, bool [H, W]: Perlin noise of random cells, turned at random, above a threshold."""
    cells = (int(2 ** rng.integers(_OCTAVES)), int(2 ** rng.integers(_OCTAVES)))
    noise = perlin_noise(size, cells, rng)
    turn = cv2.getRotationMatrix2D(((size[1] - 1) / 2, (size[0] - 1) / 2), float(rng.uniform(-90, 90)), 1.0)
    return np.asarray(cv2.warpAffine(noise, turn, size[::-1]) > threshold)


def perlin_anomaly(
    image: UInt8Array,
    texture: UInt8Array,
    rng: np.random.Generator,
    options: PerlinOptions | None = None,
    *,
    within: BoolArray | None = None,
    tries: int = 100,
) -> tuple[UInt8Array, BoolArray] | None:
    """Return an image with a Perlin anomaly and the mask of the pixels that differ, or None if nothing came of it.

    Args:
        image: A normal image, uint8 [H, W, 3] RGB.
        texture: What is blended in, uint8 [h, w, 3] RGB; brought to the image's size.
        rng: Random generator.
        options: How it is drawn.
        within: Where anomalies may lie, bool [H, W]; None allows every place.
        tries: Most masks drawn: some are empty.
    """
    options = options or PerlinOptions()
    check_image(image)
    check_image(texture, "texture")
    size = (image.shape[0], image.shape[1])
    if within is not None:
        check_array(within, "within", size, np.bool_)
    if texture.shape != image.shape:
        texture = np.asarray(cv2.resize(texture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    for _ in range(tries):
        region = perlin_mask(size, rng, options.threshold)
        opacity = float(rng.uniform(*options.opacity))
        if within is not None:
            region &= within
        if np.count_nonzero(region) < LEAST_PIXELS:
            continue
        # The whole image at once: a few times quicker than the pixels of the mask alone.
        mixed = np.asarray(cv2.addWeighted(image, 1 - opacity, texture, opacity, 0.0), np.uint8)
        drawn, mask = keep_changes(image, mixed, region, options.level)
        if np.count_nonzero(mask) >= LEAST_PIXELS:
            return drawn, mask
    return None
