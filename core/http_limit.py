"""An end for a request over HTTP: in time, however slowly its answer comes, or when another thread wants it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from types import TracebackType


class RequestLimit:
    """Breaks a request off when its time is over, or when it is told to; a block around the request.

    A socket's own time-out begins anew with each byte: a server that sends one a second would never be late.

    Args:
        limit_s: Seconds from the beginning of the block to the end of the answer.

    Attributes:
        is_late: Whether the time was over before the end of the block.
    """

    def __init__(self, limit_s: float) -> None:
        self.is_late = False
        self._is_broken_off = False
        self._sock: socket.socket | None = None
        self._timer = threading.Timer(limit_s, self._end_of_time)
        self._timer.daemon = True

    def __enter__(self) -> RequestLimit:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def connect(self, connection: http.client.HTTPConnection) -> None:
        """Connect, unless it is connected, and break that connection off at the end. Raises OSError."""
        if connection.sock is None:
            connection.connect()
        # Here: a connection that ends with its answer forgets its socket when the answer begins.
        self._sock = connection.sock
        self.check()  # it may have been broken off while there was no socket to shut down

    def check(self) -> None:
        """Raise OSError if the request was broken off: its end passes for that of the headers, or of the body."""
        if self._is_broken_off:
            raise OSError("broken off")

    def break_off(self) -> None:
        """Let whatever waits for the server fail; from any thread."""
        self._is_broken_off = True
        if self._sock is not None:
            shut_down(self._sock)

    def _end_of_time(self) -> None:
        self.is_late = True
        self.break_off()


def shut_down(sock: socket.socket) -> None:
    """Let whatever waits at a socket, with TLS or without, fail."""
    with contextlib.suppress(OSError):
        # Not SSLSocket's own method, which takes the TLS away under a thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
