"""One CUDA device through PyCUDA: memory that is allocated once, one stream, and captured CUDA graphs.

Written against the sources of PyCUDA and NVIDIA's bindings of the driver, not run on a GPU: tests replace both.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope import cpp_ext
from flawscope.errors import BackendError, DeviceError, DeviceLost
from flawscope.runtime.engines.capture_lock import CAPTURES
from flawscope.runtime.engines.cuda_driver import INVALID_CONTEXT, STICKY, DriverError, bindings, call, first_line

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

# Primary contexts by number of the device, retained once and for the life of the process. Not released with the last
# session: PyCUDA's `detach` leaves a released context current in the thread that calls it, does nothing in any thread
# but that which retained it, and what was allocated can then not be freed. Nor would it give memory back: CUDA's
# runtime, which TensorRT and the kernels use, retains the same context until the process ends.
_CONTEXTS: dict[int, Any] = {}
_OPENING = threading.Lock()

_LOST: dict[int, str] = {}
"""Why a device cannot be used any more in this process, by its number."""


def device_problem(index: int = 0) -> str | None:
    """Return why PyCUDA has no CUDA device here, as a sentence, or None if it has one."""
    try:
        driver = _import_pycuda()
        bindings()
        driver.init()
        count = int(driver.Device.count())
    except BackendError as err:
        return str(err)
    except Exception as err:  # PyCUDA's own exception type can only be named after the import, which may have failed
        return f"PyCUDA finds no driver that works: {first_line(err)}."
    return None if index < count else f"expected CUDA device {index}, got {count} devices."


def kernels_problem() -> str | None:
    """Return why a memory bank cannot lie on a CUDA device here, as a sentence, or None if it can."""
    if not cpp_ext.HAVE_CUDA:
        return "this installation has no CUDA kernels; install it from source, with nvcc on the PATH."
    return device_problem()


def check_kernels(backend: str) -> None:
    """Raise BackendError where the memory bank was asked to lie on the device of a backend, and cannot."""
    if problem := kernels_problem():
        raise BackendError(
            f"path kernel: backend {backend} cannot keep the bank on its device: {problem} Or use --path graph."
        )


class Graph:
    """A CUDA graph: work that was captured from a stream and is launched as a whole.

    Launched and closed with the device's context current, as everything else on a device.
    """

    def __init__(self, executable: Any, stream: int) -> None:
        self._executable, self._stream = executable, stream

    def launch(self) -> None:
        """Enqueue the work on its stream.

        Raises:
            DeviceError: If the driver refuses.
        """
        call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Release the graph, which must not be running."""
        call("cuGraphExecDestroy", self._executable)


class Device:
    """The primary context of a device, which TensorRT and the kernels share, and one stream.

    What is allocated lives until `close`. Several threads may use one, but not at once: its owner sees to that.

    Args:
        index: Number of the device.
        backend: Name of the backend, for messages.

    Attributes:
        stream: The stream; None once it is closed. It waits for no other and no other for it, also not for the default
            one: while one thread captures a graph, a copy of another on the default stream would break the capture.

    Raises:
        BackendError: If there is no such device.
        DeviceLost: If it failed so that only a new process can use it.
    """

    def __init__(self, index: int = 0, backend: str = "tensorrt") -> None:
        self._index, self._backend = index, backend
        self._check_there()
        if problem := device_problem(index):
            raise BackendError(f"device: {problem}")
        self._pycuda = _import_pycuda()
        self._memory: list[Any] = []
        self._pinned: list[npt.NDArray[Any]] = []
        self.stream: Any = None
        # Not `pycuda.autoinit` or `make_context`: a context of our own would not see TensorRT's memory, which uses the
        # primary one.
        with CAPTURES.disturbing():
            with self._translated(), _OPENING:
                if index not in _CONTEXTS:
                    _CONTEXTS[index] = self._pycuda.Device(index).retain_primary_context()
            self._context = _CONTEXTS[index]
            with self.current():
                self.stream = self._pycuda.Stream(_NON_BLOCKING)

    @property
    def stream_number(self) -> int:
        """The stream as `cudaStream_t`, for other libraries."""
        return int(self.stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current in this thread; errors of PyCUDA become `DeviceError`.

        Raises:
            DeviceError: If something in the `with` block fails on the device.
            DeviceLost: If nothing works there any more. What has happened is asked of the driver, whatever was raised.
        """
        self._check_there()
        # Pushed and popped around every call: contexts belong to threads, and an inspector may change threads.
        with self._translated():
            try:
                self._context.push()
            except self._pycuda.Error as err:
                # PyCUDA does not say with which number it was refused.
                if self._answers(err, "cuCtxPushCurrent", self._context.handle):
                    call("cuCtxPopCurrent")
                raise
            try:
                yield
            except BaseException as err:
                # Not the whole context, as long as there is a stream: another thread may be capturing on its own.
                check = ("cuMemGetInfo",) if self.stream is None else ("cuStreamSynchronize", self.stream_number)
                self._answers(err, *check)
                raise
            finally:
                # A context that is dead may refuse that too; the first error says more. PyCUDA then ends the process
                # as soon as this thread ends, which a new process is needed for anyway.
                with contextlib.suppress(self._pycuda.Error) if self._index in _LOST else contextlib.nullcontext():
                    self._context.pop()

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory, which live until `close`; aligned to 256 bytes."""
        memory = self._pycuda.mem_alloc(max(int(size), 16))  # the driver refuses 0 bytes
        self._memory.append(memory)  # PyCUDA frees the memory with its last reference, and addresses hold none
        return int(memory)

    def free(self, address: int) -> None:
        """Release what `allocate` returned, before `close` does; nothing on the stream may use it any more."""
        (number,) = (number for number, memory in enumerate(self._memory) if int(memory) == address)
        with CAPTURES.disturbing():
            self._memory[number].free()
        # Not before: where it fails the context is dead, and `close` keeps what is left.
        del self._memory[number]

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array in page-locked host memory; copies from pageable memory would not be asynchronous.

        `close` frees the memory, but for an array that somebody still has: that one goes with its last reference.
        """
        array: npt.NDArray[Any] = self._pycuda.pagelocked_empty(shape, np.dtype(dtype))
        self._pinned.append(array)
        return array

    def upload(self, array: npt.NDArray[Any]) -> int:
        """Return the address of a copy of an array in device memory, which lives until `close`. Waits."""
        contiguous = np.ascontiguousarray(array)
        address = self.allocate(contiguous.nbytes)
        if contiguous.nbytes:
            self.copy_in(address, contiguous)
            self.wait()  # until then the copy reads the array
        return address

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """Enqueue a copy of an array to the device; if it is not pinned, it must live until `wait`."""
        self._pycuda.memcpy_htod_async(address, array, self.stream)

    def copy_out(self, array: npt.NDArray[Any], address: int) -> None:
        """Enqueue a copy from the device to an array; if it is not pinned, it must live until `wait`."""
        self._pycuda.memcpy_dtoh_async(array, address, self.stream)

    def copy_on(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy of `size` bytes from one address on the device to another."""
        self._pycuda.memcpy_dtod_async(target, source, size, self.stream)

    def fetch(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to an array and wait for it; not for use while a graph is captured."""
        self.copy_out(array, address)
        self.wait()

    def wait(self) -> None:
        """Wait until everything on the stream is done."""
        self.stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what `work` enqueues on the stream; it is recorded, not executed.

        Waits until no session is being opened or closed, and no image copied from a device, by another thread.

        The same work must have run once before: the driver loads a kernel when it is first launched, which it cannot
        while a graph is captured.

        Raises:
            DeviceError: If it cannot be captured.
        """
        with CAPTURES.capturing():
            return self._capture(work, self.stream_number)

    def try_capture(self, work: Callable[[], None]) -> Graph | None:
        """Capture as `capture`, but return None at once where that would have to wait."""
        with CAPTURES.capturing(wait=False) as is_mine:
            return self._capture(work, self.stream_number) if is_mine else None

    def _capture(self, work: Callable[[], None], stream: int) -> Graph:
        # THREAD_LOCAL: calls of other threads do not invalidate the capture, but for those that wait for all streams.
        call("cuStreamBeginCapture", stream, bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            with self._translated():
                work()
        except BaseException:
            # A stream in capture mode executes nothing more. Of work that failed there may be half a graph, or none.
            with contextlib.suppress(DriverError):
                call("cuGraphDestroy", call("cuStreamEndCapture", stream))
            raise
        graph = call("cuStreamEndCapture", stream)
        try:
            executable = call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)  # whether it failed or not; the executable is independent
        captured = Graph(executable, stream)
        try:
            call("cuGraphUpload", executable, stream)  # else the first launch would do it
        except DriverError:
            captured.close()
            raise
        return captured

    def close(self, release: Callable[[], None] = lambda: None, others: Callable[[], object] = lambda: None) -> None:
        """Release memory and stream; closing twice is harmless. The context stays: see `_CONTEXTS`.

        Args:
            release: Releases what others have made on the device, once the stream is done and before its memory goes.
            others: Returns what that is; where the device is lost it is kept for ever instead.
        """
        stream, self.stream = self.stream, None
        if stream is None:
            return
        memory, self._memory = self._memory, []
        pinned, self._pinned = self._pinned, []
        try:
            # The lock around the context: a turn of a session is taken before both.
            with CAPTURES.disturbing(), self.current():
                stream.synchronize()
                release()
                # In here: PyCUDA frees what belongs to a context where that very context is current, or in the thread
                # that retained it; elsewhere it warns, and nothing is freed.
                for allocation in memory:
                    allocation.free()
                # Not freed by name: frames of an error may still refer to an array, and whoever shows them reads it.
                pinned.clear()
                stream = None
        except DeviceError:
            # Every call fails now. PyCUDA's destructors would make more, and one that fails in a destructor ends the
            # process on the spot: none of them may ever run. A new process is the only way out, and frees all.
            keep_for_ever((memory, pinned, stream, others()))

    def _check_there(self) -> None:
        if self._index in _LOST:
            raise DeviceLost(
                f"backend {self._backend}: the device cannot be used any more in this process: {_LOST[self._index]}. "
                "Start it again."
            )

    def _answers(self, err: BaseException, name: str, *arguments: object) -> bool:
        """Return whether the driver does a call; raise DeviceLost if the context is dead, and refuses each alike."""
        if isinstance(err, DeviceLost):
            return False
        try:
            call(name, *arguments)
        except DriverError as found:
            if self._is_dead(found.code):
                name = STICKY.get(found.code, "INVALID_CONTEXT: was the device reset?")
                _LOST[self._index] = f"{first_line(err)} (CUDA error {found.code}, {name})"
                raise DeviceLost(
                    f"backend {self._backend}: the device failed: {_LOST[self._index]}. This process cannot use it any "
                    "more. Start it again."
                ) from err
            return False
        return True

    def _is_dead(self, code: int) -> bool:
        """Return whether a code of the driver says that the context does nothing more."""
        if code in STICKY or code != INVALID_CONTEXT:
            return code in STICKY
        # A library that pops a context too many leaves none current, and the device as good as before. Of a device
        # that somebody has reset the context is none any more, wherever it is used.
        try:
            call("cuCtxPushCurrent", self._context.handle)
        except DriverError as err:
            return err.code in STICKY or err.code == INVALID_CONTEXT
        try:
            call("cuMemGetInfo")
        except DriverError as err:
            return err.code in STICKY or err.code == INVALID_CONTEXT
        finally:
            with contextlib.suppress(DriverError):
                call("cuCtxPopCurrent")
        return False

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (self._pycuda.Error, DriverError) as err:
            # PyCUDA's own class, which derives from nothing but its `Error`, and not from Python's MemoryError.
            is_out_of_memory = isinstance(err, self._pycuda.MemoryError) or getattr(err, "code", 0) == _OUT_OF_MEMORY
            problem = "out of memory" if is_out_of_memory else "the device failed"
            hint = ". Take smaller batches, or free memory on the device" if is_out_of_memory else ""
            raise DeviceError(f"backend {self._backend}: {problem}: {first_line(err)}{hint}") from err


@dataclass(frozen=True)
class SharedDevice:
    """A device that several sessions have together: one stream, one memory, one at a time.

    Attributes:
        device: The device; its owner closes it.
        turn: Held by whoever uses it.
    """

    device: Device
    turn: contextlib.AbstractContextManager[Any]


def keep_for_ever(objects: object) -> None:
    """Keep an object and all it holds until the process is gone, beyond the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(objects))


def _import_pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as err:
        raise BackendError(
            "PyCUDA is not installed, but engines need it. Install it with: "
            'pip install "flawscope[pycuda]", with the CUDA toolkit on the PATH.'
        ) from err
    except ImportError as err:
        raise BackendError(f"PyCUDA cannot be loaded: {first_line(err)}. Is the NVIDIA driver installed?") from err
