"""How far chance alone moves a window of images away from its reference: the limits that alarms are held against.

Both statistics are of ranks: where the values of the window fall among those of the reference, ties being broken at
random. While nothing changes, their distribution is therefore the same for every quantity, whatever its own is, and
known beforehand. Sources: PSI as a chi-square-like distance of two samples, Yurdakul, "Statistical properties of
population stability index", 2018; rank sums, Mann and Whitney, 1947.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from flawscope.arrays import Float64Array, Int64Array

_ABOVE = 100
"""Simulated values that pass the probability that is asked for; fewer where that would need too many."""
_MOST = 1_000_000
_SIGMAS = 3
"""Standard deviations of their number by which the limit is put higher, as a simulation has chance of its own."""
_CHUNK = 1000
"""Simulated windows at once: short calls, as each of them keeps other threads of Python waiting."""
_SEED = 20


def bin_ranks(reference: int, bins: int) -> Int64Array:
    """Return the ranks at which the bins of a reference end, int64 [bins - 1]: all bins hold the same share of it.

    Args:
        reference: Values of the reference.
        bins: Number of bins; at most `reference`.
    """
    return np.round(np.arange(1, bins) * (reference + 1) / bins).astype(np.int64)


def shares(reference: int, bins: int) -> Float64Array:
    """Return the share of new values that each bin is expected to get, float64 [bins]."""
    return _spacings(reference, bins) / (reference + 1)


def psi(counts: Int64Array, expected: Float64Array) -> Float64Array:
    """Return the population stability index of windows: the sum of (share - expected) * ln(share / expected).

    Half a value is added to each bin, as an empty one would be infinitely far away.

    Args:
        counts: Values of the windows in each bin, int64 [..., bins].
        expected: float64 [bins], each above zero.
    """
    found = (counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * len(expected))
    return np.asarray(((found - expected) * np.log(found / expected)).sum(axis=-1))


@lru_cache(maxsize=64)
def psi_limit(reference: int, window: int, bins: int, alpha: float) -> float:
    """Return what the PSI of a window passes with a probability of at most `alpha` while nothing changes.

    Args:
        reference: Values of the reference.
        window: Values of a window.
        bins: Number of bins.
        alpha: The probability, a fraction, over references and windows.
    """
    count = max(math.ceil(1 / alpha), min(math.ceil(_ABOVE / alpha), _MOST))
    above = alpha * count
    above = max(1, math.floor(above - _SIGMAS * math.sqrt(above)))
    random, spacings, expected = np.random.default_rng(_SEED), _spacings(reference, bins), shares(reference, bins)
    largest = np.empty(0)
    for start in range(0, count, _CHUNK):
        # The shares that the bins of a random reference truly hold, and what falls into them.
        held = random.standard_gamma(spacings, (min(_CHUNK, count - start), bins))
        values = psi(random.multinomial(window, held / held.sum(axis=1, keepdims=True)), expected)
        largest = np.sort(np.concatenate([largest, values]))[-above:]
    return float(largest[0])


def rank_score(ranks: Int64Array, reference: int) -> float:
    """Return by how many standard deviations of chance the rank sum of a window lies above its expectation.

    Args:
        ranks: For each value of the window how many of the reference are smaller, int64 [N].
        reference: Values of the reference.
    """
    window = len(ranks)
    deviation = math.sqrt(window * reference * (window + reference + 1) / 12)
    return float((ranks.sum() - window * reference / 2) / deviation)


def rank_limit(alpha: float) -> float:
    """Return what the size of `rank_score` passes with a probability of at most about `alpha`.

    Rank sums have shorter tails than the normal distribution that is used here: the true probability is smaller.
    """
    return NormalDist().inv_cdf(1 - alpha / 2)


def _spacings(reference: int, bins: int) -> Float64Array:
    ends = np.concatenate([[0], bin_ranks(reference, bins), [reference + 1]])
    return np.diff(ends).astype(np.float64)
