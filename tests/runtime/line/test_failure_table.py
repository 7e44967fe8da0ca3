"""Faults injected on purpose, and what docs/line-failures.md promises of each: part, station, notice, recovery.

Faults that other tests inject are named on that page; a test here holds it to tests that exist.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from line_project import png, read_line
from line_stand_ins import WAIT_S, Bench, RecordingOutput, bench, frame, grey, wait_until
from project_paths import ROOT

from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.line_config import SceneLimits
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.scene.limits import SceneCheck
from flawscope.runtime.line.sinks import runner as runner_module
from flawscope.runtime.line.sinks.table import JsonlSink
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station import watch

PAGE = ROOT / "docs" / "line-failures.md"


def rows() -> Iterator[list[str]]:
    """Yield the cells of each failure on the page."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and not line.startswith("| what fails"):
            yield cells


def test_every_failure_names_what_happens_and_tests_that_inject_it() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests" / "runtime").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", written))
    found = list(rows())
    assert len(found) > 20
    for cells in found:
        assert len(cells) == 7, cells
        assert all(cells), cells
        names = re.findall(r"`(test_\w+)`", cells[-1])
        assert names, f"{cells[0]}: no test is named"
        assert set(names) <= there, f"{cells[0]}: no such test: {set(names) - there}"


def states(output: RecordingOutput) -> list[object]:
    """Return the states that an output was told, in their order."""
    return [call for call in output.calls if not isinstance(call, Signal)]


def broken() -> Frame:
    return Frame(None, SystemClock().mono_ns(), problem="incomplete_image", detail="12 packets are missing")


def give(line: Bench, *frames: Frame) -> None:
    """Hand over images one after the other, each when the one before it has its verdict."""
    for each in frames:
        line.station.frame("cam0", each)
        wait_until(lambda: line.station.counters.now().open == 0)


class TestIncompleteImages:
    def test_five_in_a_row_are_an_error(self, tmp_path: Path) -> None:
        with bench(tmp_path) as line:
            line.ready()
            give(line, *[broken() for _ in range(4)])
            assert line.station.readiness.is_ready
            give(line, broken())
            assert line.station.readiness.state == "error"
            assert "5 incomplete images in a row" in line.station.readiness.reason
            give(line, frame(50))
            last = line.settled(6)
            assert [last[seq].reason for seq in range(1, 7)] == ["incomplete_image"] * 5 + ["not_ready"]
            assert states(line.output) == ["starting", "ready", "error"]
            line.station.acknowledge("anna")
            give(line, *[broken() for _ in range(4)], frame(50))
            assert line.settled(11)[11].verdict == "accept"

    def test_a_whole_one_in_between_begins_anew(self, tmp_path: Path) -> None:
        with bench(tmp_path) as line:
            line.ready()
            for _ in range(3):
                give(line, *[broken() for _ in range(4)], frame(250))
            assert line.station.readiness.is_ready
            assert {record.verdict for record in line.settled(15).values()} == {"fault"}

    def test_each_view_counts_its_own(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"]) as line:
            line.ready()
            for number in range(8):
                good, bad = ("left", "right") if number % 2 else ("right", "left")
                line.station.frame(good, frame(50))
                line.station.frame(bad, broken())
                wait_until(lambda: line.station.counters.now().open == 0)
            assert line.station.readiness.is_ready
            line.settled(8)


class TestScene:
    def noise(self, seed: int, level: int = 50) -> Frame:
        image = grey(level)
        image[0, 0] = seed
        return Frame(image, SystemClock().mono_ns())

    def test_ten_faults_in_a_row_are_an_error(self, tmp_path: Path) -> None:
        scene = SceneCheck(SceneLimits(brightness=(20, 200), frozen="fault"))
        with bench(tmp_path, scene=scene) as line:
            line.ready()
            give(line, self.noise(1))
            # Dark ones, and then the same one again and again: both say that the camera sees no parts.
            give(line, *[self.noise(seed, 2) for seed in range(5)], *[self.noise(4, 2) for _ in range(4)])
            assert line.station.readiness.is_ready
            give(line, self.noise(99, 255))
            assert line.station.readiness.state == "error"
            assert "10 images in a row" in line.station.readiness.reason
            last = line.settled(11)
            reasons = [last[seq].reason for seq in range(1, 12)]
            assert reasons == [""] + ["scene"] * 5 + ["frozen"] * 4 + ["scene"]
            # What never came, or came broken, says nothing of the scene, and does not begin anew.
            line.station.acknowledge("anna")
            give(line, *[self.noise(seed, 2) for seed in range(9)], broken())
            assert line.station.readiness.is_ready
            give(line, self.noise(1, 3))
            assert line.station.readiness.state == "error"
            line.settled(22)

    def test_a_good_one_in_between_begins_anew(self, tmp_path: Path) -> None:
        with bench(tmp_path, scene=SceneCheck(SceneLimits(brightness=(20, 200), frozen="allow"))) as line:
            line.ready()
            for _ in range(2):
                give(line, *[frame(2) for _ in range(9)], frame(50))
            assert line.station.readiness.is_ready
            assert line.station.counters.now().accept == 2
            line.settled(20)


def late(line: Bench, count: int) -> None:
    """Let so many parts miss their deadline: they come with a time that was long ago."""
    for _ in range(count):
        line.station.frame("cam0", Frame(grey(50), 0))
        wait_until(lambda: line.station.counters.now().open == 0)


def test_more_than_one_missed_deadline_in_a_hundred_is_a_warning(tmp_path: Path) -> None:
    with bench(tmp_path, depth=8) as line:
        line.ready()
        late(line, 10)
        assert line.station.watch.warnings == ()
        late(line, 1)
        (warning,) = line.station.watch.warnings
        assert "11 of the last 11 parts missed their deadline" in warning
        assert line.station.readiness.is_ready
        for _ in range(1000 - 5):
            wait_until(lambda: line.station.counters.now().open < 8)
            line.station.push({"cam0": b"no image"})
        wait_until(lambda: line.station.counters.now().open == 0)
        assert line.station.watch.warnings == ()
        told = [action for action, _ in line.journal.events if action.startswith("deadlines_")]
        assert told == ["deadlines_missed", "deadlines_kept"]
        last = line.settled(1006)
        assert [last[seq].reason for seq in range(1, 12)] == ["deadline"] * 11


class TestCameraThatIsLost:
    def test_open_parts_are_faults_and_ready_falls_until_it_is_back(self, tmp_path: Path) -> None:
        with bench(tmp_path, is_triggered=True, deadline_ms=400, collect_ms=200, stands=True) as line:
            line.ready()
            for _ in range(2):
                line.station.trigger()
            line.station.source_down("cam0", "the camera does not answer")
            line.station.trigger()
            line.go(200)
            last = line.settled(3)
            assert [last[seq].reason for seq in (1, 2, 3)] == ["missing_view", "missing_view", "not_ready"]
            assert "does not answer" in last[3].detail
            assert states(line.output) == ["starting", "ready", "error"]
            line.station.source_up("cam0")
            line.station.trigger()
            line.image("cam0", 50, frame_id=1)
            assert line.settled(4)[4].verdict == "accept"
            assert states(line.output) == ["starting", "ready", "error", "ready"]


def test_a_plc_that_does_not_read_takes_ready_away(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        give(line, frame(50))
        line.station.plc_reads(False)
        assert line.station.readiness.state == "error"
        assert "does not read" in line.station.readiness.reason
        give(line, frame(50))
        line.station.plc_reads(True)
        give(line, frame(50))
        last = line.settled(3)
        assert [last[seq].reason for seq in (1, 2, 3)] == ["", "not_ready", ""]


def test_an_inspector_that_hangs_is_an_error_until_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STUCK_S", 0.05)
    with bench(tmp_path, deadline_ms=200, collect_ms=100, stands=True) as line:
        line.ready()
        line.inspector.gate.clear()
        line.image("cam0", 50)
        wait_until(lambda: line.inspector.sizes == [1])
        line.go(200)
        wait_until(lambda: line.station.counters.now().fault == 1)
        scoring = line.station._views["cam0"].measure.scoring
        wait_until(lambda: scoring.stuck_s() > 0.05)
        line.station.beat()
        assert line.station.readiness.state == "error"
        assert "inspector" in line.station.readiness.reason
        line.image("cam0", 50)
        line.inspector.gate.set()
        wait_until(lambda: line.station.counters.now().late == 1)
        wait_until(lambda: scoring.stuck_s() == 0)  # who scored it also said that it was late
        line.station.beat()
        line.image("cam0", 50)
        last = line.settled(3)
        assert [last[seq].reason for seq in (1, 2, 3)] == ["deadline", "not_ready", ""]


def test_a_score_that_is_no_number_is_a_fault(tmp_path: Path) -> None:
    from flawscope.runtime.results import Result

    with bench(tmp_path) as line:
        line.ready()
        for number in (np.nan, np.inf, -np.inf):
            line.inspector.rule = lambda image, number=number: Result("image", "accept", number, 100.0)
            give(line, frame(50))
        line.inspector.rule = lambda image: Result("image", "accept", 1.0, np.nan)
        give(line, frame(50))
        assert {record.reason for record in line.settled(4).values()} == {"inference"}


class GatedSink:
    """Takes entries when it may."""

    batch = 100

    def __init__(self) -> None:
        self.gate = threading.Event()

    def send(self, entries: object) -> None:
        self.gate.wait(WAIT_S)

    def close(self) -> None:
        self.gate.set()


@pytest.mark.parametrize("on_behind", ["warn", "stop"])
def test_a_required_sink_that_is_away_warns_or_stops_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_behind: str
) -> None:
    sink = GatedSink()
    monkeypatch.setattr(runner_module, "open_sink", lambda options, line: sink)
    read = read_line(tmp_path)
    options = JsonlSink(path=tmp_path / "parts", required=True, max_behind=20, on_behind=on_behind)  # type: ignore[arg-type]
    config = msgspec.structs.replace(read.config, sinks=(options,))
    line = Line(dataclasses.replace(read, config=config), lambda text: None)
    line.start()
    try:
        station = line.stations["top"]
        for count in range(1, 22):
            station.push({"cam0": png(50)})
            wait_until(lambda count=count: line.journal.last_seq == count)  # type: ignore[misc]
        line.turn()
        assert station.readiness.is_ready is (on_behind == "warn")
        seq = station.push({"cam0": png(50)})
        wait_until(lambda: line.journal.last_seq == seq)
        record = line.journal.part_of(seq)
        assert record is not None
        assert record.verdict == ("accept" if on_behind == "warn" else "fault")
        sink.gate.set()
        wait_until(lambda: line.status().sinks[0].behind == 0)
        line.turn()
        assert station.readiness.is_ready
        seq = station.push({"cam0": png(50)})
        wait_until(lambda: line.journal.last_seq == seq)
        assert line.journal.parts(after_seq=seq - 1)[0].verdict == "accept"
    finally:
        line.stop()
    assert line.status().account_holds


def test_a_wrong_account_stops_all_stations(tmp_path: Path) -> None:
    line = Line(read_line(tmp_path), lambda text: None)
    line.start()
    try:
        station = line.stations["top"]
        station.push({"cam0": png(50)})
        wait_until(lambda: line.journal.last_seq == 1)
        line.turn()
        assert station.readiness.is_ready
        # A part that was counted and has no number.
        station.counters.opened()
        for _ in range(3):
            line.turn()
        assert (station.readiness.state, line.status().account_holds) == ("error", False)
        seq = station.push({"cam0": png(50)})
        wait_until(lambda: line.journal.last_seq == seq)
        record = line.journal.part_of(seq)
        assert record is not None
        assert (record.verdict, record.reason) == ("fault", "not_ready")
        line.journal.flush()
        assert "account_wrong" in [entry.get("action") for entry in line.journal.entries(0, 100)]
        station.counters.settled("fault")
    finally:
        line.stop()
