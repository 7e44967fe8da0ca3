"""Simple defects drawn on normal images of any part, with exact masks: for checks where there are no real defects.

They need not look real. Sizes are shares of the image's shorter side; every kind can be drawn
from hardly visible to clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.datasets.parts.canvas import blur, discs, fractal_noise, smoothstep, strokes
from flawscope.datasets.parts.marks import centred, jagged, wander

_SEEN = 3
"""Smallest change that counts, in grey levels of 8 bit: what changes less is left as it was."""
_LEAST_PIXELS = 4
"""A drawing that changes fewer is made again: no detector is asked for a single pixel."""
_TRIES = 20


def _place(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[float, float]:
    return float(rng.uniform(0.15, 0.85) * shape[1]), float(rng.uniform(0.15, 0.85) * shape[0])


def _width(rng: np.random.Generator, shape: tuple[int, int]) -> float:
    # At least a pixel and a half, or nothing would be left of it in a small image.
    return max(1.5, float(rng.uniform(0.006, 0.015)) * min(shape))


def _ragged(rng: np.random.Generator, shape: tuple[int, int], low: float, high: float) -> Float32Array:
    """Return the cover [H, W] of a ragged region whose radius is a share from `low` to `high` of the shorter side."""
    x, y = _place(rng, shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radius = max(2.0, float(rng.uniform(low, high)) * min(shape))
    distance = np.hypot(columns - x, rows - y) / radius
    ragged = distance + 0.3 * fractal_noise(rng, shape, max(2.0, radius / 2))
    return np.asarray(1.0 - smoothstep(ragged.astype(np.float32), 0.8, 1.1), np.float32)


def _shade(image: UInt8Array, cover: Float32Array, levels: float, rng: np.random.Generator) -> Float32Array:
    """Return the image darker or brighter by `levels` where it is covered, on the side on which there is room."""
    inside = image[cover > 0.5]
    mean = float(inside.mean()) if inside.size else float(image.mean())
    # Mostly darker, as cracks, holes and stains are.
    sign = -1.0 if rng.random() < 0.75 else 1.0
    if not 0.0 <= mean + sign * levels <= 255.0:
        sign = -sign
    return np.asarray(image + np.float32(sign * levels) * cover[:, :, None], np.float32)


def _crack(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    shape = image.shape[:2]
    length = rng.uniform(0.15, 0.4) * min(shape)
    lines = jagged(rng, _place(rng, shape), rng.uniform(0, 2 * math.pi), length)
    return _shade(image, strokes(shape, lines, _width(rng, shape)), 15 + 60 * strength, rng)


def _scratch(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    shape = image.shape[:2]
    line = wander(rng, (0.0, 0.0), rng.uniform(0, 2 * math.pi), rng.uniform(0.15, 0.5) * min(shape), 0.4)
    cover = strokes(shape, [centred(line, _place(rng, shape))], _width(rng, shape))
    return _shade(image, cover, 15 + 60 * strength, rng)


def _spot(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    shape = image.shape[:2]
    x, y = _place(rng, shape)
    radius = max(1.5, float(rng.uniform(0.015, 0.05)) * min(shape))
    cover = blur(discs(shape, [(x, y, radius)]), 0.004 * min(shape))
    return _shade(image, cover, 15 + 60 * strength, rng)


def _stain(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    return _shade(image, _ragged(rng, image.shape[:2], 0.06, 0.2), 8 + 32 * strength, rng)


def _moved(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    """A piece of another place of the image, mirrored; it lets what was there shine through where it is faint."""
    shape = image.shape[:2]
    cover = _ragged(rng, shape, 0.06, 0.15) * np.float32(0.3 + 0.7 * strength)
    turned = image[::-1, ::-1] if rng.random() < 0.5 else image[::-1]
    shift = (round(rng.uniform(0.25, 0.75) * shape[0]), round(rng.uniform(0.25, 0.75) * shape[1]))
    source = np.roll(turned, shift, axis=(0, 1)).astype(np.float32)
    return np.asarray(image + (source - image) * cover[:, :, None], np.float32)


def _smear(image: UInt8Array, strength: float, rng: np.random.Generator) -> Float32Array:
    """A region wiped along one direction, which takes its texture away."""
    shape = image.shape[:2]
    cover = _ragged(rng, shape, 0.08, 0.2)
    length = max(5, round((0.03 + 0.12 * strength) * min(shape)) | 1)
    angle = rng.uniform(0, math.pi)
    line = np.array([[-math.cos(angle), -math.sin(angle)], [math.cos(angle), math.sin(angle)]]) * length / 2
    kernel = strokes((length, length), [line + (length - 1) / 2], 2.0)
    wiped = cv2.filter2D(image.astype(np.float32), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(image + (wiped - image) * cover[:, :, None], np.float32)


KINDS: dict[str, Callable[[UInt8Array, float, np.random.Generator], Float32Array]] = {
    "crack": _crack,
    "scratch": _scratch,
    "spot": _spot,
    "stain": _stain,
    "moved": _moved,
    "smear": _smear,
}
"""Kind -> how it is drawn: `(image uint8 [H, W, 3], strength, source of chance) -> float32 [H, W, 3]`."""


def draw_defect(
    image: UInt8Array, kind: str, strength: float, rng: np.random.Generator
) -> tuple[UInt8Array, BoolArray] | None:
    """Return an image uint8 [H, W, 3] with one defect drawn, and its mask bool [H, W]: the pixels that differ.

    Args:
        image: A normal image.
        kind: A key of KINDS.
        strength: From 0, hardly visible, to 1, clear.
        rng: Source of chance.

    Returns:
        None where the kind leaves no visible trace, as a smear does on a plain area.
    """
    for _ in range(_TRIES):
        changed = np.clip(np.rint(KINDS[kind](image, strength, rng)), 0, 255).astype(np.uint8)
        # int16: a difference of uint8 would wrap around.
        mask = np.abs(changed.astype(np.int16) - image).max(axis=2) >= _SEEN
        if mask.sum() >= _LEAST_PIXELS:
            return np.where(mask[:, :, None], changed, image), mask
    return None
