"""Renders one image of a part, normal or with one defect, and the mask of the pixels that the defect changed."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.datasets.parts import board, cloth, gear, steel
from flawscope.datasets.parts.canvas import Canvas
from flawscope.datasets.parts.optics import Camera, Light
from flawscope.errors import ArgumentError

GENERATOR_VERSION = 1
"""Must change whenever the same arguments give other pixels: recorded datasets name it."""

MIN_SIZE, MAX_SIZE = 64, 1024

_Scene = Callable[[int, Canvas, np.random.Generator, Light, str | None, np.random.Generator], Float32Array]
_SCENES: dict[str, _Scene] = {"steel": steel.scene, "cloth": cloth.scene, "gear": gear.scene, "board": board.scene}

KINDS: tuple[str, ...] = tuple(_SCENES)
"""Kinds of parts: a brushed sheet, a twill cloth, a spur gear and a populated circuit board."""

DEFECTS: dict[str, tuple[str, ...]] = {
    "steel": steel.DEFECTS,
    "cloth": cloth.DEFECTS,
    "gear": gear.DEFECTS,
    "board": board.DEFECTS,
}
"""Defects that can be drawn on each kind of part."""

_MASK_LEVELS = 3.0  # a change of at least this many grey levels, before noise, belongs to the defect
_SEEN_LEVELS, _SEEN_PIXELS = 14.0, 22  # visible to a person: that many levels on that many pixels (at 256 a side)
_ATTEMPTS = 8  # child seeds are spawned by position: with more attempts the first eight stay the same


class Pair(NamedTuple):
    """An image of a defective part and its normal counterpart.

    Attributes:
        good: uint8 [size, size, 3] RGB, without the defect.
        image: uint8 [size, size, 3] RGB, with it; equal to `good` outside the mask.
        mask: bool [size, size], true where the defect changed the image.
    """

    good: UInt8Array
    image: UInt8Array
    mask: BoolArray


def check_number(value: object, name: str, low: int, high: int) -> int:
    """Return `value` if it is a whole number from `low` to `high`, or raise ArgumentError."""
    # operator.index accepts NumPy integers and refuses floats, even 3.0.
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ArgumentError(f"{name}: expected a whole number from {low} to {high}, got {value!r}. Choose another.")
    return number


def check_request(kind: str, seed: int, size: int, defect: str | None = None) -> None:
    """Raise ArgumentError unless the generator knows this kind and defect and can draw this size."""
    if kind not in _SCENES:
        raise ArgumentError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}. Choose one of these parts.")
    if defect is not None and defect not in DEFECTS[kind]:
        raise ArgumentError(
            f"defect: expected one of {', '.join(DEFECTS[kind])} for kind {kind}, got {defect!r}. Choose one of these."
        )
    check_number(seed, "seed", 0, 2**63 - 1)
    check_number(size, "size", MIN_SIZE, MAX_SIZE)


def _child_seeds(kind: str, seed: int, index: int, defect: str | None, count: int) -> list[np.random.SeedSequence]:
    # crc32 and not hash(): Python salts the hash of a string in every process. The texts are part of the seed: renaming
    # a kind or a defect, or another word than "good" here, gives other pixels.
    entropy = [seed, zlib.crc32(kind.encode()), zlib.crc32((defect or "good").encode()), index]
    return np.random.SeedSequence(entropy).spawn(count)


def _layout(kind: str, seed: int) -> int:
    # Without the index: all images of a dataset share one design.
    entropy = [seed, zlib.crc32(kind.encode()), zlib.crc32(b"layout")]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


class _Shot:
    """A part, its light and its camera, all fixed: each call of `draw` differs only in the defect."""

    def __init__(self, kind: str, seed: int, size: int, child_seeds: list[np.random.SeedSequence]) -> None:
        self.canvas = Canvas(size)
        # Separate generators: a new draw in one of them does not shift the others.
        self.light = Light.draw(np.random.default_rng(child_seeds[0]))
        self.camera = Camera.draw(np.random.default_rng(child_seeds[1]))
        self._part = child_seeds[2]
        self._kind = kind
        self._layout = _layout(kind, seed)

    def draw(self, defect: str | None, defect_seed: np.random.SeedSequence) -> Float32Array:
        """Return the noiseless image in levels, float32 [size, size, 3]."""
        # A new generator for each call: kept between calls, the second image would be of another part.
        rng, defect_rng = np.random.default_rng(self._part), np.random.default_rng(defect_seed)
        scene = _SCENES[self._kind](self._layout, self.canvas, rng, self.light, defect, defect_rng)
        return self.camera.expose(scene, self.canvas)


def _mask(change: Float32Array) -> BoolArray:
    """Return where the change [size, size] belongs to the defect, with pinholes closed and single specks dropped."""
    # In a 3 x 3 neighbourhood: a marked pixel stays with two others, an unmarked one joins at seven. The halves keep
    # the comparison away from the rounding of the mean.
    raw = (change >= _MASK_LEVELS).astype(np.uint8)
    near = np.asarray(cv2.blur(raw.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT))
    return np.asarray(((raw > 0) & (near > 2.5 / 9)) | (near > 6.5 / 9))


def render_pair(kind: str, seed: int, index: int, size: int = 256, *, defect: str) -> Pair:
    """Render a part with a defect, and the same part in the same light without it.

    A defect that turns out too faint to see is drawn again with the next seed, up to eight times; the most visible
    attempt is returned.

    Args:
        kind: One of `KINDS`.
        seed: Seed of the dataset, at least 0; parts of one seed share their design.
        index: Number of the image, at least 0.
        size: Side in pixels.
        defect: One of `DEFECTS[kind]`.

    Raises:
        ArgumentError: If an argument is unknown or out of range.
    """
    check_request(kind, seed, size, defect)
    child_seeds = _child_seeds(kind, seed, check_number(index, "index", 0, 2**63 - 1), defect, 3 + _ATTEMPTS)
    shot = _Shot(kind, seed, size, child_seeds)
    clean = shot.draw(None, child_seeds[3])  # without a defect its seed is not used
    enough = _SEEN_PIXELS * (size / 256) ** 2
    best = -1.0, clean, np.zeros((size, size), np.bool_)
    for defect_seed in child_seeds[3:]:
        flawed = shot.draw(defect, defect_seed)
        red, green, blue = cv2.split(cv2.absdiff(flawed, clean))
        change = np.asarray(cv2.max(cv2.max(red, green), blue), np.float32)
        mask = _mask(change)
        seen = float((mask & (change >= _SEEN_LEVELS)).sum())
        if seen > best[0]:
            best = seen, flawed, mask
        if seen >= enough:
            break
    _, flawed, mask = best
    # Outside the mask the normal image, before the noise: changes below the mask's limit must not remain there.
    image = np.asarray(cv2.copyTo(flawed, mask.astype(np.uint8), clean.copy()), np.float32)
    return Pair(shot.camera.digitise(clean), shot.camera.digitise(image), mask)


def render(
    kind: str, seed: int, index: int, size: int = 256, defect: str | None = None
) -> tuple[UInt8Array, BoolArray]:
    """Render one image of a part; the same arguments always give the same pixels.

    Args:
        kind: One of `KINDS`.
        seed: Seed of the dataset, at least 0; parts of one seed share their design.
        index: Number of the image, at least 0.
        size: Side in pixels, from 64 to 1024.
        defect: One of `DEFECTS[kind]`, or None for a normal part.

    Returns:
        The image, uint8 [size, size, 3] RGB, and the mask, bool [size, size], empty for a normal part.

    Raises:
        ArgumentError: If an argument is unknown or out of range.
    """
    if defect is not None:
        pair = render_pair(kind, seed, index, size, defect=defect)
        return pair.image, pair.mask
    check_request(kind, seed, size)
    child_seeds = _child_seeds(kind, seed, check_number(index, "index", 0, 2**63 - 1), None, 4)
    shot = _Shot(kind, seed, size, child_seeds)
    return shot.camera.digitise(shot.draw(None, child_seeds[3])), np.zeros((size, size), np.bool_)
