"""What to expect of a threshold on the line, in one plain sentence."""

from __future__ import annotations

from flawscope.calibration.evaluation.diagnosis import until_added
from flawscope.calibration.evaluation.intervals import in_parts
from flawscope.calibration.thresholds.normal_quantile import OrderStatistic
from flawscope.datasets import Dataset


def expectation(statistic: OrderStatistic, dataset: Dataset | None = None, *, is_estimated: bool = False) -> str:
    """Return how many normal parts may be rejected, and how many images would bring it down to what was asked for.

    Args:
        statistic: The threshold with its bound.
        dataset: Where images would be added; None where that is not known.
        is_estimated: Whether the scores are cross-fitted, so that the rate is estimated and no bound.
    """
    share = in_parts(statistic.upper_bound)
    sentence = f"Expect up to {'an estimated ' if is_estimated else ''}{share} normal parts rejected"
    more = statistic.images_needed - statistic.images
    if statistic.holds or more < 1:
        return f"{sentence}."
    return f"{sentence} {until_added(more, dataset, is_estimated=is_estimated)}"
