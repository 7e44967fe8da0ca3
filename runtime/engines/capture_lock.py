"""The lock between captures of CUDA graphs and calls that wait for a whole context, which break them.

A capture in one thread survives what others put on streams of their own, and not a call that waits for all streams:
the driver refuses that call, and the capture is lost. Loading and freeing engines and sessions make such calls, and so
does a copy of an image from another library's memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class CaptureLock:
    """One thread captures, and nobody disturbs it; or any number disturb, and nobody captures.

    Whoever disturbs waits for a capture, which takes milliseconds, and for nothing else: an image is not kept waiting
    by a session that is being opened. A capture waits until nobody disturbs, which takes as long as an engine loads.
    A thread takes the turn of a session first and this second, never the other way round.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._disturbing: dict[int, int] = {}  # thread -> how deep
        self._capturing: int | None = None  # thread

    @contextlib.contextmanager
    def disturbing(self) -> Iterator[None]:
        """Hold captures off; may be nested, and captures of this thread may not be made within."""
        me = threading.get_ident()
        with self._changed:
            # A thread that captures does not wait for itself: its call fails by itself, in the driver's words.
            self._changed.wait_for(lambda: self._capturing in (None, me))
            self._disturbing[me] = self._disturbing.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._disturbing[me] -= 1
                if not self._disturbing[me]:
                    del self._disturbing[me]
                    self._changed.notify_all()

    @contextlib.contextmanager
    def capturing(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold off other captures and whoever disturbs, and yield True.

        Args:
            wait: Whether to wait for them. Else False is yielded where somebody is busy, and nothing is held.
        """
        me = threading.get_ident()
        with self._changed:
            assert me not in self._disturbing, "a capture would wait for its own thread"
            if wait:
                self._changed.wait_for(self._is_free)
            is_mine = self._is_free()
            if is_mine:
                self._capturing = me
        try:
            yield is_mine
        finally:
            if is_mine:
                with self._changed:
                    self._capturing = None
                    self._changed.notify_all()

    def _is_free(self) -> bool:
        return self._capturing is None and not self._disturbing


CAPTURES = CaptureLock()
"""That of all devices of the process."""
