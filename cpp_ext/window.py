"""Nearest rows within positional windows: for fixed cameras, where a patch belongs to its place on the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Int64Array, UInt8Array, check_array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_block, check_count, check_native, check_threads, is_integer
from flawscope.errors import ArgumentError


class WindowBank:
    """Rows of a memory bank with the places they come from; a patch is compared only with those near its own place.

    The patch at the place (y, x) of the grid is compared with the rows of all places (v, u) with |y − v| ≤ r and
    |x − u| ≤ r. Where that window has no row, it is widened around this place alone until it has one: r is then the
    larger of |y − v| and |x − u| of the nearest row. So every patch has a distance.

    Args:
        rows: float32 [M, D], finite. The array is used where it lies and must not be changed afterwards.
        places: Row and column of the grid that each bank row comes from, integers [M, 2], in ascending order: by grid
            row, then by column.
        grid: Rows and columns of the patch grid.
        radius: r, in cells of the grid; at least 0.
        threads: Threads for packing, 0 for all.

    Attributes:
        shape: (M, D).
        grid: Rows and columns of the patch grid.
        reach: int32 [rows, columns]: how far the patch at each place looks: r, at most the longer
            side of the grid, or more where its window was widened.
        pairs: Pairs of a patch and a row within its window, in one image; the whole bank has rows · columns · M.
        nbytes: Bytes held in addition to `rows`.

    Raises:
        ArgumentError: If a shape, dtype or option does not fit, places are outside the grid or not in order, or a row
            is NaN, infinite, or too large.
    """

    def __init__(
        self, rows: Float32Array, places: npt.NDArray[Any], grid: tuple[int, int], radius: int, *, threads: int = 0
    ) -> None:
        threads = check_threads(threads)
        rows, starts = self._take(rows, places, grid, radius)
        if native.HAVE_NATIVE:
            self._packed: Any = native.MODULE.Windows(rows, starts, self.reach, threads)
            self.nbytes: int = self._packed.nbytes
        else:
            check_array(rows, "rows", ("M", "D"), np.float32)
            reference.check_norms(rows, "rows")
            self._packed, self.nbytes = None, 0
        self.shape: tuple[int, int] = (len(rows), rows.shape[1])

    def _take(
        self, rows: Float32Array, places: npt.NDArray[Any], grid: tuple[int, int], radius: int
    ) -> tuple[Float32Array, Int64Array]:
        """Keep what is asked of a window bank, and return its rows and the first row of every place."""
        starts = place_starts(places, grid)
        self.reach = window_reach(starts, grid, radius)
        self.grid = grid
        self.pairs = _pairs(starts, self.reach)
        rows = as_native(rows, "rows")
        if rows.ndim == 2 and len(rows) != starts[-1]:
            raise ArgumentError(f"places: expected one for each of the {len(rows)} rows, got {starts[-1]}.")
        self._rows, self._places = rows, places
        return rows, starts

    @classmethod
    def from_block(
        cls,
        block: UInt8Array,
        rows: Float32Array,
        places: npt.NDArray[Any],
        grid: tuple[int, int],
        radius: int,
    ) -> WindowBank:
        """Return the bank whose rows lie packed in a block of `to_block`, which is used where it lies.

        All of the block is read once, and it is whole and of these rows or refused; see `Bank.from_block`.

        Args:
            block: uint8 [N], at a multiple of 64 bytes in memory. It is kept alive and must not be changed afterwards,
                nor the file be cut off.
            rows: float32 [M, D], what the block is expected to be of; compared with those in it and not kept.
            places: As of the class, and so are the others: they are not in the block.
            grid: Rows and columns of the patch grid.
            radius: Cells of the grid.

        Raises:
            ArgumentError: If the block is damaged, cut off, of another version of the kernels, another SIMD level or
                other rows; there are no native kernels; else as for the class.
        """
        check_block(block)
        self = cls.__new__(cls)
        rows, starts = self._take(rows, places, grid, radius)
        self._packed = native.MODULE.Windows.of_block(block, rows, starts, self.reach)
        self.nbytes, self.shape = self._packed.nbytes, (len(rows), rows.shape[1])
        first = native.MODULE.BLOCK_ROWS
        self._rows = block[first : first + rows.nbytes].view(np.float32).reshape(self.shape)
        return self

    def to_block(self) -> UInt8Array:
        """Return rows and packed form as one block, uint8 [N], that `from_block` takes.

        It is what `Bank.to_block` gives of these rows at `windows_simd_level`.

        Raises:
            ArgumentError: If there are no native kernels.
        """
        check_native()
        block = np.empty(self._packed.block_bytes, np.uint8)
        self._packed.write_block(block)
        return block

    @property
    def rows(self) -> Float32Array:
        """The rows, float32 [M, D], where they lie: in the block of `from_block`."""
        return self._rows

    @property
    def computed(self) -> int:
        """Products of a patch and a row computed so far, those included that a window masks; −1 without native kernels.

        Rows and patches go through the kernels in blocks, so there are more products than pairs.
        """
        return -1 if self._packed is None else int(self._packed.computed)

    def __len__(self) -> int:
        return self.shape[0]

    def nearest(self, queries: npt.NDArray[Any], *, threads: int = 0) -> tuple[Float32Array, Int64Array]:
        """Return the nearest row of every patch within its window, the lower row of equally near ones.

        Args:
            queries: Patches of whole images, place after place: float32 or float16 [N·P, D] with P places; N may be 0.
                With native kernels any CPU array that supports DLPack. A patch with a NaN or infinite component, or a
                squared norm of 2¹²⁶ or more, gets the distance NaN and the row −1.
            threads: 0 for all.

        Returns:
            Squared Euclidean distances float32 [N·P] and rows int64 [N·P].

        Raises:
            ArgumentError: If shape, dtype, device or an option does not fit.
        """
        threads = check_threads(threads)
        if self._packed is None:
            return reference.nearest_within(queries, self._rows, self._places, self.reach)
        queries = as_native(queries, "queries")
        # Allocated before the binding checks the queries, which raises the error about what has no length.
        count = len(queries) if getattr(queries, "ndim", 0) else 0
        squared, rows = np.empty(count, np.float32), np.empty(count, np.int64)
        self._packed.nearest(queries, threads, squared, rows)
        return squared, rows


def windows_simd_level() -> str:
    """Return the level that windows take, or `none` without native kernels: that in use, or VNNI in place of AMX."""
    return native.MODULE.windows_simd_level() if native.HAVE_NATIVE else "none"


def place_starts(places: npt.NDArray[Any], grid: tuple[int, int]) -> Int64Array:
    """Return the first bank row of every place, and the number of rows at the end: int64 [rows · columns + 1].

    Args:
        places: Row and column of the grid that each bank row comes from, integers [M, 2], in ascending order.
        grid: Rows and columns of the patch grid.

    Raises:
        ArgumentError: If shape or dtype does not fit, or places are outside the grid or not in order.
    """
    height, width = grid
    if not isinstance(places, np.ndarray) or places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
        shape = f"{places.dtype} {list(places.shape)}" if isinstance(places, np.ndarray) else type(places).__name__
        raise ArgumentError(f"places: expected integers [M, 2], got {shape}.")
    if len(places) and not (places.min() >= 0 and places[:, 0].max() < height and places[:, 1].max() < width):
        raise ArgumentError(
            f"places: expected rows below {height} and columns below {width}, got {places.min()} to "
            f"{places.max(axis=0).tolist()}."
        )
    cells = places[:, 0].astype(np.int64) * width + places[:, 1]
    if (np.diff(cells) < 0).any():
        raise ArgumentError("places: expected them in ascending order, by grid row and then by column; got another.")
    return np.searchsorted(cells, np.arange(height * width + 1)).astype(np.int64)


def window_reach(starts: Int64Array, grid: tuple[int, int], radius: int) -> npt.NDArray[np.int32]:
    """Return how far the patch at each place looks, int32 [rows, columns]: `radius`, or more where no row is so near.

    Args:
        starts: First bank row of every place, from `place_starts`.
        grid: Rows and columns of the patch grid.
        radius: Cells of the grid, at least 0.

    Raises:
        ArgumentError: If the radius is no such number, or there are no rows.
    """
    if not is_integer(radius) or radius < 0:
        raise ArgumentError(f"radius: expected an integer of at least 0, got {radius!r}.")
    check_count(int(starts[-1]), "places", int(starts[-1]) or 1, "bank rows")
    # The larger the window the more rows it has: of each place, all at once, the least that has any is bisected.
    least, most = np.zeros(grid, np.int32), np.full(grid, max(grid), np.int32)
    while (least < most).any():
        middle = (least + most) // 2
        is_filled = _rows_within(starts, middle) > 0
        least, most = np.where(is_filled, least, middle + 1), np.where(is_filled, middle, most)
    return np.asarray(np.maximum(least, min(radius, max(grid))), np.int32)


def _rows_within(starts: Int64Array, reach: npt.NDArray[np.int32]) -> Int64Array:
    """Return how many bank rows the window of each place has, int64 [rows, columns]."""
    height, width = reach.shape
    # Sums over all rectangles from the corner: a window is four of them, whatever its size.
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = np.diff(starts).reshape(height, width).cumsum(axis=0).cumsum(axis=1)
    y, x = np.indices(reach.shape)
    top, bottom = np.maximum(y - reach, 0), np.minimum(y + reach, height - 1) + 1
    left, right = np.maximum(x - reach, 0), np.minimum(x + reach, width - 1) + 1
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left], np.int64)


def _pairs(starts: Int64Array, reach: npt.NDArray[np.int32]) -> int:
    return int(_rows_within(starts, reach).sum())
