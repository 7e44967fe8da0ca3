"""One decision point: parts are opened, their images collected and scored, and each gets exactly one verdict in time.

A part is opened by a trigger (HTTP, PLC, software trigger of its cameras), or by the first of its images. One thread
takes the parts in their order; another keeps the deadlines of all, and makes a fault of whatever has no verdict by
then. No exception ends in silence: it becomes a fault, or the state `error`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from flawscope.runtime.line.drift.seen import tell
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.outputs.output import Output, State
from flawscope.runtime.line.parts import PartRecord, Reason
from flawscope.runtime.line.sources.source import Frame, without_pixels
from flawscope.runtime.line.station.alignment import Alignment
from flawscope.runtime.line.station.counters import Counters
from flawscope.runtime.line.station.keeping import Keeping
from flawscope.runtime.line.station.part_in_work import PartInWork
from flawscope.runtime.line.station.readiness import Readiness
from flawscope.runtime.line.station.surroundings import LineServices, StationLimits, WatchesParts
from flawscope.runtime.line.station.verdicts import Verdicts
from flawscope.runtime.line.station.view import InWork, Measure, View
from flawscope.runtime.line.station.watch import STUCK_S, Watch, look_at_scorings
from flawscope.runtime.shared_scoring import when_all

_MOST_LOST = 1000
"""Most parts that are opened for images that a camera lost at once: a counter that is broken must not fill the disk."""
_RECORDS_S = 2.0
"""Longest wait of the end for records; a disk that takes longer than that does not answer."""
_TURN_S = 1.0
"""Longest wait of the thread, so that whoever watches it sees it turn."""


class Station:
    """A station, from `start` to `stop`. Calls come from any thread.

    Args:
        name: Its name.
        limits: What its configuration allows.
        services: What all stations share.
        views: Its views.
        outputs: Who is told in time.
        generation: Number of the set of bundles and thresholds that its views begin with.

    Attributes:
        counters: The account of its parts.
        readiness: Its state and why.
        watch: Faults that come again and again, and warnings.
        generation: Number of the set in force; parts keep the one they were opened with. See `replace`.
        observer: Sees its parts; None for nobody.
    """

    def __init__(
        self,
        name: str,
        limits: StationLimits,
        services: LineServices,
        views: Sequence[View],
        outputs: Sequence[Output] = (),
        *,
        generation: int = 1,
    ) -> None:
        self.name, self._limits, self._services = name, limits, services
        self._views = {view.name: view for view in views}
        self._outputs = tuple(outputs)
        self.counters = Counters()
        self.readiness = Readiness(self._state_changed, services.clock.mono_ns)
        self.watch = Watch(self.readiness, services.journal, self._label)
        self.generation = generation
        self.observer: WatchesParts | None = None
        # Never changed, only replaced: an open part holds the one that it was opened with.
        self._measures: Mapping[str, Measure] = {view.name: view.measure for view in views}
        self._keeping = Keeping(name, services.keeper)
        self._verdicts = Verdicts(
            name,
            services.journal,
            services.numbers,
            services.clock,
            self._outputs,
            self.counters,
            self._closed,
            self._recorded,
            # Held: whether the parts since then were told to the PLC, only somebody who looks can say.
            partial(self.readiness.forbid, hold=True),
            records_first=limits.records_first,
        )
        # Images of several views belong together by their order alone; parts that still lack some, the oldest first.
        self._room = threading.Condition()
        self._collecting: deque[PartInWork] = deque()
        self._queue: deque[PartInWork] = deque()
        self._open = 0
        self._ended: set[str] = set()
        self._alignment = Alignment()
        self._is_stopping = False
        self._turned_ns = services.clock.mono_ns()
        self._thread = threading.Thread(target=self._run, name=f"station {name}", daemon=True)

    @property
    def is_triggered(self) -> bool:
        """Whether its parts begin with a trigger, and not with their first image."""
        return any(view.source.is_triggered for view in self._views.values())

    @property
    def views(self) -> Mapping[str, View]:
        """Name -> view."""
        return self._views

    def start(self) -> None:
        """Open outputs, then sources. It is ready when all of them are.

        Raises:
            ArgumentError: If an output cannot be opened.
        """
        for view in self._views.values():
            self.readiness.begin(f"source {view.name}", "is being opened")
        for output in self._outputs:
            output.start(self)
        # No change, and so nobody has told them yet: without it they would show `stopped` while sources are opened.
        self._verdicts.show_state(self.readiness.state)
        self._thread.start()
        for view in self._views.values():
            view.source.start(self)
        self._phase(None)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End: READY falls, open parts get their verdict up to their deadline, then sources end, then outputs."""
        if self._is_stopping:
            return
        self._phase("stopped")
        with self._room:
            # Deadlines bound this: the part that was opened last has its verdict by then.
            self._room.wait_for(lambda: self._open == 0, self._limits.deadline_ns / 1e9 + timeout_s)
            # A folder notes which files are done, or they would be inspected again at the next start.
            self._room.wait_for(lambda: not self.counters.now().unrecorded, min(timeout_s, _RECORDS_S))
            self._is_stopping = True
            self._room.notify_all()
        for view in self._views.values():
            # One that fails must keep neither the other sources nor the outputs from being ended.
            self._guarded(f"source {view.name}", partial(view.source.stop, timeout_s))
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        for output in self._outputs:
            self._guarded("output", output.stop)

    def trigger(self, part_id: str = "") -> int:
        """Open a part and ask its cameras for images; returns its number. A full or unready station gives a fault."""
        now = self._services.clock.mono_ns()
        with self._alignment.asking(self._limits.collect_ns) as problem:
            with self._room:
                refusal = self._refusal() or (("not_ready", problem) if problem else None)
                # No camera is asked for images of a part that is refused.
                part = self._open_part(part_id, now, {}, refusal, is_whole=refusal is not None)
                if refusal is None and self.is_triggered:
                    part.trigger, part.is_first = self._alignment.triggered(), True
            for view in self._views.values():
                if refusal is None and view.source.is_triggered:
                    # A trigger that fails is a view that does not come, and so a fault.
                    self._guarded(f"source {view.name}", partial(view.source.trigger, part.seq))
        if refusal is not None:
            self._verdicts.fault(part, *refusal)
        return part.seq

    def push(self, images: Mapping[str, bytes], part_id: str = "") -> int:
        """Open a part whose images are all there, as files; returns its number.

        Args:
            images: View -> the bytes of an image file. A view without one is a fault of the part.
            part_id: What the sender calls it.
        """
        now = self._services.clock.mono_ns()
        frames = {name: Frame(data, now) for name, data in images.items()}
        with self._room:
            refusal = self._refusal()
            part = self._open_part(part_id, now, frames, refusal, is_whole=True)
        if refusal is not None:
            self._verdicts.fault(part, *refusal)
        return part.seq

    def frame(self, view: str, frame: Frame) -> None:
        """Take an image; see `FrameSink`."""
        count = min(lost := self._alignment.lost(view, frame.lost), _MOST_LOST)
        detail = "the camera took it, and it never came"
        if lost > count:
            detail = f"the camera counts {frame.lost} images that never came; only the first {count} are on record"
        for _ in range(count):
            self._assign(view, Frame(None, frame.mono_ns, problem="lost_frame", detail=detail))
        if count and self._limits.is_strict:
            self.readiness.forbid("alignment", f"{view} lost {frame.lost} images", hold=True)
        if frame.is_last:
            self._ended.add(view)
            self._notify()
        else:
            self._assign(view, replace(frame, lost=0))
            self._alignment.came(frame.mono_ns)

    def source_up(self, view: str, detail: str = "") -> None:
        """Take note that a source works."""
        self._alignment.began(view, self._services.clock.mono_ns(), is_asked=self.is_triggered)
        self.readiness.allow(f"source {view}")
        self._notify()

    def source_down(self, view: str, reason: str) -> None:
        """Take note that a source does not work."""
        self.readiness.forbid(f"source {view}", reason)

    def skipped(self, view: str, count: int) -> None:
        """Count images that were left out."""
        self.counters.skipped(count)

    @property
    def measures(self) -> Mapping[str, Measure]:
        """View -> by what the next part is decided."""
        return self._measures

    def replace(self, measures: Mapping[str, Measure], told: Callable[[int], None]) -> int:
        """Decide by other bundles or thresholds from the next part on; open parts keep those that they have.

        Args:
            measures: View -> measure; the other views keep theirs.
            told: Called with the number before the first part that has it is opened; it must return at once.

        Returns:
            Number of the new set.
        """
        with self._room:
            self._measures = {**self._measures, **measures}
            for name, measure in measures.items():
                self._views[name].measure = measure
            self.generation += 1
            told(self.generation)
            return self.generation

    def acknowledge(self, actor: str, role: str = "") -> None:
        """Leave the state `error`, where its cause is gone, and `halted`."""
        journal = self._services.journal
        journal.event("acknowledged", actor=actor, role=role, object=self._label, old=self.readiness.reason)
        if journal.problem:
            journal.acknowledge(actor, role)
        self._alignment.acknowledged(self._views)
        self.readiness.acknowledge()
        if self.readiness.state == "halted":
            self._phase(None)
        self._notify()

    def plc_reads(self, is_read: bool) -> None:
        """Take note that the PLC reads its registers, or no longer does: then nobody hears the verdicts."""
        if is_read:
            self.readiness.allow("plc")
        else:
            self.readiness.forbid("plc", "does not read its registers")
        self._notify()

    def halt(self, actor: str, role: str = "") -> None:
        """Score no more parts until it is acknowledged: those that are triggered are faults."""
        self._services.journal.event("halted", actor=actor, role=role, object=self._label)
        self._phase("halted")

    @property
    def has_ended(self) -> bool:
        """Whether all of its sources have ended and every part is on record, as for a folder that is not watched."""
        with self._room:
            has_ended = self._ended == set(self._views) and self._open == 0
        # Sources are told of records: a folder moves its last file then, and must not be ended before.
        return has_ended and self.counters.now().unrecorded == 0

    def turns(self, period_s: float) -> bool:
        """Whether its thread has turned within a period; it turns at least once a second while nothing hangs."""
        return self._services.clock.mono_ns() - self._turned_ns <= period_s * 1e9

    def beat(self) -> None:
        """Show outputs that it is alive, and look whether its inspectors are stuck; called once a second."""
        look_at_scorings(self.readiness, [view.measure.scoring for view in self._views.values()])
        if self.turns(3 * _TURN_S):
            self.readiness.allow("thread")
            self._verdicts.beat()
        elif not self.turns(STUCK_S):
            self.readiness.forbid("thread", f"has been at one image for more than {STUCK_S:.0f} s")

    @property
    def _label(self) -> str:
        return f"station {self.name}"

    def _open_part(
        self,
        part_id: str,
        mono_ns: int,
        frames: Mapping[str, Frame],
        refusal: tuple[Reason, str] | None,
        *,
        is_whole: bool = False,
    ) -> PartInWork:
        """Open a part; one that is refused is given out as a fault by the caller, without the lock, which is held here.

        Args:
            part_id: What the trigger called it.
            mono_ns: When it was triggered.
            frames: Those of its images that are there.
            refusal: Why it is a fault at once, or None.
            is_whole: Whether no more images will come.
        """
        limits, utc_ns = self._limits, self._services.clock.utc_ns()
        seq = self._services.numbers.begin(self.name, part_id, mono_ns, utc_ns)
        self.counters.opened()
        part = PartInWork(
            seq,
            part_id,
            utc_ns,
            mono_ns,
            deadline_ns=mono_ns + limits.deadline_ns,
            collect_ns=mono_ns + limits.collect_ns,
            generation=self.generation,
            measures=self._measures,
            is_first=self._alignment.is_quiet(mono_ns, limits.collect_ns),
        )
        part.frames.update(frames if refusal is None else without_pixels(frames))
        self._open += 1
        if is_whole or len(part.frames) == len(self._views):
            part.is_collected.set()
        else:
            # One that is refused, too: its other images belong to it, and must not open parts of their own.
            self._collecting.append(part)
        if refusal is None:
            self._queue.append(part)
            part.deadline = self._services.deadlines.at(part.deadline_ns, partial(self._verdicts.deadline, part))
            self._room.notify_all()
        return part

    def _refusal(self) -> tuple[Reason, str] | None:
        """Return why no part can be scored now, or None."""
        if not self.readiness.is_ready:
            state, causes = self.readiness.state, self.readiness.reason
            return ("stopped" if state == "stopped" else "not_ready"), f"{state}: {causes}" if causes else state
        if self._open >= self._limits.depth:
            return "overrun", f"{self._open} parts were open, the most that `depth` allows"
        return None

    def _assign(self, view: str, frame: Frame) -> None:
        """Give an image to the oldest part that lacks it, or open a part for it."""
        policy = self._views[view].source.policy
        with self._room:
            while not self._attach(view, frame):
                refusal = self._refusal()
                if policy == "every" or refusal is None:
                    break
                # A folder waits for room, and for a station that is ready: nothing of it is lost. Of a camera's images
                # the source keeps the latest meanwhile; while nobody can score them, they are no parts.
                if policy == "latest" and refusal[0] != "overrun":
                    self.counters.skipped(1)
                    return
                if self._is_stopping:
                    return
                self._room.wait(_TURN_S)
            else:
                return
            now = self._services.clock.mono_ns()
            # An image that waited in a folder has all its time from now on; a camera's had its trigger when it came.
            begun = now if policy == "wait" else min(frame.mono_ns, now)
            if self.is_triggered:
                refusal = ("unexpected_image", f"{view} sent an image that nobody had asked for")
            part = self._open_part(frame.source, begun, {view: frame}, refusal)
        if refusal is not None:
            self._verdicts.fault(part, *refusal)
        if self.is_triggered and self._limits.is_strict:
            self.readiness.forbid("alignment", f"{view} sent an image that nobody had asked for", hold=True)

    def _attach(self, view: str, frame: Frame) -> bool:
        """Give an image to the oldest part that lacks it and still waits. Holds the lock."""
        now = self._services.clock.mono_ns()
        while self._collecting and self._collecting[0].is_settled and now >= self._collecting[0].collect_ns:
            self._collecting.popleft()
        for part in self._collecting:
            if view not in part.frames and now < part.collect_ns:
                part.frames[view] = replace(frame, image=None) if part.is_settled else frame
                part.is_first &= self._alignment.is_last(part.trigger)
                if len(part.frames) == len(self._views):
                    self._collecting.remove(part)
                    part.is_collected.set()
                return True
        return False

    def _run(self) -> None:
        """Take the parts in their order, until the station stops."""
        while True:
            self._turned_ns = self._services.clock.mono_ns()
            with self._room:
                if not self._queue:
                    if self._is_stopping:
                        return
                    self._room.wait(_TURN_S)
                    continue
                part = self._queue.popleft()
            try:
                self._inspect(part)
            except Exception as err:  # a fault of ours must cost one part, not the line
                self._verdicts.fault(part, "inference", f"unexpected {type(err).__name__}: {err}")

    def _inspect(self, part: PartInWork) -> None:
        clock = self._services.clock
        while not part.is_collected.is_set() and (left_ns := part.collect_ns - clock.mono_ns()) > 0:
            part.is_collected.wait(min(left_ns / 1e9, _TURN_S))
            self._turned_ns = clock.mono_ns()
        with self._room:
            if part in self._collecting:
                self._collecting.remove(part)
            frames = dict(part.frames)
            # Whoever waits for its deadline or its record must not keep its pixels in memory.
            part.frames.update(without_pixels(frames))
        part.collected_ns = clock.mono_ns()
        frame_ids = {name: frames[name].frame_id if name in frames else None for name in self._views}
        problem = self._alignment.problem(part.trigger, frame_ids, is_first=part.is_first)
        if part.trigger is not None:
            # Of a part that has its verdict already, too: its image may still come, and look like that of the next one.
            self._alignment.missed(self._views.keys() - frames.keys())
        if part.is_settled:
            return  # its deadline came before its turn: nothing is gained by scoring it
        if problem:
            if self._limits.is_strict:
                self.readiness.forbid("alignment", problem, hold=True)
            self._verdicts.fault(part, "unexpected_image", problem)
            return
        if (observer := self.observer) is not None:
            observer.begins(part, frames)
        works = [
            view.begin(frames[view.name], part.deadline_ns, part.measures[view.name])
            if view.name in frames
            else Kept(view.name, view.missing("missing_view", f"no image within {self._limits.collect_ns / 1e6:g} ms"))
            for view in self._views.values()
        ]
        # Not waited for: the next part's images are decoded and checked while these are scored.
        when_all([work.result for work in works if isinstance(work, InWork)], partial(self._decide, part, works))

    def _decide(self, part: PartInWork, works: Sequence[InWork | Kept]) -> None:
        """Give a part its verdict; called when the last of its images was scored, by whoever scored it."""
        try:
            part.scored_ns = self._services.clock.mono_ns()
            images = self._keeping.planned(part, self._finished(works))
            views = tuple(image.record for image in images)
            if not self._verdicts.decide(part, views):
                self._keeping.keep(part, None)
            if (observer := self.observer) is not None:
                observer.decided(part, views)
            tell(self._services.drift, part.seq, self.name, part.generation, works, views)
        except Exception as err:  # a fault of ours must cost one part, not the inspector of all stations
            self._verdicts.fault(part, "inference", f"unexpected {type(err).__name__}: {err}")

    def _finished(self, works: Sequence[InWork | Kept]) -> tuple[Kept, ...]:
        found = tuple(view.kept(work) for view, work in zip(self._views.values(), works, strict=True))
        for image in found:
            self.watch.image(image.view, image.record.reason)
        return found

    def _closed(self, part: PartInWork, record: PartRecord) -> None:
        """Take note that a part has its verdict out."""
        self.watch.verdict(record.reason)
        with self._room:
            self._open -= 1
            self._room.notify_all()
        self._keeping.keep(part, record)

    def _recorded(self, part: PartInWork) -> None:
        """Take note that the verdict of a part is on record."""
        for name, frame in list(part.frames.items()):
            if frame.source:
                self._guarded(f"source {name}", partial(self._views[name].source.done, frame.source))
        self._notify()

    def _phase(self, phase: State | None) -> None:
        self.readiness.set_phase(phase)
        self._notify()

    def _notify(self) -> None:
        with self._room:
            self._room.notify_all()

    def _state_changed(self, before: State, now: State, reason: str) -> None:
        self._services.journal.event("state", object=self._label, old=before, new=now, reason=reason)
        self._verdicts.show_state(now)

    def _guarded(self, what: str, call: Callable[[], None]) -> None:
        """Call something that must not end this thread; what it raises becomes the reason of an error."""
        try:
            call()
        except Exception as err:
            self.readiness.forbid(what, f"{type(err).__name__}: {err}")
