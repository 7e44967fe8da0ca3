"""Reference implementation of every kernel, in NumPy. Faster implementations are tested against this file.

All distances are squared: the order is the same, and the caller takes the root of the few that it shows. A query with a
NaN or infinite component, or a squared norm of 2¹²⁶ or more, has no distance: it gets NaN and the row −1. Bank rows and
features of a selection beyond that are refused. Below that limit nothing overflows: ‖q − m‖² ≤ 4·max(‖q‖², ‖m‖²).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Int64Array, check_array
from flawscope.cpp_ext.checks import check_count, check_seed
from flawscope.errors import ArgumentError

_BLOCK_ELEMENTS = 1 << 22
"""Elements of the distance block in `nearest`: 16 MiB of float32, whatever the number of queries."""


def nearest(queries: npt.NDArray[Any], bank: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
    """Return the k nearest bank rows of every query, nearest first.

    Candidates are found by ‖m‖² − 2·q·m as a matrix product. Their distances are then computed again as Σ(q − m)²:
    the product form loses digits where a distance is small beside the norms, and the small distances are the ones
    that decide. Equal distances are ordered by the lower index.

    Args:
        queries: float32 or float16 [N, D]; N may be 0.
        bank: float32 [M, D], finite.
        k: Number of neighbours, 1 to M.

    Returns:
        Squared Euclidean distances float32 [N, k] and bank rows int64 [N, k].

    Raises:
        ArgumentError: If shapes, dtypes or k do not fit, or the bank is not finite.
    """
    check_array(bank, "bank", ("M", "D"), np.float32)
    check_norms(bank, "bank")
    return nearest_stored(queries, bank, None, k, 0, "float32")


def nearest_stored(
    queries: npt.NDArray[Any], stored: Float32Array, rows: Float32Array | None, k: int, rerank: int, storage: str
) -> tuple[Float32Array, Int64Array]:
    """Return the k nearest stored rows; with `rerank`, ordered by the distance to the original rows.

    Args:
        queries: float32 or float16 [N, D]. For `int8` storage they are rounded too while candidates are searched.
        stored: float32 [M, D], the result of `stored_rows`.
        rows: float32 [M, D]; needed for re-ranking.
        k: Number of neighbours.
        rerank: 0, or the number of candidates to re-rank.
        storage: `float32`, `float16` or `int8`.

    Returns:
        As `nearest`.

    Raises:
        ArgumentError: If shapes, dtypes or k do not fit.
    """
    queries = _as_float32(queries, stored.shape[1])
    check_count(k, "k", len(stored), "rows of the bank")
    candidates = min(max(k, rerank), len(stored))
    exact_rows = rows if rerank and rows is not None else stored
    norms = np.einsum("md,md->m", stored, stored)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    # The block size influences the last bits: a BLAS may sum in another order for a matrix of another shape.
    step = max(1, _BLOCK_ELEMENTS // len(stored))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        missing = ~_within_range(queries[part])
        # Zeros in place of queries without a distance: argmin treats NaN as the minimum, and NumPy would warn.
        valid = np.where(missing[:, None], np.float32(0), queries[part])
        block = (stored_rows(valid, "int8") if storage == "int8" else valid) @ stored.T
        # In place: the block is the largest array here. ‖q‖² is left out, it is the same for all rows of a query.
        block *= -2.0
        block += norms
        rows_of_query = block.argmin(axis=1)[:, None] if candidates == 1 else np.sort(_least(block, candidates), axis=1)
        difference = valid[:, None, :] - exact_rows[rows_of_query]
        exact = np.einsum("nkd,nkd->nk", difference, difference)
        # Stable, over rows in ascending order: of equal distances the lower row comes first.
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        distances[part] = np.where(missing[:, None], np.float32(np.nan), np.take_along_axis(exact, order, axis=1))
        indices[part] = np.where(missing[:, None], -1, np.take_along_axis(rows_of_query, order, axis=1))
    return distances, indices


def nearest_within(
    queries: npt.NDArray[Any], bank: Float32Array, places: npt.NDArray[Any], reach: npt.NDArray[Any]
) -> tuple[Float32Array, Int64Array]:
    """Return the nearest bank row of every patch among those that come from places near its own.

    The patch at (y, x) is compared with the rows of places (v, u) with |y − v| ≤ reach[y, x] and |x − u| ≤ reach[y, x];
    equal distances are ordered by the lower index.

    Args:
        queries: Patches of whole images, place after place: float32 or float16 [N·P, D]; N may be 0.
        bank: float32 [M, D], finite.
        places: Row and column of the grid that each bank row comes from, integers [M, 2].
        reach: Integers [rows, columns] of the grid, P in all.

    Returns:
        Squared Euclidean distances float32 [N·P] and bank rows int64 [N·P]; NaN and −1 where a window has no row.

    Raises:
        ArgumentError: If shapes or dtypes do not fit.
    """
    queries = _as_float32(queries, bank.shape[1])
    if len(queries) % reach.size:
        raise ArgumentError(f"queries: expected whole images of {reach.size} patches, got {len(queries)} patches.")
    images = queries.reshape(-1, reach.size, bank.shape[1])
    squared = np.full(images.shape[:2], np.nan, np.float32)
    rows = np.full(images.shape[:2], -1, np.int64)
    for position, (y, x) in enumerate(np.ndindex(*reach.shape)):
        away = np.abs(places.astype(np.int64) - (y, x)).max(axis=1)
        near = np.flatnonzero(away <= reach[y, x])
        if len(near):
            patches = np.ascontiguousarray(images[:, position])
            distances, found = nearest_stored(patches, bank[near], None, 1, 0, "float32")
            squared[:, position] = distances[:, 0]
            rows[:, position] = np.where(found[:, 0] < 0, -1, near[found[:, 0]])
    return squared.reshape(-1), rows.reshape(-1)


def stored_rows(rows: Float32Array, storage: str) -> Float32Array:
    """Return rows float32 [M, D] as a bank stores them: unchanged, rounded to float16, or to int8 by a factor per row.

    Raises:
        ArgumentError: If a value is too large for float16.
    """
    if storage == "float32":
        return rows
    if storage == "float16":
        with np.errstate(over="ignore"):  # overflow becomes infinity, which is refused below
            halves = rows.astype(np.float16).astype(np.float32)
        if not np.isfinite(halves).all():
            raise ArgumentError(f"bank: expected values within float16 (65,504), got {np.abs(rows).max():.6g}.")
        return halves
    factors = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    # rint rounds ties to even, as the vector instructions do. A factor that underflows to 0 gives a row of zeros.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.where(factors > 0, np.clip(np.rint(rows / factors), -127, 127), np.float32(0))
    return np.asarray(steps * factors, np.float32)


def check_norms(rows: Float32Array, name: str) -> None:
    """Raise ArgumentError unless every row is finite and its squared norm below 2¹²⁶."""
    bad = int((~_within_range(rows)).sum())
    if bad:
        raise ArgumentError(
            f"{name}: expected finite rows with squared norms below 2^126, got NaN, infinite or larger values in {bad} "
            "rows. Is the bank damaged?"
        )


def _within_range(rows: Float32Array) -> npt.NDArray[np.bool_]:
    # 4 · ‖x‖² overflows to infinity exactly from ‖x‖² = 2¹²⁶ on: one test for NaN, infinity and the limit.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.isfinite(np.float32(4) * np.einsum("nd,nd->n", rows, rows)))


def _as_float32(queries: object, channels: int) -> Float32Array:
    dtype = np.float16 if isinstance(queries, np.ndarray) and queries.dtype == np.float16 else np.float32
    # check_array refuses empty axes; no queries are allowed here.
    if isinstance(queries, np.ndarray) and queries.shape == (0, channels) and queries.dtype == dtype:
        return np.empty((0, channels), np.float32)
    return np.asarray(check_array(queries, "queries", ("N", channels), dtype), np.float32)


def _least(block: Float32Array, k: int) -> Int64Array:
    """Return the columns of the k least values of every row, in any order; among equal values the lowest columns."""
    columns = np.argpartition(block, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(block, columns, axis=1).max(axis=1, keepdims=True)
    # argpartition returns any of the values that tie with the last one; such rows are rare and are sorted in full.
    tied = np.flatnonzero(np.count_nonzero(block <= last, axis=1) > k)
    columns[tied] = np.argsort(block[tied], axis=1, kind="stable")[:, :k]
    return columns


def _is_empty(array: object, shape: tuple[int, ...]) -> bool:
    return isinstance(array, np.ndarray) and array.shape == shape and array.dtype == np.float32


def mahalanobis(features: Float32Array, mean: Float32Array, whitening: Float32Array) -> Float32Array:
    """Return the squared Mahalanobis distance of every patch to the Gaussian of its position.

    Args:
        features: float32 [N, P, D].
        mean: float32 [P, D].
        whitening: float32 [P, D, D]; W with W·Wᵀ = Σ⁻¹, so that the distance is ‖(x − μ)·W‖² and cannot be negative.

    Returns:
        float32 [N, P]; NaN for a patch with a NaN or infinite component, or whose distance is beyond float32.

    Raises:
        ArgumentError: If shapes or dtypes do not fit.
    """
    check_array(mean, "mean", ("P", "D"), np.float32)
    positions, channels = mean.shape
    if not _is_empty(features, (0, positions, channels)):
        check_array(features, "features", ("N", positions, channels), np.float32)
    check_array(whitening, "whitening", (positions, channels, channels), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        centred = (features - mean).transpose(1, 0, 2)  # positions first: one matrix product for each
        white = centred @ whitening
        squared = np.ascontiguousarray(np.einsum("pnd,pnd->np", white, white))
        # The features are tested too: a BLAS may skip products with 0, which would hide an infinity.
        missing = ~(np.isfinite(squared) & np.isfinite(features.sum(axis=2)))
    squared[missing] = np.nan
    return squared


def separable_maps(grids: Float32Array, rows: Float32Array, columns: Float32Array) -> Float32Array:
    """Return rows · grid · columns for every grid.

    Args:
        grids: float32 [N, h, w]; N may be 0.
        rows: float32 [H, h].
        columns: float32 [w, W].

    Returns:
        float32 [N, H, W].

    Raises:
        ArgumentError: If shapes or dtypes do not fit.
    """
    check_array(rows, "rows", ("H", "h"), np.float32)
    check_array(columns, "columns", ("w", "W"), np.float32)
    height, width = rows.shape[1], columns.shape[0]
    if not _is_empty(grids, (0, height, width)):
        check_array(grids, "grids", ("N", height, width), np.float32)
    return np.asarray(rows @ grids @ columns, np.float32)


def kcenter_greedy(
    features: Float32Array,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Int64Array:
    """Return the rows of a greedy k-centre selection (Gonzalez 1985; PatchCore, arXiv:2106.08265, equation 5).

    The first centre is drawn from the seed; every further one is the row with the largest distance to its nearest
    centre, the lowest index among equals. No row is taken twice. A duplicate of a centre is taken only if no other row
    is farther than the rounding error of ‖x‖² − 2·x·c + ‖c‖².

    Args:
        features: float32 [N, D].
        count: Number of centres, 1 to N.
        seed: Seed of the first centre.
        progress: Called from time to time with (centres so far, count).

    Returns:
        int64 [count], in the order of selection, all different.

    Raises:
        ArgumentError: If shape, dtype, count or seed do not fit, or a feature is NaN or infinite.
    """
    check_array(features, "features", ("N", "D"), np.float32)
    check_norms(features, "features")
    check_count(count, "count", len(features), "rows of features")
    check_seed(seed)
    norms = np.einsum("nd,nd->n", features, features)
    chosen = np.empty(count, np.int64)
    closest = np.full(len(features), np.inf, np.float32)
    row = int(np.random.default_rng(seed).integers(len(features)))
    for position in range(count):
        chosen[position] = row
        # In place and in this order: among rows that are nearly equally far the rounding of these operations decides.
        distance = features @ features[row]
        distance *= -2.0
        distance += norms
        distance += norms[row]
        np.minimum(closest, distance, out=closest)
        closest[row] = -np.inf  # a chosen row is never chosen again, even if rounding gave it a distance above 0
        row = int(closest.argmax())
        if progress is not None and (position % 64 == 63 or position + 1 == count):
            progress(position + 1, count)
    return chosen
