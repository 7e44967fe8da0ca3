"""Whether the images of a part belong to it and to each other, by the numbers that cameras give their images.

Images come without a word of their part. Where a camera is asked for each image, they belong to the parts in the order
of the triggers; else images of several views belong together in the order in which they came. One that is late or lost
would shift all that follow, and parts would be judged by the images of others.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

_PERIOD = 65535
"""After so many images GigE cameras begin again with 1: numbers that differ by it are the same."""

_IN_MOTION = (
    "its images may be of different triggers: the belt moved when the cameras began, or when somebody acknowledged. It "
    "goes on after a pause of collect_ms. Acknowledge when the belt is empty."
)
_AFTER_NEXT = (
    "its image came after the next trigger, and may be of that one: nothing says yet how the camera's numbers stand. "
    "The first image, and the first after one that did not come, must come before the next trigger."
)
_AFTER_MISSED = (
    "its image may be of the trigger before, of which none came: nothing says yet how the camera's numbers stand. "
    "Acknowledge when the belt is empty."
)


class Alignment:
    """The numbers of one station's images. Calls come from any thread."""

    def __init__(self) -> None:
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._triggers = 0
        self._distances: dict[str, int] = {}
        self._missed: Counter[str] = Counter()
        # Of these a trigger may not have reached the camera: the image of the next one would have its number.
        self._unproved: set[str] = set()
        self._last_ns: int | None = None
        self._is_doubted = False

    @contextlib.contextmanager
    def asking(self, most_ns: int) -> Iterator[str]:
        """Hold others back while a part is opened and its cameras are asked: they are in the order of the parts.

        Else a camera would be asked for the next part first, and its image go to the one before.

        Args:
            most_ns: Longest time to wait for others, in ns.

        Yields:
            Why the cameras must not be asked; empty where they may be.
        """
        is_in_turn = self._asking.acquire(timeout=most_ns / 1e9)
        try:
            yield "" if is_in_turn else "the cameras were still being asked for images of the part before"
        finally:
            if is_in_turn:
                self._asking.release()

    def triggered(self) -> int:
        """Count a trigger that asks all cameras for an image; returns its number."""
        with self._lock:
            self._triggers += 1
            return self._triggers

    def is_last(self, trigger: int | None) -> bool:
        """Return whether nothing has asked for images since a trigger; true where the part has none."""
        with self._lock:
            return trigger is None or trigger == self._triggers

    def came(self, mono_ns: int) -> None:
        """Take note of an image of any view, when it has its part."""
        with self._lock:
            self._last_ns = mono_ns

    def began(self, view: str, mono_ns: int, *, is_asked: bool) -> None:
        """Take note that the camera of a view has been opened, perhaps anew; `is_asked` for each of its images."""
        if is_asked:
            # It may count from 1 again, and what was asked for before is gone.
            self.forget([view])
        # An image of another camera may be on its way, of a trigger that this one has not seen.
        self.came(mono_ns)

    def is_quiet(self, mono_ns: int, collect_ns: int) -> bool:
        """Return whether no image has come for as long as those of a part may be apart: what comes now is a new one."""
        with self._lock:
            return self._last_ns is None or mono_ns - self._last_ns >= collect_ns

    def missed(self, views: Iterable[str]) -> None:
        """Take note of views whose image was asked for and did not come in time."""
        with self._lock:
            missed = tuple(views)
            self._missed.update(missed)
            self._unproved.update(missed)

    def lost(self, view: str, count: int) -> int:
        """Return how many of the images that a camera lost are none of those that were missed before."""
        with self._lock:
            known = min(count, self._missed[view])
            self._missed[view] -= known
            return count - known

    def problem(self, trigger: int | None, frame_ids: Mapping[str, int | None], *, is_first: bool = True) -> str:
        """Return in what the images of a part do not belong to it or to each other, or nothing.

        Cameras that count their images keep their distance for ever: from the count of triggers where they are asked
        for each image, else from each other, where each saw each part.

        Args:
            trigger: Number of the trigger that asked for them; None where nothing did.
            frame_ids: View -> number of its image, for all views in the order of the station; None where there is none.
            is_first: Whether its images came after a pause, or, with a trigger, before the next one. Without, they may
                be of another part, as where one camera has not seen a trigger: then they must not say how the numbers
                stand.
        """
        known = {view: number for view, number in frame_ids.items() if number is not None}
        if not known or (trigger is None and (len(known) < 2 or len(known) < len(frame_ids))):
            return ""
        first, other = next(iter(known.values()), 0), "each other"
        if trigger is not None:
            first, other = trigger, "the count of triggers"
        distances = {view: (number - first) % _PERIOD for view, number in known.items()}
        with self._lock:
            new = distances.keys() - self._distances.keys()
            self._is_doubted = True
            if new and not is_first:
                return _IN_MOTION if trigger is None else _AFTER_NEXT
            if trigger is not None and any(self._missed[view] for view in new):
                return _AFTER_MISSED
            if trigger is not None and not is_first and self._unproved & distances.keys():
                return _AFTER_NEXT
            before = {view: self._distances.setdefault(view, distance) for view, distance in distances.items()}
            self._is_doubted = distances != before
            if not self._is_doubted:
                self._unproved -= distances.keys() if is_first else set()
                return ""
            self._unproved |= distances.keys()
        return (
            f"its images are of different triggers: the distances of the cameras' numbers from {other} are "
            f"{list(distances.values())}, and were {list(before.values())}. Acknowledge when the belt is empty."
        )

    def acknowledged(self, views: Iterable[str]) -> None:
        """Begin anew where the numbers were wrong; those that are right stay, whatever the station stood still for."""
        if self._is_doubted:
            self.forget(views)

    def forget(self, views: Iterable[str]) -> None:
        """Forget how the numbers of views stood: the next part says it anew."""
        with self._lock:
            for view in views:
                self._distances.pop(view, None)
                self._missed.pop(view, None)
                self._unproved.discard(view)
