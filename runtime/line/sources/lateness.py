"""Whether images wait longer and longer before they are decoded: what is inspected then has long gone by."""

from __future__ import annotations

from flawscope.runtime.line.sources.grabber import SourceLost

_BEHIND_S = 2.5
"""How much later than at first images may come."""

_CLOCK_DRIFT = 2e-4
"""How much slower than this computer's a camera's clock may be."""


class Lateness:
    """Compares the times at which images were taken, by the camera's clock, with those at which they are there.

    Args:
        longest_s: The longest pause of a camera that is none of its faults; images may be late by as much.
    """

    def __init__(self, longest_s: float = 0.0) -> None:
        self._behind_s = max(_BEHIND_S, longest_s + 0.5)
        self._earliest_s: float | None = None
        self._measured_s = 0.0

    def check(self, now_s: float, taken_s: float | None) -> None:
        """Refuse images of a queue that grows; opening the camera anew empties it.

        Args:
            now_s: Seconds of this computer's monotonic clock.
            taken_s: Seconds of the camera's clock; None where it does not say.

        Raises:
            SourceLost: If the image comes too late.
        """
        if taken_s is None:
            return
        offset_s = now_s - taken_s
        if self._earliest_s is None:
            self._earliest_s = offset_s
        drift_s = _CLOCK_DRIFT * (now_s - self._measured_s)
        self._earliest_s, self._measured_s = min(self._earliest_s + drift_s, offset_s), now_s
        if offset_s - self._earliest_s > self._behind_s:
            raise SourceLost(
                f"images come {offset_s - self._earliest_s:.1f} s later than at first, so it is opened anew. If that "
                "happens again, let the camera send fewer or smaller images."
            )
