"""What to expect of a threshold on the line, in one plain sentence."""

from __future__ import annotations

import math

from flawscope.calibration.thresholds.normal_quantile import OrderStatistic


def expectation(statistic: OrderStatistic, *, is_estimated: bool = False) -> str:
    """Return how many normal parts may be rejected, and how many images would bring it down to what was asked for.

    Args:
        statistic: The threshold with its bound.
        is_estimated: Whether the scores are cross-fitted, so that the rate is estimated and no bound.
    """
    share = in_parts(statistic.upper_bound)
    sentence = f"Expect up to {'an estimated ' if is_estimated else ''}{share} normal parts rejected"
    more = statistic.images_needed - statistic.images
    if statistic.holds or more < 1:
        return f"{sentence}."
    return f"{sentence} until you add {more} image{'' if more == 1 else 's'}."


def in_parts(rate: float) -> str:
    """Return a rate as whole parts of 100, or of 1,000 and more where it is below 1 in 200; rounded up."""
    of = 100
    while rate * of < 0.5 and of < 1_000_000:
        of *= 10
    # Rates of exactly 1 % come out of floating point as 1.0000000000000002 %.
    return f"{max(1, math.ceil(rate * of - 1e-9))} in {of:,}"
