"""The socket on which the line's HTTP server listens."""

from __future__ import annotations

import socket
from typing import Any

from flawscope.errors import ArgumentError
from flawscope.runtime.line.config_checks import address_of
from flawscope.runtime.line.line_config import HttpOptions

MOST_OPEN = 200
"""Connections that are open at once, those included that have not said a word yet.

Whoever opens many more, and greets with no TLS, would take all files that the process may open: cameras and the journal
need some.
"""

_BACKLOG = 100


class BoundedListener(socket.socket):
    """A socket that listens, and hangs up on whoever would be one too many."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection and its address.

        Raises:
            ConnectionAbortedError: If too many are open; the server takes it for a client that has left meanwhile.
        """
        connection, address = super().accept()
        self._accepted = [one for one in self._accepted if one.fileno() >= 0]
        if len(self._accepted) >= MOST_OPEN:
            connection.close()
            raise ConnectionAbortedError
        self._accepted.append(connection)
        return connection, address


def listener(options: HttpOptions) -> BoundedListener:
    """Return a socket that listens, so that an address in use is told at once and not by a thread.

    Args:
        options: Of the server.

    Raises:
        ArgumentError: If the address cannot be used.
    """
    host, port = address_of(options.listen)
    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = BoundedListener(family, kind, proto)
    except OSError as err:
        raise ArgumentError(f"http.listen: {options.listen} cannot be used: {err}. Choose another.") from err
    try:
        # Else the address stays taken for a minute after each restart.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(_BACKLOG)
    except OSError as err:
        found.close()
        raise ArgumentError(
            f"http.listen: expected a free address, got {options.listen}: {err.strerror or err}. Choose "
            "another port, or end what uses it."
        ) from err
    found.setblocking(False)
    return found
