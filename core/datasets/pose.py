"""Pose of the parts in a set of images: at one place, turned, shifted, or without any place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array

PoseKind = Literal["fixed", "turned", "shifted", "none"]
"""`fixed`: every image shows the same at the same place, or a part so round that a turn changes little; `turned` and
`shifted`: a part in front of a calm background, alike only after a turn or a shift; `none`: no two images are alike as
wholes, or they are a texture that fills the image."""

_SIDE = 64
_TURNS = 36
_PAIRS = 60
_ALIKE = 0.7
"""Correlation from which two images show the same. Board 0.88, turned gears 0.57 before the turn and 0.82 after it."""
_GAIN = 0.15
"""Correlation that a turn or a shift has to add: the best of many fits chance, too."""
_ROUND = 0.5
"""Correlation as they lie from which turned parts are round: each place shows much the same at any angle."""
_RIM = 6
_CALM = 0.7
"""Deviation of the outer pixels, as a share of that of the image, below which there is a background."""
_SHIFT = 2
"""Pixels of the 64 that a shift has to be long: less is what a fixture allows."""


class Pose(msgspec.Struct, frozen=True):
    """How alike images are as they lie, turned, and shifted.

    Attributes:
        kind: What follows from the figures.
        alike: Median correlation of two images as they lie, -1 to 1.
        turned: The same of their central squares at the best of 36 turns.
        shifted: The same of the whole images at the best shift.
        images: Images that were compared.
    """

    kind: PoseKind
    alike: float
    turned: float
    shifted: float
    images: int


def thumbnail(image: npt.NDArray[np.generic]) -> Float32Array:
    """Return an image, grey or colour of any depth, as grey float32 [64, 64]."""
    small = cv2.resize(image.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    grey = small if small.ndim == 2 else small[..., :3].mean(axis=2)
    return grey.astype(np.float32, copy=False)


def measure_pose(thumbnails: Sequence[Float32Array], seed: int = 0) -> Pose | None:
    """Return the pose that images have in common, or None with fewer than three images.

    Pairs of images are drawn by the seed. A pair is compared by the correlation of its grey values; turned about the
    centre, inside a disc; and shifted, by the peak of the circular cross-correlation.

    Args:
        thumbnails: Grey images, float32 [64, 64].
        seed: Seed of the pairs.
    """
    if len(thumbnails) < 3:
        return None
    generator = np.random.default_rng(seed)
    pairs = [generator.choice(len(thumbnails), 2, replace=False) for _ in range(_PAIRS)]
    found = np.array([_compare(thumbnails[first], thumbnails[second]) for first, second in pairs])
    alike, inside, turned, shifted, length = (float(value) for value in np.median(found, axis=0))
    kind: PoseKind = "none"
    has_background = float(np.median([_rim_share(image) for image in thumbnails])) < _CALM
    if turned >= _ALIKE and turned - inside >= _GAIN:
        kind = "fixed" if alike >= _ROUND else "turned"
    elif has_background and shifted >= _ALIKE and shifted - alike >= _GAIN and length >= _SHIFT:
        kind = "shifted"
    elif max(alike, inside) >= _ALIKE - _GAIN:
        kind = "fixed"
    return Pose(kind, alike, turned, shifted, len(thumbnails))


def _rim_share(image: Float32Array) -> float:
    """Return the deviation of the outer pixels of an image as a share of that of the whole."""
    rim = np.ones(image.shape, np.bool_)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    return float(image[rim].std() / max(float(image.std()), 1e-6))


def _compare(first: Float32Array, second: Float32Array) -> tuple[float, float, float, float, float]:
    """Return the correlation as they lie, inside a disc, at the best turn and the best shift; and its length."""
    centre = (_SIDE - 1) / 2
    rows, columns = np.mgrid[:_SIDE, :_SIDE] - centre
    disc = np.hypot(rows, columns) < _SIDE / 2
    whole = np.ones_like(disc)
    reference = _standardized(first, disc)
    inside = float((reference * _standardized(second, disc)).sum())
    turned = inside
    for turn in range(1, _TURNS):
        matrix = cv2.getRotationMatrix2D((centre, centre), 360 * turn / _TURNS, 1.0)
        other = cv2.warpAffine(second, matrix, (_SIDE, _SIDE), borderMode=cv2.BORDER_REFLECT)
        turned = max(turned, float((reference * _standardized(other, disc)).sum()))
    spectra = [np.fft.rfft2(_standardized(image, whole)) for image in (first, second)]
    correlation = np.fft.irfft2(spectra[0] * spectra[1].conj(), s=(_SIDE, _SIDE))
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    # Circular: a shift of 63 is one of 1 the other way.
    length = max(min(int(place), _SIDE - int(place)) for place in peak)
    return float(correlation[0, 0]), inside, turned, float(correlation.max()), float(length)


def _standardized(image: npt.NDArray[np.generic], where: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return an image with mean 0 and length 1 where it counts, and 0 elsewhere; a flat image becomes 0."""
    values = np.asarray(image, np.float64)
    centred = np.where(where, values - values[where].mean(), 0.0)
    length = float(np.linalg.norm(centred))
    return centred / length if length > 1e-6 else np.zeros_like(centred)
