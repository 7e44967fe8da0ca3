"""How long a source waits until it is opened anew: longer each time, and a minute when its process keeps crashing."""

from __future__ import annotations

from collections import deque

_FIRST_S, _LONGEST_S = 0.5, 10.0
_STEADY_S = 10.0
"""A source that worked for so long begins with the shortest pause again."""

_BUDGET, _WINDOW_S = 5, 60.0


class Restarts:
    """The pauses of one source."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_S
        self._crashes: deque[float] = deque(maxlen=_BUDGET)

    def pause_s(self, now_s: float, up_s: float, *, crashed: bool) -> float:
        """Return the seconds until the next start.

        Args:
            now_s: Seconds of the monotonic clock.
            up_s: How long the source worked before it ended.
            crashed: Whether its process crashed or hung. A source that is not there says so, and is looked for without
                end; a process that crashed 5 times in 60 s is tried once a minute.
        """
        if up_s >= _STEADY_S:
            self._pause_s = _FIRST_S
        if crashed:
            self._crashes.append(now_s)
            if len(self._crashes) == _BUDGET and now_s - self._crashes[0] < _WINDOW_S:
                return _WINDOW_S
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_S)
        return pause
