"""Renders a brushed steel sheet: long brush lines, a soft band of anisotropic gloss, and its defects.

Brush lines scatter light across themselves but hardly along themselves, so the lamp appears as a bright band across the
image; a slope along the lines moves the band, which is how dents become visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.datasets.parts import marks
from flawscope.datasets.parts.canvas import (
    Canvas,
    blur,
    colour,
    discs,
    rotation,
    slopes,
    smooth_noise,
    smoothstep,
    spread,
    warp,
)
from flawscope.datasets.parts.optics import Light

DEFECTS = ("scratch", "dent", "stain", "pitting", "fibre")
_MARGIN = 1.6  # side of the cached sheet over side of the canvas: images are cut from different places of it


@dataclass
class _Sheet:
    """Layers that a defect may change in place: height, a factor on reflectance (None: 1) and a factor on gloss."""

    height: Float32Array
    tint: Float32Array | None
    gloss: Float32Array

    def dye(self, factor: Float32Array) -> None:
        """Multiply reflectance by `factor` [side, side, 3]."""
        self.tint = factor if self.tint is None else self.tint * factor


@lru_cache(maxsize=2)
def _grain(layout: int, canvas: Canvas) -> Float32Array:
    """Return the brush lines of a large sheet, [C, C, 2]: reflectance deviation and slope, of unit variance."""
    rng = np.random.default_rng(layout)
    side, unit = int(canvas.side * _MARGIN), canvas.unit
    layers = []
    for lengths in (((90, 1.0), (28, 0.7), (7, 0.35)), ((60, 1.0), (16, 0.8))):
        total = np.zeros((side, side), np.float32)
        for length, weight in lengths:
            lines = rng.standard_normal((side, side), dtype=np.float32)
            # `| 1` makes the kernel odd: an even one would shift the lines by half a pixel.
            lines = np.asarray(cv2.blur(lines, (int(length * unit) | 1, 1)), np.float32)
            lines = blur(lines, 0.1, 0.35 * unit)
            total += np.float32(weight) * lines / lines.std()  # blurring has reduced the variance
        layers.append(total / total.std())
    # A few lines were cut deeper than the rest by coarse grit.
    deep = (rng.random((side, side)) > 1 - 0.00045 / unit).astype(np.float32)
    deep = np.asarray(cv2.blur(deep, (int(70 * unit) | 1, 1)), np.float32)
    layers[0] -= np.clip(blur(deep, 3 * unit, 0.3 * unit) * 55 * unit, 0, 2.2)
    layers[0] += np.float32(0.25) * smooth_noise(rng, (side, side), 40 * unit)
    return np.stack(layers, axis=2)


def scene(
    layout: int, canvas: Canvas, rng: np.random.Generator, light: Light, defect: str | None, chance: np.random.Generator
) -> Float32Array:
    """Return a linear scene [side, side, 3] of the sheet.

    Args:
        layout: Seed of what all images of a dataset share.
        canvas: Size of the scene.
        rng: Generator of this image: place on the sheet, small rotation, gloss.
        light: The lamp.
        defect: One of `DEFECTS`, or None for a normal part.
        chance: Generator of the defect.
    """
    sheet = _grain(layout, canvas)
    side = canvas.side
    # 1.06: the window must lie on the sheet when it is rotated and scaled, too.
    slack = (sheet.shape[0] - 1.06 * side) / 2
    middle = sheet.shape[0] / 2
    source = (middle + rng.uniform(-slack, slack), middle + rng.uniform(-slack, slack))
    matrix = rotation(math.radians(rng.uniform(-1, 1)), source, (side / 2, side / 2), rng.uniform(0.985, 1.015))
    matrix[:, 0] *= rng.choice([-1, 1])
    if matrix[0, 0] < 0:  # a mirrored window keeps its centre
        matrix[:, 2] += -2 * matrix[:, 0] * source[0]
    grain = warp(sheet, matrix, (side, side), border=cv2.BORDER_REFLECT)
    band, width = side * (0.45 - 0.35 * light.half[0] + rng.uniform(-0.06, 0.06)), side * rng.uniform(0.5, 0.62)
    part = _Sheet(np.zeros((side, side), np.float32), None, np.ones((side, side), np.float32))
    if defect in _CHANGES:
        _CHANGES[defect](part, chance, canvas)
    along_x, along_y = slopes(part.height)
    x = np.arange(side, dtype=np.float32)[None, :]
    tone, slant = cv2.split(grain)
    shine = np.asarray(cv2.addWeighted(along_x, 2.6, slant, 0.16, 0), np.float32)
    shine += (x - np.float32(band)) / np.float32(width)
    shine *= shine * np.float32(-1.4)
    np.exp(shine, out=shine)
    shine /= 1 + 3 * along_y * along_y
    lamp_x, lamp_y, lamp_z = light.direction
    diffuse = np.asarray(cv2.addWeighted(along_x, -lamp_x, along_y, -lamp_y, lamp_z), np.float32)
    np.maximum(diffuse, 0, out=diffuse)
    lines = 1 + np.float32(0.105) * np.asarray(tone, np.float32)
    steel = spread((np.float32(0.25) + np.float32(0.75 / lamp_z) * diffuse) * lines, colour(140, 141, 143))
    gloss = spread(shine * part.gloss * lines, colour(119, 120, 122))
    if part.tint is not None:
        steel *= part.tint
        gloss *= np.sqrt(part.tint)  # gloss takes less of a stain's colour than the metal below it
    image = steel + gloss
    if defect == "fibre":
        image = marks.add_hair(image, chance, canvas, light, _place(chance, canvas))
    return np.asarray(image, np.float32)


def _place(chance: np.random.Generator, canvas: Canvas, margin: float = 0.16) -> tuple[float, float]:
    low, high = margin * canvas.side, (1 - margin) * canvas.side
    return float(chance.uniform(low, high)), float(chance.uniform(low, high))


def _scratch(part: _Sheet, chance: np.random.Generator, canvas: Canvas) -> None:
    shape, unit = part.gloss.shape, canvas.unit
    # Scratches run across the brush lines: along them they would look like brush lines.
    heading = chance.choice([-1, 1]) * chance.uniform(0.35, 1.5)
    place = _place(chance, canvas)
    length, depth = chance.uniform(30, 130) * unit, chance.uniform(0.35, 1.0)
    for _ in range(1 if chance.random() < 0.7 else 2):
        line = marks.centred(marks.wander(chance, (0, 0), heading, length, 0.25), place)
        fade = marks.uneven(chance, (shape[0], shape[1]), 10 * unit, 0.45)
        groove = marks.tapered((shape[0], shape[1]), line, chance.uniform(0.8, 1.7) * unit, fade)
        part.height -= np.float32(depth * 1.1 * unit) * blur(groove, 0.5 * unit)
        tone = chance.choice([0.45, 1.5])  # a fresh scratch glints, an old one is dark
        part.dye(spread(1 + np.float32(depth * (tone - 1)) * groove))
        part.gloss *= 1 + np.float32(depth * (tone - 1)) * groove
        place = (place[0] + chance.normal(0, 5) * unit, place[1] + chance.normal(0, 5) * unit)


def _dent(part: _Sheet, chance: np.random.Generator, canvas: Canvas) -> None:
    shape, unit = part.gloss.shape, canvas.unit
    radius = chance.uniform(7, 18) * unit
    field = marks.blob(chance, (shape[0], shape[1]), _place(chance, canvas), radius, 0.08)
    bowl = smoothstep(field, -0.35, 0.9)
    part.height -= np.float32(chance.uniform(0.16, 0.34) * radius) * blur(bowl, 0.1 * radius)


def _stain(part: _Sheet, chance: np.random.Generator, canvas: Canvas) -> None:
    shape, unit = part.gloss.shape, canvas.unit
    field = marks.blob(chance, (shape[0], shape[1]), _place(chance, canvas), chance.uniform(8, 30) * unit, 0.4)
    tints = (colour(170, 135, 90), colour(130, 150, 190), colour(120, 112, 100))  # rust water, heat tint, oil
    tint = marks.stain_tint(chance, field, tints[int(chance.integers(3))], chance.uniform(0.35, 0.9))
    part.dye(tint)
    part.gloss *= tint.mean(axis=2)


def _pitting(part: _Sheet, chance: np.random.Generator, canvas: Canvas) -> None:
    shape, unit = part.gloss.shape, canvas.unit
    x, y = _place(chance, canvas)
    count, scatter = int(chance.integers(2, 16)), chance.uniform(3, 14) * unit
    pits = [
        (x + chance.normal(0, scatter), y + chance.normal(0, scatter), chance.uniform(0.9, 2.9) * unit)
        for _ in range(count)
    ]
    # Corrosion eats ragged pits, not round ones.
    ragged = 1 + np.float32(0.35) * smooth_noise(chance, (shape[0], shape[1]), 1.6 * unit)
    floor = smoothstep(blur(discs((shape[0], shape[1]), pits), 0.6 * unit) * ragged, 0.2, 0.75)
    part.height -= np.float32(1.2 * unit) * floor
    tarnish = np.clip(blur(floor, 3 * unit) * (1 + np.float32(0.4) * smooth_noise(chance, floor.shape, 5 * unit)), 0, 1)
    eaten = np.clip(floor * 0.75 + tarnish * 0.6, 0, 0.92) * np.float32(chance.uniform(0.4, 1.0))
    part.dye(1 - spread(np.asarray(eaten, np.float32), 1 - colour(118, 88, 62)))
    part.gloss *= 1 - np.asarray(eaten, np.float32)


_CHANGES = {"scratch": _scratch, "dent": _dent, "stain": _stain, "pitting": _pitting}
