"""Scores that stand far above those of all other normal images: a mislabelled defect, or a damaged image."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import Float64Array

_ALPHA = 5e-4
_MOST = 3
_LEAST_SPACINGS = 3


def count_outlying(scores: Float64Array) -> int:
    """Return how many of the highest scores stand far above the rest; 0 where none does.

    The gap below them is compared with those that follow. In a tail that falls off exponentially the gap below the
    j-th largest score, times j, is exponentially distributed with one mean for all j (Rényi, 1953), so the ratio to the
    mean of m that follow exceeds x with probability (1 + x / m) ** -m. Tails that fall off faster, as those of normal
    images mostly do, have smaller gaps: a warning without cause is then rarer still. How the scores are scaled, and
    where their zero is, makes no difference.

    Args:
        scores: float64 [N], scores of normal images, in any order. Fewer than eight are too few to tell.

    Returns:
        At most 3, and at most a tenth of the scores or one.
    """
    highest = np.sort(scores)[::-1]
    # The upper half: the lower one says nothing about the tail.
    ranks = np.arange(1, len(highest) // 2 + 1)
    spacings = -np.diff(highest)[: len(ranks)] * ranks
    found = 0
    for count in range(1, max(1, min(_MOST, len(highest) // 10)) + 1):
        following = spacings[count:]
        if len(following) < _LEAST_SPACINGS:
            break
        gap, others = spacings[count - 1], following.mean()
        # The second condition alone holds where all others are equal: not even rounding may then pass for a gap.
        if gap > 1e-6 * abs(highest[count]) and gap > others * len(following) * (_ALPHA ** (-1 / len(following)) - 1):
            found = count
    return found
