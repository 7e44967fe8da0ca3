"""HTTP requests to a machine that may be hostile: each has an end in time and bytes, and goes nowhere else."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, urljoin, urlsplit

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.http_limit import RequestLimit
from flawscope.runtime.line.rollout.release import SourceAway
from flawscope.text import printable

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 3
_BLOCK_BYTES = 1 << 18
_LEAST_BYTES_A_S = 16 << 10
"""Slowest transfer that is waited for."""


@dataclass(frozen=True)
class Answer:
    """The answer to a request, within its block.

    Attributes:
        status: Its status.
        headers: Its headers.
        url: Whose answer it is, after redirects.
    """

    status: int
    headers: http.client.HTTPMessage
    url: str
    _response: http.client.HTTPResponse

    def pieces(self, most_bytes: int) -> Iterator[bytes]:
        """Yield the body, at most so many bytes of it. Raises OSError and HTTPException."""
        left = most_bytes
        while left > 0 and (piece := self._response.read1(min(_BLOCK_BYTES, left))):
            left -= len(piece)
            yield piece

    def body(self, most_bytes: int) -> bytes:
        """Return the body, at most so many bytes of it and one more. Raises OSError and HTTPException."""
        return b"".join(self.pieces(most_bytes + 1))


class Requests:
    """Makes requests to one machine, one after the other; no proxy is used, and no cookie kept.

    Args:
        url: The machine, `http://HOST:PORT` or `https://...`.
        shown: What it is called in messages.
        ca: Certificates that are trusted, in place of the system's.
        hosts: Other machines that it may send to.
        timeout_s: Seconds until an answer must have begun.

    Raises:
        ArgumentError: If the certificates cannot be used.
    """

    def __init__(self, url: str, shown: str, ca: Path | None, hosts: Collection[str], timeout_s: float) -> None:
        self._origin, self._shown = urlsplit(url), shown
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout_s = timeout_s
        try:
            self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except OSError as err:  # an SSLError is one
            reason = "it holds no certificate" if isinstance(err, ssl.SSLError) else err.strerror or str(err)
            raise ArgumentError(
                f"{shown}: expected certificates (PEM) in {printable(str(ca))}, but {reason}. Name another file."
            ) from None
        self._lock = threading.Lock()
        self._is_closed = False
        self._request: RequestLimit | None = None

    def close(self) -> None:
        """End the request that waits, and let none begin."""
        with self._lock:
            self._is_closed = True
            if self._request is not None:
                self._request.break_off()

    def is_own(self, url: str) -> bool:
        """Return whether an address is on the machine itself: another one gets no `Authorization`."""
        return _origin(urlsplit(url)) == _origin(self._origin)

    def is_allowed(self, url: str) -> bool:
        """Return whether a request may go to an address: the machine itself, or one of `hosts`, and not without TLS."""
        parts = urlsplit(url)
        if self.is_own(url):
            return True
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and self._origin.scheme == "http")
        return is_safe and (parts.hostname or "").lower() in self._hosts

    def followed(self, url: str, target: str) -> str:
        """Return the address that an answer sends to.

        Raises:
            SourceAway: If a request must not go there.
        """
        try:
            target = urljoin(url, target)
            is_allowed = self.is_allowed(target)
        except ValueError:  # no address at all
            target, is_allowed = "something else", False
        if not is_allowed:
            raise SourceAway(
                f"{self._shown}: expected an answer, got one that sends to {_shown(target)}. Add that machine to "
                "`hosts` if the registry has its tokens or blobs there; it needs https."
            )
        return target

    @contextlib.contextmanager
    def asked(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | IO[bytes] | None = None,
        size: int = 0,
    ) -> Iterator[Answer]:
        """Yield the answer to a request; redirects of GET and HEAD are followed where they may be.

        Args:
            method: The method.
            url: The address, whole.
            headers: Headers; `Authorization` goes to the machine itself alone.
            body: What is sent.
            size: Bytes that are sent, or at most expected: more take longer.

        Raises:
            SourceAway: If there is no answer in time, or it sends elsewhere.
        """
        sent = dict(headers)
        for _ in range(_MOST_REDIRECTS + 1):
            with self._once(method, url, sent, body, size) as answer:
                target = answer.headers.get("Location") if answer.status in _REDIRECTS else None
                if target is None or method not in ("GET", "HEAD"):
                    yield answer
                    return
            url = self.followed(url, target)
            if not self.is_own(url):
                sent.pop("Authorization", None)
        raise SourceAway(f"{self._shown}: expected an answer, got {_MOST_REDIRECTS + 1} redirects. Look at it.")

    @contextlib.contextmanager
    def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | IO[bytes] | None, size: int
    ) -> Iterator[Answer]:
        parts = urlsplit(url)
        whole_s = self._timeout_s + size / _LEAST_BYTES_A_S
        limit = RequestLimit(whole_s)
        with self._lock:
            if self._is_closed:
                raise SourceAway(f"{self._shown}: it was closed.")
            self._request = limit
        try:
            with limit, contextlib.closing(self._connection(parts)) as connection:
                limit.connect(connection)
                target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
                connection.request(method, target, body, {"User-Agent": "flawscope", "Connection": "close", **headers})
                response = connection.getresponse()
                limit.check()
                yield Answer(response.status, response.headers, url, response)
                limit.check()
        except FlawscopeError:  # of whoever reads the answer; some of them are ValueErrors
            raise
        except (OSError, http.client.HTTPException, ValueError) as err:
            reason = f"it was not done within {whole_s:.0f} s" if limit.is_late else _reason(err)
            raise SourceAway(f"{self._shown}: {printable(reason)}. Does it run, and is the network there?") from None
        finally:
            with self._lock:
                self._request = None

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, parts.port, timeout=self._timeout_s)


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443}.get(parts.scheme, 80)


def _shown(url: str) -> str:
    parts = urlsplit(url)  # a path or a query may hold a secret
    return printable(f"{parts.scheme}://{parts.hostname or ''}")[:200]


def _reason(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({err.verify_message})"
    if isinstance(err, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(err, http.client.HTTPException | ValueError):
        return "its answer is no HTTP"  # the message would hold what it sent
    if isinstance(err, TimeoutError):
        return "it does not answer"
    return (err.strerror if isinstance(err, OSError) else None) or str(err)
