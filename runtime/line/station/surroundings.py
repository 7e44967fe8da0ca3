"""What a station is given: its limits, what all stations of a line share, and who sees its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flawscope.runtime.line.clock import Clock
from flawscope.runtime.line.drift.seen import WatchesImages
from flawscope.runtime.line.gallery.keeper import KeepsImages
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.deadlines import Deadlines
from flawscope.runtime.line.station.open_parts import OpenParts
from flawscope.runtime.line.station.part_in_work import PartInWork


@dataclass(frozen=True)
class StationLimits:
    """What the configuration of a station allows; times in nanoseconds.

    Attributes:
        deadline_ns: From the trigger until the verdict.
        collect_ns: From the trigger until all images are there.
        depth: Most open parts.
        records_first: Whether an accept is recorded before it is given out.
        is_strict: Whether an image that belongs to no part stops the station.
    """

    deadline_ns: int
    collect_ns: int
    depth: int
    records_first: bool = True
    is_strict: bool = False


@dataclass(frozen=True)
class LineServices:
    """What all stations of a line share; `keeper` is told of images, `drift` of scores after the verdict."""

    journal: Recorder
    numbers: OpenParts
    deadlines: Deadlines
    clock: Clock
    keeper: KeepsImages | None = None
    drift: WatchesImages | None = None


class WatchesParts(Protocol):
    """Sees the parts of a station on their way; whatever it does must return at once, and raise nothing."""

    def begins(self, part: PartInWork, frames: Mapping[str, Frame]) -> None:
        """Take note of a part that is scored now, with its images."""

    def decided(self, part: PartInWork, views: tuple[ViewRecord, ...]) -> None:
        """Take note of what was found in the images of a part, after its verdict was given out."""
