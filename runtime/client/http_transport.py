"""The KServe v2 protocol over HTTP: requests and answers are written and read by NVIDIA's `tritonclient`.

The connections are our own. Those of `tritonclient` wait by gevent, which leaves two open files behind for each thread
that ever asked, and has no limit for an answer as a whole.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flawscope.arrays import UInt8Array
from flawscope.errors import DeviceError
from flawscope.http_limit import RequestLimit
from flawscope.runtime.client.access import Access, Sent
from flawscope.runtime.client.address import Address
from flawscope.runtime.client.served_model import OUTPUTS
from flawscope.runtime.client.transport import Answer, Failures, image_input, import_client
from flawscope.text import NOT_JSON

_HEADER = "Inference-Header-Content-Length"
_BLOCK_BYTES = 1 << 20
_MOST_WORDS = 1 << 24
"""Bytes of a configuration, or of what stands beside the arrays of an answer."""


@dataclass(frozen=True)
class _Got:
    status: int
    body: bytes
    header_length: int | None


class _Endless(Exception):
    """An answer is longer than it can be."""


class HttpTransport:
    """Asks over HTTP, each request on a connection of its own, which is kept for the next; see `Transport`.

    Args:
        address: The server.
        access: What goes with each request, and which certificates are trusted.

    Raises:
        MissingExtra: If `tritonclient` is not installed.
    """

    def __init__(self, address: Address, access: Access) -> None:
        self._module, self._failures = import_client("http"), Failures(address, access)
        self._place, self._tls = address.place, None
        if address.is_secure:
            self._tls = ssl.create_default_context(cafile=None if access.ca is None else str(access.ca))
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._is_closed = False

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model."""
        sent = self._failures.sent()
        got = self._asked("GET", f"{_path(model, version)}/config", None, {}, _MOST_WORDS, limit_s, sent)
        try:
            config = json.loads(got.body)
        except (*NOT_JSON, ValueError):
            raise self._failures.failed("its configuration of the model is no JSON", sent) from None
        return config if isinstance(config, dict) else {}

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to images."""
        sent, client = self._failures.sent(), self._module.InferenceServerClient
        outputs = [self._module.InferRequestedOutput(name, binary_data=True) for name in OUTPUTS]
        body, length = client.generate_request_body([image_input(self._module, images)], outputs, request)
        headers = {"Content-Type": "application/octet-stream", _HEADER: str(length)}
        # A map of float32 for each pixel, and a score.
        most = 4 * (images.size // images.shape[-1] + len(images)) + _MOST_WORDS
        got = self._asked("POST", f"{_path(model, version)}/infer", body, headers, most, limit_s, sent)
        try:
            result = client.parse_response_body(got.body, header_length=got.header_length)
            said = result.get_response()
            arrays = {name: result.as_numpy(name) for name in OUTPUTS}
            named = tuple(str(said.get(key, "")) for key in ("model_name", "model_version", "id"))
        except Exception as err:  # of whatever the server sent in place of an answer
            raise self._failures.failed(f"its answer cannot be read: {err or type(err).__name__}", sent) from None
        return Answer(named[0], named[1], named[2], arrays)

    def _asked(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        most: int,
        limit_s: float,
        sent: Sent,
    ) -> _Got:
        """Return an answer with status 200, of so many bytes at most, within the time: the whole of it."""
        connection, limit, got = self._taken(limit_s), RequestLimit(limit_s), None
        try:
            with limit:
                limit.connect(connection)
                connection.request(method, path, body, {**headers, **sent.headers, "User-Agent": "flawscope"})
                got = _answer_of(connection.getresponse(), most)
                limit.check()
        except Exception as err:
            if limit.is_late or isinstance(err, TimeoutError):
                raise self._failures.too_late(limit_s) from None
            # Other connections that wait for their next request have ended with this one.
            self._drop_idle()
            if isinstance(err, _Endless):
                raise self._failures.failed(f"its answer is longer than {most:,} bytes", sent) from None
            if isinstance(err, OSError | http.client.RemoteDisconnected | http.client.IncompleteRead):
                raise self._failures.unreachable(_words(err), sent) from None
            raise self._failures.failed("its answer is no HTTP", sent) from None  # the error holds what it sent
        finally:
            # The rest of a broken answer would be taken for the next one's.
            self._give_back(connection, is_whole=got is not None and not limit.is_late)
        if got.status != 200:
            raise self._refusal(got, sent)
        return got

    def _refusal(self, got: _Got, sent: Sent) -> DeviceError:
        if got.status in (401, 403):
            return self._failures.not_allowed(str(got.status), is_known=got.status == 403)
        try:
            said = json.loads(got.body)["error"]
        except (*NOT_JSON, ValueError, TypeError, KeyError):
            said = ""  # the page of a gateway, for people
        return self._failures.failed(said if isinstance(said, str) and said else f"status {got.status}", sent)

    def _taken(self, limit_s: float) -> http.client.HTTPConnection:
        with self._lock:
            if self._is_closed:
                raise DeviceError("backend triton: the connection is closed. Load the bundle again.")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            if self._tls is None:
                return http.client.HTTPConnection(self._place, timeout=limit_s)
            return http.client.HTTPSConnection(self._place, timeout=limit_s, context=self._tls)
        connection.timeout = limit_s
        if connection.sock is not None:
            connection.sock.settimeout(limit_s)
        return connection

    def _give_back(self, connection: http.client.HTTPConnection, *, is_whole: bool) -> None:
        with self._lock:
            if is_whole and not self._is_closed and connection.sock is not None:
                self._idle.append(connection)
                return
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """End all connections; one of a request under way ends with it."""
        with self._lock:
            self._is_closed = True
        self._drop_idle()


def _path(model: str, version: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/versions/{version}"


def _answer_of(response: http.client.HTTPResponse, most: int) -> _Got:
    length = response.headers.get(_HEADER)
    pieces, left = [], most
    while piece := response.read1(_BLOCK_BYTES):
        left -= len(piece)
        if left < 0:
            raise _Endless
        pieces.append(piece)
    if response.length:
        # `read1` says nothing of a body that ends too early.
        raise http.client.IncompleteRead(b"", response.length)
    response.read()  # nothing is left, but the connection takes no other request before
    body = b"".join(pieces)
    return _Got(response.status, body, int(length) if length and length.isdecimal() else None)


def _words(err: OSError | http.client.HTTPException) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"certificate_verify_failed: {err.verify_message}"
    if isinstance(err, http.client.HTTPException):
        return "it ended the connection without an answer"
    return err.strerror or str(err) or type(err).__name__
