"""The HTTP server of a line: uvicorn in a thread with a loop of its own, which nothing on the line waits for.

It starts within a second and stops within two, whatever clients do. If its loop ends by an error, it is started again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from flawscope.errors import MissingExtra
from flawscope.runtime.line.http.line_view import LineView
from flawscope.runtime.line.http.listening import listener
from flawscope.runtime.line.http.news import News
from flawscope.runtime.line.http.tls import check_tls
from flawscope.runtime.line.line_config import HttpOptions, LineConfig
from flawscope.runtime.line.outputs.output import Output
from flawscope.text import printable

if TYPE_CHECKING:
    from flawscope.runtime.line.http.serving import Serving

START_S = 5.0
"""Longest time until it listens; on a machine that is not busy it is a tenth of a second."""

STOP_S = 2.0
"""Longest time until it has ended."""

_SEND_S = 30.0
"""Longest time that a client may take for a piece of an answer."""

_MOST_CONNECTIONS = 100
_THREADS = 8
_ACTS = 2
_RESTART_S = 1.0

_log = logging.getLogger(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]


class LineServer:
    """The server, from `start` to `stop`. Make it before the stations, give each its `output`, start it after them.

    Args:
        config: The line's configuration, with `http`.
        line: The line; its journal is open.

    Attributes:
        address: Host and port that it listens on, after `start`.
        context: What its routes share.

    Raises:
        ArgumentError: If the address cannot be used.
        MissingExtra: If what it needs is not installed.
    """

    def __init__(self, config: LineConfig, line: LineView) -> None:
        assert config.http is not None
        self._options: HttpOptions = config.http
        try:
            import uvicorn  # noqa: F401

            from flawscope.runtime.line.http.access import Access
            from flawscope.runtime.line.http.app import LineApp
            from flawscope.runtime.line.http.context import Context
            from flawscope.runtime.line.metrics import LineMetrics
        except ImportError as err:
            if isinstance(err, MissingExtra):
                raise
            raise MissingExtra("the line's HTTP interface", err.name or "starlette", "line") from err
        self._metrics = LineMetrics(line, config.line.state)
        self._news = News(self._metrics.signal)
        self._threads = ThreadPoolExecutor(_THREADS, "http call")
        self._acts = ThreadPoolExecutor(_ACTS, "http act")
        access = Access(line.users, config.line.name, config.http)
        state, news, metrics = config.line.state, self._news, self._metrics
        self.context = Context(line, config.stations, news, metrics.text, self._threads, self._acts, access, state)
        self._app = LineApp(self.context)
        self._listener = listener(self._options)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._server: Serving | None = None
        self._stopping = threading.Event()
        self._has_started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def output(self, station: str) -> Output:
        """Return an output for a station, by which the server hears of verdicts and states as the PLC does."""
        return self._news.output(station)

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self.address
        return f"{'https' if self._options.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def watchers(self) -> int:
        """Clients of the stream of events."""
        return self._news.watchers

    def start(self) -> None:
        """Begin to answer; returns when it does.

        Raises:
            ArgumentError: If certificate or key cannot be used.
        """
        check_tls(self._options)
        self._metrics.start()
        self._thread.start()
        if not self._has_started.wait(START_S):
            _log.warning("The HTTP interface does not answer yet, after %.0f s; the line goes on.", START_S)

    def stop(self) -> None:
        """End within two seconds; what clients have not read by then is lost. Twice is harmless."""
        self._stopping.set()
        if (server := self._server) is not None:
            server.should_exit = True
        self._listener.close()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        for threads in (self._threads, self._acts):
            threads.shutdown(wait=False, cancel_futures=True)
        self._metrics.stop()

    def _run(self) -> None:
        """Serve until it is stopped; whatever ends the loop before is no reason to have no page for ever."""
        while not self._stopping.is_set():
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._serve(loop))
            except Exception:
                _log.exception("The HTTP interface failed; it is started again.")
            finally:
                _close(loop)
            self._stopping.wait(_RESTART_S)

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        from flawscope.runtime.line.http.serving import Serving

        self._news.bind(loop)
        server = Serving(self._timed, self._options, self._news.close, self._has_started.set)
        self._server = server
        server.should_exit = self._stopping.is_set()
        try:
            listener = self._listener.dup()
        except OSError:  # closed by `stop` a moment ago
            return
        try:
            await server.serve([listener])
        finally:
            server.abandon()
            listener.close()

    async def _timed(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; a client that does not take its answer is cut off."""

        async def in_time(message: Any) -> None:
            try:
                await asyncio.wait_for(send(message), _SEND_S)
            except asyncio.TimeoutError:
                # What is sent from now on is dropped, and `receive` says that the client has left.
                if (server := self._server) is not None:
                    server.cut(scope.get("client"))

        try:
            await self._app(scope, receive, in_time)
        except Exception:
            _log.exception("%s %s failed.", scope["method"], printable(scope["path"]))
            raise


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left in a loop and close it."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=0.3) if left else asyncio.sleep(0))
        # Once more: connections that were cut off say so in the next turn.
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
