"""Limits of threshold overlays: how far thresholds may be moved on a line without a new calibration."""

from __future__ import annotations

import math

import numpy as np

from flawscope.arrays import Float64Array
from flawscope.bundle import Limits, ThresholdLimits, Thresholds
from flawscope.errors import ArgumentError

Range = tuple[float, float]
"""Lowest and highest value of a threshold."""


def limits_from_scores(value: float, normal: Float64Array) -> Limits:
    """Return the limits of a threshold that was set on images: half of its distance to a typical normal image.

    The distance is that from the median of the normal images, to either side: a threshold that is lowered goes at most
    half of the way down to where every second good part is rejected, and one that is raised goes as far up. It is in
    the unit of the score, whatever the method.

    Args:
        value: The threshold.
        normal: Scores, or largest map values, of the normal images, float64 [N].
    """
    half = abs(value - float(np.median(normal))) / 2
    return Limits(value - half, value + half)


def limits_by_hand(thresholds: Thresholds, image: Range | None, pixel: Range | None) -> ThresholdLimits | None:
    """Return the limits of thresholds: those that are given, the ones before where they still fit, or None.

    Args:
        thresholds: The thresholds, with the limits from before or from scores.
        image: Limits of the image threshold; None keeps those of `thresholds`.
        pixel: Limits of the pixel threshold.

    Raises:
        ArgumentError: If given limits are not finite, or the threshold lies outside of them.
    """
    before = thresholds.limits
    found = []
    for name, threshold, given, old in (
        ("image", thresholds.image, image, before.image if before else None),
        ("pixel", thresholds.pixel, pixel, before.pixel if before else None),
    ):
        if given is not None:
            low, high = given
            if not (math.isfinite(low) and math.isfinite(high) and low <= threshold.value <= high):
                raise ArgumentError(
                    f"{name} limits: expected a lowest and a highest value around the threshold {threshold.value:.6g}, "
                    f"got {low:.6g} and {high:.6g}. Change one of them."
                )
            found.append(Limits(low, high))
        elif old is not None and old.low <= threshold.value <= old.high:
            found.append(old)
        elif image is None and pixel is None:
            return None
        else:
            # Limits for one of the two: the other may not be moved.
            found.append(Limits(threshold.value, threshold.value))
    return ThresholdLimits(*found)
