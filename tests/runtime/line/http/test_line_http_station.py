"""The HTTP interface before a real station: images that are sent get the verdict that the PLC gets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from line_stand_ins import MemoryJournal, RecordingOutput, RuleInspector, StandingClock, grey, wait_until
from line_view_stand_in import FakeJournal

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from flawscope.imaging.png import encode_png  # noqa: E402
from flawscope.runtime.line.clock import Clock, SystemClock  # noqa: E402
from flawscope.runtime.line.http import context  # noqa: E402
from flawscope.runtime.line.http.server import LineServer  # noqa: E402
from flawscope.runtime.line.journal.journal import Journal  # noqa: E402
from flawscope.runtime.line.journal.writer import Writer  # noqa: E402
from flawscope.runtime.line.line_config import LineConfig  # noqa: E402
from flawscope.runtime.line.sources.push import Push  # noqa: E402
from flawscope.runtime.line.sources.table import PushSource  # noqa: E402
from flawscope.runtime.line.station.deadlines import Deadlines  # noqa: E402
from flawscope.runtime.line.station.open_parts import OpenParts  # noqa: E402
from flawscope.runtime.line.station.station import Station  # noqa: E402
from flawscope.runtime.line.station.surroundings import LineServices, StationLimits  # noqa: E402
from flawscope.runtime.line.station.view import Measure, View  # noqa: E402
from flawscope.runtime.line.status import LineStatus, StationStatus  # noqa: E402
from flawscope.runtime.line.users.line_users import LineUsers  # noqa: E402
from flawscope.runtime.shared_scoring import SharedScoring  # noqa: E402

WAIT_S = 20.0
PNG = {"Content-Type": "image/png"}


class RealLine:
    """A line of one station `top` with images that are sent, before an inspector that judges by brightness."""

    def __init__(
        self, folder: Path, journal: Any, queries: Any, deadline_ms: float, depth: int, clock: Clock | None = None
    ) -> None:
        view = {"name": "cam", "source": {"kind": "push"}, "bundle": "b.flaw"}
        raw = {
            "line": {"name": "l", "state": str(folder)},
            "stations": [{"name": "top", "views": [view], "deadline_ms": deadline_ms}],
            "http": {"listen": "127.0.0.1:0"},
        }
        self.journal = queries
        self.clock, self.inspector, self.output = clock or SystemClock(), RuleInspector(), RecordingOutput()
        self.numbers, self.deadlines = OpenParts(folder / "open_parts.bin", 0), Deadlines(self.clock)
        self.scoring = SharedScoring(self.inspector, "test")
        self.stations: dict[str, Station] = {}
        self.users = LineUsers(folder, is_local=True, idle_s=60.0, longest_s=60.0)
        self.server = LineServer(msgspec.convert(raw, LineConfig, dec_hook=lambda _, value: Path(value)), self)
        deadline_ns = int(deadline_ms * 1e6)
        self.station = self.stations["top"] = Station(
            "top",
            StationLimits(deadline_ns, deadline_ns // 2, depth),
            LineServices(journal, self.numbers, self.deadlines, self.clock),
            [View("cam", Push(PushSource(), "cam"), Measure(self.scoring, "ab" * 32, None))],
            [self.output, self.server.output("top")],
        )
        self.station.start()
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.address)

    def status(self) -> LineStatus:
        return LineStatus("l", "", 1, True, 0, "", True, (StationStatus.of(self.station),), ())

    def push(self, value: int | None, wait: bool = True) -> Any:
        """Send one image of a brightness, or bytes that are none."""
        data = b"no image" if value is None else encode_png(grey(value))
        with httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False) as client:
            answer = client.post(f"/api/v1/stations/top/trigger?wait={int(wait)}", content=data, headers=PNG)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        with httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False) as client:
            return client.get(path)

    def on_record(self) -> None:
        """Wait until all parts are on record: a reject and a fault are given out before their records are queued."""
        counts = self.station.counters
        wait_until(lambda: counts.now().open == 0 and counts.now().unrecorded == 0)

    def close(self) -> None:
        self.inspector.gate.set()
        self.station.stop(1.0)
        self.server.stop()
        self.users.stop()
        self.scoring.close()
        self.deadlines.close()
        self.numbers.close()


@contextlib.contextmanager
def real_line(folder: Path, deadline_ms: float = 10_000.0, depth: int = 4) -> Iterator[RealLine]:
    journal = Journal.open(folder, "l", SystemClock())
    line = RealLine(folder, journal, journal, deadline_ms, depth)
    try:
        yield line
    finally:
        line.close()
        journal.close()


def test_each_image_gets_the_verdict_that_the_plc_and_the_journal_have(tmp_path: Path) -> None:
    with real_line(tmp_path) as line:
        values = [50, 150, None, 255, 100, 101] * 4
        answers = [line.push(value) for value in values]
        expected = {50: "accept", 100: "accept", 150: "reject", 101: "reject", 255: "fault", None: "fault"}
        assert [answer["verdict"] for answer in answers] == [expected[value] for value in values]
        assert [answer["seq"] for answer in answers] == list(range(1, 25))
        told = {answer["seq"]: answer["verdict"] for answer in answers}
        assert {signal.seq: signal.verdict for signal in line.output.signals} == told
        parts = line.get("/api/v1/parts").json()["parts"]
        assert {part["seq"]: part["verdict"] for part in parts} == told
        assert answers[2]["reason"] == "unreadable_image"
        assert line.station.counters.now().holds


def slow_commits(monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Have each commit wait so long; the event that is returned ends all such waits."""
    commit, is_over = Writer._commit, threading.Event()

    def late(self: Writer, group: list[Any]) -> bool:
        is_over.wait(seconds)
        return commit(self, group)

    monkeypatch.setattr(Writer, "_commit", late)
    return is_over


def test_who_reads_finds_what_he_was_told_before_though_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "SETTLE_S", WAIT_S)  # a machine that is busy elsewhere may take longer than a moment
    with real_line(tmp_path) as line:
        slow_commits(monkeypatch, 0.2)
        for value in (255, 150):  # a reject and a fault are given out before they are recorded
            seq = line.push(value)["seq"]
            assert line.get(f"/api/v1/parts/{seq}").json()["seq"] == seq
            seq = line.push(value)["seq"]
            assert [part["seq"] for part in line.get("/api/v1/parts?order=newest&limit=1").json()["parts"]] == [seq]
        line.journal.event("threshold", reason="too many scratches")
        newest = line.get("/api/v1/audit?order=newest&limit=1").json()["events"]
        assert [event["reason"] for event in newest] == ["too many scratches"]


def test_a_disk_that_hangs_holds_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_line(tmp_path) as line:
        line.push(150)
        line.on_record()
        is_over = slow_commits(monkeypatch, 10 * WAIT_S)
        try:
            # Each of them ends, or the client's own limit of WAIT_S does.
            line.push(150)
            assert [part["seq"] for part in line.get("/api/v1/parts").json()["parts"]] == [1]
            assert line.get("/api/v1/audit").status_code == 200
        finally:
            is_over.set()


def test_a_burst_is_answered_at_once_and_every_request_has_its_part(tmp_path: Path) -> None:
    with real_line(tmp_path, depth=2) as line:
        line.inspector.gate.clear()
        with ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(line.push, 50) for _ in range(20)]
            # The inspector is held: whoever finds the station full is answered nevertheless.
            end = time.monotonic() + WAIT_S
            while sum(future.done() for future in futures) < 18 and time.monotonic() < end:
                time.sleep(0.01)
            early = [future.result() for future in futures if future.done()]
            line.inspector.gate.set()
            answers = [future.result() for future in futures]
        assert Counter((one["verdict"], one["reason"]) for one in early) == {("fault", "overrun"): 18}
        assert sorted(answer["seq"] for answer in answers) == list(range(1, 21))
        assert Counter(answer["verdict"] for answer in answers) == {"fault": 18, "accept": 2}
        line.on_record()
        text = line.get("/metrics").text
        assert 'flawscope_parts_total{reason="overrun",station="top",verdict="fault"} 18.0' in text
        assert 'flawscope_parts_total{reason="",station="top",verdict="accept"} 2.0' in text
        assert line.journal.counts() == {("top", "accept"): 2, ("top", "fault"): 18}


def test_an_accept_whose_record_comes_too_late_is_told_as_a_fault(tmp_path: Path) -> None:
    """The journal then holds an accept for a moment, which is no verdict: HTTP clients hear what the PLC hears."""
    journal, queries, clock = MemoryJournal(), FakeJournal(), StandingClock()
    line = RealLine(tmp_path, journal, queries, deadline_ms=10_000.0, depth=4, clock=clock)
    try:
        journal.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(line.push, 50)
            wait_until(lambda: journal.asked == 1)
            clock.now += 10 * 10**9
            line.deadlines.at(0, lambda: None)  # so that it looks at the clock
            answer = asked.result()
        assert (answer["verdict"], answer["reason"]) == ("fault", "deadline")
        journal.gate.set()
        wait_until(lambda: len(journal.records) == 2)
        assert [(one.verdict, one.revision) for one in journal.records] == [("accept", 0), ("fault", 1)]
        assert [signal.verdict for signal in line.output.signals] == ["fault"]
    finally:
        journal.gate.set()
        line.close()
        journal.close()


def test_a_halted_station_answers_with_faults_until_it_is_reset(tmp_path: Path) -> None:
    with real_line(tmp_path) as line, httpx.Client(base_url=line.url, timeout=WAIT_S, trust_env=False) as client:
        assert client.post("/api/v1/stations/top/halt", json={}).json()["state"] == "halted"
        assert client.get("/readyz").status_code == 503
        assert line.push(50)["reason"] == "not_ready"
        assert client.post("/api/v1/stations/top/reset", json={}).json()["state"] == "ready"
        assert line.push(50)["verdict"] == "accept"
