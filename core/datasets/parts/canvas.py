"""Drawing primitives of the rendered parts: units, antialiased shapes and smooth noise.

Parts are described in *units*: an image is 256 units wide whatever its size in pixels. Scenes are drawn at twice the
image's size and reduced at the end, so that edges are antialiased. All fields are float32; coordinates are (x, y) in
pixels of the double-size canvas, x to the right and y down; heights are in the same pixels, towards the camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array

UNITS = 256
SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates


@dataclass(frozen=True)
class Canvas:
    """Size of one scene. Frozen, because the cached designs use it as a key.

    Attributes:
        size: Side of the finished image in pixels.
    """

    size: int

    @property
    def side(self) -> int:
        """Side of the double-size canvas in pixels."""
        return self.size * SUPERSAMPLING

    @property
    def unit(self) -> float:
        """Canvas pixels per unit."""
        return self.side / UNITS


def colour(red: float, green: float, blue: float) -> Float32Array:
    """Return the linear reflectance [3] of a screen colour (0 to 255); `Camera.expose` takes the square root again."""
    return np.square(np.array([red, green, blue], np.float32) / 255)


def spread(field: Float32Array, tone: Float32Array | None = None) -> Float32Array:
    """Return a field [H, W] in three channels [H, W, 3], times a tone [3] if given."""
    # cv2.merge and not `field[..., None] * tone`: NumPy broadcasts a last axis of three ten times slower.
    planes = [field] * 3 if tone is None else [field * level for level in tone]
    return np.asarray(cv2.merge(planes), np.float32)


def blur(field: Float32Array, sigma: float, sigma_y: float | None = None) -> Float32Array:
    """Return a Gaussian blur of a field [H, W] or [H, W, C]; sigma in canvas pixels."""
    # Never 0: with a kernel size of 0 as well OpenCV refuses the call.
    return np.asarray(cv2.GaussianBlur(field, (0, 0), max(sigma, 0.1), sigmaY=max(sigma_y or sigma, 0.1)), np.float32)


def slopes(height: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return the derivatives of a height field [H, W] along x and y."""
    # A 3 x 3 Sobel sums the central difference over weights of 8: 0.125 makes it a slope per pixel.
    along_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    along_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    return np.asarray(along_x, np.float32), np.asarray(along_y, np.float32)


def warp(
    field: Float32Array, matrix: npt.NDArray[np.float64], shape: tuple[int, int], *, border: int = cv2.BORDER_CONSTANT
) -> Float32Array:
    """Return a field [H, W] or [H, W, C<=4] mapped by `matrix` [2, 3] (from source to target) onto `shape` [H', W']."""
    moved = cv2.warpAffine(field, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(moved, np.float32)


def rotation(
    angle: float, source: tuple[float, float], target: tuple[float, float], scale: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return the matrix [2, 3] that rotates by `angle` (radians) and scales about `source`, which moves to `target`."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array(
        [
            [cos, -sin, target[0] - cos * source[0] + sin * source[1]],
            [sin, cos, target[1] - sin * source[0] - cos * source[1]],
        ]
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Float32Array:
    """Return noise [H, W] of about unit variance whose features are about `cell` pixels wide."""
    # Two samples per cell and a blur: without the blur the bilinear grid would be visible. 3.6 restores the variance.
    rows, columns = (max(2, math.ceil(2 * side / cell) + 1) for side in shape)
    coarse = blur(rng.standard_normal((rows, columns), dtype=np.float32), 1.0) * np.float32(3.6)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3) -> Float32Array:
    """Return noise [H, W] of about unit variance with features from `cell` pixels down, halving every octave."""
    total = np.zeros(shape, np.float32)
    power = 0.0
    for octave in range(octaves):
        total += np.float32(0.5**octave) * smooth_noise(rng, shape, max(1.0, cell / 2**octave))
        power += 0.25**octave  # variances of independent octaves add up
    return total / np.float32(math.sqrt(power))


def smoothstep(field: Float32Array, low: float, high: float) -> Float32Array:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between them."""
    part = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), np.float32)


def _fixed(points: npt.ArrayLike) -> npt.NDArray[np.int32]:
    # Shapes are drawn at twice the canvas size: line widths then have steps of half a canvas pixel. A pixel centre at x
    # of the canvas lies at 2x + 0.5 of the drawing.
    return np.round((np.asarray(points, np.float64) * 2 + 0.5) * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)


def _reduced(drawing: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Float32Array:
    # By area: a reduction by exactly 2 is then the mean of 2 x 2 pixels, which is the coverage.
    small = cv2.resize(drawing, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)


def strokes(shape: tuple[int, int], lines: Sequence[npt.ArrayLike], width: float) -> Float32Array:
    """Return the coverage [H, W] (0 to 1) of polylines, each [K, 2], drawn `width` pixels wide with round ends."""
    drawing = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    points = [_fixed(line) for line in lines]
    cv2.polylines(drawing, points, False, 255, max(1, round(2 * width)), cv2.LINE_AA, _SHIFT)
    return _reduced(drawing, shape)


def polygons(shape: tuple[int, int], outlines: Sequence[npt.ArrayLike]) -> Float32Array:
    """Return the coverage [H, W] (0 to 1) of filled polygons, each [K, 2]; overlaps cancel (even-odd)."""
    # To unite polygons draw them one by one and take the maximum.
    drawing = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    cv2.fillPoly(drawing, [_fixed(outline) for outline in outlines], 255, cv2.LINE_AA, _SHIFT)
    return _reduced(drawing, shape)


def discs(shape: tuple[int, int], circles: Sequence[tuple[float, float, float]]) -> Float32Array:
    """Return the coverage [H, W] (0 to 1) of filled circles (x, y, radius)."""
    drawing = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    for x, y, radius in circles:
        centre = _fixed((x, y)).reshape(2)
        cv2.circle(
            drawing, (int(centre[0]), int(centre[1])), round(2 * radius * (1 << _SHIFT)), 255, -1, cv2.LINE_AA, _SHIFT
        )
    return _reduced(drawing, shape)


def rectangle(x: float, y: float, width: float, height: float, radius: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the outline [K, 2] of a rectangle with centre (x, y) and corners rounded by `radius`."""
    right, down = width / 2 - radius, height / 2 - radius
    corners = ((right, down), (-right, down), (-right, -down), (right, -down))
    turns = np.linspace(0, math.pi / 2, 5 if radius > 0 else 1)
    rows = [
        (
            x + cx + radius * math.cos(turn + quarter * math.pi / 2),
            y + cy + radius * math.sin(turn + quarter * math.pi / 2),
        )
        for quarter, (cx, cy) in enumerate(corners)
        for turn in turns
    ]
    return np.array(rows)


def bevel(coverage: Float32Array, width: float) -> Float32Array:
    """Return the height [H, W] of a shape whose rim rises from 0 to 1 over `width` pixels inside its edge."""
    inside = (coverage > 0.5).astype(np.uint8)
    distance = np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    return np.asarray(np.clip(distance / np.float32(width), 0, 1), np.float32)
