"""Limits of a scene: brightness, saturation, sharpness, and images that are equal to the one before.

A network that has never seen darkness judges darkness somehow. What is outside of a limit is a fault and is not scored;
what is near one is a note, so that somebody cleans the lamp before the line stops.

All numbers are of the image as it came, before crop and resize. Of a large one a part is looked at, by these rules:
    * levels (brightness, saturation): every n-th pixel of every n-th row, with the least n that leaves at most 2^18
      pixels;
    * sharpness: 16 bands of whole rows, evenly spread over the height, together of about 2^18 pixels, as the Laplacian
      needs neighbours; of an image of at most 2^18 pixels all rows;
    * equality: all pixels.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.runtime.line.line_config import SceneLimits
from flawscope.runtime.line.parts import Reason

_MOST_PIXELS = 1 << 18
_BANDS = 16
_FEW_ROWS = 8


class SceneResult(NamedTuple):
    """What was found in one image.

    Attributes:
        problem: `frozen`, `scene`, or empty where the image may be scored.
        detail: The problem in words; empty where there is none.
        notes: What is near a limit, in words.
        values: `brightness_p1`, `brightness_p50`, `brightness_p99` (grey values, 0 to 255), `saturated` (share of the
            pixels whose grey value is 0 or 255) and `sharpness` (variance of the Laplacian of the grey values).
    """

    problem: Reason
    detail: str
    notes: tuple[str, ...]
    values: dict[str, float]


class _Findings:
    """Problems and notes of one image, as they are found."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def at_most(self, name: str, value: float, limit: float, near: float) -> None:
        if value > limit:
            self.problems.append(f"{name}: expected at most {limit:g}, got {value:.4g}")
        elif value > near:
            self.notes.append(f"{name} {value:.4g} is near its limit of {limit:g}")

    def at_least(self, name: str, value: float, limit: float, near: float) -> None:
        if value < limit:
            self.problems.append(f"{name}: expected at least {limit:g}, got {value:.4g}")
        elif value < near:
            self.notes.append(f"{name} {value:.4g} is near its limit of {limit:g}")


class SceneCheck:
    """Compares the images of one view with its limits; threads may share it, but its images have one order.

    Args:
        limits: The limits.
    """

    def __init__(self, limits: SceneLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._last: UInt8Array | None = None

    def check(self, image: UInt8Array) -> SceneResult:
        """Compare an image with the limits.

        Args:
            image: uint8 [H, W] grey or [H, W, 3] RGB, as it came.
        """
        values = measure_scene(image)
        found = self._compare(values)
        problem: Reason = "scene" if found.problems else ""
        if self._limits.frozen != "allow" and self._is_as_before(image):
            text = "the image is equal, bit for bit, to the one before it"
            if self._limits.frozen == "fault":
                problem = "frozen"  # says more about the cause than the levels of an image that nobody took
                found.problems.insert(0, text)
            else:
                found.notes.append(text)
        return SceneResult(problem, "; ".join(found.problems), tuple(found.notes), values)

    def _compare(self, values: dict[str, float]) -> _Findings:
        limits, warn = self._limits, self._limits.warn_share
        found = _Findings()
        if limits.brightness is not None:
            low, high = limits.brightness
            # The way to a limit begins in the middle between the two.
            middle, half = (low + high) / 2, (high - low) / 2
            name = "brightness (median)"
            found.at_least(name, values["brightness_p50"], low, middle - warn * half)
            found.at_most(name, values["brightness_p50"], high, middle + warn * half)
        if limits.saturated_max is not None:
            most = limits.saturated_max
            found.at_most("saturated share", values["saturated"], most, warn * most)
        if limits.sharpness_min is not None:
            least = limits.sharpness_min
            found.at_least("sharpness", values["sharpness"], least, least / warn)
        return found

    def _is_as_before(self, image: UInt8Array) -> bool:
        """Return whether an image equals the last one, and keep it.

        A copy, as the image is its owner's to change. A hash that nobody can doubt takes eight times as long.
        """
        with self._lock:
            last = self._last
            if last is None or last.shape != image.shape:
                self._last = image.copy()
                return False
            # Noise tells images of a camera apart in the first rows.
            is_same = np.array_equal(last[:_FEW_ROWS], image[:_FEW_ROWS]) and np.array_equal(last, image)
            if not is_same:
                np.copyto(last, image)
            return is_same


def measure_scene(image: UInt8Array) -> dict[str, float]:
    """Return the numbers of one image that limits are compared with; see `SceneResult.values`.

    Args:
        image: uint8 [H, W] grey or [H, W, 3] RGB.
    """
    # OpenCV counts five times as fast as NumPy; in float32, which is exact up to 2^24.
    counts = cv2.calcHist([_grey(_thinned(image))], [0], None, [256], [0, 256]).reshape(-1)
    total = int(counts.sum())
    below = np.cumsum(counts)
    levels = {
        # The least grey value that at least this share of the pixels does not exceed.
        f"brightness_p{percent}": float(np.searchsorted(below, math.ceil(total * percent / 100)))
        for percent in (1, 50, 99)
    }
    saturated = float(counts[0] + counts[255]) / total
    return {**levels, "saturated": saturated, "sharpness": _sharpness(image)}


def _grey(image: UInt8Array) -> UInt8Array:
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def _thinned(image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    step = 1
    while (height // step) * (width // step) > _MOST_PIXELS:
        step += 1
    if step == 1:
        return image
    # Slices of colour images with a step are six times slower; the nearest pixel is one of the image, not a mixture.
    size = (max(1, width // step), max(1, height // step))
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def _sharpness(image: UInt8Array) -> float:
    """Return the variance of the Laplacian at all pixels of the bands whose neighbours above and below are in them."""
    height, width = image.shape[:2]
    if height * width <= _MOST_PIXELS:
        bands = [image]
    else:
        rows = min(max(3, _MOST_PIXELS // (_BANDS * width)), height)
        tops = np.linspace(0, height - rows, _BANDS).astype(int)
        bands = [image[top : top + rows] for top in tops]
    rows = len(bands[0])
    grey = np.concatenate([_grey(band) for band in bands]) if len(bands) > 1 else _grey(bands[0])
    # Of all bands at once; at their seams the answer is wrong, and left out.
    edges = cv2.Laplacian(grey, cv2.CV_16S).reshape(len(bands), rows, width)
    if rows > 2:
        edges = edges[:, 1:-1]
    _, deviation = cv2.meanStdDev(np.ascontiguousarray(edges).reshape(-1, width))
    return float(deviation[0, 0]) ** 2
