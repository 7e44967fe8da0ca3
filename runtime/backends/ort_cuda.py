"""ONNX Runtime on CUDA with the memory bank beside the graph: one stream, buffers bound once, and our kernels.

Written against ONNX Runtime's interface, not run on a GPU: tests replace its CUDA provider, PyCUDA and the driver.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.bundle import Bundle, OnnxModel
from flawscope.errors import BackendError, DeviceError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.device import Device, check_kernels
from flawscope.runtime.backends.ort import (
    OrtSession,
    check_provider,
    import_onnxruntime,
    make_session,
    session_options,
)
from flawscope.runtime.backends.session import DeviceHead, MakeDeviceHead
from flawscope.runtime.engines.capture_lock import CAPTURES
from flawscope.runtime.engines.cuda_driver import first_line

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_on_cuda(
    bundle: Bundle,
    graph: str,
    precision: str,
    make_head: MakeDeviceHead | None = None,
    cores: Cores = OWN_CHOICE,  # its row has none to choose
) -> OrtSession | OrtDeviceSession:
    """Open a session of a graph; with `make_head` the bank lies beside it.

    Raises:
        BackendError: If CUDA cannot take the graph, or the bank cannot lie beside it: kernels or PyCUDA are missing.
        DeviceError: If the device fails.
    """
    model = bundle.model(graph, precision)
    if make_head is None:
        return OrtSession(model, "cuda")
    check_kernels("cuda")
    return OrtDeviceSession(model, bundle.manifest.max_batch, make_head)


class OrtDeviceSession:
    """A graph in ONNX Runtime, and the bank behind it on the same stream; see `Session` for the contract.

    Threads that call it at once take turns.

    Args:
        model: The graph: one input, and `patches` among the outputs.
        max_batch: Largest batch.
        make_head: Puts the bank on the device.
        index: Number of the device.

    Raises:
        BackendError: If CUDA cannot take the graph, or there is no device.
        DeviceError: If the device fails.
    """

    outputs: tuple[str, ...] = ("anomaly_map", "score")

    def __init__(self, model: OnnxModel, max_batch: int, make_head: MakeDeviceHead, index: int = 0) -> None:
        self._model, self._index, self._max_batch = model.file, index, max_batch
        self._turn = threading.Lock()
        self._session: Any = None
        self._head: DeviceHead | None = None
        self._bindings: dict[int, Any] = {}
        # ONNX Runtime copies external data, as far as tried (1.31); a version that does not would read freed memory.
        self._external = dict(model.external)
        self._device: Device | None = Device(index, "cuda")
        try:
            with CAPTURES.disturbing(), self._device.current():
                self._open(model, self._device.stream_number)
                self._head = make_head(self._device, max_batch)
                for count in range(max_batch, 0, -1):  # algorithms are chosen here, and not when images come
                    self._enqueue(self._device, count)
                    self._device.wait()
        except BaseException:
            self.close()
            raise

    def _open(self, model: OnnxModel, stream: int) -> None:
        options = session_options()
        # The kernels of the bank follow those of the graph on one stream, and nothing waits between them.
        on_stream = {"device_id": str(self._index), "user_compute_stream": str(stream)}
        try:
            self._session = make_session(model, options, "cuda", on_stream)
        except Exception as err:  # ONNX Runtime's exceptions share no base class of their own
            raise BackendError(f"backend cuda: could not load {model.file}: {first_line(err)}.") from err
        check_provider(self._session, "cuda", model.file)
        self._run_options = import_onnxruntime().RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # one wait, for all
        self._arrays: dict[str, tuple[npt.NDArray[Any] | None, tuple[int, ...], Any, int]] = {}
        device = self._device
        assert device is not None
        (image,) = self._session.get_inputs()
        for tensor in (image, *self._session.get_outputs()):
            shape, dtype = tuple(tensor.shape[1:]), np.dtype(_TYPES[tensor.type])
            size = self._max_batch * math.prod(shape) * dtype.itemsize
            pinned = device.pinned((self._max_batch, *shape), dtype) if tensor is image else None
            self._arrays[tensor.name] = (pinned, shape, dtype, device.allocate(size))
            if pinned is not None:
                pinned[...] = 0
        self._input = image.name

    def _binding(self, count: int) -> Any:
        """Return the binding of a batch size: addresses on the device, the same each time."""
        binding = self._bindings.get(count)
        if binding is None:
            self._bindings[count] = binding = self._session.io_binding()
            for name, (_, shape, dtype, address) in self._arrays.items():
                bind = binding.bind_input if name == self._input else binding.bind_output
                bind(name, "cuda", self._index, dtype, (count, *shape), address)
        return binding

    def _enqueue(self, device: Device, count: int) -> None:
        pinned, _, _, address = self._arrays[self._input]
        assert pinned is not None
        assert self._head is not None
        device.copy_in(address, pinned[:count])
        try:
            self._session.run_with_iobinding(self._binding(count), self._run_options)
        except Exception as err:
            raise DeviceError(f"backend cuda: the device failed: {first_line(err)}") from err
        self._head.enqueue(count, self._arrays["patches"][3])

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run graph and bank on a batch."""
        with self._turn:
            device, head = self._device, self._head
            if device is None or head is None:
                raise DeviceError("backend cuda: the session is closed. Load the bundle again.")
            pinned, shape, _, _ = self._arrays[self._input]
            assert pinned is not None
            count = len(images)
            if not 1 <= count <= self._max_batch or images.shape[1:] != shape:
                raise DeviceError(
                    f"backend cuda: {self._model}: expected 1 to {self._max_batch} of {list(shape)}, got "
                    f"{list(images.shape)}."
                )
            with device.current():
                np.copyto(pinned[:count], images)
                self._enqueue(device, count)
                device.wait()
                maps, scores = head.finish(count, self._arrays["patches"][3])
            return {"anomaly_map": maps, "score": scores}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run graph and bank on the only input."""
        if list(inputs) != [self._input]:
            raise DeviceError(f"backend cuda: expected {[self._input]}, got {sorted(inputs)}.")
        return self.infer(inputs[self._input])

    def close(self) -> None:
        """Release the session and the device's memory; closing twice is harmless."""
        with self._turn:
            device, self._device = self._device, None
            if device is None:
                return
            device.close(self._forget, lambda: (list(self._bindings.values()), self._session))
            self._forget()

    def _forget(self) -> None:
        # Bindings hold the session; the session has memory of the device, and works on its stream.
        self._bindings.clear()
        self._session = self._head = None
        self._arrays = {}
        self._external.clear()
