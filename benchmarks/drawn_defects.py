"""Simple drawn defects on normal images of any part, to compare settings without real defects.

They need not look real; they vary in size, shape and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets.parts.canvas import blur, discs, fractal_noise, smoothstep, strokes
from flawscope.datasets.parts.marks import centred, jagged, wander

Field = npt.NDArray[np.float32]


def _place(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[float, float]:
    return float(rng.uniform(0.15, 0.85) * shape[1]), float(rng.uniform(0.15, 0.85) * shape[0])


def _crack(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    length = rng.uniform(0.15, 0.5) * min(shape)
    lines = jagged(rng, _place(rng, shape), rng.uniform(0, 2 * math.pi), length)
    return strokes(shape, lines, rng.uniform(0.004, 0.012) * min(shape))


def _scratch(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    line = wander(rng, (0.0, 0.0), rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.6) * min(shape), 0.4)
    return strokes(shape, [centred(line, _place(rng, shape))], rng.uniform(0.004, 0.015) * min(shape))


def _hole(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    x, y = _place(rng, shape)
    return blur(discs(shape, [(x, y, rng.uniform(0.01, 0.04) * min(shape))]), 0.004 * min(shape))


def _patch(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """A ragged region, from a spot to a quarter of the image."""
    x, y = _place(rng, shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radius = rng.uniform(0.06, 0.25) * min(shape)
    distance = np.hypot(columns - x, rows - y) / radius
    ragged = distance + 0.8 * fractal_noise(rng, shape, radius / 2)
    return np.asarray(1.0 - smoothstep(ragged.astype(np.float32), 0.8, 1.1), np.float32)


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Field]] = {
    "crack": _crack,
    "scratch": _scratch,
    "hole": _hole,
    "patch": _patch,
}
_CONTRAST = {"crack": (20.0, 60.0), "scratch": (15.0, 50.0), "hole": (20.0, 70.0), "patch": (8.0, 30.0)}
"""Change in grey levels of 8 bit: from hardly visible to clear."""


def draw_defect(image: UInt8Array, name: str, rng: np.random.Generator) -> tuple[UInt8Array, BoolArray]:
    """Return an image uint8 [H, W, 3] with one defect drawn, and its mask bool [H, W].

    Args:
        image: A normal image.
        name: A key of SHAPES.
        rng: Source of chance.
    """
    cover = SHAPES[name](rng, (image.shape[0], image.shape[1]))
    sign = -1.0 if rng.random() < 0.75 else 1.0  # cracks, holes and stains are mostly darker than the part
    change = sign * rng.uniform(*_CONTRAST[name]) * cover[:, :, None]
    drawn = np.clip(image + change, 0, 255).astype(np.uint8)
    # int16: a difference of uint8 would wrap around. Below 3 grey levels nothing can be seen, so it is no defect.
    return drawn, np.abs(drawn.astype(np.int16) - image).max(axis=2) >= 3
