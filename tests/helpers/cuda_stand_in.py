"""A GPU that is none: PyCUDA and the CUDA driver in host memory, with the rules that their sources and manuals state.

"Device" memory is host memory behind an address; a stream does its work as late as it may, when somebody waits for it,
or, while it is captured, writes it down. What a GPU would refuse is refused, and what it would leave behind is noted in
`Stand.complaints`:

- contexts belong to threads: PyCUDA has a stack of its own in each, and the driver another;
- what PyCUDA allocates is freed where its context is current, or in the thread that retained it;
- a sticky error is the answer to every later call, and a destructor that calls then ends the process;
- a copy on the default stream breaks the capture of a stream that is not `NON_BLOCKING`;
- a call that waits for a whole context, to load or to free, breaks the captures of all threads;
- a kernel that is launched for the first time is loaded first, which cannot be captured;
- an array of the host that is copied must live until the stream has come to the copy.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from cuda_stand_in_driver import driver_bindings
from cuda_stand_in_errors import (
    Error,
    LaunchError,
    LogicError,
    MemoryError_,
    Refused,
    error_of,
)

from flawscope.runtime.backends import device
from flawscope.runtime.engines import cuda_driver

Work = Callable[[], None]


class Stand:
    """The state of the device, for tests to look at and to break.

    Attributes:
        fail_next: Raised by the next call of PyCUDA.
        sticky: The code that every call is answered with, from the moment it is set; 0 for none.
        break_next: The next work that is executed leaves a sticky error behind, which the next call finds.
        stubborn: Whether a dead context can be neither pushed nor popped; the manuals do not say.
        complaints: What was done that must not be done, and no call could refuse.
    """

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.handles = itertools.count(1000)
        self.graphs: dict[int, tuple[Stream, list[Work]]] = {}
        self.allocated = self.freed = self.pinned = self.unpinned = self.destroyed_streams = 0
        self.launches = self.enqueued = self.retained = self.detached = 0
        self.capturable = self.stubborn = self.break_next = False
        self.capturable = True
        self.fail_next: Exception | None = None
        self.sticky = 0
        self.count = 1
        self.calls = 0
        self.complaints: list[str] = []
        self.elsewhere: set[str] = set()  # operators that ONNX Runtime leaves to the CPU
        self.engines: list[set[int]] = []  # what each engine's contexts compute in
        self.loaded: set[object] = set()
        self._threads: dict[int, tuple[list[Any], list[Any]]] = {}

    def stacks(self) -> tuple[list[Any], list[Any]]:
        """Return the driver's stack of contexts in this thread, and PyCUDA's."""
        return self._threads.setdefault(threading.get_ident(), ([], []))

    def left_current(self) -> int:
        """Return how many contexts are current in any thread, by the driver's or PyCUDA's stacks."""
        return sum(len(stack) for stacks in self._threads.values() for stack in stacks)

    def fail(self) -> None:
        """Raise what the next call of PyCUDA shall fail with."""
        error, self.fail_next = self.fail_next, None
        if error is not None:
            raise error

    def forget_threads(self) -> None:
        """Pop what could not be popped."""
        self._threads.clear()

    def check(self) -> None:
        """Refuse a call where no context is current, or where it is dead."""
        self.calls += 1
        if not self.stacks()[0]:
            raise Refused(201)
        if self.sticky:
            raise Refused(self.sticky)

    def check_unsafe(self) -> None:
        """Refuse a call that may not be made by a thread that captures, and break its capture."""
        self.check()
        if self.break_captures(lambda stream: stream.capturing == threading.get_ident()):
            raise Refused(900)

    def check_default_stream(self) -> None:
        """Refuse a copy on the default stream where that waits for a stream that is captured."""
        self.check_unsafe()
        if self.break_captures(lambda stream: not stream.flags & 1):
            raise Refused(906)

    def break_captures(self, whose: Callable[[Stream], bool]) -> bool:
        """Invalidate the captures of some streams; returns whether there were any."""
        broken = [stream for stream in self.streams.values() if stream.capturing and whose(stream)]
        for stream in broken:
            stream.recording = None
        return bool(broken)

    def wait_for_all(self) -> None:
        """Wait for all streams, which breaks every capture, and is not refused: loading and freeing do so."""
        self.break_captures(lambda stream: True)
        for stream in list(self.streams.values()):
            stream.finish()

    def execute(self, work: Work) -> None:
        """Do what a stream has come to."""
        if self.break_next:
            self.break_next, self.sticky = False, 700
        if not self.sticky:
            work()

    @contextmanager
    def destruction(self, what: str, context: Context) -> Iterator[bool]:
        """Activate the context of what is freed or destroyed, as `scoped_context_activation` does; whether it can."""
        stack = self.stacks()[1]
        is_current = bool(stack) and stack[-1] is context
        if self.sticky:
            self.complaints.append(f"{what} on a dead context: the process would have ended here")
        if not is_current and context.thread != threading.get_ident():
            self.complaints.append(f"{what} in out-of-thread context could not be cleaned up")
            yield False  # PyCUDA warns
        else:
            yield True


class Context:
    """PyCUDA's primary context."""

    def __init__(self, stand: Stand) -> None:
        self.stand, self.thread, self.is_valid = stand, threading.get_ident(), True
        self.handle = self
        stand.retained += 1

    def push(self) -> None:
        driver, own = self.stand.stacks()
        self.stand.calls += 1
        self._refuse_if_stubborn("cuCtxPushCurrent")
        if own:
            driver.pop()
        driver.append(self)
        own.append(self)

    def pop(self) -> None:
        driver, own = self.stand.stacks()
        self._refuse_if_stubborn("cuCtxPopCurrent")
        if not own:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        if not driver:  # somebody else has popped it
            raise error_of(201, "cuCtxPopCurrent")
        driver.pop()
        own.pop()
        if own:
            driver.append(own[-1])

    def detach(self) -> None:
        """Release it: pushed for it where it is not current, and never popped; in another thread nothing is done."""
        driver, own = self.stand.stacks()
        if not (own and own[-1] is self):
            if self.thread == threading.get_ident():
                driver.append(self)
                self.stand.detached += 1
        else:
            self.stand.detached += 1
            own.pop()
        self.is_valid = False

    def _refuse_if_stubborn(self, call: str) -> None:
        if self.stand.sticky and self.stand.stubborn:
            raise error_of(self.stand.sticky, call)


class Stream:
    """A stream: does, or writes down."""

    def __init__(self, stand: Stand, flags: int = 0) -> None:
        self.stand, self.flags, self.context = stand, flags, stand.stacks()[1][-1]
        self.handle = next(stand.handles)
        self.capturing = 0  # the thread
        self.recording: list[Work] | None = None
        self.waiting: list[Work] = []
        self._turn = threading.RLock()  # whoever frees waits for all streams, also for those of other threads
        stand.streams[self.handle] = self

    def finish(self) -> None:
        """Do what waits."""
        with self._turn:
            while self.waiting:
                self.stand.execute(self.waiting.pop(0))

    def put(self, work: Work) -> None:
        self.stand.enqueued += 1
        if not self.capturing:
            self.waiting.append(work)
        elif self.recording is None:
            raise Refused(901)
        else:
            self.recording.append(work)

    def launch(self, kernel: object, work: Work) -> None:
        """Put a kernel, which is loaded when it is first launched."""
        if kernel not in self.stand.loaded:
            self.stand.check_unsafe()
            self.stand.wait_for_all()
            self.stand.loaded.add(kernel)
        self.put(work)


class StreamHandle:
    """PyCUDA's stream, which destroys the driver's with its last reference."""

    def __init__(self, stand: Stand, flags: int = 0) -> None:
        self._stand, self._stream = stand, Stream(stand, flags)
        self.handle = self._stream.handle
        # No method: its frame would keep this object alive in an error, which those of PyCUDA, in C++, do not.
        self.synchronize = functools.partial(_synchronize, stand, self._stream)

    def __del__(self) -> None:
        with self._stand.destruction("stream", self._stream.context) as is_active:
            if is_active:
                self._stand.destroyed_streams += 1
                self._stream.finish()
                del self._stand.streams[self.handle]


def _synchronize(stand: Stand, synchronized: Stream) -> None:
    stand.fail()
    with calling("cuStreamSynchronize"):
        stand.check()
        if stand.break_captures(lambda stream: stream is synchronized):
            raise Refused(900)
        synchronized.finish()
        stand.check()


class Allocation:
    """Memory of the device, or pinned memory, which NumPy sees as the base of an array."""

    def __init__(self, stand: Stand, size: int, kind: str, shape: tuple[int, ...] = (), dtype: Any = np.uint8) -> None:
        self.stand, self.kind, self.context = stand, kind, stand.stacks()[1][-1]
        self.bytes = np.full(size + 512, 0xA5, np.uint8)  # never zero: nobody may count on that
        self.address = (self.bytes.ctypes.data + 255) // 256 * 256
        self.shape, self.dtype, self.is_valid = shape, np.dtype(dtype), True

    def __int__(self) -> int:
        return self.address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

    def free(self) -> None:
        if not self.is_valid:
            raise error_of(400, f"{self.kind}::free")
        self.is_valid = False
        with self.stand.destruction(self.kind, self.context) as is_active:
            if not is_active:
                return
            if self.kind == "device_allocation":
                self.stand.wait_for_all()
                self.stand.freed += 1
            else:
                self.stand.unpinned += 1
            self.bytes[:] = 0xA5

    def __del__(self) -> None:
        if self.is_valid:
            self.free()


@contextmanager
def calling(name: str) -> Iterator[None]:
    """Make PyCUDA's exception of a refusal."""
    try:
        yield
    except Refused as err:
        raise error_of(err.code, name) from None


def copy(target: int, source: int, size: int) -> None:
    """Copy bytes."""
    ctypes.memmove(target, source, size)


def _owner(array: np.ndarray) -> Any:
    """Return what the memory of an array lives as long as."""
    found: Any = array
    while isinstance(found, np.ndarray) and found.base is not None:
        found = found.base
    return found


def pycuda_driver(stand: Stand) -> types.ModuleType:
    """Return a module in place of `pycuda.driver`."""
    module: Any = types.ModuleType("pycuda.driver")

    class Device:
        def __init__(self, index: int) -> None:
            assert index < stand.count

        @staticmethod
        def count() -> int:
            return stand.count

        def retain_primary_context(self) -> Context:
            return Context(stand)

    def check(name: str, how: Callable[[], None]) -> None:
        stand.fail()
        with calling(name):
            how()

    def make_stream(flags: int = 0) -> StreamHandle:
        check("cuStreamCreate", stand.check)
        return StreamHandle(stand, flags)

    def mem_alloc(size: int) -> Allocation:
        check("cuMemAlloc", stand.check_unsafe)
        stand.allocated += 1
        return Allocation(stand, size, "device_allocation")

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        check("cuMemHostAlloc", stand.check_unsafe)
        stand.pinned += 1
        dtype = np.dtype(dtype)
        memory = Allocation(stand, int(np.prod(shape)) * dtype.itemsize, "pagelocked_host_allocation", shape, dtype)
        return np.asarray(memory)  # its `base` is the allocation, as PyCUDA's

    def put_copy(name: str, stream: int, array: np.ndarray, work: Work) -> None:
        assert array.flags.c_contiguous
        if not stream:
            check(name, stand.check_default_stream)
            work()
            return
        check(name, stand.check)
        with calling(name):
            stand.streams[stream].put(work)

    def with_host(name: str, array: np.ndarray, work: Callable[[int, int], None]) -> Work:
        address, size, owner = array.ctypes.data, array.nbytes, weakref.ref(_owner(array))

        def guarded() -> None:
            if owner() is None:
                stand.complaints.append(f"{name}: the array of the host was gone before the stream came to it")
            else:
                work(address, size)

        return guarded

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: StreamHandle | None = None) -> None:
        number = 0 if stream is None else stream.handle
        del stream  # as above
        work = with_host("cuMemcpyHtoDAsync", src, lambda address, size: copy(dest, address, size))
        put_copy("cuMemcpyHtoDAsync", number, src, work)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: StreamHandle | None = None) -> None:
        number = 0 if stream is None else stream.handle
        del stream
        work = with_host("cuMemcpyDtoHAsync", dest, lambda address, size: copy(address, src, size))
        put_copy("cuMemcpyDtoHAsync", number, dest, work)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: StreamHandle) -> None:
        check("cuMemcpyDtoDAsync", stand.check)
        with calling("cuMemcpyDtoDAsync"):
            stand.streams[stream.handle].put(lambda: copy(dest, src, size))

    module.Error, module.MemoryError, module.LogicError, module.LaunchError = (
        Error,
        MemoryError_,
        LogicError,
        LaunchError,
    )
    module.Device, module.Stream, module.init = Device, make_stream, lambda: None
    module.mem_alloc, module.pagelocked_empty = mem_alloc, pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.memcpy_dtod_async = memcpy_dtod_async
    module.memcpy_htod = lambda dest, src: memcpy_htod_async(dest, src)
    module.memcpy_dtoh = lambda dest, src: memcpy_dtoh_async(dest, src)
    return module  # type: ignore[no-any-return]


def stand_in(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in in the place of PyCUDA and of the driver's bindings."""
    package: Any = types.ModuleType("pycuda")
    package.driver = pycuda_driver(stand)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver_bindings(stand))
    cuda_driver.bindings.cache_clear()
    monkeypatch.setattr(device, "_CONTEXTS", {})
    monkeypatch.setattr(device, "_LOST", {})


def check_left(stand: Stand) -> None:
    """Check that nothing was done that must not be done, and take the stand-in away from the driver's bindings."""
    cuda_driver.bindings.cache_clear()
    for stream in stand.streams.values():  # of a dead context: what it never came to holds kernels, for ever
        stream.waiting.clear()
    assert stand.left_current() == 0, "a context is still current"
    assert stand.detached == 0, "PyCUDA's detach leaves a released context current"
    assert stand.complaints == []
