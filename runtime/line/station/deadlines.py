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

_FEW = 64
"""So many calls that were taken back may wait for their time; more of them only where they are not the most."""


class Deadline:
    """A call that waits for its time.

    Args:
        deadlines: Where it waits.
        call: The call; None once it was made or taken back.
    """

    __slots__ = ("_deadlines", "call")

    def __init__(self, deadlines: Deadlines, call: Callable[[], None]) -> None:
        self._deadlines = deadlines
        self.call: Callable[[], None] | None = call

    def forget(self) -> None:
        """Take the call back, and let go of all that it holds; one that was made, or is being made, stays made."""
        self._deadlines.forget(self)


class Deadlines:
    """Calls functions at stated times of the monotonic clock, each in its turn.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: list[tuple[int, int, Deadline]] = []
        self._forgotten = 0
        self._numbers = itertools.count()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
        self._thread.start()

    def at(self, mono_ns: int, call: Callable[[], None]) -> Deadline:
        """Call a function at a time, at once where it has passed. It must return at once, and never raise."""
        deadline = Deadline(self, call)
        with self._wake:
            heapq.heappush(self._waiting, (mono_ns, next(self._numbers), deadline))
            self._wake.notify()
        return deadline

    def forget(self, deadline: Deadline) -> None:
        """Take a call back; see `Deadline.forget`."""
        with self._wake:
            if deadline.call is None:
                return
            deadline.call = None
            self._forgotten += 1
            if self._forgotten > max(_FEW, len(self._waiting) // 2):
                self._waiting = [item for item in self._waiting if item[2].call is not None]
                heapq.heapify(self._waiting)
                self._forgotten = 0

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
                deadline = heapq.heappop(self._waiting)[2]
                call, deadline.call = deadline.call, None
            try:
                assert call is not None  # those that were taken back are gone from the front: `_wait_s`
                call()
            except Exception:  # the deadlines of all other parts depend on this thread
                _log.exception("A deadline could not be kept.")
            # Else the part would stay in memory until the next deadline.
            del call, deadline

    def _wait_s(self) -> float:
        """Return the seconds until the first call. Holds the lock."""
        while self._waiting and self._waiting[0][2].call is None:
            heapq.heappop(self._waiting)
            self._forgotten -= 1
        return (self._waiting[0][0] - self._clock.mono_ns()) / 1e9 if self._waiting else _LONGEST_S
