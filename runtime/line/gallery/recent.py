"""The last parts of each station in memory, with their images, maps and boxes; drawn when somebody asks."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from flawscope.runtime.line.gallery.drawing import jpeg, levels_of, pixels_of, with_map
from flawscope.runtime.line.gallery.keeper import Kept

LONGEST_PX = 1280
"""Longer side of an image that is shown, in pixels."""

_MOST_DRAWN = 32
"""Drawn images that are kept: many pages ask for the same one."""


@dataclass(frozen=True, eq=False)
class RecentPart:
    """A part in memory.

    Attributes:
        seq: Its number.
        station: Name of its station.
        images: Its images.
    """

    seq: int
    station: str
    images: tuple[Kept, ...]

    def image_of(self, view: str | None) -> Kept | None:
        """Return the image of a view, or the first one that there is; None where there is none."""
        names = (image for image in self.images if image.view == view) if view is not None else iter(self.images)
        return next((image for image in names if image.image is not None), None)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return sum(image.nbytes for image in self.images)


class RecentParts:
    """Keeps the last parts of each station. Calls come from any thread.

    Args:
        stations: Names of the stations.
        most_parts: Most parts of a station.
        most_bytes: Most memory of all stations together; each has the same share of it, and at least its last part.
    """

    def __init__(self, stations: Sequence[str], most_parts: int, most_bytes: int) -> None:
        self._most_parts, self._most_bytes = most_parts, most_bytes // max(1, len(stations))
        self._parts: dict[str, deque[RecentPart]] = {name: deque() for name in stations}
        self._bytes = dict.fromkeys(stations, 0)
        self._drawn: OrderedDict[tuple[int, str, bool], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, seq: int, station: str, images: Sequence[Kept]) -> None:
        """Add a part; the oldest ones go."""
        part = RecentPart(seq, station, tuple(images))
        with self._lock:
            parts = self._parts[station]
            parts.append(part)
            self._bytes[station] += part.nbytes
            while len(parts) > 1 and (len(parts) > self._most_parts or self._bytes[station] > self._most_bytes):
                self._bytes[station] -= parts.popleft().nbytes

    def find(self, station: str, seq: int | None = None, view: str | None = None) -> tuple[int, Kept] | None:
        """Return number and image of a part; None where it is not, or no longer, in memory.

        Args:
            station: Name of the station.
            seq: Number of the part; None for the last one that has an image.
            view: Name of the view; None for the first one that has an image.
        """
        with self._lock:
            parts = reversed(tuple(self._parts.get(station, ())))
        for part in parts:
            if (seq is None or part.seq == seq) and (image := part.image_of(view)) is not None:
                return part.seq, image
        return None

    def is_to_come(self, station: str, seq: int) -> bool:
        """Return whether a part is newer than all that are in memory: its verdict may have been told a moment ago."""
        with self._lock:
            parts = self._parts.get(station)
            return parts is not None and (not parts or parts[-1].seq < seq)

    def found(self, seq: int, view: str) -> Kept | None:
        """Return the image of a part of any station; None where it is not, or no longer, in memory."""
        hits = (self.find(station, seq, view) for station in self._parts)
        return next((hit[1] for hit in hits if hit is not None), None)

    def jpeg(self, seq: int, image: Kept, *, with_heat: bool) -> bytes:
        """Return an image as JPEG, with its map and boxes or without; takes milliseconds, so call it in no station.

        Raises:
            DataError: If there is no image, or its bytes are none.
        """
        key = (seq, image.view, with_heat)
        with self._lock:
            if (drawn := self._drawn.get(key)) is not None:
                self._drawn.move_to_end(key)
                return drawn
        shown = pixels_of(image)
        if with_heat and (level := levels_of(image)) is not None:
            shown = with_map(shown, level, image.boxes)
        drawn = jpeg(shown, LONGEST_PX)
        with self._lock:
            self._drawn[key] = drawn
            while len(self._drawn) > _MOST_DRAWN:
                self._drawn.popitem(last=False)
        return drawn
