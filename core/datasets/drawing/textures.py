"""Textures of Perlin anomalies: other images changed so that they fit nowhere, and made ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.datasets.drawing.changes import as_levels
from flawscope.datasets.drawing.perlin import perlin_noise
from flawscope.imaging.images import check_image

_LEVELS = np.arange(256, dtype=np.float32)
_GRID = 8
_CHANGES = 3
"""Changes made to a texture, drawn among all of them; DRAEM makes three as well."""


def augment_texture(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Return a texture, uint8 [H, W, 3] RGB, after three random changes of its tones, colours or direction."""
    check_image(texture, "texture")
    for index in rng.permutation(len(_AUGMENTERS))[:_CHANGES]:
        texture = _AUGMENTERS[int(index)](texture, rng)
    return texture


def shuffle_texture(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Return an image cut into a grid of 8 × 8 pieces that change places: of its material, and in no order.

    An image whose sides are no multiple of 8 is enlarged to one and reduced again.
    """
    check_image(image)
    height, width = image.shape[:2]
    tall, wide = -(-height // _GRID) * _GRID, -(-width // _GRID) * _GRID
    fitted = np.asarray(cv2.resize(image, (wide, tall), interpolation=cv2.INTER_LINEAR), np.uint8)
    pieces = fitted.reshape(_GRID, tall // _GRID, _GRID, wide // _GRID, 3).swapaxes(1, 2)
    mixed = pieces.reshape(_GRID * _GRID, *pieces.shape[2:])[rng.permutation(_GRID * _GRID)]
    whole = np.ascontiguousarray(mixed.reshape(pieces.shape).swapaxes(1, 2).reshape(tall, wide, 3))
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def make_texture(size: tuple[int, int], rng: np.random.Generator) -> UInt8Array:
    """Return a made texture, uint8 [H, W, 3] RGB: clouds, grain, stripes or checks in two random colours."""
    kind = _MADE[int(rng.integers(len(_MADE)))]
    field = kind(size, rng)[..., None]
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    return as_levels(np.asarray(first + field * (second - first), np.float32))


def as_grey(texture: UInt8Array) -> UInt8Array:
    """Return a texture in three equal channels: in a grey image colours would give every anomaly away."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def is_grey(image: UInt8Array) -> bool:
    """Return whether the three channels of an image uint8 [H, W, 3] are equal."""
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def _table(texture: UInt8Array, levels: Float32Array) -> UInt8Array:
    return np.asarray(cv2.LUT(texture, np.clip(np.rint(levels), 0, 255).astype(np.uint8)), np.uint8)


def _gamma(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return _table(texture, np.asarray(255 * (_LEVELS / 255) ** rng.uniform(0.5, 2.0), np.float32))


def _brightness(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return _table(texture, np.asarray(_LEVELS * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30), np.float32))


def _contrast(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return _table(texture, np.asarray((_LEVELS - 128) * rng.uniform(0.5, 2.0) + 128, np.float32))


def _solarize(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return _table(texture, np.where(rng.uniform(32, 224) > _LEVELS, _LEVELS, 255 - _LEVELS).astype(np.float32))


def _posterize(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    step = 256 // 2 ** int(rng.integers(1, 5))
    return _table(texture, np.asarray(_LEVELS // step * step, np.float32))


def _invert(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return _table(texture, 255 - _LEVELS)


def _hue(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    hsv = cv2.cvtColor(texture, cv2.COLOR_RGB2HSV)
    hue = (hsv[..., 0].astype(np.int16) + int(rng.integers(-25, 26))) % 180  # OpenCV counts hues to 180
    saturation = np.clip(hsv[..., 1].astype(np.int16) + int(rng.integers(-50, 51)), 0, 255)
    changed = np.dstack([hue, saturation, hsv[..., 2]]).astype(np.uint8)
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB), np.uint8)


def _equalize(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return np.dstack([cv2.equalizeHist(np.ascontiguousarray(texture[..., channel])) for channel in range(3)])


def _turn(texture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    height, width = texture.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), float(rng.uniform(-45, 45)), 1.0)
    turned = cv2.warpAffine(texture, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)


_AUGMENTERS: tuple[Callable[[UInt8Array, np.random.Generator], UInt8Array], ...] = (
    _gamma,
    _brightness,
    _contrast,
    _solarize,
    _posterize,
    _invert,
    _hue,
    _equalize,
    _turn,
)


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    field = np.zeros(size, np.float32)
    for octave in range(int(rng.integers(1, 4)), 6):
        field += perlin_noise(size, (2**octave, 2**octave), rng) / np.float32(octave)
    return np.asarray(np.clip(0.5 + 0.7 * field, 0, 1), np.float32)


def _grain(size: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    sigma = float(rng.uniform(0.5, 3.0))
    grain = cv2.GaussianBlur(rng.random(size, np.float32), (0, 0), sigma)
    return np.asarray(np.clip(0.5 + (grain - 0.5) * np.float32(4 * sigma), 0, 1), np.float32)


def _waves(size: tuple[int, int], angle: float, period: float) -> Float32Array:
    rows, columns = np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None]
    phase = (rows * math.sin(angle) + columns * math.cos(angle)) * (2 * math.pi / period)
    return np.asarray(0.5 + 0.5 * np.sin(phase), np.float32)


def _stripes(size: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    return _waves(size, float(rng.uniform(0, math.pi)), float(rng.uniform(0.02, 0.25)) * max(size) + 2)


def _checks(size: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    angle, period = float(rng.uniform(0, math.pi)), float(rng.uniform(0.05, 0.3)) * max(size) + 4
    first, second = _waves(size, angle, period) > 0.5, _waves(size, angle + math.pi / 2, period) > 0.5
    return (first ^ second).astype(np.float32)


_MADE: tuple[Callable[[tuple[int, int], np.random.Generator], Float32Array], ...] = (_clouds, _grain, _stripes, _checks)
