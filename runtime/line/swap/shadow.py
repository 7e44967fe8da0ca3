"""The next parts, scored by the new bundle too, after their verdict: only the old one counts, and no deadline waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from flawscope.errors import BundleError
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.view import View
from flawscope.runtime.line.swap.challenge import score_now

_MOST_WAITING = 4
"""Images that wait for the new bundle; parts that come meanwhile are left out, and others taken in their place."""
_TURN_S = 0.2


class Shadow:
    """Compares two bundles on the parts of a view.

    Args:
        view: Decides by the new bundle.
        parts: How many are compared.
    """

    def __init__(self, view: View, parts: int) -> None:
        self._view, self._parts = view, parts
        self._ready = threading.Condition()
        self._waiting: deque[tuple[int, Frame]] = deque()
        self._decided: dict[int, ViewRecord] = {}
        self._is_over = False

    def begins(self, seq: int, frames: Mapping[str, Frame]) -> None:
        """Take note of a part that is scored; called by the station."""
        frame = frames.get(self._view.name)
        if frame is None or frame.problem:
            return
        with self._ready:
            if not self._is_over and len(self._waiting) < _MOST_WAITING:
                self._waiting.append((seq, frame))

    def decided(self, seq: int, views: tuple[ViewRecord, ...]) -> None:
        """Take note of what the old bundle found; called by the station, after the verdict was given out."""
        with self._ready:
            if any(waits == seq for waits, _ in self._waiting):
                self._decided[seq] = next(view for view in views if view.view == self._view.name)
                self._ready.notify()

    def run(
        self, pause: Callable[[], None], found: Callable[[dict[str, Any]], None], told: Callable[[int], None]
    ) -> str:
        """Compare until there were enough parts; return what was found, in words.

        Args:
            pause: Called often: it raises where nobody wants it any more.
            found: Given each part on which they differ.
            told: Given the number of parts so far.

        Raises:
            BundleError: If the new bundle cannot score what the old one can.
        """
        compared = differing = 0
        try:
            while compared < self._parts:
                pause()
                taken = self._next()
                if taken is None:
                    continue
                seq, frame, old = taken
                new = score_now(self._view, frame)
                if old.verdict == "fault" and old.reason != "inference":
                    continue  # its scene was wrong, and no bundle was asked
                compared += 1
                told(compared)
                if new.verdict == "fault" and old.verdict != "fault":
                    raise BundleError(f"part {seq}: the new bundle could not score it: {new.detail}")
                if new.verdict != old.verdict:
                    differing += 1
                    found({"seq": seq, "old": _said(old), "new": _said(new)})
        finally:
            with self._ready:
                self._is_over = True
                self._waiting.clear()
                self._decided.clear()
        return f"{compared} parts, {differing} decided otherwise"

    def _next(self) -> tuple[int, Frame, ViewRecord] | None:
        """Return the oldest part whose verdict is known, or None after a moment."""
        with self._ready:
            self._ready.wait_for(lambda: self._decided, _TURN_S)
            if not self._decided:
                return None
            while self._waiting:
                seq, frame = self._waiting.popleft()
                # One before it without a verdict of its view missed its deadline: there is nothing to compare with.
                if (old := self._decided.pop(seq, None)) is not None:
                    return seq, frame, old
            self._decided.clear()
            return None


def _said(record: ViewRecord) -> dict[str, Any]:
    return {"verdict": record.verdict, "score": record.score, "threshold": record.threshold}
