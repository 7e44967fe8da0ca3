"""A graph on an inference server as a session; what the backend `triton` opens."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.bundle import Bundle, OnnxModel
from flawscope.errors import BackendError, DeviceError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.client.access import Access, given_access
from flawscope.runtime.client.address import Address, address_from_environment, request_limit
from flawscope.runtime.client.grpc_transport import GrpcTransport
from flawscope.runtime.client.http_transport import HttpTransport
from flawscope.runtime.client.served_model import OUTPUTS, ServedModel, check_served, served_model
from flawscope.runtime.client.transport import Answer, Transport, Unreachable, import_client, reached

_LEAST_S = 0.05
"""Seconds that must be left for another attempt: with less it could only be late."""


def server_problem() -> str | None:
    """Return why no server can be asked here, as a sentence, or None; no server is asked.

    Raises:
        ArgumentError: If what the environment says of the server is wrong.
    """
    try:
        address = address_from_environment()
        given_access(address)
        request_limit()
        import_client(address.protocol)
    except BackendError as err:
        return str(err).removeprefix("backend triton: ")
    except ImportError:
        return 'tritonclient is not installed. Install it with: pip install "flawscope[client]".'
    return None


def open_served(
    bundle: Bundle, graph: str, precision: str, make_head: object = None, cores: Cores = OWN_CHOICE
) -> ServedSession:
    """Open a session of a graph on the server that `FLAWSCOPE_TRITON` names; raises as `open_on`.

    Raises:
        ArgumentError: If what the environment says of the server is wrong.
    """
    address = address_from_environment()
    return open_on(address, given_access(address), request_limit(), bundle, graph, precision)


def open_on(
    address: Address, access: Access, limit_s: float, bundle: Bundle, graph: str, precision: str
) -> ServedSession:
    """Open a session of a graph on a server, which must serve that very graph.

    Args:
        address: The server.
        access: What goes with each request, and which certificates are trusted.
        limit_s: Seconds that it has for a request.
        bundle: The bundle, or a member of an ensemble, which has a model of its own.
        graph: Name of the graph.
        precision: Its precision.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the server does not answer or serves something else, or the graph is none for a server.
        BundleError: If the bundle has no such graph, or it is broken.
        MissingExtra: If `tritonclient` is not installed.
    """
    model = served_model(bundle, graph, precision, address.model)
    transport = open_transport(address, access)
    try:
        return ServedSession(transport, model, str(address), limit_s)
    except BaseException:
        transport.close()
        raise


def open_transport(address: Address, access: Access) -> Transport:
    """Return what asks a server; nothing is sent yet.

    Raises:
        MissingExtra: If `tritonclient` is not installed.
    """
    return (GrpcTransport if address.protocol == "grpc" else HttpTransport)(address, access)


def executed_nodes(session: object, model: OnnxModel, inputs: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
    """Raise BackendError: the protocol does not tell what computes which node on a server."""
    raise BackendError(
        "backend triton: expected a backend of this machine, got a server, which does not tell what computes which "
        "node. Run flawscope doctor there, on its backend."
    )


class ServedSession:
    """A graph on a server; see `Session` for the contract. Several threads may call it at once.

    Args:
        transport: Asks the server; the session closes it.
        model: What it must serve.
        server: Its address, for messages.
        limit_s: Seconds that it has for a request, a second attempt included.

    Attributes:
        outputs: Names of what `infer` returns.

    Raises:
        BackendError: If it does not answer, or serves something else.
    """

    outputs: tuple[str, ...] = OUTPUTS

    def __init__(self, transport: Transport, model: ServedModel, server: str, limit_s: float) -> None:
        self._transport, self._model, self._server, self._limit_s = transport, model, server, limit_s
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._asking, self._is_closed = 0, False
        config = self._again(lambda left_s: reached(transport, model.name, model.version, left_s))
        check_served(model, config, server)

    def infer(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch."""
        return self.run({"image": images})

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph; its one input is `image`."""
        images = np.asarray(inputs["image"])
        with self._lock:
            if self._is_closed:
                raise DeviceError(f"backend triton: {self._server}: the session is closed. Load the bundle again.")
            self._asking += 1
            request = str(next(self._numbers))
        try:
            name, version = self._model.name, self._model.version
            answer = self._again(lambda left_s: self._transport.infer(name, version, request, images, left_s))
        finally:
            self._done()
        return self._checked(answer, request, len(images))

    def _again(self, ask: Callable[[float], Any]) -> Any:
        """Return what `ask` returns; asked once more, in the same time, where the connection failed.

        Connections that were idle are closed by servers and by what lies between, which is noticed at the next request.
        An answer that is an error, or late, is not asked for again: that would be more work for a server in trouble.
        """
        end = time.monotonic() + self._limit_s
        try:
            return ask(self._limit_s)
        except Unreachable:
            left_s = end - time.monotonic()
            if left_s < _LEAST_S:
                raise
            return ask(left_s)

    def _checked(self, answer: Answer, request: str, count: int) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of an answer, or raise DeviceError unless it is what was asked for."""
        model, what = self._model, f"backend triton: {self._server}: model {self._model.name}"
        got = (answer.model, answer.version, answer.request)
        if got != (model.name, model.version, request):
            raise DeviceError(
                f"{what}: expected an answer of version {model.version} to request {request}, got one of {got[0]}, "
                f"version {got[1]}, to request {got[2]}."
            )
        height, width = model.size
        shapes = {"anomaly_map": (count, height, width), "score": (count, 1)}
        arrays = {}
        for name, shape in shapes.items():
            array = answer.outputs.get(name)
            if array is None or array.dtype != np.float32 or array.shape != shape:
                said = "none" if array is None else f"{array.dtype} {list(array.shape)}"
                raise DeviceError(f"{what}: {name}: expected float32 {list(shape)}, got {said}.")
            # A copy: gRPC's arrays are views of the message, read-only, and would keep all of it alive.
            arrays[name] = array.reshape(shape if name == "anomaly_map" else count).copy()
        return arrays

    def _done(self) -> None:
        with self._lock:
            self._asking -= 1
            ends = self._is_closed and self._asking == 0
        if ends:
            self._transport.close()

    def close(self) -> None:
        """Take no more requests; the connection ends with the last one under way. Closing twice is harmless."""
        with self._lock:
            ends = not self._is_closed and self._asking == 0
            self._is_closed = True
        if ends:
            self._transport.close()
