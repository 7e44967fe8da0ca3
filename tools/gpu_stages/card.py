"""A GPU as the stages use it, by the driver alone: memory, a stream, events and graphs; and the same in host memory.

`Card` is written, not run. `HostCard` serves the twins, with the kernels in emulation, and the tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_size_t, c_void_p
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpu_stages.driver import ADDRESS, NON_BLOCKING, THREAD_LOCAL, CudaError, Driver

Work = Callable[[], object]
ALIGNMENT = 256
"""Bytes that device memory begins on a multiple of."""


class Memory(Protocol):
    """What stages do with a device, whichever it is.

    Attributes:
        is_gpu: Whether it is one.
        stream: Its stream as `cudaStream_t`.
    """

    is_gpu: bool
    stream: int

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes that nobody has written yet, which live until `free` or `close`."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy an array to an address and wait."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy within the device."""

    def fill(self, address: int, byte: int, size: int) -> None:
        """Enqueue the writing of one byte to all of an array."""

    def fetch(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a copy of an array of the device; waits."""

    def wait(self) -> None:
        """Wait until the stream is done."""

    def capture(self, work: Work) -> Work:
        """Return a graph of what `work` puts on the stream; calling it puts all of that there."""

    def milliseconds(self, work: Work) -> float:
        """Return how long the device takes for what `work` puts on the stream."""

    def free_bytes(self) -> int:
        """Return the memory that is free."""

    def close(self) -> None:
        """Give everything back."""


class Card:
    """One GPU: its primary context, which the CUDA runtime and torch use as well, and a stream of its own.

    Raises:
        CudaError: If there is none, or a call fails.
    """

    is_gpu = True

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        device = self.driver.number(ctypes.c_int, "cuDeviceGet", index)
        self._context = self.driver.number(c_void_p, "cuDevicePrimaryCtxRetain", device)
        self.use()
        self.stream: int = self.driver.number(c_void_p, "cuStreamCreate", NON_BLOCKING)
        self._begin = self.driver.number(c_void_p, "cuEventCreate", 0)
        self._end = self.driver.number(c_void_p, "cuEventCreate", 0)
        self._memory: set[int] = set()
        self._graphs: list[int] = []

    def use(self) -> None:
        """Make the context current in this thread; it is in the one that made the card."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """See `Memory`."""
        address = int(self.driver.number(ADDRESS, "cuMemAlloc_v2", max(size, 1)))
        self._memory.add(address)
        return address

    def free(self, address: int) -> None:
        """See `Memory`."""
        self._memory.remove(address)
        self.driver.call("cuMemFree_v2", address)

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        contiguous = np.ascontiguousarray(array)
        self.driver.call("cuMemcpyHtoDAsync_v2", address, contiguous.ctypes.data, contiguous.nbytes, self.stream)
        self.wait()

    def copy(self, target: int, source: int, size: int) -> None:
        """See `Memory`."""
        self.driver.call("cuMemcpyDtoDAsync_v2", target, source, size, self.stream)

    def fill(self, address: int, byte: int, size: int) -> None:
        """See `Memory`."""
        self.driver.call("cuMemsetD8Async", address, byte, size, self.stream)

    def fetch(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Memory`."""
        array = np.empty(shape, dtype)
        self.driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)
        self.wait()
        return array

    def wait(self) -> None:
        """See `Memory`."""
        self.driver.call("cuStreamSynchronize", self.stream)

    def capture(self, work: Work) -> Work:
        """See `Memory`."""
        self.driver.call("cuStreamBeginCapture_v2", self.stream, THREAD_LOCAL)
        graph = c_void_p()
        try:
            work()
        finally:
            # Also after an error: a stream in capture mode executes nothing more.
            self.driver.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        executable = self.driver.number(c_void_p, "cuGraphInstantiateWithFlags", graph, 0)
        self.driver.call("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self.driver.call("cuGraphLaunch", executable, self.stream)

    def milliseconds(self, work: Work) -> float:
        """See `Memory`."""
        self.driver.call("cuEventRecord", self._begin, self.stream)
        work()
        self.driver.call("cuEventRecord", self._end, self.stream)
        self.driver.call("cuEventSynchronize", self._end)
        return float(self.driver.number(ctypes.c_float, "cuEventElapsedTime", self._begin, self._end))

    def free_bytes(self) -> int:
        """See `Memory`."""
        free, whole = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(whole))
        return free.value

    def close(self) -> None:
        """Give memory, graphs and the stream back; the context stays until the process ends."""
        self.wait()
        for executable in self._graphs:
            self.driver.call("cuGraphExecDestroy", executable)
        for address in list(self._memory):
            self.free(address)
        self.driver.call("cuStreamDestroy_v2", self.stream)


class HostCard:
    """Host memory in the place of a device: the kernels in emulation work on it at once, on no stream."""

    is_gpu = False
    stream = 0

    def __init__(self) -> None:
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}

    def allocate(self, size: int) -> int:
        """See `Memory`."""
        memory = np.full(size + ALIGNMENT, 0xA5, np.uint8)  # never zero: nobody may count on that
        address = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._memory[address] = memory
        return address

    def free(self, address: int) -> None:
        """See `Memory`."""
        del self._memory[address]

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        contiguous = np.ascontiguousarray(array)
        ctypes.memmove(address, contiguous.ctypes.data, contiguous.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        """See `Memory`."""
        ctypes.memmove(target, source, size)

    def fill(self, address: int, byte: int, size: int) -> None:
        """See `Memory`."""
        ctypes.memset(address, byte, size)

    def fetch(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Memory`."""
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return array

    def wait(self) -> None:
        """Nothing is ever left to be done."""

    def capture(self, work: Work) -> Work:
        """Return the work itself: there are no graphs."""
        return work

    def milliseconds(self, work: Work) -> float:
        """See `Memory`."""
        from time import perf_counter

        started = perf_counter()
        work()
        return 1000 * (perf_counter() - started)

    def free_bytes(self) -> int:
        """Return what the twins may take."""
        return 1 << 28

    def close(self) -> None:
        """Give everything back."""
        self._memory.clear()


@contextmanager
def opened(card: Memory) -> Iterator[Memory]:
    """Close a card after the block, unless it failed: then every call would fail, and hide what was wrong."""
    yield card
    with suppress(CudaError):
        card.close()


__all__ = ["ALIGNMENT", "Card", "CudaError", "HostCard", "Memory", "Work", "opened"]
