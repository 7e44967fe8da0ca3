"""Captures with the arrays of torch and CuPy as arguments of the kernels: theirs and ours. Written, not run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from gpu_stages.card import CudaError
from gpu_stages.kernels import Array, Search
from gpu_stages.report import Absent


class Library(Protocol):
    """What the check does with a library.

    Attributes:
        name: Its name.
        stream: Number of a stream of its own.
    """

    name: str
    stream: int

    def used(self) -> AbstractContextManager[object]:
        """Put what the library does in the block on its stream."""

    def put(self, array: Array) -> Any:
        """Return a copy of an array on the device."""

    def address(self, array: Any) -> int:
        """Return where an array lies."""

    def double(self, array: Any, out: Any) -> None:
        """Put 2 · array into another on the stream, by a kernel of the library."""

    def back(self, array: Any) -> Array:
        """Return a copy of an array on the host; waits."""

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """Return what launches a graph of what `work` puts on the stream."""


class Torch:
    """PyTorch.

    Raises:
        Absent: If it is not installed, or has no CUDA here.
    """

    name = "torch"

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as err:
            raise Absent("torch is not installed") from err
        if not torch.cuda.is_available():
            raise Absent("this torch has no CUDA, or none that this driver serves")
        self._torch: Any = torch
        self._stream = torch.cuda.Stream()
        self.stream = int(self._stream.cuda_stream)

    def used(self) -> AbstractContextManager[object]:
        """See `Library`."""
        used: AbstractContextManager[object] = self._torch.cuda.stream(self._stream)
        return used

    def put(self, array: Array) -> Any:
        """See `Library`."""
        return self._torch.from_numpy(array).cuda()

    def address(self, array: Any) -> int:
        """See `Library`."""
        return int(array.data_ptr())

    def double(self, array: Any, out: Any) -> None:
        """See `Library`."""
        self._torch.mul(array, 2, out=out)

    def back(self, array: Any) -> Array:
        """See `Library`."""
        self._stream.synchronize()
        return np.asarray(array.cpu().numpy())

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """See `Library`. A capture of torch forbids unsafe calls of all threads, ours only those of its own."""
        graph = self._torch.cuda.CUDAGraph()
        self._stream.synchronize()
        with self._torch.cuda.graph(graph, stream=self._stream):
            work()
        launch: Callable[[], object] = graph.replay
        return launch


class Cupy:
    """CuPy.

    Raises:
        Absent: If it is not installed, or finds no device.
    """

    name = "CuPy"

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as err:
            raise Absent("CuPy is not installed") from err
        if not cupy.is_available():
            raise Absent("this CuPy finds no device")
        self._cupy: Any = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.stream = int(self._stream.ptr)

    def used(self) -> AbstractContextManager[object]:
        """See `Library`."""
        used: AbstractContextManager[object] = self._stream
        return used

    def put(self, array: Array) -> Any:
        """See `Library`."""
        return self._cupy.asarray(array)

    def address(self, array: Any) -> int:
        """See `Library`."""
        return int(array.data.ptr)

    def double(self, array: Any, out: Any) -> None:
        """See `Library`."""
        self._cupy.multiply(array, 2, out=out)

    def back(self, array: Any) -> Array:
        """See `Library`."""
        found = np.asarray(array.get(stream=self._stream))
        self._stream.synchronize()  # older versions do not wait where they are given a stream
        return found

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """See `Library`."""
        self._stream.synchronize()
        self._stream.begin_capture()
        try:
            work()
        finally:
            graph = self._stream.end_capture()
        return lambda: graph.launch(self._stream)


LIBRARIES: tuple[Callable[[], Library], ...] = (Torch, Cupy)


def check_captures(bench: Any) -> None:
    """Both libraries, as far as they are here."""
    from flawscope.errors import FlawscopeError

    if not bench.card.is_gpu:
        return
    for made in LIBRARIES:
        try:
            library = made()
        except Absent as err:
            bench.report.leave_out(f"captures with arrays: {made.__name__}", str(err))
            continue
        try:
            check_library(bench, library)
        except (CudaError, FlawscopeError):
            raise
        except Exception as err:  # of the library, whatever it raises: the other one goes on
            bench.report.check(False, f"captures: {library.name}: {type(err).__name__}: {str(err)[:200]}")


def check_library(bench: Any, library: Library) -> None:
    """In a graph of the library's its kernel before ours, in one of ours ours alone; all arrays are the library's."""
    n, k = 100, 3
    rows, asked = (bench.rng.integers(-4, 5, (size, 64)).astype(np.float32) for size in (500, n))
    wanted = [bench.nearest(rows, factor * asked, k) for factor in (np.float32(2), np.float32(-2))]
    theirs: Search = bench.search(rows, n, k, stream=library.stream)
    ours: Search = bench.search(rows, n, k)
    bench.card.wait()
    with library.used():
        source, given = library.put(asked), library.put(np.zeros_like(asked))
        squared, found = library.put(np.zeros((n, k), np.float32)), library.put(np.zeros((n, k), np.int64))
        results = library.address(squared), library.address(found)

        def whole() -> None:
            library.double(source, given)
            theirs.enqueue(n, queries=library.address(given), results=results)

        whole()  # before the capture, so that the library has made all that it makes once
        check_equal(bench, f"{library.name}: without a graph", (library.back(squared), library.back(found)), wanted[0])
        launch = library.capture(whole)
        for factor, expected in zip((1, -1), wanted, strict=True):
            # Other numbers at the same address: a graph that was not run would leave the results before.
            bench.card.copy_in(library.address(source), factor * asked)
            launch()
            got = library.back(squared), library.back(found)
            check_equal(bench, f"{library.name}: its graph, factor {factor}", got, expected)
        graph = bench.card.capture(lambda: ours.enqueue(n, queries=library.address(given), results=results))
        for factor, expected in zip((1, -1), wanted, strict=True):
            bench.card.copy_in(library.address(given), 2 * factor * asked)
            graph()
            bench.card.wait()
            got = library.back(squared), library.back(found)
            check_equal(bench, f"{library.name}: its arrays in our graph, factor {factor}", got, expected)
    theirs.close()
    ours.close()


def check_equal(bench: Any, name: str, got: tuple[Array, Array], wanted: tuple[Array, Array]) -> None:
    """Hold distances and rows to what a plain search gave."""
    bench.report.check(all(map(np.array_equal, got, wanted)), f"captures: {name}")
