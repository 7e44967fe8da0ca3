"""uvicorn as a part of a line: no signals, no logging of its own, no connection that stays for ever."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from flawscope.runtime.line.line_config import HttpOptions

GRACE_S = 1
"""Time that requests have to end when the server stops."""

HEADER_S = 10.0
"""Longest time from a connection until its first request is whole."""

MOST_CONNECTIONS = 100
_HEADER_BYTES = 16 << 10


class Serving(uvicorn.Server):
    """One run of the server; it has to run in a thread that is not the main one, where it leaves signals alone.

    Args:
        app: What answers, as ASGI has it.
        options: Certificate and key.
        ending: Called in the loop when it begins to end, so that streams end, too.
        started: Called when it answers.
    """

    def __init__(
        self,
        app: Callable[[Any, Any, Any], Awaitable[None]],
        options: HttpOptions,
        ending: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        tls = options.tls
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                http="h11",  # whatever else is installed
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",  # of its own loggers alone; faults of ours are logged by ourselves
                access_log=False,
                proxy_headers=False,  # anybody on this machine could claim to be somebody else
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                ssl_certfile=tls.cert if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )
        self._ending, self._started = ending, started
        self._since: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Cut connections off that have sent no whole request for long; ten times a second."""
        now = time.monotonic()
        for connection in self._connections():
            if connection.cycle is None and now - self._since.setdefault(connection, now) > HEADER_S:
                connection.transport.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: streams first, then requests, then whoever still holds a connection."""
        self._ending()
        await super().shutdown(sockets)
        self.abandon()

    def abandon(self) -> None:
        """Stop listening and cut off all connections that are left; after an error, nobody else does."""
        for server in getattr(self, "servers", ()):
            server.close()
        for connection in self._connections():
            connection.transport.abort()

    def cut(self, client: Any) -> None:
        """Cut off the connections of a client.

        Args:
            client: Its address, as ASGI has it.
        """
        for connection in self._connections():
            if connection.client == client:
                connection.transport.abort()

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)
