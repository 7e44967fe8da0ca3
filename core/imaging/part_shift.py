"""How far a part lies from where it lay on a reference image: a shift, told by correlation, or that none can be told.

Both images become grey thumbnails of one size, without their coarse brightness. A box of the reference is compared with
the image at every shift of a range, by normalized cross-correlation. The peak, between pixels by a parabola, is the
shift. It counts only where it stands out: a texture is as alike at many places, and a blank image at none. Phase
correlation was measured as well (`benchmarks/part_shift.py`): less exact, and lost where a defect covers a tenth of the
image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Float64Array

SIDE = 256
"""Longest side of a thumbnail in pixels, of small images too: all that follows is in pixels of it."""
_LEAST_SIDE = 8
_FINE = 1.0
"""Deviation in pixels of the Gaussian against noise."""
_COARSE = 25
"""Pixels of the mean that is taken off: light that changes over more of the image says nothing of the place."""
LOBE = 8
"""Pixels around the peak that belong to it: the next-highest correlation is that of a shift further off."""
_FLOOR = 1.0
"""Deviation in grey levels below which there is nothing to compare, only noise."""
_LEAST_OVERLAP = 0.4
"""Share of the reference's structure that has to lie in the image."""

Box = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels of a thumbnail; bottom and right are not included."""


class Found(NamedTuple):
    """The best shift of an image against a reference.

    Attributes:
        down: Pixels of the thumbnail that the part lies further down.
        right: Pixels that it lies further to the right.
        alike: Correlation there, -1 to 1; 0 for a blank image.
        clear: How far it is above that of every other shift more than a few pixels away: near 0 for a texture.
    """

    down: float
    right: float
    alike: float
    clear: float


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of the thumbnail of an image."""
    scale = SIDE / max(height, width)
    return max(_LEAST_SIDE, round(height * scale)), max(_LEAST_SIDE, round(width * scale))


def part_thumbnail(image: npt.NDArray[Any], size: tuple[int, int]) -> Float32Array:
    """Return an image as a grey thumbnail with levels 0 to 255, float32 [size].

    Args:
        image: uint8 or uint16, [H, W], [H, W, 3] or [H, W, 4].
        size: Height and width of the thumbnail, see `thumbnail_size`.
    """
    height, width = size
    if image.ndim == 3:
        # Grey first: one channel to shrink takes half the time.
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if image.shape[2] == 3 else cv2.COLOR_RGBA2GRAY)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    grey = small.astype(np.float32)
    return grey / np.float32(257) if image.dtype == np.uint16 else grey


def moved(thumbnail: Float32Array, down: float, right: float) -> Float32Array:
    """Return a thumbnail moved by a part of pixels; its edge is repeated where nothing is known."""
    matrix = np.array([[1.0, 0.0, right], [0.0, 1.0, down]])
    size = (thumbnail.shape[1], thumbnail.shape[0])
    # Linear, not cubic: exact for whole pixels, and no ringing.
    shifted = cv2.warpAffine(thumbnail, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(shifted, np.float32)


class PartFinder:
    """Tells the shift of images against one reference.

    Args:
        reference: Grey thumbnail, float32 [h, w], levels 0 to 255.
        box: The part of it that is looked for.
        reach: Largest shift that is looked for, in pixels of the thumbnail; half the longest side at most.
    """

    def __init__(self, reference: Float32Array, box: Box, reach: int) -> None:
        top, left, bottom, right = box
        self._reach = min(reach, SIDE // 2)
        self._shape = (reference.shape[0], reference.shape[1])
        self._box = box
        template = _without_light(reference)[top:bottom, left:right]
        template = template - template.mean()
        # For every shift, what of the template lies in the image: its energy, and its pixels.
        overlap = [
            (np.maximum(0, -(start + self._steps)), np.minimum(stop - start, side - start - self._steps))
            for start, stop, side in ((top, bottom, self._shape[0]), (left, right, self._shape[1]))
        ]
        (first, last), (begin, end) = ((low, np.maximum(low, high)) for low, high in overlap)
        self._pixels = np.outer(last - first, end - begin).astype(np.float64)
        table = cv2.integral(template.astype(np.float64) ** 2)
        self._energy = _sums(table, first, last, begin, end)
        self._counts = self._energy >= _LEAST_OVERLAP * max(float(table[-1, -1]), _FLOOR**2 * template.size)
        # As large as template and shifts together: a circular correlation then wraps nothing around.
        self._padded = tuple(cv2.getOptimalDFTSize(side + 2 * self._reach) for side in template.shape)
        self._spectrum = cv2.dft(self._pad(template))

    @property
    def _steps(self) -> npt.NDArray[np.int64]:
        return np.arange(-self._reach, self._reach + 1)

    def find(self, thumbnail: Float32Array) -> Found:
        """Return the best shift of a thumbnail of the reference's size, float32 [h, w]."""
        correlation = self._correlation(_without_light(thumbnail))
        row, column = (int(place) for place in np.unravel_index(int(correlation.argmax()), correlation.shape))
        peak = float(correlation[row, column])
        elsewhere = correlation.copy()
        elsewhere[max(0, row - LOBE) : row + LOBE + 1, max(0, column - LOBE) : column + LOBE + 1] = 0.0
        return Found(
            row - self._reach + _between(correlation[:, column], row),
            column - self._reach + _between(correlation[row], column),
            peak,
            peak - float(elsewhere.max()),
        )

    def _correlation(self, image: Float32Array) -> Float64Array:
        """Return the correlation at every shift, float64 [2 reach + 1, 2 reach + 1], 0 where too little overlaps."""
        top, left, bottom, right = self._box
        reach, (height, width) = self._reach, self._shape
        # Zeros outside of the image: they add nothing to any sum.
        window = np.zeros((bottom - top + 2 * reach, right - left + 2 * reach), np.float32)
        first, last = max(0, top - reach), min(height, bottom + reach)
        begin, end = max(0, left - reach), min(width, right + reach)
        above, beside = top - reach, left - reach
        window[first - above : last - above, begin - beside : end - beside] = image[first:last, begin:end]
        spectrum = cv2.mulSpectrums(cv2.dft(self._pad(window)), self._spectrum, 0, conjB=True)
        products = cv2.idft(spectrum, flags=cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT, nonzeroRows=2 * reach + 1)
        starts = np.arange(2 * reach + 1)
        table = np.asarray(cv2.integral(window.astype(np.float64) ** 2), np.float64)
        energy = _sums(table, starts, starts + bottom - top, starts, starts + right - left)
        # The floor keeps the noise of a blank image from being compared.
        lengths = np.sqrt(self._energy * (energy + _FLOOR**2 * self._pixels))
        shifts = slice(0, 2 * reach + 1)
        return np.where(self._counts, products[shifts, shifts] / np.maximum(lengths, 1e-9), 0.0)

    def _pad(self, image: Float32Array) -> Float32Array:
        padded = np.zeros(self._padded, np.float32)
        padded[: image.shape[0], : image.shape[1]] = image
        return padded


def _without_light(grey: Float32Array) -> Float32Array:
    fine = cv2.GaussianBlur(grey, (0, 0), _FINE)
    return np.asarray(fine - cv2.blur(fine, (_COARSE, _COARSE)), np.float32)


def _sums(
    table: npt.NDArray[np.float64],
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    begin: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
) -> Float64Array:
    """Return the sums over rows first to last and columns begin to end, of an integral image."""
    below, above = table[last], table[first]
    found = below[:, end] - above[:, end] - below[:, begin] + above[:, begin]
    return np.maximum(np.asarray(found, np.float64), 0.0)


def _between(line: Float64Array, place: int) -> float:
    """Return by how much the peak of a parabola through three values lies beside the one in the middle."""
    if not 0 < place < len(line) - 1:
        return 0.0
    before, at, after = (float(value) for value in line[place - 1 : place + 2])
    curve = before - 2 * at + after
    return 0.0 if curve >= 0 else min(0.5, max(-0.5, 0.5 * (before - after) / curve))
