"""Sessions of OpenVINO: every image of a batch is one inference, and its outputs are written where the caller has them.

A graph is compiled for one image, its shapes fixed: with a batch that may vary, small networks took up to 1.4 times as
long, and a batch is hardly faster than its images one by one. They are spread over streams, each with a part of the
cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.bundle import Bundle, OnnxModel
from flawscope.errors import BackendError, DeviceError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.openvino_devices import import_openvino, reason_of
from flawscope.runtime.backends.openvino_graph import MANY, ONE, Place, compile_graph, graph_name

Arrays = Mapping[str, npt.NDArray[Any]]


def open_on_cpu(
    bundle: Bundle, graph: str, precision: str, make_head: object = None, cores: Cores = OWN_CHOICE
) -> OpenvinoSession:
    """Open a session of a graph on the CPU; `make_head` is not used, distances are computed by the CPU's kernels."""
    return OpenvinoSession(bundle.model(graph, precision), Place("openvino", "CPU", precision, cores))


def open_on_gpu(
    bundle: Bundle, graph: str, precision: str, make_head: object = None, cores: Cores = OWN_CHOICE
) -> OpenvinoSession:
    """Open a session of a graph on Intel's GPU; `make_head` is not used."""
    return OpenvinoSession(bundle.model(graph, precision), Place("openvino:gpu", "GPU", precision, cores))


def open_on_npu(
    bundle: Bundle, graph: str, precision: str, make_head: object = None, cores: Cores = OWN_CHOICE
) -> OpenvinoSession:
    """Open a session of a graph on Intel's NPU; `make_head` is not used."""
    return OpenvinoSession(bundle.model(graph, precision), Place("openvino:npu", "NPU", precision, cores))


class OpenvinoSession:
    """One ONNX graph in OpenVINO; see `Session` for the contract.

    Args:
        model: The graph.
        place: Where it runs, in which precision.

    Attributes:
        place: As given.
        outputs: Names of what `infer` returns.

    Raises:
        BackendError: If OpenVINO cannot take the graph, or would run it elsewhere or in another precision.
        MissingExtra: If OpenVINO is not installed.
    """

    def __init__(self, model: OnnxModel, place: Place) -> None:
        self._model: OnnxModel | None = model
        self.place, self._backend = place, place.backend
        self._compiling = threading.Lock()
        self._pools: dict[str, _Requests] = {}
        first = self._pool(ONE)
        self.outputs = tuple(first.outputs)

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch."""
        return self.run(dict.fromkeys(list(self._open_pool(ONE).inputs)[:1], images))

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on several inputs."""
        one = self._open_pool(ONE)
        count = self._check(inputs, one)
        group = one.group
        # In one stream images come one by one, as a single one does: the same model serves both.
        pool = one if count == group or self.place.cores.streams == 1 else self._open_pool(MANY)
        outputs = {
            name: np.empty((count // group * shape[0], *shape[1:]), dtype)
            for name, (shape, dtype) in one.outputs.items()
        }
        # It takes an address, no strides, and no memory that may only be read.
        given = {name: np.require(array, requirements=("C", "W")) for name, array in inputs.items()}
        try:
            pool.run(given, outputs, count)
        except Exception as err:  # OpenVINO's are RuntimeErrors
            raise DeviceError(f"backend {self._backend}: the device failed: {reason_of(err)}") from err
        return outputs

    def _check(self, inputs: Arrays, pool: _Requests) -> int:
        """Return the number of images; raise DeviceError unless the inputs are those of the graph."""
        where = f"backend {self._backend}: the device failed"
        if inputs.keys() != pool.inputs.keys():
            raise DeviceError(f"{where}: expected the inputs {sorted(pool.inputs)}, got {sorted(inputs)}.")
        count = len(next(iter(inputs.values())))
        for name, array in inputs.items():
            shape, dtype = pool.inputs[name]
            if array.shape != (count, *shape[1:]) or array.dtype != dtype or not count or count % shape[0]:
                raise DeviceError(
                    f"{where}: {name}: expected {dtype} [N, {', '.join(map(str, shape[1:]))}], got {array.dtype} "
                    f"{list(array.shape)}."
                )
        return count

    def _open_pool(self, purpose: str) -> _Requests:
        pool = self._pools.get(purpose)
        if pool is not None:
            return pool
        with self._compiling:  # of several threads one compiles, and the others wait
            try:
                return self._pool(purpose)
            except DeviceError:
                raise
            except BackendError as err:  # within a run there is but one kind of failure
                raise DeviceError(str(err)) from err

    def _pool(self, purpose: str) -> _Requests:
        if self._model is None:
            raise DeviceError(f"backend {self._backend}: the session is closed. Load the bundle again.")
        if purpose not in self._pools:
            self._pools[purpose] = _Requests(compile_graph(self._model, self.place, purpose))
        return self._pools[purpose]

    def close(self) -> None:
        """Release the session; closing twice is harmless."""
        self._model = None
        self._pools.clear()


class _Requests:
    """A compiled model and its infer requests, each for one thread at a time.

    Attributes:
        inputs: Name -> shape and type of what one request takes.
        outputs: Name -> shape and type of what it gives.
        group: Images per request: one, or the fixed batch that the graph was exported with.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.inputs = {graph_name(port): _kind(port) for port in compiled.inputs}
        self.outputs = {graph_name(port): _kind(port) for port in compiled.outputs}
        self.group = next(iter(self.inputs.values()))[0][0]
        self._at_once = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: list[Any] = []  # `append` and `pop` are one step each, for any number of threads

    def run(self, inputs: Arrays, outputs: Arrays, count: int) -> None:
        """Fill `outputs` for `count` images, as many requests at once as the model has streams."""
        starts = range(0, count, self.group)
        with self._taken(min(len(starts), self._at_once)) as requests:
            for turn, start in enumerate(starts):
                request = requests[turn % len(requests)]
                request.wait()  # for what it ran before; raises what failed there
                stop = start + self.group
                for number, name in enumerate(self.inputs):
                    request.set_input_tensor(number, _shared(inputs[name][start:stop]))
                for number, array in enumerate(outputs.values()):
                    request.set_output_tensor(number, _shared(array[start:stop]))
                request.start_async()
            for request in requests:
                request.wait()

    @contextmanager
    def _taken(self, count: int) -> Iterator[list[Any]]:
        with ExitStack() as stack:
            requests: list[Any] = []
            for _ in range(count):
                try:
                    request = self._idle.pop()
                except IndexError:
                    request = self._compiled.create_infer_request()
                requests.append(request)
                stack.callback(request.wait)  # also after a failure: it writes into arrays of the caller until then
            yield requests
        self._idle += requests  # not after a failure: those are left to be freed


def _shared(array: npt.NDArray[Any]) -> Any:
    """Return an OpenVINO tensor over the memory of an array."""
    return import_openvino().Tensor(array, shared_memory=True)


def _kind(port: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an input or output whose shape is fixed."""
    return tuple(int(size) for size in port.shape), np.dtype(port.element_type.to_dtype())
