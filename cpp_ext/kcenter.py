"""Greedy k-centre selection: the coreset of PatchCore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_count, check_seed, check_threads


def kcenter_greedy(
    features: Float32Array,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    threads: int = 0,
) -> Int64Array:
    """Return the rows of a greedy k-centre selection (Gonzalez 1985; PatchCore, arXiv:2106.08265, equation 5).

    The first centre is drawn from the seed; every further one is the row with the largest distance to its nearest
    centre, the lowest index among equals. The selection does not depend on the number of threads. If two distances
    are equal up to the rounding of float32, another SIMD level, or the reference, may choose the other row first.

    Args:
        features: float32 [N, D], finite.
        count: Number of centres, 1 to N.
        seed: Seed of the first centre.
        progress: Called from time to time with (centres so far, count); an exception in it, or Ctrl-C, ends the
            selection.
        threads: 0 for all.

    Returns:
        int64 [count], in the order of selection, all different.

    Raises:
        ArgumentError: If shape, dtype, count or seed does not fit, or a feature is NaN or infinite.
    """
    threads = check_threads(threads)
    if not native.HAVE_NATIVE:
        return reference.kcenter_greedy(features, count, seed, progress)
    features = as_native(features, "features")
    rows = len(features) if getattr(features, "ndim", 0) == 2 else 0
    if rows:  # otherwise the array is at fault, and the binding raises the error about it
        check_count(count, "count", rows, "rows of features")
    check_seed(seed)
    # The only draw, the same as in reference.py: any other would give another coreset for the same seed.
    first = int(np.random.default_rng(seed).integers(max(rows, 1)))
    chosen = np.empty(count if rows else 0, np.int64)
    native.MODULE.kcenter_greedy(features, count, first, threads, progress, chosen)
    return chosen
