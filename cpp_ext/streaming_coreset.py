"""Coreset of a stream: greedy k-centre selections of blocks, then of what they kept, in memory that is fixed before.

Two levels are the distributed selection of Malkomes, Kusner, Chen, Weinberger and Moseley ("Fast Distributed k-Center
Clustering with Outliers on Massive Data", NIPS 2015, section 3): at most 4 times the smallest possible radius. Here
blocks come one after another, and there are as many levels as memory asks for. One level more adds 2:

- Of a block, greedy selection keeps more rows than the final one, k. With one row more they were k + 1 rows that are
  all at least the radius r of the block apart. In the best k balls over the whole stream two of them share one: r is
  at most twice its radius, R. This holds for the rows of every level, for they are rows of the stream.
- A row is at most r from one that was kept, this one at most r' from one that was kept on the next level, and so on:
  after `depth` reductions and the last selection, at most (depth + 1) · 2 · R from a row of the coreset.

The doubling algorithm (Charikar, Chekuri, Feder and Motwani, STOC 1997: 8 R in one pass) needs less memory but has to
double its radius, which leaves few rows where features have many dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.errors import ArgumentError

_STEP = 4096
"""Rows that are moved or compared at once."""

Select = Callable[[Float32Array, Int64Array, int], Int64Array]
"""Chooses `count` different rows of [N, D] with positions [N]; it may write to columns that are its own."""


@dataclass(frozen=True)
class Levels:
    """How much of a stream is held.

    Attributes:
        depth: Reductions that a row may pass before the last selection.
        block: Rows that a level holds.
        kept: Rows that a reduction keeps of them; with `depth` 0 there is none.
    """

    depth: int
    block: int
    kept: int

    @property
    def rows(self) -> int:
        """Rows of all levels."""
        return (self.depth + 1) * self.block

    @property
    def factor(self) -> int:
        """How many times the smallest possible radius the coreset's is at most."""
        return 2 * (self.depth + 1)


def plan_levels(stream: int, count: int, budget: int) -> Levels | None:
    """Return the fewest levels that suffice, or None if no number of them does.

    Args:
        stream: Rows that come at most.
        count: Rows of the coreset.
        budget: Rows for which there is memory. The two copies that a reduction makes of the rows that it keeps count.
    """
    if stream <= budget:
        return Levels(0, max(1, stream), max(1, stream))
    depth = 1
    # A block has at least twice the rows that are kept of it, and they are more than `count`.
    while 2 * (depth + 1) * (count + 1) <= budget:
        for blocks in range(2, budget // (count + 1) + 1):  # of a level, that are joined on the next
            block = budget * blocks // ((depth + 1) * blocks + 2)
            kept = block // blocks
            if kept <= count:
                break
            if block * blocks**depth >= stream:
                # Twice the coreset is enough: more rows take more time, and do not make the radius smaller.
                return Levels(depth, block, min(kept, 2 * (count + 1)))
        depth += 1
    return None


def least_budget(stream: int, count: int) -> int:
    """Return the fewest rows with which `plan_levels` finds a plan."""
    low, high = 1, max(1, stream)
    while low < high:
        middle = (low + high) // 2
        if plan_levels(stream, count, middle) is None:
            low = middle + 1
        else:
            high = middle
    return low


class StreamingCoreset:
    """Rows of a stream, as many as its levels hold. They do not depend on how many are added at once.

    Args:
        levels: How much is held.
        columns: Columns D of a row.
        select: Chooses the rows that a reduction keeps, in the order of a greedy selection.
    """

    def __init__(self, levels: Levels, columns: int, select: Select) -> None:
        self._levels, self._select = levels, select
        # Memory that is not written to is not taken. Level 0 lies at the end, so that the oldest rows come first.
        self._rows = np.empty((levels.rows, columns), np.float32)
        self._positions = np.empty(levels.rows, np.int64)
        self._counts = [0] * (levels.depth + 1)
        self._radii = [0.0] * levels.depth

    @property
    def reach(self) -> float:
        """How far a row of the stream can be from the nearest that is held: a sum over levels of the largest radius."""
        return sum(self._radii)

    def add(self, rows: Float32Array, positions: Int64Array) -> None:
        """Add rows, float32 [n, D], and where they stand in their image, int64 [n].

        Raises:
            ArgumentError: If they are more than the levels were planned for.
        """
        done = 0
        while done < len(rows):
            if self._counts[0] == self._levels.block:
                self._reduce(0)
            start = self._start(0) + self._counts[0]
            taken = min(self._levels.block - self._counts[0], len(rows) - done)
            self._rows[start : start + taken] = rows[done : done + taken]
            self._positions[start : start + taken] = positions[done : done + taken]
            self._counts[0] += taken
            done += taken

    def held(self) -> tuple[Float32Array, Int64Array]:
        """Return all rows that are held, float32 [N, D], and their positions, int64 [N]; nothing can be added then."""
        end = 0
        for level in reversed(range(self._levels.depth + 1)):
            start, count = self._start(level), self._counts[level]
            # In place and in steps, each of which NumPy copies where it overlaps: a second array of this size is what
            # the levels are there to avoid.
            for offset in range(0, count, _STEP):
                source = slice(start + offset, start + min(offset + _STEP, count))
                target = slice(end + offset, end + min(offset + _STEP, count))
                self._rows[target] = self._rows[source]
                self._positions[target] = self._positions[source]
            end += count
        return self._rows[:end], self._positions[:end]

    def _start(self, level: int) -> int:
        return (self._levels.depth - level) * self._levels.block

    def _reduce(self, level: int) -> None:
        """Keep some rows of a level, on the next one."""
        levels, above = self._levels, level + 1
        if above > levels.depth:
            raise ArgumentError(
                f"stream: expected at most the rows that its levels were planned for, got more than {levels.block} on "
                "the last level. Plan for more rows."
            )
        if self._counts[above] + levels.kept > levels.block:
            self._reduce(above)
        source = slice(self._start(level), self._start(level) + self._counts[level])
        chosen = self._select(self._rows[source], self._positions[source], levels.kept)
        kept, positions = self._rows[source][chosen], self._positions[source][chosen]
        self._radii[level] = max(self._radii[level], last_distance(kept))
        start = self._start(above) + self._counts[above]
        self._rows[start : start + len(kept)] = kept
        self._positions[start : start + len(kept)] = positions
        self._counts[above] += len(kept)
        self._counts[level] = 0


def last_distance(rows: Float32Array) -> float:
    """Return the distance of the last row, in the order of a greedy selection, to the nearest of those before it.

    No row that was selected from is farther from the nearest of those before the last.

    Args:
        rows: The selected rows, float32 [M, D]. One alone is at no distance.
    """
    nearest = np.inf
    for start in range(0, len(rows) - 1, _STEP):  # in float64, without a copy of all rows
        before = rows[start : min(start + _STEP, len(rows) - 1)].astype(np.float64)
        nearest = min(nearest, float(np.square(before - rows[-1]).sum(axis=1).min()))
    return float(np.sqrt(nearest)) if len(rows) > 1 else 0.0
