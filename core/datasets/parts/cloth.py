"""Renders twill cloth: interlaced threads, each with its brightness and twist, stretched slightly in every image."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.datasets.parts import marks
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
from flawscope.datasets.parts.optics import Light, lambert

DEFECTS = ("cut", "hole", "stain", "snag", "fibre")
_PITCH = 5.2  # units from thread to thread
_MARGIN = 1.5  # side of the cached cloth over side of the canvas: images show different places of it


@lru_cache(maxsize=2)
def _weave(layout: int, canvas: Canvas) -> Float32Array:
    """Return a large piece of cloth [C, C, 4]: reflectance of the three colours, and height in canvas pixels."""
    rng = np.random.default_rng(layout)
    side, unit = int(canvas.side * _MARGIN), canvas.unit
    shape, pitch = (side, side), _PITCH * unit
    ends, picks = [(colour(92, 106, 134), colour(190, 186, 176)), (colour(116, 76, 70), colour(186, 178, 166))][
        int(rng.integers(2))
    ]
    # Coordinates with a little noise: threads do not run quite straight.
    x = np.arange(side, dtype=np.float32)[None, :] + np.float32(0.05 * pitch) * smooth_noise(rng, shape, 3 * pitch)
    y = np.arange(side, dtype=np.float32)[:, None] + np.float32(0.05 * pitch) * smooth_noise(rng, shape, 3 * pitch)
    heights, tones = [], []
    for across, along, sign in ((x / pitch, y / pitch, 1.0), (y / pitch, x / pitch, -1.0)):
        thread = np.floor(across).astype(np.int32)
        profile = (across - thread - np.float32(0.5)) * np.float32(1.9)
        round_ = np.sqrt(np.maximum(1 - profile * profile, 0))
        # 2/2 twill: each thread passes over two and under two, shifted by one on each neighbour.
        wave = np.cos((along + thread - np.float32(0.5)) * np.float32(math.pi / 2)) * np.float32(sign)
        heights.append(np.float32(0.55) * round_ + np.float32(0.45) * wave)
        twist = np.sin(
            (across * np.float32(1.6) + along * np.float32(2.4) * np.float32(sign)) * np.float32(2 * math.pi)
        )
        # One more than there are threads: noise can give the first the number -1, which indexes the last entry.
        brightness = np.clip(rng.normal(1, 0.055, thread.max() + 2), 0.8, 1.2).astype(np.float32)
        tones.append(brightness[thread] * (1 + np.float32(0.09) * twist) * (np.float32(0.5) + np.float32(0.5) * round_))
    over = smoothstep(heights[0] - heights[1], -0.08, 0.08)
    fuzz = 1 + np.float32(0.05) * fractal_noise(rng, shape, 1.6 * unit, 2)
    top = np.maximum(heights[0], heights[1])
    # Gaps between the threads reflect little light.
    depth = np.float32(0.35) + np.float32(0.65) * smoothstep(top, -0.1, 0.75)
    yarn = picks + (ends - picks) * over[..., None]
    tone = (tones[1] + (tones[0] - tones[1]) * over) * fuzz * depth
    height = blur(top, 0.5 * unit) * np.float32(0.32 * pitch)
    return np.concatenate([yarn * tone[..., None], height[..., None]], axis=2).astype(np.float32)


def scene(
    layout: int, canvas: Canvas, rng: np.random.Generator, light: Light, defect: str | None, chance: np.random.Generator
) -> Float32Array:
    """Return a linear scene [side, side, 3] of the cloth.

    Args:
        layout: Seed of what all images of a dataset share: yarns and weave.
        canvas: Size of the scene.
        rng: Generator of this image: place on the roll, small rotation, stretch.
        light: The lamp.
        defect: One of `DEFECTS`, or None for a normal part.
        chance: Generator of the defect.
    """
    cloth = _weave(layout, canvas)
    side, unit = canvas.side, canvas.unit
    map_x, map_y = _stretch(rng, canvas, cloth.shape[0])
    if defect == "snag":
        _snag(map_x, map_y, chance, canvas)
    piece = np.asarray(cv2.remap(cloth, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32)
    albedo, height = np.ascontiguousarray(piece[..., :3]), np.ascontiguousarray(piece[..., 3])
    # Wide, faint folds: cloth never lies quite flat. They change the light alone, and no defect changes them.
    fold = smooth_noise(rng, (side, side), rng.uniform(70, 120) * unit) * np.float32(rng.uniform(0.6, 1.6) * unit)
    if defect in ("cut", "hole"):
        albedo, height = _open(albedo, height, defect, chance, canvas)
    if defect == "stain":
        field = marks.blob(chance, (side, side), _place(chance, canvas), chance.uniform(8, 30) * unit, 0.45)
        tints = (colour(150, 110, 70), colour(95, 90, 88), colour(120, 60, 60))  # coffee, oil, dye
        soft = blur(field, 1.2 * unit)
        albedo = albedo * marks.stain_tint(chance, soft, tints[int(chance.integers(3))], chance.uniform(0.5, 0.95))
    diffuse, _ = lambert(height + fold, light)
    image = albedo * spread(np.float32(0.3) + np.float32(1.15) * diffuse)
    if defect == "fibre":
        image = marks.add_hair(image, chance, canvas, light, _place(chance, canvas))
    return np.asarray(image, np.float32)


def _place(chance: np.random.Generator, canvas: Canvas) -> tuple[float, float]:
    return float(chance.uniform(0.16, 0.84)) * canvas.side, float(chance.uniform(0.16, 0.84)) * canvas.side


def _stretch(rng: np.random.Generator, canvas: Canvas, extent: int) -> tuple[Float32Array, Float32Array]:
    """Return the cloth coordinates (x, y) of each canvas pixel, rotated by up to a degree and slightly stretched."""
    side = canvas.side
    # 1.08: the rotated and stretched window must still lie on the cloth.
    slack = (extent - 1.08 * side) / 2
    turn = math.radians(rng.uniform(-1, 1))
    cos, sin = math.cos(turn), math.sin(turn)
    middle_x, middle_y = (extent / 2 + rng.uniform(-slack, slack) for _ in range(2))
    x = np.arange(side, dtype=np.float32)[None, :] - np.float32(side / 2)
    y = np.arange(side, dtype=np.float32)[:, None] - np.float32(side / 2)
    waves = [smooth_noise(rng, (side, side), side / 2.5) * np.float32(0.8 * canvas.unit) for _ in range(2)]
    map_x = np.float32(middle_x) + np.float32(cos) * x - np.float32(sin) * y + waves[0]
    map_y = np.float32(middle_y) + np.float32(sin) * x + np.float32(cos) * y + waves[1]
    return map_x.astype(np.float32, copy=False), map_y.astype(np.float32, copy=False)


def _snag(map_x: Float32Array, map_y: Float32Array, chance: np.random.Generator, canvas: Canvas) -> None:
    """Pull the threads of a small region aside, in place, as a hook does."""
    x, y = _place(chance, canvas)
    radius, pull = chance.uniform(7, 15) * canvas.unit, chance.uniform(0.6, 0.9)
    turn = chance.uniform(0, 2 * math.pi)
    column = np.arange(canvas.side, dtype=np.float32)[None, :] - np.float32(x)
    row = np.arange(canvas.side, dtype=np.float32)[:, None] - np.float32(y)
    bell = np.exp(-(column * column + row * row) / np.float32(2 * radius * radius)) * np.float32(pull * radius)
    map_x += np.float32(math.cos(turn)) * bell
    map_y += np.float32(math.sin(turn)) * bell


def _open(
    albedo: Float32Array, height: Float32Array, defect: str, chance: np.random.Generator, canvas: Canvas
) -> tuple[Float32Array, Float32Array]:
    """Return the cloth with a slit or a hole: dark ground behind it, loose thread ends at the rim."""
    unit, shape = canvas.unit, (canvas.side, canvas.side)
    centre = _place(chance, canvas)
    if defect == "cut":
        line = marks.wander(chance, (0, 0), chance.uniform(0, math.pi), chance.uniform(22, 70) * unit, 0.35)
        line = marks.centred(line, centre)
        gap = marks.tapered(shape, line, chance.uniform(2.2, 4.2) * unit)
        reach = 2.2 * unit
    else:
        field = marks.blob(chance, shape, centre, chance.uniform(5, 13) * unit, 0.35)
        gap = smoothstep(field, 0.0, 0.12)
        # argwhere gives (row, column); lines are (x, y).
        line = np.argwhere((field > -0.06) & (field < 0.06))[:, ::-1].astype(np.float64)
        reach = 4.0 * unit
    torn = np.clip(blur(gap, 1.8 * unit) * 2, 0, 1)
    dark = colour(26, 24, 24)
    frayed = albedo * spread(1 - np.float32(0.25) * torn)
    opened = frayed + (dark - frayed) * spread(gap)
    ends = []
    for _ in range(int(chance.integers(5, 12) if defect == "cut" else chance.integers(12, 26))):
        root = line[int(chance.integers(len(line)))]
        heading = float(chance.choice([0, 0.5, 1, 1.5])) * math.pi + chance.normal(0, 0.35)
        ends.append(
            marks.wander(chance, (float(root[0]), float(root[1])), heading, chance.uniform(0.5, 1.6) * reach, 0.9, 6)
        )
    threads = strokes(shape, ends, 0.8 * unit) * np.float32(0.75)
    yarn = albedo.mean(axis=(0, 1)) * np.float32(1.5)
    opened = opened + (yarn - opened) * spread(threads)
    return np.asarray(opened, np.float32), height - gap * np.float32(1.5 * unit) + torn * np.float32(0.8 * unit)
