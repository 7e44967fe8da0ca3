"""Entries as a JSON array, sent by HTTP POST; an answer of 2xx alone says that they have arrived."""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from flawscope.errors import ArgumentError
from flawscope.http_limit import RequestLimit
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import WebhookSink
from flawscope.secrets import is_this_machine, read_token, without_secrets
from flawscope.text import encode_json, printable

_PLAIN = re.compile(r"[!-~]+")
_ANSWER_BYTES = 1 << 16


class Webhook:
    """Posts entries to one address; a `Sink`. Redirects are not followed, and no proxy is used.

    Args:
        options: Its options.
        line: Name of the line, which each entry holds by itself.

    Raises:
        ArgumentError: If the address, the certificates or the token cannot be used.
    """

    def __init__(self, options: WebhookSink, line: str) -> None:
        self.batch = options.batch
        url = _checked(options.url)
        assert url.hostname is not None
        self._host, self._port = url.hostname, url.port
        self._target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        # A path or a query may hold a secret: messages have the beginning alone.
        self._shown = f"webhook {url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")
        self._token, self._timeout_s = options.token, options.timeout_s
        self._tls = _tls(options, self._shown) if url.scheme == "https" else None
        if self._token is not None:
            if self._tls is None and not is_this_machine(self._host):
                raise ArgumentError(
                    f"sinks, {self._shown}: expected https:// for a token, got http://, where anybody on the way reads "
                    "it. Change `url`, or leave `token` out."
                )
            read_token(self._token)
        self._lock = threading.Lock()
        self._is_closed = False
        self._request: RequestLimit | None = None

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        """Post entries, and return when the answer is 2xx; see `Sink`."""
        headers = {"Content-Type": "application/json", "User-Agent": "flawscope", "Connection": "close"}
        token = None
        if self._token is not None:
            try:
                token = read_token(self._token)
            except ArgumentError as err:
                raise SinkError(f"{self._shown}: {err}") from None
            headers["Authorization"] = f"Bearer {token}"
        limit = RequestLimit(self._timeout_s)
        with self._lock:
            if self._is_closed:
                raise SinkError(f"{self._shown}: closed")
            self._request = limit
        try:
            status = self._posted(limit, encode_json(entries), headers)
        except (OSError, http.client.HTTPException) as err:
            reason = f"no answer within {self._timeout_s:g} s" if limit.is_late else _reason(err)
            raise SinkError(without_secrets(f"{self._shown}: {printable(reason)}", token)) from None
        finally:
            with self._lock:
                self._request = None
        if 300 <= status < 400:
            raise SinkError(f"{self._shown}: answered {status}; redirects are not followed, write the address itself")
        if not 200 <= status < 300:
            raise SinkError(f"{self._shown}: answered {status}")

    def close(self) -> None:
        """End, and break off a request that waits."""
        with self._lock:
            self._is_closed = True
            if self._request is not None:
                self._request.break_off()

    def _posted(self, limit: RequestLimit, body: bytes, headers: dict[str, str]) -> int:
        """Return the status of the answer. Raises OSError and HTTPException."""
        with limit, contextlib.closing(self._connection()) as connection:
            limit.connect(connection)
            connection.request("POST", self._target, body, headers)
            answer = connection.getresponse()
            limit.check()
            with contextlib.suppress(OSError, http.client.HTTPException):
                # What has been read leaves the server no error; what it says beside the status does not matter.
                answer.read(_ANSWER_BYTES)
            return answer.status

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_good = bool(parts.hostname) and parts.port != 0 and _PLAIN.fullmatch(url) is not None
    except ValueError:
        is_good = False
    if not is_good:
        # The address may hold a secret, so it is not shown.
        raise ArgumentError(
            "sinks, webhook: expected a `url` such as https://HOST:PORT/PATH, without spaces and with all characters "
            "beyond ASCII percent-encoded, got something else."
        )
    return parts


def _tls(options: WebhookSink, shown: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if options.ca is None else str(options.ca))
    except OSError as err:  # an SSLError is one
        reason = "it holds no certificate" if isinstance(err, ssl.SSLError) else err.strerror or str(err)
        raise ArgumentError(
            f"sinks, {shown}: expected certificates (PEM) in {printable(str(options.ca))}, but {reason}."
        ) from None


def _reason(err: OSError | http.client.HTTPException) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({err.verify_message})"
    if isinstance(err, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(err, http.client.HTTPException):
        return "its answer is no HTTP"  # the message would hold what it sent
    if isinstance(err, TimeoutError):
        return "it does not answer"
    return err.strerror or str(err)
