"""Shapes of defects that several parts share: wandering lines, cracks, blobs and hairs.

The order of the random draws is part of the result: a draw that is added, moved or removed changes the pixels that
follow from the same seed, and needs a new `GENERATOR_VERSION`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.datasets.parts.canvas import (
    Canvas,
    blur,
    colour,
    fractal_noise,
    smooth_noise,
    smoothstep,
    spread,
    strokes,
)
from flawscope.datasets.parts.optics import Light

Points = npt.NDArray[np.float64]


def wander(
    rng: np.random.Generator, start: tuple[float, float], heading: float, length: float, bend: float, steps: int = 24
) -> Points:
    """Return a smooth wandering line [steps + 1, 2].

    Args:
        rng: Random generator.
        start: First point (x, y).
        heading: First direction in radians.
        length: Length along the line in pixels.
        bend: Standard deviation of the total turn in radians.
        steps: Number of segments.
    """
    # A constant curvature plus a random walk; steps**1.5 keeps the walk's turn free of `steps`.
    turn = rng.normal(0, bend / steps)
    turns = turn + np.cumsum(rng.normal(0, 2 * bend / steps**1.5, steps))
    headings = heading + np.cumsum(turns)
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return np.asarray(np.vstack([[start], np.asarray(start) + np.cumsum(moves, axis=0)]), np.float64)


def centred(line: Points, centre: tuple[float, float]) -> Points:
    """Return `line` moved so that its middle lies on `centre`."""
    return np.asarray(line + (np.asarray(centre) - (line.min(axis=0) + line.max(axis=0)) / 2), np.float64)


def jagged(rng: np.random.Generator, start: tuple[float, float], heading: float, length: float) -> list[Points]:
    """Return the lines of a crack: a zigzag trunk [K, 2] and up to two branches."""
    steps = max(6, int(length / 5))  # five canvas pixels a segment
    headings = heading + np.cumsum(rng.normal(0, 0.14, steps)) + rng.normal(0, 0.32, steps)
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    trunk: Points = np.vstack([[start], np.asarray(start) + np.cumsum(moves, axis=0)])
    lines = [trunk]
    for _ in range(int(rng.integers(0, 3))):
        knot = trunk[int(rng.integers(steps // 3, steps))]
        side = heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.0)
        few = max(3, steps // 4)
        turns = side + rng.normal(0, 0.45, few)
        branch = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (length / steps)
        lines.append(np.vstack([[knot], knot + np.cumsum(branch, axis=0)]))
    return lines


def tapered(shape: tuple[int, int], line: Points, width: float, fade: Float32Array | None = None) -> Float32Array:
    """Return the coverage [H, W] of a line that thins out towards both ends, times `fade` where given."""
    count = len(line) - 1
    total = np.zeros(shape, np.float32)
    # Three strokes over each other, thin over the whole length and thick in the middle; maxima, as they overlap.
    for share, low, high in ((0.5, 0.0, 1.0), (0.75, 0.1, 0.9), (1.0, 0.25, 0.75)):
        part = line[int(low * count) : int(high * count) + 2]
        np.maximum(total, strokes(shape, [part], width * share) * np.float32(0.55 + 0.45 * share), out=total)
    return total if fade is None else total * fade


def uneven(rng: np.random.Generator, shape: tuple[int, int], cell: float, least: float) -> Float32Array:
    """Return a factor [H, W] from `least` to 1 that varies over about `cell` pixels, for lines of uneven strength."""
    strength = np.float32(0.8) + np.float32(0.5) * smooth_noise(rng, shape, cell)
    return np.asarray(np.clip(strength, least, 1), np.float32)


def blob(
    rng: np.random.Generator, shape: tuple[int, int], centre: tuple[float, float], radius: float, rough: float = 0.3
) -> Float32Array:
    """Return a field [H, W] that is 1 in the centre of an irregular patch, 0 on its edge and negative outside.

    Args:
        rng: Random generator.
        shape: Height and width.
        centre: Middle (x, y) in pixels.
        radius: Mean radius in pixels.
        rough: Raggedness of the outline, as a share of the radius.
    """
    # Along one axis by `stretch` and across it by its inverse: the area stays that of `radius`.
    stretch, turn = rng.uniform(0.65, 1.0), rng.uniform(0, math.pi)
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(centre[0])
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(centre[1])
    along = (x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))) * np.float32(stretch)
    across = (y * np.float32(math.cos(turn)) - x * np.float32(math.sin(turn))) / np.float32(stretch)
    distance = np.sqrt(along * along + across * across) / np.float32(radius)
    return 1 - distance + np.float32(rough) * fractal_noise(rng, shape, max(radius * 0.9, 2), 3)


def stain_tint(rng: np.random.Generator, field: Float32Array, tint: Float32Array, strength: float) -> Float32Array:
    """Return the factor [H, W, 3] by which a dried stain changes reflectance: tinted, with a darker rim.

    Args:
        rng: Random generator.
        field: A `blob` field [H, W].
        tint: Reflectance factor [3] of the full stain.
        strength: Opacity from 0 to 1.
    """
    body = smoothstep(field, 0.0, rng.uniform(0.12, 0.45))
    rim = body * (1 - smoothstep(field, 0.05, rng.uniform(0.2, 0.35)))
    opacity = np.clip(np.float32(strength) * (np.float32(0.7) * body + np.float32(0.5) * rim), 0, 1)
    return 1 - spread(opacity.astype(np.float32, copy=False), 1 - tint)


def add_hair(
    scene: Float32Array, rng: np.random.Generator, canvas: Canvas, light: Light, centre: tuple[float, float]
) -> Float32Array:
    """Return the scene [H, W, 3] with a hair or textile fibre lying on it, with its soft shadow."""
    unit, shape = canvas.unit, (scene.shape[0], scene.shape[1])
    line = wander(rng, (0, 0), rng.uniform(0, 2 * math.pi), rng.uniform(35, 110) * unit, rng.uniform(1.2, 4.0), 48)
    body = strokes(shape, [centred(line, centre)], rng.uniform(0.9, 1.5) * unit)
    x, y, z = light.direction
    lift = rng.uniform(0.8, 2.0) * unit  # height above the part: it sets how far the shadow lies from the hair
    under = strokes(shape, [centred(line, (centre[0] - x / z * lift, centre[1] - y / z * lift))], 1.6 * unit)
    palette = [colour(30, 26, 24), colour(70, 45, 30), colour(235, 232, 225), colour(160, 40, 45), colour(45, 70, 150)]
    # The tone closest to the ground would hide the hair: it is sorted last and never drawn. Compared as square roots,
    # which is how they look on the screen.
    ground = float(scene.mean())
    palette.sort(key=lambda tone: abs(math.sqrt(float(tone.mean())) - math.sqrt(ground)), reverse=True)
    tone = palette[int(rng.integers(0, 4))]
    shadow = 1 - np.float32(0.4) * blur(under, 0.7 * unit)
    glint = np.float32(0.85) + np.float32(0.3) * uneven(rng, shape, 9 * unit, 0.0)
    cover = body * np.float32(0.92)
    return scene * spread(shadow * (1 - cover)) + spread(glint * cover, tone)
