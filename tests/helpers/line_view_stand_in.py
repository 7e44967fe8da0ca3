"""A line as the HTTP interface sees it: parts get their verdict when the test says so, or at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flawscope.runtime.line.outputs.output import Output, Signal
from flawscope.runtime.line.parts import PartRecord, Verdict, ViewRecord
from flawscope.runtime.line.status import LineStatus, SinkStatus, StationStatus
from flawscope.runtime.line.users.line_users import LineUsers

UTC = "2026-11-30T03:52:59.123Z"


class FakeJournal:
    """Records in memory, numbered as the chain."""

    def __init__(self) -> None:
        self.records: list[PartRecord] = []
        self.said: list[dict[str, str]] = []
        self.failure: Exception | None = None
        self._changed = threading.Condition()

    @property
    def last_link(self) -> int:
        return len(self.records)

    def add(self, record: PartRecord) -> None:
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()

    def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        found = list(enumerate(self.records, 1))[after : after + limit]
        return [{"line": "l", "link": link, "kind": "part", **msgspec.to_builtins(part)} for link, part in found]

    def events(
        self, after: int = 0, limit: int = 100, *, before: int | None = None, newest_first: bool = False
    ) -> list[dict[str, Any]]:
        found = [{"link": link, **event} for link, event in enumerate(self.said, 1)]
        chosen = [one for one in found if after < one["link"] < (before or 1 << 53)]
        return (chosen[::-1] if newest_first else chosen)[:limit]

    def parts(
        self,
        after_seq: int = 0,
        limit: int = 100,
        station: str | None = None,
        verdict: str | None = None,
        newest_first: bool = False,
        before_seq: int | None = None,
        is_reviewed: bool | None = None,
    ) -> list[PartRecord]:
        if self.failure is not None:
            raise self.failure
        last = {record.seq: record for record in self.records}
        found = [last[seq] for seq in sorted(last, reverse=newest_first) if after_seq < seq < (before_seq or 1 << 53)]
        kept = [part for part in found if station in (None, part.station) and verdict in (None, part.verdict)]
        return kept[:limit]

    def part_of(self, seq: int) -> PartRecord | None:
        return {record.seq: record for record in self.records}.get(seq)

    def sealed_in(self, seq: int) -> str:
        return ""

    def counts(self) -> dict[tuple[str, str, str], int]:
        counts: dict[tuple[str, str, str], int] = {}
        for part in {record.seq: record for record in self.records}.values():
            key = (part.station, part.verdict, part.reason)
            counts[key] = counts.get(key, 0) + 1
        return counts

    def event(self, action: str, **said: str) -> None:
        self.said.append({"action": action, **said})

    def has_event(self, action: str) -> bool:
        return any(event["action"] == action for event in self.said)

    def flush(self, timeout_s: float) -> bool:
        return True

    def wait(self, after: int, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.records) > after, timeout_s)


class FakeStation:
    """Numbers parts and gives each a verdict.

    Args:
        line: Its line.
        name: Its name.
        is_triggered: As of a station.

    Attributes:
        pushed: `(images, part_id)` of each part.
        actors: Who halted and acknowledged.
        verdict: Verdict of the next parts; None: `give` is called by the test.
        state: Its state.
        sources: View -> why its source does not work.
    """

    def __init__(self, line: FakeLine, name: str, is_triggered: bool = False) -> None:
        self.line, self.name, self.is_triggered = line, name, is_triggered
        self.pushed: list[tuple[dict[str, bytes], str]] = []
        self.actors: list[str] = []
        self.verdict: Verdict | None = "accept"
        self.state: Any = "ready"
        self.sources: dict[str, str] = {}
        self.outputs: list[Output] = []
        self.open: dict[int, str] = {}
        self.given: dict[str, int] = {"accept": 0, "reject": 0, "fault": 0}

    def trigger(self, part_id: str = "") -> int:
        return self.push({}, part_id)

    def push(self, images: Mapping[str, bytes], part_id: str = "") -> int:
        with self.line.lock:
            self.pushed.append((dict(images), part_id))
            self.line.last_seq += 1
            seq = self.line.last_seq
            self.open[seq] = part_id
        if self.verdict is not None:
            self.give(seq, self.verdict)
        return seq

    def give(self, seq: int, verdict: Verdict, score: float = 2.0) -> None:
        """Record and signal a verdict, in the order of a station."""
        reason = "scene" if verdict == "fault" else ""
        view = ViewRecord("left", verdict, reason, score=score, threshold=4.0)  # type: ignore[arg-type]
        latency = {"collected": 1.0, "scored": 8.0, "verdict": 12.0}
        record = PartRecord(
            seq, self.name, self.open[seq], UTC, seq, "boot", 1, verdict, reason, views=(view,), latency_ms=latency  # type: ignore[arg-type]
        )  # fmt: skip
        self.line.journal.add(record)
        with self.line.lock:
            part_id = self.open.pop(seq)
            self.given[verdict] += 1
        for output in self.outputs:
            output.verdict(Signal(seq, part_id, verdict, reason, score))  # type: ignore[arg-type]

    def change(self, state: Any) -> None:
        self.state = state
        for output in self.outputs:
            output.state(state)

    def acknowledge(self, actor: str, role: str = "") -> None:
        self.actors.append(f"acknowledge {actor}")
        self.change("ready")

    def halt(self, actor: str, role: str = "") -> None:
        self.actors.append(f"halt {actor}")
        self.change("halted")

    def status(self) -> StationStatus:
        given = self.given
        parts = sum(given.values()) + len(self.open)
        reason = "" if self.state == "ready" else "because"
        counts = (parts, given["accept"], given["reject"], given["fault"], len(self.open), 3, 7)
        return StationStatus(self.name, self.state, reason, 1, *counts, sources=dict(self.sources))


class FakeLine:
    """A line with stations; `before_status` is called in each call of `status`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last_seq = 0
        self.journal = FakeJournal()
        self.drift = None
        self.stations: dict[str, FakeStation] = {}
        self.gallery = None
        self.users: LineUsers | None = None
        self.swaps = None
        self.before_status: Callable[[], object] = lambda: None

    def add(self, name: str, is_triggered: bool = False) -> FakeStation:
        self.stations[name] = FakeStation(self, name, is_triggered)
        return self.stations[name]

    def status(self) -> LineStatus:
        self.before_status()
        sinks = (SinkStatus("mqtt", 5, 2, 1, "refused"),)
        stations = tuple(station.status() for station in self.stations.values())
        return LineStatus("l", UTC, 1, True, self.last_seq, "", True, stations, sinks)
