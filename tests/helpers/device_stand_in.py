"""A GPU that is none: PyCUDA, the driver's graphs and TensorRT's runtime, in host memory.

"Device" memory is host memory behind an address, a stream does its work at once or, while it is captured, writes it
down; an "engine" is a file with the path of an ONNX graph, which ONNX Runtime computes on the memory at its addresses.
So everything of ours runs for real: buffers, addresses, order, graphs, errors.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from flawscope.cpp_ext.cuda_kernels import CudaKernels

Work = Callable[[], None]


class Error(Exception):
    """PyCUDA's base."""


class MemoryError_(Error, MemoryError):
    """PyCUDA's out of memory."""


class Stand:
    """The state of the device, for tests to look at and to break."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, tuple[Stream, list[Work]]] = {}
        self.allocated = self.freed = self.launches = self.enqueued = self.contexts = 0
        self.depth = 0
        self.capturable = True
        self.fail_next: Exception | None = None
        self.count = 1

    def check(self) -> None:
        """Raise what the next call shall fail with; nothing may be done without a current context."""
        assert self.depth > 0, "no current context"
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error


class Stream:
    """A stream: does, or writes down."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.handle = 1000 + len(stand.streams)
        self.recording: list[Work] | None = None
        stand.streams[self.handle] = self

    def put(self, work: Work) -> None:
        self.stand.enqueued += 1
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def synchronize(self) -> None:
        self.stand.check()
        assert self.recording is None, "waiting inside a capture"


class Allocation:
    """Device memory."""

    def __init__(self, stand: Stand, size: int) -> None:
        self.stand, self.bytes = stand, np.full(size + 64, 0xA5, np.uint8)  # never zero: nobody may count on that
        self.address = (self.bytes.ctypes.data + 63) // 64 * 64
        stand.allocated += 1

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.stand.freed += 1
        self.bytes[:] = 0xA5


def driver_module(stand: Stand) -> types.ModuleType:
    """Return a module in place of `pycuda.driver`."""
    module: Any = types.ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            stand.depth += 1
            try:
                stand.check()
            except Exception:
                stand.depth -= 1
                raise

        def pop(self) -> None:
            stand.depth -= 1

        def detach(self) -> None:
            stand.contexts -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index < stand.count

        @staticmethod
        def count() -> int:
            return stand.count

        def retain_primary_context(self) -> Context:
            stand.contexts += 1
            return Context()

    def mem_alloc(size: int) -> Allocation:
        stand.check()
        return Allocation(stand, size)

    def copy(target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def htod(address: int, array: np.ndarray) -> None:
        stand.check()
        copy(address, array.ctypes.data, array.nbytes)

    def dtoh(array: np.ndarray, address: int) -> None:
        stand.check()
        copy(array.ctypes.data, address, array.nbytes)

    def htod_async(address: int, array: np.ndarray, stream: Stream) -> None:
        stand.check()
        assert array.flags.c_contiguous
        stream.put(lambda: copy(address, array.ctypes.data, array.nbytes))

    def dtoh_async(array: np.ndarray, address: int, stream: Stream) -> None:
        stand.check()
        assert array.flags.c_contiguous
        stream.put(lambda: copy(array.ctypes.data, address, array.nbytes))

    module.Error, module.Device = Error, Device
    module.init = lambda: None
    module.Stream = lambda: Stream(stand)
    module.mem_alloc, module.pagelocked_empty = mem_alloc, np.empty
    module.memcpy_htod, module.memcpy_dtoh = htod, dtoh
    module.memcpy_htod_async, module.memcpy_dtoh_async = htod_async, dtoh_async
    return module  # type: ignore[no-any-return]


class DriverLibrary:
    """In place of libcuda, for the graphs that PyCUDA has no functions for."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: int) -> int:
        assert mode == 1
        if not self.stand.capturable:
            return 900
        self.stand.streams[int(stream.value or 0)].recording = []
        return 0

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:
        found = self.stand.streams[int(stream.value or 0)]
        if found.recording is None:
            return 901
        number = 1 + len(self.stand.graphs)
        self.stand.graphs[number] = (found, found.recording)
        found.recording = None
        graph._obj.value = number
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: ctypes.c_ulonglong) -> int:
        executable._obj.value = graph.value
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        return 0

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:
        del self.stand.graphs[int(executable.value or 0)]
        return 0

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        found, recorded = self.stand.graphs[int(executable.value or 0)]
        assert found.handle == stream.value
        self.stand.launches += 1
        for work in recorded:
            work()
        return 0


class KernelsOnStand:
    """The CUDA kernels in emulation, whose calls that only put work on a stream are put on ours."""

    def __init__(self, stand: Stand, kernels: CudaKernels) -> None:
        self.stand, self.kernels = stand, kernels

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.kernels, name)
        if name not in ("nearest", "mahalanobis", "mahalanobis_triangles", "bank_pack"):
            return function

        def call(*, stream: int, **arguments: Any) -> None:
            self.stand.streams[stream].put(lambda: function(**arguments, stream=0))

        return call


def tensorrt_module(stand: Stand) -> types.ModuleType:
    """Return a module in place of TensorRT, for running alone."""
    module: Any = types.ModuleType("tensorrt_stand_in")

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, WARNING=2)

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses, self.shape = engine, {}, None
            self.is_captured = False

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert not self.is_captured, "a captured context was changed"
            self.shape = shape
            return shape[0] <= self.engine.max_batch

        def execute_async_v3(self, stream: int) -> bool:
            stand.check()
            shape = self.shape
            assert shape is not None
            self.is_captured |= stand.streams[stream].recording is not None

            def work() -> None:
                engine = self.engine
                images = view(self.addresses[engine.input.name], shape, np.uint8)
                results = engine.session.run(None, {engine.input.name: images})
                for output, value in zip(engine.session.get_outputs(), results, strict=True):
                    view(self.addresses[output.name], value.shape, value.dtype)[...] = value

            stand.streams[stream].put(work)
            return True

    class Engine:
        def __init__(self, graph: Path) -> None:
            self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
            self.input = self.session.get_inputs()[0]
            self.tensors = [self.input, *self.session.get_outputs()]
            self.num_io_tensors = len(self.tensors)
            self.max_batch = 1 << 20

        def get_tensor_name(self, number: int) -> str:
            return str(self.tensors[number].name)

        def _tensor(self, name: str) -> Any:
            return next(tensor for tensor in self.tensors if tensor.name == name)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

        def get_tensor_dtype(self, name: str) -> str:
            return str(self._tensor(name).type)

        def get_tensor_mode(self, name: str) -> int:
            return 0 if name == self.input.name else 1

        def create_execution_context(self) -> Context:
            stand.check()
            return Context(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            text = plan.decode(errors="replace")
            if not text.endswith(".onnx"):
                self.logger.log(1, "the magic number\nis not right.")
                return None
            return Engine(Path(text))

    module.ILogger, module.Runtime = ILogger, Runtime
    module.TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
    module.nptype = lambda name: {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[name]
    return module  # type: ignore[no-any-return]


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return the array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
