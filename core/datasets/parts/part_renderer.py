"""One image of a generated part, good or with one defect, and the mask of what the defect changed."""

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
"""Changes whenever the same arguments give other pixels."""

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

_MASK_LEVELS = 3.0  # a noiseless change of at least this many levels belongs to the defect
_SEEN_LEVELS, _SEEN_PIXELS = 14.0, 22  # what a person sees: that many levels on that many pixels (at 256 a side)
_ATTEMPTS = 8


class Pair(NamedTuple):
    """A defective part beside its flawless twin.

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


def _chances(kind: str, seed: int, index: int, defect: str | None, count: int) -> list[np.random.SeedSequence]:
    # crc32 and not hash(): Python salts the hash of a text anew in every process.
    words = [seed, zlib.crc32(kind.encode()), zlib.crc32((defect or "good").encode()), index]
    return np.random.SeedSequence(words).spawn(count)


def _layout(kind: str, seed: int) -> int:
    words = [seed, zlib.crc32(kind.encode()), zlib.crc32(b"layout")]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


class _Shot:
    """Everything but the defect, fixed: each call draws the same part under the same light."""

    def __init__(self, kind: str, seed: int, size: int, chances: list[np.random.SeedSequence]) -> None:
        self.canvas = Canvas(size)
        self.light = Light.draw(np.random.default_rng(chances[0]))
        self.camera = Camera.draw(np.random.default_rng(chances[1]))
        self._part = chances[2]
        self._kind = kind
        self._layout = _layout(kind, seed)

    def draw(self, defect: str | None, chance: np.random.SeedSequence) -> Float32Array:
        """Return the noiseless image in levels, float32 [size, size, 3]."""
        part, flaw = np.random.default_rng(self._part), np.random.default_rng(chance)
        scene = _SCENES[self._kind](self._layout, self.canvas, part, self.light, defect, flaw)
        return self.camera.expose(scene, self.canvas)


def _mask(change: Float32Array) -> BoolArray:
    """Return where the change [size, size] belongs to the defect, with pinholes closed and single specks dropped."""
    raw = (change >= _MASK_LEVELS).astype(np.uint8)
    near = np.asarray(cv2.blur(raw.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT))
    return np.asarray(((raw > 0) & (near > 2.5 / 9)) | (near > 6.5 / 9))


def render_pair(kind: str, seed: int, index: int, size: int = 256, *, defect: str) -> Pair:
    """Render a part with a defect, and the same part in the same light without it.

    A defect that chance made too faint to see is drawn anew, up to eight times.

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
    chances = _chances(kind, seed, check_number(index, "index", 0, 2**63 - 1), defect, 3 + _ATTEMPTS)
    shot = _Shot(kind, seed, size, chances)
    clean = shot.draw(None, chances[3])
    enough = _SEEN_PIXELS * (size / 256) ** 2
    best = -1.0, clean, np.zeros((size, size), np.bool_)
    for chance in chances[3:]:
        flawed = shot.draw(defect, chance)
        red, green, blue = cv2.split(cv2.absdiff(flawed, clean))
        change = np.asarray(cv2.max(cv2.max(red, green), blue), np.float32)
        mask = _mask(change)
        seen = float((mask & (change >= _SEEN_LEVELS)).sum())
        if seen > best[0]:
            best = seen, flawed, mask
        if seen >= enough:
            break
    _, flawed, mask = best
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
        defect: One of `DEFECTS[kind]`, or None for a good part.

    Returns:
        The image, uint8 [size, size, 3] RGB, and the mask, bool [size, size], empty for a good part.

    Raises:
        ArgumentError: If an argument is unknown or out of range.
    """
    if defect is not None:
        pair = render_pair(kind, seed, index, size, defect=defect)
        return pair.image, pair.mask
    check_request(kind, seed, size)
    chances = _chances(kind, seed, check_number(index, "index", 0, 2**63 - 1), None, 4)
    shot = _Shot(kind, seed, size, chances)
    return shot.camera.digitise(shot.draw(None, chances[3])), np.zeros((size, size), np.bool_)
