"""Sessions of TensorRT: engines with PyCUDA for memory and copies, and one CUDA graph per batch size.

Memory is allocated once, for the largest batch: pinned on the host, and on the device, where the execution contexts of
all batch sizes share what they compute in. Every batch size is run and captured when the engine is loaded. A batch then
takes a copy into pinned memory, one launch and one wait. Written against TensorRT's and PyCUDA's interfaces, not run on
a GPU.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.errors import BackendError, DeviceError, DeviceLost
from flawscope.runtime.backends.device import Device, Graph, SharedDevice, keep_for_ever
from flawscope.runtime.backends.session import DeviceHead, MakeDeviceHead
from flawscope.runtime.engines.build import listen
from flawscope.runtime.engines.capture_lock import CAPTURES
from flawscope.runtime.engines.tensorrt_modules import TensorRT


class TensorrtSession:
    """A loaded engine; see `Session` for the contract. Threads that call it at once take turns.

    Args:
        plan: The engine, as it was read and verified: no file is opened here.
        tensorrt: The module that built it.
        batches: The batch sizes that it is run at, ascending.
        make_head: Puts the bank beside the engine; the outputs are then `anomaly_map` and `score`. None: the engine's
            own outputs.
        name: What the engine is called in messages.
        layers: Report of the engine inspector as JSON, which `doctor` shows, or None.
        graphs: Whether batches are launched as CUDA graphs, captured when the session is made ready.
        index: Number of the device.
        shared: A device that the engines of a bundle have together, and its owner; see `DeviceEngines`. The session is
            not ready then before `make_ready`, and is released by the owner.

    Attributes:
        name: What the engine is called in messages.
        layers: Report of the engine inspector as JSON, or None.
        outputs: Names of what `infer` returns.
        graph_problem: Why batches are not launched as CUDA graphs, or None.

    Raises:
        BackendError: If there is no device, or the engine cannot be loaded.
        DeviceError: If the device fails, or has not memory enough.
    """

    def __init__(
        self,
        plan: bytes,
        tensorrt: TensorRT,
        batches: range,
        make_head: MakeDeviceHead | None = None,
        *,
        name: str = "engine",
        layers: bytes | None = None,
        graphs: bool = True,
        index: int = 0,
        shared: SharedDevice | None = None,
    ) -> None:
        self.name, self.layers = name, layers
        self.graph_problem: str | None = None if graphs else "not asked for"
        self._trt = tensorrt.module
        self._batches, self._max_batch = batches, batches[-1]
        self._graphs: dict[int, Graph] = {}
        self._contexts: dict[int, Any] = {}  # both by batch size
        self._inputs: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._outputs: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._head: DeviceHead | None = None
        # Buffers, stream and contexts are the session's own, or its owner's: one batch at a time.
        self._turn: contextlib.AbstractContextManager[Any] = threading.Lock() if shared is None else shared.turn
        self._is_owner = shared is None
        self._device: Device | None = Device(index) if shared is None else shared.device
        try:
            with self._device.current():
                with CAPTURES.disturbing():  # other threads' captures; our own come in `make_ready`
                    self._load(plan)
                    self._bind(self._device)
                    if make_head is not None:
                        self._head = make_head(self._device, self._max_batch)
                    scratch = self._device.allocate(self.scratch_bytes) if shared is None else 0
                if shared is None:
                    self.make_ready(scratch)
            self.outputs = ("anomaly_map", "score") if self._head is not None else tuple(self._outputs)
        except BaseException:
            if shared is None:
                self.close()
            else:  # its owner does not know it yet
                self._abandon(shared.device)
            raise

    def _abandon(self, device: Device) -> None:
        """Release what was made so far; where the device is lost, keep it for ever, as `Device.close` does."""
        try:
            with CAPTURES.disturbing(), device.current():
                self.release()
        except DeviceError:
            keep_for_ever(self.made())

    def _load(self, plan: bytes) -> None:
        self._logger, self._messages = listen(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        # Security: an engine can contain host code (version-compatible engines carry a whole runtime library). It must
        # not be executed, as the cache is not signed. Old versions lack the attribute.
        with contextlib.suppress(AttributeError):
            self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reason = self._messages.last_error() or "it gave no reason"
            raise BackendError(
                f"backend tensorrt: could not load the engine {self.name}: {reason}. Build it again with flawscope "
                "engine build --force."
            )

    def _make_context(self) -> Any:
        """Return an execution context that computes in the memory of all; see `_bind`."""
        # Each would otherwise take memory of its own for the largest batch, whatever its own is.
        shared = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context(shared)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(shared)
        # TensorRT-RTX compiles kernels in the background when it first meets a shape; a captured graph would keep the
        # generic ones for ever. EAGER compiles them before the first run returns.
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(config)

    def _bind(self, device: Device) -> None:
        """Give every tensor of the engine device memory and pinned host memory, for the largest batch."""
        trt = self._trt
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            # The engine's first dimension is -1 (dynamic), or the fixed batch that it was exported with.
            shape = (self._max_batch, *(int(size) for size in tuple(self._engine.get_tensor_shape(name))[1:]))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            host, address = device.pinned(shape, dtype), device.allocate(math.prod(shape) * dtype.itemsize)
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = (host, address)
        self._first = next(iter(self._inputs))
        # What the contexts of all batch sizes compute in, one after the other on one stream.
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def make_ready(self, scratch: int) -> None:
        """Run every batch size once; the device's context must be current.

        Args:
            scratch: Address of `scratch_bytes` that the engine computes in. Several engines may have the same.
        """
        assert self._device is not None
        self._scratch = scratch
        self._warm(self._device)

    def _warm(self, device: Device) -> None:
        """Run and capture every batch size once, on zeros, so that nothing is left to be done when images come."""
        for host, _ in self._inputs.values():
            host[...] = 0
        for count in reversed(self._batches):  # the largest first: what does not fit is said at once
            with CAPTURES.disturbing():  # a context is made, and kernels are loaded
                self._enqueue(device, count)
                device.wait()
            # After the run, never instead of it: a capture executes nothing, TensorRT makes ready in the first run, and
            # the driver loads kernels at their first launch.
            if self.graph_problem is None:
                self._capture(device, count)

    def capture_batches(self) -> None:
        """Capture every batch size for `run`, of a session that is ready and was made without graphs.

        The device's context must be current.
        """
        assert self._device is not None
        self.graph_problem = None
        for count in reversed(self._batches):
            if self.graph_problem is None:
                self._capture(self._device, count)

    def tensor(self, name: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """Return where an input or output lies on the device, with the shape of one of its batch, and its type.

        Raises:
            BackendError: If the engine has none of that name.
        """
        found = {**self._inputs, **self._outputs}.get(name)
        if found is None:
            have = ", ".join([*self._inputs, *self._outputs])
            raise BackendError(f"backend tensorrt: {self.name}: expected a tensor {name}, got {have}. Export it again.")
        # Not the pinned array: its memory would be freed with the last reference, and not when the session is closed.
        return found[1], found[0].shape[1:], found[0].dtype

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the inputs and of the outputs."""
        return tuple(self._inputs), tuple(self._outputs)

    def launch(self, count: int) -> None:
        """Enqueue the engine alone for a batch, from device memory to device memory; may be captured.

        The device's context must be current, and nobody else may use the device meanwhile.

        Raises:
            DeviceError: If TensorRT refuses.
        """
        assert self._device is not None
        if not self._context(count).execute_async_v3(self._device.stream_number):
            raise DeviceError("backend tensorrt: TensorRT could not put the engine on the stream.")

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run the engine, and the bank if there is one, on a batch."""
        return self.run({self._first: images})

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the engine on several inputs."""
        with self._turn:
            device = self._device
            if device is None:
                raise DeviceError("backend tensorrt: the session is closed. Load the bundle again.")
            count = self._count(inputs)
            with device.current():
                # Into the same pinned memory each time: a captured graph copies from a fixed address.
                for name, array in inputs.items():
                    np.copyto(self._inputs[name][0][:count], array)
                graph = self._graphs.get(count)
                if graph is not None:
                    graph.launch()
                else:
                    self._enqueue(device, count)
                device.wait()
                if self._head is not None:
                    maps, scores = self._head.finish(count, self._patches)
                    return {"anomaly_map": maps, "score": scores}
                # Copies: the next batch overwrites the pinned memory, and `close` frees it.
                return {name: host[:count].copy() for name, (host, _) in self._outputs.items()}

    def _count(self, inputs: Mapping[str, npt.NDArray[Any]]) -> int:
        """Return the batch size of inputs that fit."""
        if inputs.keys() != self._inputs.keys():
            raise DeviceError(f"backend tensorrt: expected {sorted(self._inputs)}, got {sorted(inputs)}.")
        count, sizes = len(next(iter(inputs.values()))), self._batches
        for name, array in inputs.items():
            host = self._inputs[name][0]
            if count not in sizes or array.shape != (count, *host.shape[1:]):
                steps = "" if sizes.step == 1 else f" in steps of {sizes.step}"
                raise DeviceError(
                    f"backend tensorrt: {name}: expected {sizes[0]} to {sizes[-1]}{steps} of {list(host.shape[1:])}, "
                    f"got {list(array.shape)}."
                )
        return count

    @property
    def _patches(self) -> int:
        return self._outputs["patches"][1]

    def _context(self, count: int) -> Any:
        """Return the execution context of a batch size; one each, as a new shape would invalidate a captured graph."""
        context = self._contexts.get(count)
        if context is not None:
            return context
        context = self._make_context()
        if context is None:
            reason = self._messages.last_error() or "it gave no reason"
            raise DeviceError(f"backend tensorrt: no execution context: {reason}. Is the device out of memory?")
        self._contexts[count] = context  # at once, or it would outlive `release` in the frames of an error
        context.set_device_memory(self._scratch, self.scratch_bytes)
        for name, (_, address) in {**self._outputs, **self._inputs}.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"backend tensorrt: TensorRT did not take memory for {name}.")
        for name, (host, _) in self._inputs.items():
            if not context.set_input_shape(name, (count, *host.shape[1:])):
                raise DeviceError(f"backend tensorrt: the engine does not take batches of {count}. Build it again.")
        return context

    def _enqueue(self, device: Device, count: int) -> None:
        """Enqueue one batch: copy of the inputs, engine, bank, copy of the results."""
        for host, address in self._inputs.values():
            device.copy_in(address, host[:count])
        self.launch(count)
        if self._head is not None:
            self._head.enqueue(count, self._patches)
            return
        for host, address in self._outputs.values():
            device.copy_out(host[:count], address)

    def _capture(self, device: Device, count: int) -> None:
        """Capture the work of one batch size, which must have run once before."""
        is_capturable = getattr(self._context(count), "is_stream_capturable", None)  # only newer versions have it
        if is_capturable is not None and not is_capturable(device.stream_number):
            self.graph_problem = "TensorRT says that this engine cannot be captured"
            return
        try:
            self._graphs[count] = device.capture(lambda: self._enqueue(device, count))
        except DeviceLost:
            raise
        except DeviceError as err:
            # No fault: batches are launched kernel by kernel from now on, slower, and `graph_problem` says why.
            self.graph_problem = str(err)

    def close(self) -> None:
        """Release the device's memory; closing twice is harmless."""
        with self._turn:
            device, self._device = self._device, None
            if device is None or not self._is_owner:
                return
            device.close(self.release, self.made)
            self._forget()

    def made(self) -> object:
        """Return all that the session has made on the device."""
        # No local variable of `close`, nor of `_load` and `_bind`: what it refers to would outlive `release`.
        return (*self._graphs.values(), *self._contexts.values(), self._engine, self._runtime)

    def release(self) -> None:
        """Release what was made on the device; its context is current, or another device's would be taken."""
        for graph in self._graphs.values():
            graph.close()
        self._forget()

    def _forget(self) -> None:
        # In this order: graphs refer to contexts, contexts to the engine, the engine to its runtime.
        self._graphs.clear()
        self._contexts.clear()
        self._head = self._engine = self._runtime = None
        self._inputs.clear()
        self._outputs.clear()
