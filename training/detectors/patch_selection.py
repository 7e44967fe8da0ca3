"""The patches of one memory bank while a fit reads them, and the coreset that is chosen from them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.config import PatchcoreConfig
from flawscope.cpp_ext import kcenter_greedy
from flawscope.cpp_ext.streaming_coreset import StreamingCoreset, last_distance
from flawscope.cpp_ext.window_coreset import PLACE_COLUMNS, places_of, select_for_window
from flawscope.progress import CountProgress, Progress
from flawscope.training.detectors.patch_plan import Plan, StreamingPlan, bank_rows


class PatchSelection(Protocol):
    """The patches of one bank; a context manager.

    Attributes:
        channels: Channels of a patch.
        rows: Patches added so far.
    """

    channels: int
    rows: int

    def __enter__(self) -> PatchSelection:
        """Take what is needed."""

    def __exit__(self, *_: object) -> None:
        """Give it back."""

    @property
    def description(self) -> str:
        """What the coreset was chosen from, in words for the record."""

    @property
    def factor(self) -> float | None:
        """How many times the smallest possible radius the coreset's is at most; None where nobody has shown it."""

    def add(self, patches: Float32Array, positions: Int64Array) -> None:
        """Add patches of an image, float32 [P, D], and where they stand among all of the image, int64 [P]."""

    def bank(self, progress: Progress, which: str) -> tuple[Float32Array, Int64Array]:
        """Return the coreset of all patches that were added, float32 [M, D], and its places on the grid, int64 [M, 2].

        Args:
            progress: Receives progress.
            which: Names the bank, for progress.
        """


def open_selection(
    config: PatchcoreConfig, images: int, grid: tuple[int, int], channels: int, scratch: Path
) -> PatchSelection:
    """Return the selection that the settings ask for.

    Args:
        config: Settings.
        images: Number of images, views included.
        grid: Rows and columns of the patches of an image.
        channels: Channels of a patch.
        scratch: Folder for a temporary file.

    Raises:
        ArgumentError: If the bank is too large for the memory budget.
    """
    if config.selection == "streaming":
        return StreamingSelection(config, images, grid, channels)
    return WholeSelection(config, images, grid, channels, scratch)


class WholeSelection:
    """All patches, or a random share of each image's, in memory at once; the patches themselves on disk if need be.

    Args:
        config: Settings.
        images: Number of images, views included.
        grid: Rows and columns of the patches of an image.
        channels: Channels of a patch.
        scratch: Folder for a temporary file.

    Attributes:
        plan: How the patches are kept.
    """

    factor: float | None = None

    def __init__(
        self, config: PatchcoreConfig, images: int, grid: tuple[int, int], channels: int, scratch: Path
    ) -> None:
        self._config, self._scratch, self._grid = config, scratch, grid
        self.plan = Plan.for_budget(config, images, grid[0] * grid[1], channels)
        self.channels = channels
        self.rows = 0
        self._width = self.plan.dimensions
        extra = 0 if config.window is None else PLACE_COLUMNS
        self._matrix = np.zeros((images * self.plan.kept_per_image, self._width + extra), np.float32)
        self._positions = np.empty(len(self._matrix), np.int64)  # of each patch, on the grid
        # [seed, 1] and [seed, 2] are independent streams: the choice of patches does not depend on the projection.
        self._generator = np.random.default_rng([config.seed, 1])

    def __enter__(self) -> WholeSelection:
        # Beside the run, not in /tmp, which is often a small memory file system.
        self._file = tempfile.TemporaryFile(dir=self._scratch)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def description(self) -> str:
        """What the coreset was chosen from; see `PatchSelection`."""
        return self.plan.description

    def add(self, patches: Float32Array, positions: Int64Array) -> None:
        """Add patches of an image; see `PatchSelection`."""
        plan = self.plan
        if plan.kept_per_image < len(patches):
            # Sorted, so that the rows stay in the order of the image.
            kept = np.sort(self._generator.permutation(len(patches))[: plan.kept_per_image])
            patches, positions = patches[kept], positions[kept]
        if plan.projection is not None:
            self._file.write(np.ascontiguousarray(patches).tobytes())
            patches = patches @ plan.projection
        self._matrix[self.rows : self.rows + len(patches), : self._width] = patches
        self._positions[self.rows : self.rows + len(patches)] = positions
        self.rows += len(patches)

    def bank(self, progress: Progress, which: str) -> tuple[Float32Array, Int64Array]:
        """Return the coreset and its places; see `PatchSelection`."""
        matrix, positions = self._matrix[: self.rows], self._positions[: self.rows]
        count, window, seed = bank_rows(self._config, len(matrix)), self._config.window, self._config.seed
        selecting = _telling(progress, f"selecting the coreset{which}")
        if window is None:
            coreset = kcenter_greedy(matrix, count, seed, selecting)
        else:
            coreset = select_for_window(matrix, positions, self._grid, window, count, seed, selecting)
        return self._stored(matrix, coreset), places_of(positions[coreset], self._grid)

    def _stored(self, matrix: Float32Array, coreset: Int64Array) -> Float32Array:
        if self.plan.projection is None:
            return np.ascontiguousarray(matrix[coreset, : self._width])
        # Only the coreset's rows are read back, so the patches never lie in memory as a whole.
        self._file.flush()
        stored = np.memmap(self._file, np.float32, "r", shape=(len(matrix), self.channels))
        rows = np.asarray(stored[coreset])
        del stored  # closes the mapping before the file
        return rows


class StreamingSelection:
    """Every patch once, in blocks that are reduced to fewer patches; see `flawscope.cpp_ext.streaming_coreset`.

    Args:
        config: Settings.
        images: Number of images, views included.
        grid: Rows and columns of the patches of an image.
        channels: Channels of a patch.

    Attributes:
        plan: How many patches are held.
        factor: After `bank`, how many times the smallest possible radius the bank's is at most. None with a window or a
            projection, for which it is not shown.

    Raises:
        ArgumentError: If the bank is too large for the memory budget.
    """

    def __init__(self, config: PatchcoreConfig, images: int, grid: tuple[int, int], channels: int) -> None:
        self._config, self._grid = config, grid
        self.plan = StreamingPlan(config, images, grid[0] * grid[1], channels)
        self.channels = channels
        self.rows = 0
        self.factor: float | None = None
        self._extra = 0 if config.window is None else PLACE_COLUMNS
        self._coreset = StreamingCoreset(self.plan.levels, channels + self._extra, self._select)

    def __enter__(self) -> StreamingSelection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def description(self) -> str:
        """What the coreset was chosen from; see `PatchSelection`."""
        return self.plan.description

    def add(self, patches: Float32Array, positions: Int64Array) -> None:
        """Add patches of an image; see `PatchSelection`."""
        if self._extra:
            patches = np.pad(patches, ((0, 0), (0, self._extra)))
        self._coreset.add(patches, positions)
        self.rows += len(patches)

    def bank(self, progress: Progress, which: str) -> tuple[Float32Array, Int64Array]:
        """Return the coreset and its places; see `PatchSelection`."""
        held, positions = self._coreset.held()
        count, levels = bank_rows(self._config, self.rows), self.plan.levels
        # One more than asked for: how far it is from the others is the radius of the others.
        shows_radius = self._config.window is None and self.plan.projection is None
        more = int(shows_radius and count < len(held))
        chosen = self._select(held, positions, count + more, _telling(progress, f"selecting the coreset{which}"))
        if shows_radius:
            radius = last_distance(held[chosen]) if more else 0.0
            # Half of it is no more than the smallest possible radius: of `count` + 1 rows that are so far apart, two
            # are in one ball.
            measured = 2 * (self._coreset.reach + radius) / radius if radius > 0 else levels.factor
            self.factor = math.ceil(1000 * min(measured, levels.factor)) / 1000
        chosen = chosen[:count]
        return np.ascontiguousarray(held[chosen, : self.channels]), places_of(positions[chosen], self._grid)

    def _select(
        self, rows: Float32Array, positions: Int64Array, count: int, selecting: CountProgress | None = None
    ) -> Int64Array:
        window, seed = self._config.window, self._config.seed
        if self._extra:
            rows[:, self.channels :] = 0  # places, by the factor of the selection before
        space = rows
        if self.plan.projection is not None:
            space = rows[:, : self.channels] @ self.plan.projection
            if self._extra:
                space = np.pad(space, ((0, 0), (0, self._extra)))
        if window is None:
            return kcenter_greedy(space, count, seed, selecting)
        return select_for_window(space, positions, self._grid, window, count, seed, selecting or _silent)


def _telling(progress: Progress, stage: str) -> CountProgress:
    return lambda done, total: progress(stage, done, total)


def _silent(done: int, total: int) -> None:
    pass
