"""TensorRT's runtime and the CUDA kernels on the GPU of `cuda_stand_in`.

An "engine" is a file with the path of an ONNX graph, which ONNX Runtime computes on the memory at its addresses; the
kernels are computed in emulation. So everything of ours runs for real: buffers, addresses, order, graphs, errors.
"""

from __future__ import annotations

import ctypes
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from cuda_stand_in import Stand

from flawscope.cpp_ext.cuda_kernels import CudaKernels

SCRATCH = 4096
"""Bytes that a context of an engine computes in."""


class KernelsOnStand:
    """The CUDA kernels in emulation, whose calls that only put work on a stream are put on ours."""

    def __init__(self, stand: Stand, kernels: CudaKernels) -> None:
        self.stand, self.kernels = stand, kernels

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.kernels, name)
        queued = ("nearest", "windows_nearest", "mahalanobis", "mahalanobis_triangles", "bank_pack", "diffusion_step")
        if name == "bank_check":

            def check(*, packed: int, stream: int) -> bool:
                self.stand.streams[stream].finish()  # it waits
                return self.kernels.bank_check(packed=packed, stream=0)

            return check
        if name not in queued:
            return function

        def call(*, stream: int, **arguments: Any) -> None:
            self.stand.streams[stream].launch(name, lambda: function(**arguments, stream=0))

        return call


class OnDevice:
    """What has memory of the device and gives it back where it is destroyed: there a context must be current."""

    what = "object"

    def __init__(self, stand: Stand) -> None:
        self.stand = stand

    def __del__(self) -> None:
        self.stand.wait_for_all()
        if self.stand.sticky:
            self.stand.complaints.append(f"{self.what} was destroyed on a dead context")
        if not self.stand.stacks()[0]:
            self.stand.complaints.append(f"{self.what} was destroyed without a current context")


class ExecutionContext(OnDevice):
    """An execution context. One whose memory is the user's has none before it is given."""

    what = "execution context"

    def __init__(self, stand: Stand, engine: Engine, strategy: str) -> None:
        super().__init__(stand)
        assert strategy == "user managed", "every context would take memory of its own"
        stand.wait_for_all()
        self.engine, self.addresses, self.shapes = engine, {}, {}
        self.is_captured = False
        self.memory = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.memory = memory
        self.engine.memories.add(memory)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.is_captured, "a captured context was changed"
        self.shapes[name] = shape
        return shape[0] <= self.engine.max_batch

    def execute_async_v3(self, stream: int) -> bool:
        if self.stand.sticky or not self.memory:
            return False
        self.is_captured |= bool(self.stand.streams[stream].capturing)
        self.stand.streams[stream].launch((id(self), "engine"), self._work)
        return True

    def _work(self) -> None:
        engine = self.engine
        feeds = {
            item.name: view(self.addresses[item.name], self.shapes[item.name], _TYPES[item.type])
            for item in engine.inputs
        }
        # In the memory of all contexts: what one leaves there is nothing to the next.
        view(self.memory, (engine.device_memory_size_v2,), np.uint8)[...] = 0x5A
        results = engine.session.run(None, feeds)
        for output, value in zip(engine.session.get_outputs(), results, strict=True):
            view(self.addresses[output.name], value.shape, value.dtype)[...] = value


_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class Engine(OnDevice):
    """An engine: a graph that ONNX Runtime computes."""

    what = "engine"
    device_memory_size_v2 = SCRATCH

    def __init__(self, stand: Stand, graph: Path) -> None:
        super().__init__(stand)
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.tensors = [*self.inputs, *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)
        self.max_batch = 1 << 20
        self.memories: set[int] = set()
        stand.engines.append(self.memories)

    def get_tensor_name(self, number: int) -> str:
        return str(self.tensors[number].name)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> str:
        return str(self._tensor(name).type)

    def get_tensor_mode(self, name: str) -> int:
        return 0 if name in {tensor.name for tensor in self.inputs} else 1

    def create_execution_context(self, strategy: str = "static") -> ExecutionContext:
        return ExecutionContext(self.stand, self, strategy)


def tensorrt_module(stand: Stand) -> types.ModuleType:
    """Return a module in place of TensorRT, for running alone."""
    module: Any = types.ModuleType("tensorrt_stand_in")

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, WARNING=2)

    class Runtime(OnDevice):
        what = "runtime"

        def __init__(self, logger: Any) -> None:
            super().__init__(stand)
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            text = plan.decode(errors="replace")
            if not text.endswith(".onnx"):
                self.logger.log(1, "the magic number\nis not right.")
                return None
            stand.wait_for_all()
            return Engine(stand, Path(text))

    module.ILogger, module.Runtime = ILogger, Runtime
    module.TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
    module.ExecutionContextAllocationStrategy = types.SimpleNamespace(STATIC="static", USER_MANAGED="user managed")
    module.nptype = lambda name: _TYPES[name]
    return module  # type: ignore[no-any-return]


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return the array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
