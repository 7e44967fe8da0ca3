"""Stand-ins for the surroundings of a station: a journal in memory, an inspector by rule, sources and outputs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.bundle import InForce
from flawscope.runtime.line.clock import Clock, SystemClock
from flawscope.runtime.line.gallery.keeper import KeepsImages
from flawscope.runtime.line.outputs.output import Control, Signal, State
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.sources.source import Frame, FrameSink, Policy
from flawscope.runtime.line.station.deadlines import Deadlines
from flawscope.runtime.line.station.open_parts import OpenParts
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.station.surroundings import LineServices, StationLimits
from flawscope.runtime.line.station.view import ChecksScene, Measure, View
from flawscope.runtime.results import Result
from flawscope.runtime.shared_scoring import SharedScoring

WAIT_S = 20.0
"""Longest wait of a test: reached only where something is broken."""


class StandingClock:
    """Stands still until a test lets time pass: what must come in time then does, however busy the machine is."""

    def __init__(self) -> None:
        # An hour ahead: who scores looks at the real clock, and leaves images out whose time is over.
        self.now = SystemClock().mono_ns() + 3600 * 10**9

    def mono_ns(self) -> int:
        return self.now

    def utc_ns(self) -> int:
        return self.now


class MemoryJournal:
    """Records in memory, from one thread, as the journal does.

    Attributes:
        asked: How many records it was asked for.
        records: All records, in their order.
        events: `(action, fields)` of all events.
        failure: What each record fails with; None for no failure.
        gate: Records wait until it is set.
    """

    def __init__(self) -> None:
        self.records: list[PartRecord] = []
        self.events: list[tuple[str, dict[str, str]]] = []
        self.asked = 0
        self.failure: Exception | None = None
        self.problem = ""
        self.gate = threading.Event()
        self.gate.set()
        self._queue: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def record(self, part: PartRecord, done: Callable[[Exception | None], None] | None = None) -> None:
        self._queue.put((part, done))
        self.asked += 1

    def event(self, action: str, **fields: str) -> None:
        self.events.append((action, fields))

    def acknowledge(self, actor: str, role: str = "") -> None:
        self.problem = ""

    def last(self) -> dict[int, PartRecord]:
        """Return the last revision of each part."""
        return {record.seq: record for record in self.records}

    def close(self) -> None:
        self.gate.set()
        self._queue.put(None)
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            part, done = item
            self.gate.wait(WAIT_S)
            if self.failure is None:
                self.records.append(part)
            if done is not None:
                done(self.failure)


class RuleInspector:
    """Decides by the brightness of an image: at most 100 is an accept, up to 200 a reject, above that a fault.

    Attributes:
        rule: Takes its place where it is set.
        sizes: Sizes of all batches.
        gate: Scoring waits until it is set.
    """

    max_batch = 4
    device_failed = False

    def __init__(self) -> None:
        self.rule: Callable[[Any], Result] = by_brightness
        self.sizes: list[int] = []
        self.warmed: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def score(self, sources: list[Any], color: str, in_force: InForce | None = None) -> list[Result]:
        self.sizes.append(len(sources))
        self.gate.wait(WAIT_S)
        return [self.rule(source) for source in sources]

    def warm(self, batch: int) -> None:
        self.warmed.append(batch)


def by_brightness(image: Any) -> Result:
    value = float(np.asarray(image).max())
    if value > 200:
        return Result("image", "fault", reason="the score is not finite")
    return Result("image", "accept" if value <= 100 else "reject", value, 100.0, threshold_revision=0)


class HandSource:
    """A source whose images the test hands over."""

    def __init__(self, policy: Policy = "every", *, is_triggered: bool = False) -> None:
        self.policy: Policy = policy
        self.is_triggered = is_triggered
        self.triggers: list[int] = []
        self.done_files: list[str] = []
        self.sink: FrameSink | None = None
        self.is_stopped = False

    def start(self, sink: FrameSink) -> None:
        self.sink = sink

    def trigger(self, seq: int) -> None:
        self.triggers.append(seq)

    def done(self, source: str) -> None:
        self.done_files.append(source)

    def stop(self, timeout_s: float) -> None:
        self.is_stopped = True


class RecordingOutput:
    """Keeps what it is told.

    Attributes:
        calls: States and signals in their order.
        failure: What `verdict` raises; None for nothing.
    """

    def __init__(self) -> None:
        self.calls: list[State | Signal] = []
        self.failure: Exception | None = None
        self.control: Control | None = None
        self.beats = 0

    @property
    def signals(self) -> list[Signal]:
        return [call for call in self.calls if isinstance(call, Signal)]

    def start(self, control: Control) -> None:
        self.control = control

    def state(self, state: State) -> None:
        self.calls.append(state)

    def verdict(self, signal: Signal) -> None:
        self.calls.append(signal)
        if self.failure is not None:
            raise self.failure

    def beat(self) -> None:
        self.beats += 1

    def stop(self) -> None:
        self.calls.append("stopped")


@dataclass
class Bench:
    """A station with all of its surroundings."""

    station: Station
    journal: MemoryJournal
    inspector: RuleInspector
    output: RecordingOutput
    sources: dict[str, HandSource]
    numbers: OpenParts
    clock: Clock
    deadlines: Deadlines
    seen: set[int] = field(default_factory=set)

    def ready(self) -> None:
        """Let all sources work."""
        for name in self.sources:
            self.station.source_up(name)
        assert self.station.readiness.state == "ready", self.station.readiness.reason

    def image(self, view: str, value: int, **fields: Any) -> None:
        """Hand over an image of one brightness that came just now."""
        self.station.frame(view, Frame(grey(value), self.clock.mono_ns(), **fields))

    def go(self, ms: float) -> None:
        """Let time pass; only where the clock stands (`stands`)."""
        assert isinstance(self.clock, StandingClock)
        self.clock.now += round(ms * 1e6)
        self.deadlines.at(0, lambda: None)  # so that it looks at the clock

    def settled(self, count: int) -> dict[int, PartRecord]:
        """Wait until so many parts have a verdict on record, check the account, and return their last records."""
        wait_until(
            lambda: self.station.counters.now().open == 0 and self.unrecorded() == 0 and len(self.last()) >= count
        )
        self.check()
        return self.last()

    def unrecorded(self) -> int:
        return self.station.counters.now().unrecorded

    def last(self) -> dict[int, PartRecord]:
        return self.journal.last()

    def check(self) -> None:
        """Check the invariant of the line: on account, in the journal, and at the output."""
        counts = self.station.counters.now()
        assert counts.holds, counts
        last = self.last()
        assert sorted(last) == list(range(1, counts.parts - counts.open + 1)) or counts.open, sorted(last)
        verdicts = Counter(record.verdict for record in last.values())
        if not counts.open and not counts.unrecorded:
            assert (verdicts["accept"], verdicts["reject"], verdicts["fault"]) == (
                counts.accept,
                counts.reject,
                counts.fault,
            )
            assert {signal.seq: signal.verdict for signal in self.output.signals} == {
                seq: record.verdict for seq, record in last.items()
            }
        # Exactly one signal for each part.
        assert len({signal.seq for signal in self.output.signals}) == len(self.output.signals)


@contextlib.contextmanager
def bench(
    folder: Path,
    views: Sequence[str] = ("cam0",),
    *,
    deadline_ms: float = 1e4,
    collect_ms: float = 5e3,
    depth: int = 4,
    policy: Policy = "every",
    is_triggered: bool = False,
    records_first: bool = True,
    is_strict: bool = False,
    scene: ChecksScene | None = None,
    keeper: KeepsImages | None = None,
    stands: bool = False,
) -> Iterator[Bench]:
    """Yield a started station that is not ready yet; everything is closed afterwards.

    With `stands`, time passes by `Bench.go` alone, and images are given by `Bench.image`.
    """
    clock: Clock = StandingClock() if stands else SystemClock()
    journal, inspector, output = MemoryJournal(), RuleInspector(), RecordingOutput()
    numbers, deadlines = OpenParts(folder / "open_parts.bin", 0), Deadlines(clock)
    scoring = SharedScoring(inspector, "test")
    sources = {name: HandSource(policy, is_triggered=is_triggered) for name in views}
    station = Station(
        "top",
        StationLimits(int(deadline_ms * 1e6), int(collect_ms * 1e6), depth, records_first, is_strict),
        LineServices(journal, numbers, deadlines, clock, keeper),
        [View(name, sources[name], Measure(scoring, "ab" * 32, None), scene) for name in views],
        [output],
    )
    station.start()
    try:
        yield Bench(station, journal, inspector, output, sources, numbers, clock, deadlines)
    finally:
        inspector.gate.set()
        journal.gate.set()
        station.stop(1.0)
        scoring.close()
        deadlines.close()
        journal.close()
        numbers.close()


def grey(value: int) -> np.ndarray:
    """Return an image of one brightness; see `RuleInspector`."""
    return np.full((16, 16), value, np.uint8)


def frame(value: int, **fields: Any) -> Frame:
    """Return a frame of one brightness that came just now."""
    return Frame(grey(value), SystemClock().mono_ns(), **fields)


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds, or fail."""
    done = threading.Event()
    for _ in range(int(timeout_s / 0.005)):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("did not happen in time")
