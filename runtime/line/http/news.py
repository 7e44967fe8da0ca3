"""News of the line for HTTP clients: who waits for a verdict gets it as the PLC does, who watches is told 'new'.

Stations tell from their threads; everything else runs in the loop of the server. Nothing here may hold up a station.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from flawscope.runtime.line.outputs.output import Control, Signal, State

MOST_WATCHERS = 20
"""Most clients of the stream of events."""

_MOST_RECENT = 4096
_PAUSE_S = 0.1
"""Between two 'new' for one client: a page need not be drawn more often."""
_PING_S = 15.0
"""Between two signs of life, by which a client that is gone is noticed."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
OnSignal = Callable[[str, Signal], None]


class Told(NamedTuple):
    """A verdict as it was given out.

    Attributes:
        station: Name of the station.
        signal: What was signalled.
    """

    station: str
    signal: Signal


class News:
    """Verdicts and changes of state, from the stations to the clients.

    Args:
        on_signal: Called with station and signal of each verdict, from the station's thread; it returns at once.
    """

    def __init__(self, on_signal: OnSignal) -> None:
        self._on_signal = on_signal
        self._loop: asyncio.AbstractEventLoop | None = None
        # Bounded: a loop that hangs must not fill the memory.
        self._arrived: deque[Told | None] = deque(maxlen=_MOST_RECENT)
        self._lock = threading.Lock()
        self._is_called = False
        self._recent: OrderedDict[int, Told] = OrderedDict()
        self._waiting: dict[int, set[asyncio.Future[Told]]] = {}
        self._watchers: set[asyncio.Event] = set()
        self._is_closed = False

    @property
    def watchers(self) -> int:
        """Clients of the stream of events."""
        return len(self._watchers)

    @property
    def is_full(self) -> bool:
        """Whether no more clients may watch."""
        return len(self._watchers) >= MOST_WATCHERS

    def output(self, station: str) -> StationNews:
        """Return the output of a station that tells here."""
        return StationNews(self, station)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to tell clients, in this loop; called in it, again after the loop was restarted."""
        with self._lock:
            self._loop, self._is_closed, self._is_called = loop, False, False
        self._waiting.clear()
        self._watchers.clear()

    def tell(self, station: str, signal: Signal | None) -> None:
        """Take a verdict, or the word that something else has changed. From any thread; it never raises."""
        told = None if signal is None else Told(station, signal)
        if signal is not None:
            self._on_signal(station, signal)
        with self._lock:
            self._arrived.append(told)
            loop, is_first, self._is_called = self._loop, not self._is_called, True
        # Once for all that come until the loop takes them.
        if loop is not None and is_first:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._take)

    def close(self) -> None:
        """Send all clients away; called in the loop."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.set()

    async def verdict(self, seq: int, timeout_s: float, receive: Receive) -> Told | None:
        """Return the verdict of a part when it is given out; None if that takes longer, or the client leaves.

        Args:
            seq: Number of the part.
            timeout_s: Longest time to wait.
            receive: Of the request, as ASGI has it; its body has been read.
        """
        self._take()
        if seq in self._recent:
            return self._recent[seq]
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(seq, set()).add(future)
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            either: set[asyncio.Future[Any]] = {future, gone}
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            gone.cancel()
            future.cancel()
            if futures := self._waiting.get(seq):
                futures.discard(future)
                if not futures:
                    del self._waiting[seq]

    async def stream(self, receive: Receive, send: Send) -> None:
        """Tell one client 'new' after each change, until it leaves or the server ends.

        Args:
            receive: Of the request, as ASGI has it: says that the client has left.
            send: Sends the body.
        """
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send(b": flawscope\n\n")
            while not self._is_closed:
                changed = asyncio.ensure_future(watcher.wait())
                try:
                    await asyncio.wait({gone, changed}, timeout=_PING_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if gone.done() or self._is_closed:
                    return
                if watcher.is_set():
                    watcher.clear()
                    await send(b"data: new\n\n")
                    await asyncio.wait({gone}, timeout=_PAUSE_S)
                else:
                    await send(b": still here\n\n")
        finally:
            self._watchers.discard(watcher)
            gone.cancel()

    def _take(self) -> None:
        with self._lock:
            arrived, self._is_called = list(self._arrived), False
            self._arrived.clear()
        for told in arrived:
            if told is None:
                continue
            self._recent[told.signal.seq] = told
            while len(self._recent) > _MOST_RECENT:
                self._recent.popitem(last=False)
            for future in self._waiting.pop(told.signal.seq, ()):
                if not future.done():
                    future.set_result(told)
        if arrived:
            for watcher in self._watchers:
                watcher.set()


async def disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StationNews:
    """An output of a station that tells HTTP clients what the PLC is told, when it is told."""

    def __init__(self, news: News, station: str) -> None:
        self._news, self._station = news, station

    def start(self, control: Control) -> None:
        """Begin; nothing can fail."""

    def state(self, state: State) -> None:
        """Tell that the state has changed."""
        self._news.tell(self._station, None)

    def verdict(self, signal: Signal) -> None:
        """Tell a verdict."""
        self._news.tell(self._station, signal)

    def beat(self) -> None:
        """Do nothing: clients have a sign of life of their own."""

    def stop(self) -> None:
        """End; nothing is held."""
