"""A part between its trigger and its verdict: exactly one of those that want to settle it does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame

if TYPE_CHECKING:
    from flawscope.runtime.line.station.deadlines import Deadline
    from flawscope.runtime.line.station.view import Measure

Phase = Literal["open", "accepting", "settled"]


class PartInWork:
    """A part that has no verdict out.

    An accept is recorded before it is given out, and the deadline may come in between. Then the part is a fault: the
    phase `accepting` says that a record of an accept is on its way, which must be followed by one of the fault.

    Args:
        seq: Its number.
        part_id: What the trigger called it.
        utc_ns: When it was triggered, in UTC.
        mono_ns: The same by the monotonic clock.
        deadline_ns: When its verdict must be out.
        collect_ns: When all of its images must be there.
        generation: Number of the set of bundles and thresholds that decides on it.
        measures: View -> by what it is decided: the set of that number, whatever is in force when it is scored.
        is_first: Whether it began after a pause, without an image of a part before it on its way; of a part for which
            cameras are asked, whether its images came before the next trigger.

    Attributes:
        accepted: What was found in its images where its accept was taken to be recorded; empty otherwise.
        frames: View -> its image.
        is_collected: Set when all images are there.
        collected_ns: When they were there, or were waited for no longer; None before.
        scored_ns: When the last of them was scored; None before.
        deadline: What makes a fault of it at its deadline; None where it never got one.
        trigger: How many times the cameras had been asked for an image, this part included; None where it was not so
            that it began.
    """

    __slots__ = (
        "_images",
        "_lock",
        "_phase",
        "accepted",
        "collect_ns",
        "collected_ns",
        "deadline",
        "deadline_ns",
        "frames",
        "generation",
        "is_collected",
        "is_first",
        "measures",
        "mono_ns",
        "part_id",
        "scored_ns",
        "seq",
        "trigger",
        "utc_ns",
    )

    def __init__(
        self,
        seq: int,
        part_id: str,
        utc_ns: int,
        mono_ns: int,
        *,
        deadline_ns: int,
        collect_ns: int,
        generation: int,
        measures: Mapping[str, Measure],
        is_first: bool = False,
    ) -> None:
        self.seq, self.part_id, self.utc_ns, self.mono_ns = seq, part_id, utc_ns, mono_ns
        self.deadline_ns, self.collect_ns, self.generation = deadline_ns, collect_ns, generation
        self.measures, self.is_first = measures, is_first
        self.frames: dict[str, Frame] = {}
        self.is_collected = threading.Event()
        self.collected_ns: int | None = None
        self.scored_ns: int | None = None
        self.deadline: Deadline | None = None
        self.trigger: int | None = None
        self.accepted: tuple[ViewRecord, ...] = ()
        self._images: tuple[Kept, ...] = ()
        self._lock = threading.Lock()
        self._phase: Phase = "open"

    @property
    def is_settled(self) -> bool:
        """Whether it has its verdict."""
        return self._phase == "settled"

    def put_images(self, images: tuple[Kept, ...]) -> None:
        """Add its images as they were inspected, for whoever keeps them."""
        with self._lock:
            self._images = images

    def take_images(self) -> tuple[Kept, ...]:
        """Return its images, once; nobody who waits for its record keeps their pixels in memory."""
        with self._lock:
            images, self._images = self._images, ()
            return images

    def settle(self) -> bool:
        """Take the part for a reject or a fault; False if somebody was quicker, or its accept is being recorded."""
        return self._settled_from("open")

    def begin_accept(self, views: tuple[ViewRecord, ...] = ()) -> bool:
        """Take the part for an accept that is recorded first, with these views; False if somebody was quicker."""
        with self._lock:
            if self._phase != "open":
                return False
            self._phase, self.accepted = "accepting", views
            return True

    def finish_accept(self) -> bool:
        """Take the part whose accept is on record, to give it out; False if its deadline came first."""
        return self._settled_from("accepting")

    def miss_deadline(self) -> Phase:
        """Take the part for the fault of a missed deadline; returns the phase before, `settled` if it has a verdict."""
        with self._lock:
            before, self._phase = self._phase, "settled"
            return before

    def _settled_from(self, phase: Phase) -> bool:
        with self._lock:
            if self._phase != phase:
                return False
            self._phase = "settled"
        if self.deadline is not None:
            # It would find nothing to do, and hold the part until then.
            self.deadline.forget()
        return True
