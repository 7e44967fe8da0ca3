"""Giving out verdicts and recording them: once for each part, an accept after its record, a fault never as an accept.

| what | given out | recorded |
|---|---|---|
| reject, fault | at once | afterwards |
| accept | when its record is on the disk, and only before the deadline | first |
| accept whose record comes after the deadline | a fault, at the deadline | a second record, revision 1: the fault |
| verdict after the deadline | nothing more | an event, `late_verdict` |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from flawscope.runtime.line.clock import Clock, boot_id, iso
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.outputs.output import Output, Signal, State
from flawscope.runtime.line.parts import PartRecord, Reason, Verdict, ViewRecord, worst_view
from flawscope.runtime.line.station.counters import Counters
from flawscope.runtime.line.station.open_parts import OpenParts
from flawscope.runtime.line.station.part_in_work import PartInWork

_TOO_LATE = "its record was written after the deadline"
_TOO_LATE_OUT = "its turn to be given out came after the deadline"


class Verdicts:
    """Gives out and records the verdicts of one station, from any thread.

    Args:
        station: Name of the station.
        journal: Where they are recorded.
        numbers: Where open parts are noted.
        clock: The clock.
        outputs: Who is told.
        counters: The account of the station.
        closed: Called when a part has its verdict out and is open no more, with the record that it gets.
        recorded: Called when its verdict is on record, too.
        failed: Called with what failed and why: an output that may not have signalled, a journal that does not write.
        records_first: Whether an accept is recorded before it is given out.
    """

    def __init__(
        self,
        station: str,
        journal: Recorder,
        numbers: OpenParts,
        clock: Clock,
        outputs: Sequence[Output],
        counters: Counters,
        closed: Callable[[PartInWork, PartRecord], None],
        recorded: Callable[[PartInWork], None],
        failed: Callable[[str, str], None],
        *,
        records_first: bool,
    ) -> None:
        self._station, self._journal, self._numbers, self._clock = station, journal, numbers, clock
        self._outputs, self._counters, self._closed, self._failed = outputs, counters, closed, failed
        self._on_record = recorded
        self._records_first = records_first
        self._output_lock = threading.Lock()
        self._boot = boot_id()

    def decide(self, part: PartInWork, views: tuple[ViewRecord, ...]) -> bool:
        """Give a part the verdict of its worst view; a part that has one keeps it, and this one is noted as late.

        Args:
            part: The part.
            views: What was found in each of its images; at least one.

        Returns:
            Whether the part takes the verdict.
        """
        worst = worst_view(views)
        detail = f"{worst.view}: {worst.detail}" if worst.detail else ""
        # Before the part is taken: a record that cannot be made must leave the part to somebody else.
        record = self._record_of(part, worst.verdict, worst.reason, detail, views)
        if self._clock.mono_ns() >= part.deadline_ns:
            # The thread of the deadlines may be a moment behind; what comes now is late all the same.
            self.deadline(part)
        if worst.verdict == "accept" and self._records_first:
            if part.begin_accept(views):
                self._journal.record(record, partial(self._accept_recorded, part, record))
                return True
        elif part.settle():
            self._settled(part, record)
            return True
        if worst.verdict == "fault":
            return False  # it is one already
        self._counters.late()
        self._journal.event(
            "late_verdict", object=f"part {part.seq}", new=worst.verdict, reason=worst.detail or f"score {worst.score}"
        )
        return False

    def fault(self, part: PartInWork, reason: Reason, detail: str, views: tuple[ViewRecord, ...] = ()) -> None:
        """Make a part a fault, unless it has its verdict."""
        record = self._record_of(part, "fault", reason, detail, views)
        if part.settle():
            self._settled(part, record)

    def deadline(self, part: PartInWork) -> None:
        """Make a part without a verdict a fault; called at its deadline."""
        record = self._record_of(part, "fault", "deadline", "it had no verdict in time", ())
        before = part.miss_deadline()
        if before == "open":
            self._settled(part, record)
        elif before == "accepting":
            # The record of an accept is on its way, and `_accept_recorded` follows it with that of the fault.
            self._signal(part, record)
            self._closed(part, msgspec.structs.replace(record, views=part.accepted))

    def show_state(self, state: State) -> None:
        """Tell the outputs the state of the station."""
        self._tell(lambda output: output.state(state))

    def beat(self) -> None:
        """Tell the outputs that the station is alive."""
        self._tell(lambda output: output.beat())

    def _accept_recorded(self, part: PartInWork, record: PartRecord, error: Exception | None) -> None:
        """Give out an accept that is on record, or make a fault of it."""
        is_late = self._clock.mono_ns() >= part.deadline_ns
        # Taken by the deadline, the part was given out as a fault of that already: the record says the same.
        is_taken = part.finish_accept()
        reason: Reason = "record" if is_taken and error is not None else "deadline"
        revision = record.revision if error is not None else record.revision + 1
        fault = msgspec.structs.replace(
            record, verdict="fault", reason=reason, detail=str(error or _TOO_LATE), revision=revision
        )
        if is_taken:
            given = self._signal(part, fault if error is not None or is_late else record, instead=fault)
            self._closed(part, given)
            if given.verdict == "accept":
                self._recorded(part, None)
                return
        if error is not None:
            self._failed("journal", str(error))
        self._queue_record(part, fault)

    def _settled(self, part: PartInWork, record: PartRecord) -> None:
        """Give out and record a verdict for which the part was taken."""
        late = msgspec.structs.replace(record, verdict="fault", reason="deadline", detail=_TOO_LATE_OUT)
        given = self._signal(part, record, instead=late)
        self._queue_record(part, given)
        self._closed(part, given)

    def _queue_record(self, part: PartInWork, record: PartRecord) -> None:
        self._journal.record(record, partial(self._recorded, part))

    def _recorded(self, part: PartInWork, error: Exception | None) -> None:
        if error is None:
            self._numbers.recorded(part.seq)
            self._counters.recorded()
            self._on_record(part)
        else:
            # The number stays noted as open: the next start records it.
            self._counters.given_up()
            self._failed("journal", str(error))

    def _signal(self, part: PartInWork, record: PartRecord, *, instead: PartRecord | None = None) -> PartRecord:
        """Give out and count a verdict; returns the record of what was given out.

        Args:
            part: The part, which the caller has taken.
            record: Its verdict.
            instead: Given out in place of an accept whose deadline passes while other verdicts are given out.
        """
        with self._output_lock:
            if record.verdict == "accept":
                if instead is not None and self._clock.mono_ns() >= part.deadline_ns:
                    record = instead
                else:
                    # Noted before it is given out: were the process killed in between, nobody must call it a fault.
                    self._numbers.giving(part.seq)
            score = None if record.verdict == "fault" else record.score
            signal = Signal(part.seq, part.part_id, record.verdict, record.reason, score)
            problems = self._told(lambda output: output.verdict(signal))
        self._counters.settled(record.verdict)
        self._complain(problems)
        return record

    def _tell(self, call: Callable[[Output], None]) -> None:
        with self._output_lock:
            problems = self._told(call)
        self._complain(problems)

    def _told(self, call: Callable[[Output], None]) -> list[str]:
        """Call all outputs and return what went wrong; one that fails keeps no other from being called."""
        problems = []
        for output in self._outputs:
            try:
                call(output)
            except Exception as err:  # whatever it is: a signal that may not have been given stops the station
                problems.append(f"{type(err).__name__}: {err}")
        return problems

    def _complain(self, problems: list[str]) -> None:
        # Without the lock: the outputs are told of the state that this causes.
        for problem in problems:
            self._failed("output", problem)

    def _record_of(
        self, part: PartInWork, verdict: Verdict, reason: Reason, detail: str, views: tuple[ViewRecord, ...]
    ) -> PartRecord:
        worst = worst_view(views) if views else None
        times = {"collected": part.collected_ns, "scored": part.scored_ns, "verdict": self._clock.mono_ns()}
        return PartRecord(
            part.seq,
            self._station,
            part.part_id,
            iso(part.utc_ns),
            part.mono_ns,
            self._boot,
            part.generation,
            verdict,
            reason,
            detail,
            score=None if worst is None else worst.score,
            threshold=None if worst is None else worst.threshold,
            threshold_revision=None if worst is None else worst.threshold_revision,
            latency_ms={name: round((at - part.mono_ns) / 1e6, 3) for name, at in times.items() if at is not None},
            views=views,
        )
