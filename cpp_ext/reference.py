"""The definition of every kernel, in NumPy. Faster implementations are tested against this file.

All distances are squared: the order is the same, and the caller takes the root of the few that it shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flawscope.arrays import check_array
from flawscope.errors import ArgumentError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_BLOCK_ELEMENTS = 1 << 22
"""Elements of the distance block in `nearest`: 16 MiB of float32, whatever the number of queries."""


def nearest(queries: Float32Array, bank: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
    """Return the k nearest bank rows of every query, nearest first.

    Candidates are found by ‖m‖² − 2·q·m as a matrix product. Their distances are then computed again as Σ(q − m)²:
    the product form loses digits where a distance is small beside the norms, and the small distances are the ones
    that decide. Equal distances are ordered by the lower index.

    Args:
        queries: float32 [N, D].
        bank: float32 [M, D].
        k: Number of neighbours, 1 to M.

    Returns:
        Squared Euclidean distances float32 [N, k] and bank rows int64 [N, k].

    Raises:
        ArgumentError: If shapes, dtypes or k do not fit.
    """
    check_array(queries, "queries", ("N", "D"), np.float32)
    check_array(bank, "bank", ("M", queries.shape[1]), np.float32)
    _check_count(k, "k", len(bank), "rows of the bank")
    norms = np.einsum("md,md->m", bank, bank)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    step = max(1, _BLOCK_ELEMENTS // len(bank))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        block = queries[rows] @ bank.T
        block *= -2.0
        block += norms
        found = block.argmin(axis=1)[:, None] if k == 1 else np.sort(_least(block, k), axis=1)
        difference = queries[rows, None, :] - bank[found]
        exact = np.einsum("nkd,nkd->nk", difference, difference)
        order = np.argsort(exact, axis=1, kind="stable")
        distances[rows] = np.take_along_axis(exact, order, axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
    return distances, indices


def _least(block: Float32Array, k: int) -> Int64Array:
    """Return the columns of the k least values of every row, in any order; among equal values the lowest columns."""
    found = np.argpartition(block, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(block, found, axis=1).max(axis=1, keepdims=True)
    # Partitioning takes any of the values equal to the last one; such rows are rare and are sorted in full.
    tied = np.flatnonzero(np.count_nonzero(block <= last, axis=1) > k)
    found[tied] = np.argsort(block[tied], axis=1, kind="stable")[:, :k]
    return found


def _check_count(count: int, name: str, limit: int, what: str) -> None:
    is_integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not is_integer or not 1 <= count <= limit:
        raise ArgumentError(f"{name}: expected an integer from 1 to {limit} ({what}), got {count!r}.")


def mahalanobis(features: Float32Array, mean: Float32Array, whitening: Float32Array) -> Float32Array:
    """Return the squared Mahalanobis distance of every patch to the Gaussian of its position.

    Args:
        features: float32 [N, P, D].
        mean: float32 [P, D].
        whitening: float32 [P, D, D]; W with W·Wᵀ = Σ⁻¹, so that the distance is ‖(x − μ)·W‖² and cannot be negative.

    Returns:
        float32 [N, P].

    Raises:
        ArgumentError: If shapes or dtypes do not fit.
    """
    check_array(features, "features", ("N", "P", "D"), np.float32)
    _, positions, channels = features.shape
    check_array(mean, "mean", (positions, channels), np.float32)
    check_array(whitening, "whitening", (positions, channels, channels), np.float32)
    centred = (features - mean).transpose(1, 0, 2)
    white = centred @ whitening
    return np.ascontiguousarray(np.einsum("pnd,pnd->np", white, white))


def kcenter_greedy(
    features: Float32Array,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Int64Array:
    """Return the rows of a greedy k-centre selection (Gonzalez 1985; PatchCore, arXiv:2106.08265, equation 5).

    The first centre is drawn from the seed; every further one is the row with the largest distance to its nearest
    centre, the lowest index among equals. Rows that repeat a centre exactly are never taken while others remain.

    Args:
        features: float32 [N, D].
        count: Number of centres, 1 to N.
        seed: Seed of the first centre.
        progress: Called now and then with (centres so far, count).

    Returns:
        int64 [count], in the order of selection, all different.

    Raises:
        ArgumentError: If shape, dtype, count or seed do not fit, or a feature is NaN or infinite.
    """
    check_array(features, "features", ("N", "D"), np.float32, finite=True)
    _check_count(count, "count", len(features), "rows of features")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(f"seed: expected an integer of at least 0, got {seed!r}.")
    norms = np.einsum("nd,nd->n", features, features)
    chosen = np.empty(count, np.int64)
    closest = np.full(len(features), np.inf, np.float32)
    row = int(np.random.default_rng(seed).integers(len(features)))
    for position in range(count):
        chosen[position] = row
        distance = features @ features[row]
        distance *= -2.0
        distance += norms
        distance += norms[row]
        np.minimum(closest, distance, out=closest)
        closest[row] = -np.inf  # chosen rows are out, also where rounding left them a little distance
        row = int(closest.argmax())
        if progress is not None and (position % 64 == 63 or position + 1 == count):
            progress(position + 1, count)
    return chosen
