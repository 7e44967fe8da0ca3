"""Memory bank packed for nearest-neighbour search, and the search itself."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Int64Array, UInt8Array, check_array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_block, check_count, check_native, check_threads
from flawscope.errors import ArgumentError

Storage = Literal["float32", "float16", "int8"]

_MAX_INT8_CHANNELS = 65_536  # 32-bit sums of products of 8-bit integers: 255 · 127 · 65,536 < 2³¹
MAX_NEIGHBOURS = 64
"""Largest k, and largest number of candidates to re-rank; the same number is compiled into the kernels."""


class Bank:
    """Rows packed once for many searches: layout, norms and, optionally, a narrower storage.

    A row m is stored as m̂: itself (`float32`), rounded to float16, or as 8-bit integers with one factor per row.
    Distances are to m̂, so by the triangle inequality the error of a distance (not squared) is at most ‖m − m̂‖;
    `error_bound` is the largest of these, measured when the bank is built. `int8` also rounds the query q to q̂ in the
    same way while it searches candidates: the row returned for k = 1 is at most 2·(‖m − m̂‖ + ‖q − q̂‖) farther than the
    nearest. `rerank` of `nearest` removes the first error and, if the true neighbours are among the candidates, the
    second.

    Args:
        rows: float32 [M, D], finite. With `float32` storage, and for re-ranking, the array is used where it lies and
            must not be changed afterwards.
        storage: `float32` (exact), `float16` (half the memory traffic) or `int8` (a quarter).
        screen: Whether a `float32` bank gets an int8 copy that finds candidates for the nearest rows (k up to 16),
            which float32 then proves; results stay exact. None: yes if this processor multiplies bytes much faster
            than floats (VNNI, AMX).
        keep_rows: Keep `rows` for re-ranking with the narrower storages; `float32` always keeps them.
        threads: Threads for packing, 0 for all.

    Attributes:
        shape: (M, D).
        storage: The storage of the rows.
        error_bound: Largest distance (not squared) between a row and its stored form.
        nbytes: Bytes held by the bank in addition to `rows`; those of `from_block` lie in the block.

    Raises:
        ArgumentError: If shape, dtype or an option does not fit, or a row is NaN, infinite, or too large for the
            storage.
    """

    def __init__(
        self,
        rows: Float32Array,
        storage: Storage = "float32",
        *,
        keep_rows: bool = True,
        screen: bool | None = None,
        threads: int = 0,
    ) -> None:
        _check_options(rows, storage, screen)
        threads = check_threads(threads)
        self.storage: Storage = storage
        self._rows: Float32Array | None
        if native.HAVE_NATIVE:
            rows = as_native(rows, "bank")
            self._take(native.MODULE.Bank(rows, storage, keep_rows, _number(screen), threads))
            self._rows = rows if self._keeps_rows else None
            return
        self._packed: Any = None
        check_array(rows, "bank", ("M", "D"), np.float32)
        reference.check_norms(rows, "bank")
        stored = reference.stored_rows(rows, storage)
        self.shape: tuple[int, int] = (len(rows), rows.shape[1])
        # float64: in float32 the squares of differences below 2⁻⁷⁵ underflow to 0, and a bound must not be too small.
        self.error_bound: float = math.sqrt(((rows.astype(np.float64) - stored) ** 2).sum(axis=1).max())
        self.nbytes: int = 0 if storage == "float32" else stored.nbytes
        self._keeps_rows: bool = keep_rows or storage == "float32"
        # As with native kernels the caller's array is used where it lies; `stored` is that array too for float32.
        self._stored = stored
        self._rows = rows if self._keeps_rows else None

    def _take(self, packed: Any) -> None:
        self._packed = packed
        self.shape = (packed.rows, packed.channels)
        self.error_bound, self.nbytes, self._keeps_rows = packed.error_bound, packed.nbytes, packed.keeps_rows

    @classmethod
    def from_block(
        cls, block: UInt8Array, rows: Float32Array, storage: Storage = "float32", *, screen: bool | None = None
    ) -> Bank:
        """Return the bank that lies in a block of `to_block`, which is used where it lies: nothing is packed or copied.

        All of the block is read once, and it is whole and of this bank or refused. Where it is a read-only map of a
        file, processes that map it have one bank in common.

        Args:
            block: uint8 [N], at a multiple of 64 bytes in memory. It is kept alive and must not be changed afterwards,
                nor the file be cut off.
            rows: float32 [M, D], what the bank is expected to be of; they are compared with those in the block and not
                kept.
            storage: As the bank's own, and so is the next one.
            screen: See `Bank`.

        Raises:
            ArgumentError: If the block is damaged, cut off, of another version of the kernels, another SIMD level,
                other rows, or other options; or there are no native kernels.
        """
        _check_options(rows, storage, screen)
        check_block(block)
        bank = cls.__new__(cls)
        bank.storage = storage
        bank._take(native.MODULE.Bank.of_block(block, as_native(rows, "bank"), storage, _number(screen)))
        first, count = native.MODULE.BLOCK_ROWS, math.prod(bank.shape)
        bank._rows = block[first : first + 4 * count].view(np.float32).reshape(bank.shape)
        return bank

    def to_block(self) -> UInt8Array:
        """Return rows and packed form as one block, uint8 [N], that `from_block` takes; equal banks give equal blocks.

        It holds for the version of the kernels, the SIMD level and the byte order of this process alone: it is shared
        between processes that run now, and kept for no later ones.

        Raises:
            ArgumentError: If the bank keeps no rows, or there are no native kernels.
        """
        check_native()
        if not self._keeps_rows:
            raise ArgumentError("block: expected a bank with its float32 rows, got one made with keep_rows=False.")
        block = np.empty(self._packed.block_bytes, np.uint8)
        self._packed.write_block(block)
        return block

    @property
    def rows(self) -> Float32Array | None:
        """The rows that it keeps, float32 [M, D], where they lie; None with `keep_rows=False`."""
        return self._rows

    @property
    def unproved_share(self) -> float:
        """Share of the queries so far whose nearest rows the screen could not prove; −1 without a screen.

        Those queries are searched again in float32. Above one third the screen is switched off.
        """
        return -1.0 if self._packed is None else float(self._packed.unproved_share)

    def __len__(self) -> int:
        return self.shape[0]

    def nearest(
        self, queries: npt.NDArray[Any], k: int = 1, *, rerank: int = 0, threads: int = 0
    ) -> tuple[Float32Array, Int64Array]:
        """Return the k nearest rows of every query, nearest first, equal distances by the lower row.

        Args:
            queries: float32 or float16 [N, D]; N may be 0. With native kernels any CPU array that supports DLPack. A
                query with a NaN or infinite component, or a squared norm of 2¹²⁶ or more, gets the distance NaN and
                the row −1.
            k: Number of neighbours, 1 to 64 and at most M.
            rerank: 0, or the number of candidates (k to 64) whose distances are computed from the float32 rows.
            threads: 0 for all.

        Returns:
            Squared Euclidean distances float32 [N, k] and rows int64 [N, k].

        Raises:
            ArgumentError: If shape, dtype, device or an option does not fit.
        """
        check_count(k, "k", min(len(self), MAX_NEIGHBOURS), "rows of the bank, at most 64")
        threads = check_threads(threads)
        if rerank:
            check_count(rerank, "rerank", MAX_NEIGHBOURS, "candidates")
            if rerank < k:
                raise ArgumentError(f"rerank: expected 0, or at least k = {k}, got {rerank}.")
            if not self._keeps_rows:
                raise ArgumentError("rerank: expected a bank with its float32 rows, got one made with keep_rows=False.")
        if self._packed is None:
            return reference.nearest_stored(queries, self._stored, self._rows, k, rerank, self.storage)
        queries = as_native(queries, "queries")
        distances, indices = _outputs(queries, k)
        self._packed.nearest(queries, k, rerank, threads, distances, indices)
        return distances, indices


def nearest(
    queries: npt.NDArray[Any], bank: Float32Array | Bank, k: int, *, threads: int = 0
) -> tuple[Float32Array, Int64Array]:
    """Return the k nearest bank rows of every query, nearest first: `Bank.nearest` for a bank that is searched once.

    The rows are packed a few megabytes at a time, so memory never grows with the size of the bank or with N × M.

    Args:
        queries: float32 or float16 [N, D]; see `Bank.nearest` for NaN.
        bank: float32 [M, D], or a `Bank`.
        k: Number of neighbours, 1 to 64 and at most M.
        threads: 0 for all.

    Returns:
        Squared Euclidean distances float32 [N, k] and rows int64 [N, k].

    Raises:
        ArgumentError: If shape, dtype, device or an option does not fit, or a bank row is not finite.
    """
    if isinstance(bank, Bank):
        return bank.nearest(queries, k, threads=threads)
    threads = check_threads(threads)
    rows = as_native(bank, "bank")
    if rows.ndim == 2 and len(rows):  # otherwise the array is at fault, not k, and the kernels raise about it
        check_count(k, "k", min(len(rows), MAX_NEIGHBOURS), "rows of the bank, at most 64")
    if not native.HAVE_NATIVE:
        return reference.nearest(queries, rows, k)
    queries = as_native(queries, "queries")
    distances, indices = _outputs(queries, k)
    native.MODULE.nearest_rows(queries, rows, k, threads, distances, indices)
    return distances, indices


def _check_options(rows: Any, storage: str, screen: bool | None) -> None:
    """Raise ArgumentError unless a bank can have such a storage and screen."""
    if storage not in get_args(Storage):
        raise ArgumentError(f"storage: expected one of {', '.join(get_args(Storage))}, got {storage!r}.")
    if screen and storage != "float32":
        raise ArgumentError(f"screen: expected a float32 bank, got {storage}, which is searched as it is stored.")
    # `screen=None` is decided in the kernels, which leave the screen out for so many channels.
    narrow = storage == "int8" or bool(screen)
    if narrow and getattr(rows, "ndim", 0) == 2 and rows.shape[1] > _MAX_INT8_CHANNELS:
        raise ArgumentError(
            f"bank: expected at most {_MAX_INT8_CHANNELS} channels for 8-bit sums, got {rows.shape[1]}."
        )


def _number(screen: bool | None) -> int:
    return -1 if screen is None else int(screen)  # -1: the processor is detected in C++


def _outputs(queries: Any, k: int) -> tuple[Float32Array, Int64Array]:
    count = len(queries) if getattr(queries, "ndim", 0) else 0
    # Allocated before the binding checks the queries: anything that has no length gets empty outputs, and the binding
    # raises the error about it.
    return np.empty((count, k), np.float32), np.empty((count, k), np.int64)
