"""Coreset for a positional window: rows that lie near each other in features and in the image, for every place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.cpp_ext.bank import nearest
from flawscope.cpp_ext.kcenter import kcenter_greedy

PLACE_COLUMNS = 2
"""Columns of the matrix that `select_for_window` writes places to."""

_SHARE_OF_RADIUS = 0.5
"""What `radius` + 1 cells count, in radii of the selection without places. Of 0.5, 1, no places at all, and blocks of
the grid with rows in proportion, 0.5 has the best mean AUROC on magnetic tiles and generated boards and gears."""

_SAMPLE = 4096
"""Patches from which the radius of a selection is measured."""


def select_for_window(
    matrix: Float32Array,
    positions: Int64Array,
    grid: tuple[int, int],
    radius: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Int64Array:
    """Return the rows of a coreset for a window, sorted by place, int64 [count].

    A selection by features alone keeps one of many patches that are alike, wherever it lies: other places that show the
    same would find nothing like it in their windows. So places are two more coordinates, by a factor that makes
    `radius` + 1 cells a half of the distance within which the selection by features covers all patches.

    A window of this radius holds at least one whole block of `radius` + 1 cells a side, so none is empty if every block
    has a row: the last rows of the selection give way to one row, drawn by the seed, in each block that has none. Where
    there are more blocks than rows, the selection is all that there is.

    Args:
        matrix: Patches float32 [N, D + 2]. The last two columns must be 0; their places are written there.
        positions: Place of each patch, row · columns + column, integers [N].
        grid: Rows and columns of the patch grid.
        radius: Radius of the window in cells.
        count: Rows to select, 1 to N.
        seed: Seed of the first centre and of all that is drawn.
        progress: Called with (steps so far, steps).
    """
    generator = np.random.default_rng([seed, 3])
    alone = kcenter_greedy(matrix, count, seed, lambda done, total: progress(done, 2 * total))
    sample = np.sort(generator.permutation(len(matrix))[:_SAMPLE])
    covered = float(np.sqrt(nearest(matrix[sample], matrix[alone], 1)[0].max()))
    # Where every patch is a row, or like one, any factor serves: rows then differ by their places alone.
    factor = _SHARE_OF_RADIUS * (covered or 1.0) / (radius + 1)
    matrix[:, -PLACE_COLUMNS:] = factor * places_of(positions, grid)
    chosen = kcenter_greedy(matrix, count, seed, lambda done, total: progress(total + done, 2 * total))
    chosen = _covering(chosen, _blocks(positions, grid, radius), generator)
    # By place, as the search wants them, and within a place in the order of the images.
    return chosen[np.lexsort((chosen, positions[chosen]))]


def places_of(positions: Int64Array, grid: tuple[int, int]) -> Int64Array:
    """Return grid rows and columns of positions [M], int64 [M, 2]."""
    return np.stack(np.divmod(positions.astype(np.int64), grid[1]), axis=1)


def _blocks(positions: Int64Array, grid: tuple[int, int], radius: int) -> Int64Array:
    side = radius + 1
    rows, columns = np.divmod(positions.astype(np.int64), grid[1])
    return np.asarray(rows // side * -(-grid[1] // side) + columns // side, np.int64)


def _covering(chosen: Int64Array, blocks: Int64Array, generator: np.random.Generator) -> Int64Array:
    """Return as many rows, of which each block has one, if there are enough; `chosen` in the order of selection."""
    count, every = len(chosen), np.unique(blocks)
    taken, firsts = np.unique(blocks[chosen], return_index=True)
    if len(taken) == len(every) or len(every) > count:
        return chosen
    # Blocks that have a row after k selected ones. As k grows by one, k rows and one in each other block stay as many
    # or become one more: the largest k for which they are not too many makes them just as many as asked for.
    ks = np.arange(count + 1)
    kept = int(ks[ks + len(every) - np.searchsorted(np.sort(firsts), ks) <= count].max())
    order = generator.permutation(len(blocks))
    names, places = np.unique(blocks[order], return_index=True)
    others = order[places[~np.isin(names, blocks[chosen[:kept]])]]
    return np.concatenate([chosen[:kept], others])
