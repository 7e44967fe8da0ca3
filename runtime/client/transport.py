"""The KServe v2 protocol by NVIDIA's `tritonclient`: over gRPC, where one connection serves all threads, and over HTTP.

Every failure is a `DeviceError` in one line. `Unreachable` is one of them: no answer has come, because the connection
was refused or ended, so that asking again can help. An inference changes nothing on a server, so it may be asked twice.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.errors import BackendError, DeviceError, MissingExtra
from flawscope.runtime.client.address import Address
from flawscope.runtime.client.served_model import OUTPUTS

_RECONNECT_MS = 1000
"""Longest wait of gRPC before it tries a server again that was gone; its own default is two minutes, in which every
part would be a fault."""
_MOST_BYTES = 2**31 - 1
"""Largest message, Triton's own limit; gRPC's default of 4 MiB is less than a batch of maps."""


class Unreachable(DeviceError):
    """No answer has come: the connection could not be made, or ended."""


@dataclass(frozen=True)
class Answer:
    """What a server answered to a request.

    Attributes:
        model: Name of the model that computed, in its words.
        version: Version of the model.
        request: Name of the request.
        outputs: Output -> array, None where it is missing.
    """

    model: str
    version: str
    request: str
    outputs: Mapping[str, npt.NDArray[Any] | None]


class Transport(Protocol):
    """Asks a server. All of it may be called from several threads at once."""

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model as JSON has it.

        Raises:
            DeviceError: If there is none within the time.
        """

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to uint8 [N, H, W, 3].

        Raises:
            DeviceError: If there is none within the time.
        """

    def close(self) -> None:
        """End the connection; closing twice is harmless."""


def import_client(protocol: str) -> Any:
    """Return the module `tritonclient.grpc` or `tritonclient.http`.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except ImportError as err:
        raise MissingExtra("asking an inference server", "tritonclient", "client") from err


def open_transport(address: Address) -> Transport:
    """Return what asks a server; nothing is sent yet.

    Raises:
        MissingExtra: If `tritonclient` is not installed.
    """
    return GrpcTransport(address) if address.protocol == "grpc" else HttpTransport(address)


class GrpcTransport:
    """Asks over gRPC; see `Transport` for the contract. Time limits are gRPC's deadlines, of the whole call."""

    def __init__(self, address: Address) -> None:
        self._module, self._address = import_client("grpc"), address
        self._client = self._module.InferenceServerClient(
            address.place,
            ssl=address.is_secure,
            channel_args=[
                ("grpc.max_send_message_length", _MOST_BYTES),
                ("grpc.max_receive_message_length", _MOST_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
                # Channels of one process share connections and their waits: a new one would start with an old wait.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model."""
        try:
            answer = self._client.get_model_config(model, version, as_json=True, client_timeout=limit_s)
        except Exception as err:
            raise self._failure(err, limit_s) from err
        config: dict[str, Any] = answer.get("config", {})
        return config

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to images."""
        try:
            result = self._client.infer(
                model,
                [_input(self._module, images)],
                model_version=version,
                outputs=[self._module.InferRequestedOutput(name) for name in OUTPUTS],
                request_id=request,
                client_timeout=limit_s,
            )
            said = result.get_response()
            outputs = {name: result.as_numpy(name) for name in OUTPUTS}
        except Exception as err:
            raise self._failure(err, limit_s) from err
        return Answer(said.model_name, said.model_version, said.id, outputs)

    def _failure(self, err: Exception, limit_s: float) -> DeviceError:
        status = str(_status(err) or "")
        if status.endswith("DEADLINE_EXCEEDED"):
            return _too_late(self._address, limit_s)
        # A channel that was closed by another thread raises ValueError.
        return _failure(self._address, err, is_unreachable=status.endswith("UNAVAILABLE"))

    def close(self) -> None:
        """End the connection."""
        self._client.close()


class HttpTransport:
    """Asks over HTTP, each thread on a connection of its own; see `Transport` for the contract."""

    def __init__(self, address: Address) -> None:
        self._module, self._address = import_client("http"), address
        self._gevent = importlib.import_module("gevent")  # which its sockets wait by
        self._own = threading.local()

    def _client(self, limit_s: float) -> Any:
        # One for each thread: they wait by an event loop of the thread, so another thread may not use them.
        client = getattr(self._own, "client", None)
        if client is None:
            options: dict[str, Any] = {}
            if self._address.is_secure:
                options = {"ssl": True, "ssl_context_factory": _tls_context}
            client = self._own.client = self._module.InferenceServerClient(
                self._address.place, connection_timeout=limit_s, network_timeout=limit_s, **options
            )
        return client

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model."""
        answer = self._within(limit_s, lambda client: client.get_model_config(model, version))
        return answer if isinstance(answer, dict) else {}

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to images."""

        def ask(client: Any) -> Answer:
            result = client.infer(
                model,
                [_input(self._module, images)],
                model_version=version,
                outputs=[self._module.InferRequestedOutput(name, binary_data=True) for name in OUTPUTS],
                request_id=request,
            )
            said = result.get_response()
            outputs = {name: result.as_numpy(name) for name in OUTPUTS}
            got = tuple(str(said.get(key, "")) for key in ("model_name", "model_version", "id"))
            return Answer(got[0], got[1], got[2], outputs)

        answer: Answer = self._within(limit_s, ask)
        return answer

    def _within(self, limit_s: float, ask: Any) -> Any:
        """Return what `ask` makes of a client within the time, the whole of it."""
        # The client's own limits are for one packet each: a server that sends a byte a second would never be late.
        timeout = self._gevent.Timeout(limit_s)
        try:
            with timeout:
                return ask(self._client(limit_s))
        except self._gevent.Timeout as late:
            self._drop()
            if late is not timeout:
                raise
            raise _too_late(self._address, limit_s) from None
        except TimeoutError:
            self._drop()
            raise _too_late(self._address, limit_s) from None
        except Exception as err:
            # The rest of a broken answer may lie in the connection, and would be taken for the next one's.
            self._drop()
            raise _failure(self._address, err, is_unreachable=_is_connection(err)) from err

    def _drop(self) -> None:
        client = getattr(self._own, "client", None)
        self._own.client = None
        if client is not None:
            client.close()

    def close(self) -> None:
        """End the connection of this thread; those of others end with their threads."""
        self._drop()


def _tls_context() -> Any:
    return importlib.import_module("gevent.ssl").create_default_context()


def _input(module: Any, images: UInt8Array) -> Any:
    given = module.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(np.ascontiguousarray(images))
    return given


def _status(err: Exception) -> str | None:
    """Return the status of an answer that is an error; None where none has come."""
    status = getattr(err, "status", None)
    return status() if callable(status) else None


def _is_connection(err: Exception) -> bool:
    """Return whether a connection was refused or ended, before there was an answer."""
    # geventhttpclient has an error of its own for a connection that ends in an answer; it shares no base with OSError.
    return isinstance(err, OSError | EOFError) or "Connection" in type(err).__name__


def _too_late(address: Address, limit_s: float) -> DeviceError:
    return DeviceError(f"backend triton: {address}: expected an answer within {limit_s:g} s, got none.")


def _failure(address: Address, err: Exception, *, is_unreachable: bool) -> DeviceError:
    text = getattr(err, "message", None)
    said = str(text() if callable(text) else err).strip() or type(err).__name__
    line = said.splitlines()[0]
    if is_unreachable:
        return Unreachable(f"backend triton: {address}: no server answers there: {line}")
    return DeviceError(f"backend triton: {address}: the server failed: {line}")


def reached(transport: Transport, model: str, version: str, limit_s: float) -> dict[str, Any]:
    """Return the configuration of a model; a failure says what to look at.

    Raises:
        BackendError: If the server does not answer, or has no such model.
    """
    try:
        return transport.config(model, version, limit_s)
    except Unreachable:
        raise
    except DeviceError as err:
        raise BackendError(
            f"{err} Expected the model {model} in version {version}, as flawscope export-triton writes it."
        ) from err
