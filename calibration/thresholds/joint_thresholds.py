"""Thresholds of several zones from the same normal images, with one bound for the image as a whole.

An image is rejected when its score is above the threshold in any zone. Thresholds are cut one after the other: the
first is the largest score of all n images in the first zone; the image that has it is set aside; the second is the
largest score of the n - 1 others in the second zone; and so on, round after round, m cuts in all. The order of zones
and the number of cuts depend on n alone. Each cut takes from what is accepted one of n + 1 blocks that are equally
probable in a statistical sense, whichever zone it is made in, so the true probability P that a further normal image is
rejected is distributed as Beta(m, n - m + 1), for any continuous joint distribution of the scores, however the zones
depend on each other; tied scores make P smaller. That is the law of the m-th largest score of a single zone: what k
zones cost is that at least k cuts are needed, one in each.

Proof: given the first threshold, the n - 1 images below it are independent and distributed as a further image that is
below it too; the next cut is the largest score of these in its zone. So the accepted share is a product of independent
Beta(n, 1), Beta(n - 1, 1), ..., Beta(n - m + 1, 1), which is Beta(n - m + 1, m).

Source: Tukey, "Non-parametric estimation II. Statistically equivalent blocks and tolerance regions", Ann. Math. Stat.
18 (1947) 529-539. A union bound, with the rate and one minus the confidence divided by k, would need about twice the
images: 736 in place of 473 for two zones, 1 % and 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawscope.arrays import Float64Array, check_array
from flawscope.calibration.evaluation.intervals import images_needed, upper_bound
from flawscope.calibration.thresholds.normal_quantile import OrderStatistic, most_exceedances
from flawscope.errors import ArgumentError


@dataclass(frozen=True)
class JointThresholds:
    """Thresholds of zones, and the bound on false rejects of the image as a whole.

    Attributes:
        values: The threshold of each zone, float64 [K]; a score strictly above it is rejected.
        whole: The bound of all together. Its value is 0, on the largest score minus threshold.
    """

    values: Float64Array
    whole: OrderStatistic


def joint_thresholds(scores: Float64Array, false_reject_rate: float, confidence: float) -> JointThresholds:
    """Return the thresholds of K zones whose common false-reject bound is at most the requested rate.

    As many cuts are made as the rate allows, so that thresholds are low. Where it allows fewer than one in each zone,
    one is made in each, and the bound is that which N images support.

    Args:
        scores: float64 [N, K], scores of normal images that the detector has not learned from, in each zone.
        false_reject_rate: Largest share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence with which this shall hold, a fraction.

    Raises:
        ArgumentError: If a score is not finite, a fraction is not between 0 and 1, or there are fewer images than
            zones.
        MissingExtra: If SciPy is not installed.
    """
    check_array(scores, "scores", ("N", "K"), np.float64, finite=True)
    count, zones = scores.shape
    if count < zones:
        raise ArgumentError(
            f"zones: expected at least as many normal images as zones, {zones}, got {count}. Add images, or draw fewer "
            "zones."
        )
    needed = images_needed(false_reject_rate, confidence, zones)
    cuts = max(zones, most_exceedances(count, false_reject_rate, confidence) + 1)
    values, left = np.zeros(zones), np.arange(count)
    for cut in range(cuts):
        zone = cut % zones
        highest = int(np.argmax(scores[left, zone]))
        values[zone] = scores[left[highest], zone]
        left = np.delete(left, highest)
    bound = upper_bound(cuts - 1, count, confidence)
    whole = OrderStatistic(0.0, count - cuts + 1, count, bound, false_reject_rate, confidence, needed)
    return JointThresholds(values, whole)
