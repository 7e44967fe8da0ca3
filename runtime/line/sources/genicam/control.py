"""The thread that talks with a camera while images arrive: software triggers, and the heartbeat.

A camera that is dead or unplugged gives what a camera without parts gives: no image. Only a read of a register tells
them apart. A read or a trigger whose packet is lost waits for half a second and longer, in which images must go on
arriving, and the line must hear in time that the camera is gone: hence a thread of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

PATIENCE_S = 2.0
"""Seconds without an answer after which the camera is lost: four times as long as Aravis waits before it asks again."""

_STALE_S = 1.0
"""A trigger that waited for longer is dropped: its part is over, and its image would be taken for another part's."""

_log = logging.getLogger(__name__)


class Control:
    """Reads from the camera every so often, and triggers it, until one of them fails.

    Args:
        ping: Reads from the camera; raises if it cannot.
        trigger: Triggers the camera; raises if it cannot.
        period_s: Seconds between two reads.
        done: Called by the thread when it no longer uses the camera.
    """

    def __init__(
        self, ping: Callable[[], None], trigger: Callable[[], None], period_s: float, done: Callable[[], None]
    ) -> None:
        self._ping, self._trigger, self._done = ping, trigger, done
        self._period_s = period_s
        self._asked: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._stopped = False
        self._busy_since: float | None = None
        self._problem = ""
        threading.Thread(target=self._work, name="camera control", daemon=True).start()

    @property
    def problem(self) -> str:
        """Why the camera is lost; empty while it answers."""
        since = self._busy_since
        if not self._problem and since is not None and (waited_s := time.monotonic() - since) > PATIENCE_S:
            return f"no answer for {waited_s:.1f} s"
        return self._problem

    def trigger(self) -> None:
        """Ask for an image. It returns at once."""
        self._asked.put(time.monotonic())

    def stop(self) -> None:
        """End the thread. It returns at once; what is going on ends by itself."""
        self._stopped = True
        self._asked.put(None)

    def _work(self) -> None:
        try:
            due = time.monotonic() + self._period_s
            while not self._stopped:
                try:
                    asked = self._asked.get(timeout=max(due - time.monotonic(), 0.0))
                except queue.Empty:
                    asked = None
                now = time.monotonic()
                if asked is not None and now - asked > _STALE_S:
                    _log.warning("a trigger waited for %.1f s and was dropped", now - asked)
                elif asked is not None:
                    self._do(self._trigger)
                if time.monotonic() >= due and not self._stopped:
                    self._do(self._ping)
                    due = time.monotonic() + self._period_s
        except Exception as err:
            # Whatever it is: the camera is not watched any more.
            self._problem = str(err) or type(err).__name__
        finally:
            self._done()

    def _do(self, action: Callable[[], None]) -> None:
        self._busy_since = time.monotonic()
        action()
        self._busy_since = None
