"""No accept after the deadline to the nanosecond, and nothing of a part that stays in memory."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import pytest
from line_stand_ins import MemoryJournal, RecordingOutput, bench, frame, wait_until
from no_garbage import no_collections

from flawscope.errors import StorageError
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.counters import Counters
from flawscope.runtime.line.station.open_parts import OpenParts
from flawscope.runtime.line.station.part_in_work import PartInWork
from flawscope.runtime.line.station.verdicts import Verdicts

DEADLINE = 1000
ACCEPT = (ViewRecord("cam0", "accept", score=1.0, threshold=2.0),)


class SetClock:
    """Shows the time that a test sets."""

    now = 0

    def mono_ns(self) -> int:
        return self.now

    def utc_ns(self) -> int:
        return self.now


class Desk:
    """Verdicts with a clock that a test sets, and one part."""

    def __init__(self, folder: Path, *, records_first: bool = True) -> None:
        self.clock, self.journal, self.output, self.counters = (
            SetClock(),
            MemoryJournal(),
            RecordingOutput(),
            Counters(),
        )
        self.numbers = OpenParts(folder / "open_parts.bin", 0)
        self.closed: list[int] = []
        self.failures: list[str] = []
        self.verdicts = Verdicts(
            "top",
            self.journal,
            self.numbers,
            self.clock,
            [self.output],
            self.counters,
            lambda part, record: self.closed.append(part.seq),
            lambda part: None,
            lambda what, why: self.failures.append(what),
            records_first=records_first,
        )
        seq = self.numbers.begin("top", "", 0, 0)
        self.counters.opened()
        self.part = PartInWork(seq, "", 0, 0, deadline_ns=DEADLINE, collect_ns=500, generation=1, measures={})

    def ends_as(self, *record: object) -> None:
        """Check what was given out and what is on record, exactly once each."""
        wait_until(lambda: bool(self.closed) and self.counters.now().unrecorded == 0 and bool(self.journal.records))
        last = self.journal.last()[1]
        assert (last.verdict, last.reason, last.revision) == record
        (signal,) = self.output.signals
        assert (signal.verdict, signal.reason) == record[:2]
        assert self.closed == [1]
        counts = self.counters.now()
        assert counts.holds
        assert counts.open == 0

    def close(self) -> None:
        self.journal.close()
        self.numbers.close()


@pytest.mark.parametrize(("at", "verdict"), [(DEADLINE - 1, "accept"), (DEADLINE, "fault"), (DEADLINE + 1, "fault")])
@pytest.mark.parametrize("records_first", [True, False])
def test_decided_at_the_deadline(tmp_path: Path, at: int, verdict: str, records_first: bool) -> None:
    desk = Desk(tmp_path, records_first=records_first)
    desk.clock.now = at
    # The thread of the deadlines has not come to it yet.
    desk.verdicts.decide(desk.part, ACCEPT)
    desk.ends_as(verdict, "" if verdict == "accept" else "deadline", 0)
    desk.verdicts.deadline(desk.part)
    assert len(desk.output.signals) == 1
    assert desk.counters.now().late == (verdict == "fault")
    desk.close()


@pytest.mark.parametrize(("at", "verdict"), [(DEADLINE - 1, "accept"), (DEADLINE, "fault"), (DEADLINE + 1, "fault")])
def test_committed_at_the_deadline(tmp_path: Path, at: int, verdict: str) -> None:
    desk = Desk(tmp_path)
    desk.journal.gate.clear()
    desk.verdicts.decide(desk.part, ACCEPT)
    desk.clock.now = at
    desk.journal.gate.set()
    desk.ends_as(verdict, *(("", 0) if verdict == "accept" else ("deadline", 1)))
    desk.close()


@pytest.mark.parametrize("records_first", [True, False])
def test_an_accept_that_waits_for_the_wire_until_its_deadline(tmp_path: Path, records_first: bool) -> None:
    desk = Desk(tmp_path, records_first=records_first)
    went_in, gate = threading.Event(), threading.Event()

    def slow(state: object) -> None:
        went_in.set()
        gate.wait(20)

    desk.output.state = slow  # type: ignore[method-assign]
    other = threading.Thread(target=lambda: desk.verdicts.show_state("ready"))
    other.start()
    assert went_in.wait(20)
    desk.clock.now = DEADLINE - 1
    decider = threading.Thread(target=lambda: desk.verdicts.decide(desk.part, ACCEPT))
    decider.start()
    wait_until(lambda: desk.part.is_settled)
    desk.clock.now = DEADLINE
    gate.set()
    for thread in (other, decider):
        thread.join(20)
    desk.ends_as("fault", "deadline", 1 if records_first else 0)
    desk.close()


@pytest.mark.parametrize("is_late", [False, True])
def test_an_accept_without_a_record_is_the_same_fault_everywhere(tmp_path: Path, is_late: bool) -> None:
    desk = Desk(tmp_path)
    desk.journal.gate.clear()
    desk.verdicts.decide(desk.part, ACCEPT)
    if is_late:
        desk.clock.now = DEADLINE
        desk.verdicts.deadline(desk.part)
    record = desk.journal.record
    desk.journal.failure = StorageError("disk full")

    def works_again(part: object, done: object = None) -> None:
        desk.journal.failure = None
        record(part, done)  # type: ignore[arg-type]

    desk.journal.record = works_again  # type: ignore[method-assign]
    desk.journal.gate.set()
    desk.ends_as("fault", "deadline" if is_late else "record", 0)
    assert desk.failures == ["journal"]
    desk.close()


def test_a_record_that_cannot_be_made_leaves_the_part_to_the_deadline(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.part.scored_ns = "no number"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        desk.verdicts.decide(desk.part, ACCEPT)
    desk.part.scored_ns = None
    desk.verdicts.deadline(desk.part)
    desk.ends_as("fault", "deadline", 0)
    desk.close()


@pytest.mark.parametrize("views", [["cam0"], ["left", "right"]], ids=["one view", "two views"])
def test_pixels_are_gone_when_the_part_has_its_verdict(tmp_path: Path, views: list[str]) -> None:
    images = []

    def give(value: int) -> None:
        for view in views:
            image = frame(value)
            images.append(weakref.ref(image.image))  # type: ignore[arg-type]
            line.station.frame(view, image)

    # At once: Python's collections count objects, and wait for hundreds of parts however large their images are.
    with no_collections(), bench(tmp_path, views, deadline_ms=3.6e6, depth=1) as line:
        give(50)
        line.ready()
        for number, value in enumerate((50, 150, 250), 2):
            give(value)
            line.settled(number)
        assert {part.verdict for part in line.last().values()} == {"accept", "reject", "fault"}
        wait_until(lambda: all(image() is None for image in images))


def test_outputs_see_that_the_station_starts(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        assert line.output.calls == ["starting"]


def test_a_source_that_cannot_be_ended_keeps_nothing_open(tmp_path: Path) -> None:
    def fail(timeout_s: float) -> None:
        raise OSError("no such process")

    with bench(tmp_path, ["left", "right"]) as line:
        line.ready()
        line.sources["left"].stop = fail  # type: ignore[method-assign]
        line.station.stop(1.0)
        assert line.sources["right"].is_stopped
        assert line.output.calls[-1] == "stopped"


def test_files_are_noted_before_their_source_ends(tmp_path: Path) -> None:
    with bench(tmp_path, policy="wait") as line:
        line.ready()
        line.journal.gate.clear()
        line.station.frame("cam0", frame(150, source="a.png"))
        wait_until(lambda: len(line.output.signals) == 1)
        line.station.frame("cam0", Frame(None, 0, is_last=True))
        assert not line.station.has_ended
        done_at_the_end: list[str] = []
        line.sources["cam0"].stop = lambda timeout_s: done_at_the_end.extend(line.sources["cam0"].done_files)  # type: ignore[method-assign]
        stopper = threading.Thread(target=lambda: line.station.stop(5.0))
        stopper.start()
        wait_until(lambda: line.station.readiness.state == "stopped")
        line.journal.gate.set()
        stopper.join(20)
        assert done_at_the_end == ["a.png"]


def test_a_decoder_that_hangs_is_an_error(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        now = line.station._services.clock.mono_ns()
        line.station._turned_ns = now - 11 * 10**9
        line.station.turns = lambda period_s: period_s > 10.5  # type: ignore[method-assign]
        beats = line.output.beats
        line.station.beat()
        assert line.output.beats == beats
        assert "at one image" in line.station.readiness.reason
        del line.station.turns
        wait_until(lambda: line.station.turns(3))
        line.station.beat()
        assert line.station.readiness.is_ready


def test_every_signal_is_of_the_part_that_it_names(tmp_path: Path) -> None:
    with bench(tmp_path, depth=64) as line:
        line.ready()
        values = [50, 150, 250] * 30
        senders = [
            threading.Thread(
                target=lambda part=part: [line.station.frame("cam0", frame(v, source=str(v))) for v in values[part::3]]
            )
            for part in range(3)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(20)
        last = line.settled(90)
        expected = {"50": "accept", "150": "reject", "250": "fault"}
        for signal in (call for call in line.output.calls if isinstance(call, Signal)):
            record = last[signal.seq]
            assert record.reason == "overrun" or signal.verdict == expected[record.part_id]
