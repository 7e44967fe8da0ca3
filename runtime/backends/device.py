"""One CUDA device through PyCUDA: memory that is allocated once, one stream, and captured CUDA graphs.

Written against PyCUDA and the CUDA driver's interface, not run on a GPU: tests replace both.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.errors import BackendError, DeviceError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads do not invalidate a capture
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def device_problem(index: int = 0) -> str | None:
    """Return why PyCUDA has no CUDA device here, as a sentence, or None if it has one."""
    try:
        driver = _import_pycuda()
        driver.init()
        count = int(driver.Device.count())
    except BackendError as err:
        return str(err)
    except Exception as err:  # PyCUDA's own exception type can only be named after the import, which may have failed
        return f"PyCUDA finds no driver that works: {_first_line(err)}."
    return None if index < count else f"expected CUDA device {index}, got {count} devices."


class Graph:
    """A CUDA graph: work that was captured from a stream and is launched as a whole."""

    def __init__(self, library: Any, executable: ctypes.c_void_p, stream: int) -> None:
        self._library, self._executable, self._stream = library, executable, stream

    def launch(self) -> None:
        """Enqueue the work on its stream.

        Raises:
            DeviceError: If the driver refuses.
        """
        _check(self._library.cuGraphLaunch(self._executable, ctypes.c_void_p(self._stream)), "cuGraphLaunch")

    def close(self) -> None:
        """Release the graph."""
        self._library.cuGraphExecDestroy(self._executable)


class Device:
    """The primary context of a device, which TensorRT and the kernels share, and one stream.

    Args:
        index: Number of the device.

    Raises:
        BackendError: If there is no such device.
    """

    def __init__(self, index: int = 0) -> None:
        if problem := device_problem(index):
            raise BackendError(f"device: {problem}")
        self._driver = _import_pycuda()
        self._memory: list[Any] = []
        # Not `pycuda.autoinit` or `make_context`: a context of our own would not see TensorRT's memory, which uses the
        # primary one.
        with self._translated():
            self._context = self._driver.Device(index).retain_primary_context()
        try:
            with self.current():
                self.stream: Any = self._driver.Stream()
        except BaseException:
            self.close()
            raise

    @property
    def stream_number(self) -> int:
        """The stream as `cudaStream_t`, for other libraries."""
        return int(self.stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current in this thread; errors of PyCUDA become `DeviceError`.

        Raises:
            DeviceError: If something in the `with` block fails on the device.
        """
        # Pushed and popped around every call: contexts belong to threads, and an inspector may change threads.
        with self._translated():
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory, which live until `close`."""
        memory = self._driver.mem_alloc(max(int(size), 16))  # the driver refuses 0 bytes
        self._memory.append(memory)  # PyCUDA frees the memory with its last reference, and addresses hold none
        return int(memory)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array in page-locked host memory; copies from pageable memory would not be asynchronous."""
        array: npt.NDArray[Any] = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def upload(self, array: npt.NDArray[Any]) -> int:
        """Return the address of a copy of an array in device memory, which lives until `close`."""
        contiguous = np.ascontiguousarray(array)
        address = self.allocate(contiguous.nbytes)
        self._driver.memcpy_htod(address, contiguous)
        return address

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """Enqueue a copy of a pinned array to the device."""
        self._driver.memcpy_htod_async(address, array, self.stream)

    def copy_out(self, array: npt.NDArray[Any], address: int) -> None:
        """Enqueue a copy from the device to a pinned array."""
        self._driver.memcpy_dtoh_async(array, address, self.stream)

    def fetch(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to an array and wait for it; not for use while a graph is captured."""
        self._driver.memcpy_dtoh(array, address)

    def wait(self) -> None:
        """Wait until everything on the stream is done."""
        self.stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what `work` enqueues on the stream; it is recorded, not executed.

        Raises:
            DeviceError: If it cannot be captured.
        """
        library, stream = _driver_library(), self.stream_number
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        _check(library.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), _THREAD_LOCAL), "cuStreamBeginCapture")
        try:
            work()
        finally:
            # Also after an error: a stream in capture mode executes nothing more.
            status = library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        _check(status, "cuStreamEndCapture")
        status = library.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        library.cuGraphDestroy(graph)  # before the check, or a failure would leak it; the executable is independent
        _check(status, "cuGraphInstantiate")
        return Graph(library, executable, stream)

    def close(self) -> None:
        """Release memory and context; closing twice is harmless."""
        if self._context is None:
            return
        # After a sticky CUDA error every call fails, also these; there is nothing left to free then.
        with contextlib.suppress(DeviceError), self.current():
            for memory in self._memory:
                memory.free()
        self._memory.clear()
        with contextlib.suppress(DeviceError), self._translated():
            self._context.detach()
        self._context = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as err:
            is_out_of_memory = isinstance(err, MemoryError)  # pycuda.driver.MemoryError derives from both
            problem = "out of memory" if is_out_of_memory else "the device failed"
            hint = ". Take smaller batches, or free memory on the device" if is_out_of_memory else ""
            raise DeviceError(f"backend tensorrt: {problem}: {_first_line(err)}{hint}") from err


def _import_pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as err:
        raise BackendError(
            "PyCUDA is not installed, but engines need it. Install it with: "
            'pip install "flawscope[pycuda]", with the CUDA toolkit on the PATH.'
        ) from err
    except ImportError as err:
        raise BackendError(f"PyCUDA cannot be loaded: {_first_line(err)}. Is the NVIDIA driver installed?") from err


def _driver_library() -> Any:
    """Return the driver library itself, because PyCUDA has no functions for CUDA graphs."""
    for name in _DRIVERS:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise DeviceError(f"backend tensorrt: the NVIDIA driver library ({' or '.join(_DRIVERS)}) cannot be loaded.")


def _check(status: int, call: str) -> None:
    if status != 0:
        raise DeviceError(f"backend tensorrt: {call} failed with CUDA error {status}.")


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
