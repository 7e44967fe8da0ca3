"""Whether the images of a part belong to it and to each other, by the numbers that cameras give their images.

Images come without a word of their part. Where a camera is asked for each image, they belong to the parts in the order
of the triggers; else images of several views belong together in the order in which they came. One that is late or lost
would shift all that follow, and parts would be judged by the images of others.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

_PERIOD = 65535
"""After so many images GigE cameras begin again with 1: numbers that differ by it are the same."""


class Alignment:
    """The numbers of one station's images. Calls come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._triggers = 0
        self._distances: dict[str, int] = {}
        self._missed: Counter[str] = Counter()

    def triggered(self) -> int:
        """Count a trigger that asks all cameras for an image; returns its number."""
        with self._lock:
            self._triggers += 1
            return self._triggers

    def missed(self, views: Iterable[str]) -> None:
        """Take note of views whose image was asked for and did not come in time."""
        with self._lock:
            self._missed.update(views)

    def lost(self, view: str, count: int) -> int:
        """Return how many of the images that a camera lost are none of those that were missed before."""
        with self._lock:
            known = min(count, self._missed[view])
            self._missed[view] -= known
            return count - known

    def problem(self, trigger: int | None, frame_ids: Mapping[str, int | None]) -> str:
        """Return in what the images of a part do not belong to it or to each other, or nothing.

        Cameras that count their images keep their distance for ever: from the count of triggers where they are asked
        for each image, else from each other, where each saw each part.

        Args:
            trigger: Number of the trigger that asked for them; None where nothing did.
            frame_ids: View -> number of its image, for all views in the order of the station; None where there is none.
        """
        known = {view: number for view, number in frame_ids.items() if number is not None}
        if trigger is None and (len(known) < 2 or len(known) < len(frame_ids)):
            return ""
        first, other = next(iter(known.values()), 0), "each other"
        if trigger is not None:
            first, other = trigger, "the count of triggers"
        distances = {view: (number - first) % _PERIOD for view, number in known.items()}
        with self._lock:
            before = {view: self._distances.setdefault(view, distance) for view, distance in distances.items()}
        if distances == before:
            return ""
        return (
            f"its images are of different triggers: the distances of the cameras' numbers from {other} are "
            f"{list(distances.values())}, and were {list(before.values())}. Acknowledge when the belt is empty."
        )

    def forget(self, views: Iterable[str]) -> None:
        """Forget how the numbers of views stood: the next part says it anew."""
        with self._lock:
            for view in views:
                self._distances.pop(view, None)
                self._missed.pop(view, None)
