"""The colours of anomaly maps over images: one scale for reports, for `score --maps`, and for the page of a line.

The image lies in grey below the heat: a part that has colours of its own must not look like heat. Below the threshold
heat is yellow, above it orange and red, and the step between them shows where the threshold lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float64Array, UInt8Array

BOX, HALO = (0, 229, 255), (20, 20, 20)
"""Colours of boxes and of the wider line below theirs (red, green, blue): a bright line on a dark one always shows."""

# Value on the scale -> red, green, blue, opacity. The step at 0.5 makes the pixel threshold visible as an edge.
_STOPS = (
    (0.0, (255, 236, 130, 0.0)),
    (0.2, (255, 236, 130, 0.0)),
    (0.499, (255, 222, 60, 0.35)),
    (0.5, (255, 140, 0, 0.55)),
    (1.0, (178, 0, 30, 0.85)),
)


@dataclass(frozen=True)
class HeatScale:
    """A colour scale of map values, never rescaled for a single image.

    Attributes:
        low: No colour at and below this value.
        middle: The pixel threshold, where yellow becomes orange; without one, halfway.
        high: Full colour from here on.
        has_threshold: Whether `middle` is a threshold.
    """

    low: float
    middle: float
    high: float
    has_threshold: bool

    def colours(self, values: npt.NDArray[np.floating]) -> Float64Array:
        """Return red, green, blue (0 to 255) and opacity (0 to 1) of map values: [...] -> float64 [..., 4]."""
        below = np.interp(values, [self.low, self.middle], [0.0, 0.499])
        above = np.interp(values, [self.middle, self.high], [0.5, 1.0])
        # Strictly above, as pixels are called anomalous: a value at the threshold keeps the colour below the step.
        place = np.where(values > self.middle, above, below)
        at, rows = [stop for stop, _ in _STOPS], np.array([colour for _, colour in _STOPS])
        return np.stack([np.interp(place, at, rows[:, channel]) for channel in range(4)], axis=-1)

    def laid_on(self, image: UInt8Array, values: npt.NDArray[np.floating]) -> UInt8Array:
        """Return an image in grey under the colours of its map, uint8 [H, W, 3] RGB.

        Args:
            image: uint8 [H, W, 3] RGB.
            values: Map values [H, W], one for each pixel of the image.
        """
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        # Most of a map is background: colours are only computed where there are some.
        rows, columns = np.nonzero(values > self.low)
        if rows.size:
            heat = self.colours(values[rows, columns])
            mixed = grey[rows, columns] * (1.0 - heat[:, 3:]) + heat[:, :3] * heat[:, 3:]
            grey[rows, columns] = mixed.round().astype(np.uint8)
        return np.ascontiguousarray(grey, np.uint8)


def draw_box(canvas: UInt8Array, first: tuple[int, int], last: tuple[int, int], thickness: int) -> None:
    """Draw a box into an image uint8 [H, W, 3] RGB.

    Args:
        canvas: The image, which is changed.
        first: Its pixel at the upper left, (x, y).
        last: Its pixel at the lower right, which belongs to it.
        thickness: Of its line in pixels; the line below is wider by 2.
    """
    cv2.rectangle(canvas, first, last, HALO, thickness + 2)
    cv2.rectangle(canvas, first, last, BOX, thickness)
