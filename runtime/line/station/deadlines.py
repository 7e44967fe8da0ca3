"""One thread that calls when times have come: deadlines of parts. It does nothing that could make it late."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable

from flawscope.runtime.line.clock import Clock

_log = logging.getLogger(__name__)

_LONGEST_S = 1.0
"""Longest wait, so that a clock of a test, or of a machine that slept, is looked at again."""


class Deadlines:
    """Calls functions at stated times of the monotonic clock, each in its turn.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
        self._thread.start()

    def at(self, mono_ns: int, call: Callable[[], None]) -> None:
        """Call a function at a time, at once where it has passed. It must return at once, and never raise."""
        with self._wake:
            heapq.heappush(self._waiting, (mono_ns, next(self._numbers), call))
            self._wake.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; what has not come is not called. An output that hangs in a call is left behind."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._is_closed and (wait_s := self._wait_s()) > 0:
                    self._wake.wait(min(wait_s, _LONGEST_S))
                if self._is_closed:
                    return
                call = heapq.heappop(self._waiting)[2]
            try:
                call()
            except Exception:  # the deadlines of all other parts depend on this thread
                _log.exception("A deadline could not be kept.")
            # Else the part would stay in memory until the next deadline.
            del call

    def _wait_s(self) -> float:
        return (self._waiting[0][0] - self._clock.mono_ns()) / 1e9 if self._waiting else _LONGEST_S
