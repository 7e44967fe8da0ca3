"""Thresholds with their bounds and limits from scores of normal images, with and without zones."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from flawscope.arrays import Float64Array
from flawscope.bundle import Guarantee, Threshold, ThresholdLimits, Thresholds, ZoneThresholds
from flawscope.calibration.thresholds.joint_thresholds import joint_thresholds
from flawscope.calibration.thresholds.normal_quantile import OrderStatistic, order_statistic_threshold
from flawscope.calibration.thresholds.threshold_limits import Range, limits_by_hand, limits_from_scores

MOST_NORMAL = 1000
"""Scores of normal images that a bundle keeps."""


def thresholds_from_scores(
    scores: Float64Array,
    map_max: Float64Array,
    false_reject_rate: float,
    confidence: float,
    backend: str,
    guarantee: Guarantee = "bound",
) -> tuple[Thresholds, OrderStatistic]:
    """Return both thresholds, without limits, and how the image threshold was set.

    Args:
        scores: Scores of the normal images, float64 [N].
        map_max: The largest values of their maps, float64 [N].
        false_reject_rate: Share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        backend: What computed the scores.
        guarantee: What the bound is.
    """
    image = order_statistic_threshold(scores, false_reject_rate, confidence)
    # The largest value of each map, not all pixels: pixels of one image are not independent, and the bound is then on
    # normal images with any pixel above the threshold.
    pixel = order_statistic_threshold(map_max, false_reject_rate, confidence)
    return Thresholds(_stated(image, backend, guarantee), _stated(pixel, backend, guarantee)), image


def zone_thresholds_from_scores(
    names: Sequence[str], scores: Float64Array, false_reject_rate: float, confidence: float, backend: str
) -> tuple[Thresholds, OrderStatistic]:
    """Return the thresholds of all zones, and the bound that they have together.

    Args:
        names: Names of the zones, K of them.
        scores: Scores of the normal images in each, float64 [N, K].
        false_reject_rate: Share of normal images that may be rejected, whichever zone it is, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        backend: What computed the scores.
    """
    joint = joint_thresholds(scores, false_reject_rate, confidence)
    whole = _stated(joint.whole, backend, "bound")
    zones = []
    for name, value in zip(names, joint.values.tolist(), strict=True):
        # The score of a zone is the largest value of its pixels, so both have one threshold.
        own = msgspec.structs.replace(whole, value=value)
        zones.append(ZoneThresholds(name, own, own))
    largest = msgspec.structs.replace(whole, value=float(joint.values.max()))
    return Thresholds(whole, largest, zones=tuple(zones)), joint.whole


def with_limits(
    new: Thresholds, scores: Float64Array, map_max: Float64Array, given: tuple[Range | None, Range | None]
) -> Thresholds:
    """Return thresholds with limits from scores of normal images, float64 [N], or those that are given."""
    limits = ThresholdLimits(limits_from_scores(new.image.value, scores), limits_from_scores(new.pixel.value, map_max))
    new = msgspec.structs.replace(new, limits=limits)
    return msgspec.structs.replace(new, limits=limits_by_hand(new, *given))


def with_normal(new: Thresholds, scores: Float64Array) -> Thresholds:
    """Return thresholds with the scores of the normal images that they were set on, float64 [N]."""
    count = min(len(scores), MOST_NORMAL)
    kept = np.sort(scores)[np.round(np.linspace(0, len(scores) - 1, count)).astype(int)]
    return msgspec.structs.replace(new, normal=tuple(kept.tolist()))


def _stated(statistic: OrderStatistic, backend: str, guarantee: Guarantee) -> Threshold:
    return Threshold(
        value=statistic.value,
        method="order-statistic",
        images=statistic.images,
        false_reject_rate=statistic.false_reject_rate,
        confidence=statistic.confidence,
        upper_bound=statistic.upper_bound,
        backend=backend,
        guarantee=guarantee,
    )
