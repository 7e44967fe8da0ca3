"""Thresholds from normal images alone, with a bound on the false-reject rate that holds for any distribution.

An image is rejected when its score is strictly above the threshold. Let the threshold be the k-th smallest of n scores
of normal images. Then the true probability P that a further normal image is rejected is distributed, for any continuous
distribution of scores, as Beta(n - k + 1, k); tied scores make P smaller. The stated bound is the `confidence` quantile
of that law. It holds for images like these: other parts, another light or another lens are not covered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawscope.arrays import BoolArray, Float64Array, check_array
from flawscope.calibration.evaluation.intervals import images_needed, rank_bound, upper_bound
from flawscope.calibration.evaluation.metrics import f1_max
from flawscope.calibration.extras import require
from flawscope.errors import ArgumentError


@dataclass(frozen=True)
class OrderStatistic:
    """A threshold on scores of normal images, and the bound on false rejects that it has.

    Attributes:
        value: The threshold; a score strictly above it is rejected.
        rank: k: the threshold is the k-th smallest of the n scores.
        images: n.
        upper_bound: Upper confidence bound of the true false-reject rate, a fraction.
        false_reject_rate: The requested rate, a fraction.
        confidence: The one-sided confidence of the bound.
        images_needed: Least n with which the largest score supports the requested rate.
    """

    value: float
    rank: int
    images: int
    upper_bound: float
    false_reject_rate: float
    confidence: float
    images_needed: int

    @property
    def holds(self) -> bool:
        """Whether n was large enough for the requested rate."""
        return self.upper_bound <= self.false_reject_rate


def order_statistic_threshold(
    scores: Float64Array, false_reject_rate: float, confidence: float = 0.95
) -> OrderStatistic:
    """Return the smallest order statistic whose false-reject bound is at most the requested rate.

    The smallest such threshold misses the fewest defects. When even the largest score cannot support the rate, the
    largest score is taken, and `upper_bound` is the rate that n images do support.

    Args:
        scores: float64 [N], scores of normal images that the detector has not learned from.
        false_reject_rate: Largest share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence with which this shall hold, a fraction.

    Raises:
        ArgumentError: If a score is not finite or a fraction is not between 0 and 1.
        MissingExtra: If SciPy is not installed.
    """
    check_array(scores, "scores", ("N",), np.float64, finite=True)
    needed = images_needed(false_reject_rate, confidence)
    n = len(scores)
    # The rank depends on n alone, never on the scores: a rank chosen by looking at them would void the bound.
    rank = n - most_exceedances(n, false_reject_rate, confidence)
    # An observed score, not an interpolated quantile: for a value between two scores the Beta law does not hold.
    value = float(np.partition(scores, rank - 1)[rank - 1])
    bound = rank_bound(n, rank, confidence)
    return OrderStatistic(value, rank, n, bound, false_reject_rate, confidence, needed)


def most_exceedances(n: int, false_reject_rate: float, confidence: float) -> int:
    """Return the largest number of n scores that may lie above a threshold with a bound, 0 when none may.

    Raises:
        ArgumentError: If a fraction is not between 0 and 1, or n is 0.
        MissingExtra: If SciPy is not installed.
    """
    if upper_bound(0, n, confidence) > false_reject_rate:
        return 0
    beta = require("scipy.stats", "scipy", "computing confidence bounds").beta
    # The bound grows with the number of scores above the threshold, so the last one within the rate is the most.
    above = np.arange(n)
    bounds = beta.ppf(confidence, above + 1, n - above)
    bounds[0] = upper_bound(0, n, confidence)  # the closed form, which decided above, in place of the beta quantile
    return int(np.flatnonzero(bounds <= false_reject_rate)[-1])


def f1_threshold(scores: Float64Array, labels: BoolArray) -> float:
    """Return the threshold with the largest F1 on labelled images; figures on the same images are optimistic.

    Raises:
        ArgumentError: If a class is missing or a score is not finite.
    """
    best = f1_max(scores, labels)
    if best is None:
        raise ArgumentError("labels: expected normal and anomalous images, got one kind only. Use the objective good.")
    return best.threshold
