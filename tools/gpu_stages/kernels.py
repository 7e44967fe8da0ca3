"""The kernels on a card, in the few calls that the stages make of them; and the float64 that they are held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_stages.build import EMULATION
from gpu_stages.card import Card, HostCard, Memory
from gpu_stages.report import Absent, Report

Array = npt.NDArray[Any]


def open_card(report: Report, on_gpu: bool) -> tuple[Memory, Any]:
    """Return a card and the `CudaKernels` on it; in emulation where it is no GPU.

    Raises:
        Absent: If the build stage has left no kernels here.
    """
    try:
        from flawscope.cpp_ext.cuda_kernels import CudaKernels
    except ImportError as err:
        raise Absent(f"flawscope cannot be imported: {err}. --wheels brings what it lacks along") from err
    from flawscope.errors import FlawscopeError

    library: Path | None = None
    if not on_gpu:
        library = report.work / "build" / EMULATION
        if not library.is_file():
            raise Absent("the stage build has left no emulation here")
    elif not (report.work / "build" / "tree").is_dir():
        raise Absent("the stage build has left no kernels for Python here")
    try:
        kernels = CudaKernels(library)
    except FlawscopeError as err:
        raise Absent(str(err)) from err
    return (Card() if on_gpu else HostCard()), kernels


class Search:
    """Memory on a card for a bank and for searches of up to `most` queries in it.

    Args:
        card: The card.
        kernels: Its kernels.
        shape: Of the rows, [M, D].
        dtype: Of the rows, `float32` or `float16`.
        most: Largest number of queries.
        k: Neighbours.
        stream: Another stream than the card's.

    Attributes:
        rows_at: Address of the rows; `load` writes them, or whoever else, who then calls `pack`.
        queries: Address of float32 [most, D].
    """

    def __init__(
        self,
        card: Memory,
        kernels: Any,
        shape: tuple[int, ...],
        dtype: str,
        most: int,
        k: int,
        stream: int | None = None,
    ) -> None:
        self.card, self.kernels, self.k = card, kernels, k
        self.stream = card.stream if stream is None else stream
        (self.m, self.d), self._dtype = shape, dtype
        self._work_bytes = kernels.nearest_bytes(n=most, m=self.m, d=self.d, k=k, rerank=0)
        self._packed_bytes = kernels.bank_bytes(m=self.m, d=self.d)
        sizes = [self.m * self.d * np.dtype(dtype).itemsize, self._packed_bytes, self._work_bytes]
        sizes += [4 * most * self.d, 4 * most * k, 8 * most * k]
        self._memory = [card.allocate(size) for size in sizes]
        self.rows_at, self._packed, self._work, self.queries, self._squared, self._found = self._memory

    def load(self, rows: Array) -> Search:
        """Copy rows to the card and pack them; returns itself."""
        self.card.copy_in(self.rows_at, rows)
        self.pack()
        return self

    def load_packed(self, rows: Array, packed: Array) -> Search:
        """Copy rows and what `packed` returned for them to the card, which launches no kernel; returns itself."""
        self.card.copy_in(self.rows_at, rows)
        self.card.copy_in(self._packed, packed)
        return self

    def packed(self) -> Array:
        """Return the packed rows as bytes; waits for the card's stream."""
        return self.card.fetch(self._packed, (self._packed_bytes,), np.uint8)

    def pack(self) -> None:
        """Pack the rows."""
        self.kernels.bank_pack(
            rows=self.rows_at, dtype=self._dtype, m=self.m, d=self.d, packed=self._packed, stream=self.stream
        )

    def is_finite(self) -> bool:
        """Return what the kernels say of the packed rows; waits."""
        return bool(self.kernels.bank_check(packed=self._packed, stream=self.stream))

    def enqueue(
        self, n: int, dtype: str = "float32", queries: int | None = None, results: tuple[int, int] | None = None
    ) -> None:
        """Put a search of the first n queries on the stream; they and the results may lie elsewhere."""
        squared, found = results or (self._squared, self._found)
        self.kernels.nearest(
            packed=self._packed,
            rows=self.rows_at,
            rows_dtype=self._dtype,
            m=self.m,
            d=self.d,
            queries=self.queries if queries is None else queries,
            dtype=dtype,
            n=n,
            k=self.k,
            rerank=0,
            workspace=self._work,
            workspace_bytes=self._work_bytes,
            squared=squared,
            found=found,
            stream=self.stream,
        )

    def results(self, n: int) -> tuple[Array, Array]:
        """Return squared distances float32 [n, k] and rows int64 [n, k]; waits for the card's stream."""
        shape = (n, self.k)
        return self.card.fetch(self._squared, shape, np.float32), self.card.fetch(self._found, shape, np.int64)

    def run(self, queries: Array) -> tuple[Array, Array]:
        """Return the nearest rows of float32 or float16 queries [n, D]."""
        n = len(queries)
        self.card.copy_in(self.queries, queries)
        # What is not written must not look like a result of the call before.
        self.card.fill(self._squared, 0xA5, 4 * n * self.k)
        self.card.fill(self._found, 0xA5, 8 * n * self.k)
        self.card.wait()
        self.enqueue(n, queries.dtype.name)
        return self.results(n)

    def close(self) -> None:
        """Give the memory back; waits."""
        self.card.wait()
        for address in self._memory:
            self.card.free(address)


def squared_distances(queries: Array, rows: Array) -> Array:
    """Return the squared distances float64 [N, M], as exact as float64 sums of products are."""
    q, m = queries.astype(np.float64), rows.astype(np.float64)
    return (q**2).sum(1)[:, None] + (m**2).sum(1)[None] - 2 * q @ m.T


def ranked(squared: Array, k: int) -> tuple[Array, Array]:
    """Return the k least of each row and their places, equal ones by the lower place."""
    places = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared, places, 1), places


def slack(queries: Array, rows: Array) -> Array:
    """Return by how much a distance may be too large, float64 [N]: the bound in `patch_distance.h`."""
    q, m = queries.astype(np.float64), rows.astype(np.float64)
    # The mean of the rows, rounded as the kernels round it: the bound is that of what is left.
    unit = 2.0 ** (np.frexp(np.abs(m).max(0))[1] - 7)
    centre = np.rint(m.mean(0) / unit) * unit
    scale = np.sqrt(((q - centre) ** 2).sum(1)) + np.sqrt(((m - centre) ** 2).sum(1).max())
    return np.asarray(scale * (2.0**-10 + 2.0**-18 + 2.0**-11 * np.sqrt(queries.shape[1] + 4)))
