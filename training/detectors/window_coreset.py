"""Coreset for a positional window: every place of the grid keeps rows of its own neighbourhood."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.cpp_ext import kcenter_greedy


def select_by_place(
    matrix: Float32Array,
    positions: Int64Array,
    grid: tuple[int, int],
    radius: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Int64Array:
    """Return the rows of a coreset that covers every place, sorted by place, int64 [count].

    A selection over all patches keeps one of many alike, wherever it lies: other places that show the same would find
    nothing like it in their windows. So the grid is cut into blocks of `radius` + 1 cells a side, each block gets rows
    in proportion to its patches, and these are chosen by greedy k-centre selection among its own patches. A window of
    this radius holds at least one whole block, so with a row a block none is empty.

    Args:
        matrix: Patches float32 [N, D].
        positions: Place of each patch, row · columns + column, integers [N].
        grid: Rows and columns of the patch grid.
        radius: Radius of the window in cells.
        count: Rows to select, 1 to N.
        seed: Seed of the first centre of each block.
        progress: Called with (rows so far, count) after every block.
    """
    blocks = _blocks(positions, grid, radius)
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    shares = _shares(np.array([len(rows) for rows in members]), count)
    chosen: list[Int64Array] = []
    for rows, share in zip(members, shares.tolist(), strict=True):
        if share:
            # Not copied where one block is all there is: the matrix may be as large as the memory budget.
            patches = matrix if len(rows) == len(matrix) else matrix[rows]
            chosen.append(rows[kcenter_greedy(patches, share, seed)])
            progress(sum(map(len, chosen)), count)
    coreset = np.concatenate(chosen)
    # By place, as the search wants them, and within a place in the order of the images.
    return coreset[np.lexsort((coreset, positions[coreset]))]


def places_of(positions: Int64Array, grid: tuple[int, int]) -> Int64Array:
    """Return grid rows and columns of positions [M], int64 [M, 2]."""
    return np.stack(np.divmod(positions.astype(np.int64), grid[1]), axis=1)


def _blocks(positions: Int64Array, grid: tuple[int, int], radius: int) -> Int64Array:
    side = radius + 1
    rows, columns = np.divmod(positions.astype(np.int64), grid[1])
    return np.asarray(rows // side * -(-grid[1] // side) + columns // side, np.int64)


def _shares(sizes: Int64Array, count: int) -> Int64Array:
    """Return how many rows each block gets, in proportion to its patches; at least one where there are enough."""
    exact = sizes * (count / sizes.sum())
    shares = np.minimum(np.maximum(np.floor(exact).astype(np.int64), int(count >= len(sizes))), sizes)
    # The largest remainders get what is left. Blocks that were lifted to one row may have taken too many.
    while (missing := count - int(shares.sum())) != 0:
        if missing > 0:
            room = np.flatnonzero(shares < sizes)
            order = room[np.argsort(shares[room] - exact[room], kind="stable")]
            shares[order[:missing]] += 1
        else:
            room = np.flatnonzero(shares > 1)
            order = room[np.argsort(exact[room] - shares[room], kind="stable")]
            shares[order[:-missing]] -= 1
    return np.asarray(shares, np.int64)
