"""The watch of a line's views: it learns, warns, names parts, outlives restarts, and changes no verdict."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from line_project import PUSH, read_line
from line_stand_ins import WAIT_S, MemoryJournal, wait_until
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.drift.calibrated import CalibratedScores
from flawscope.runtime.line.drift.monitor import DriftMonitor
from flawscope.runtime.line.drift.seen import Seen, seen_of
from flawscope.runtime.line.drift.state import ViewDrift
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.line_config import DriftOptions
from flawscope.runtime.line.metrics import LineMetrics
from flawscope.runtime.line.parts import ViewRecord

OPTIONS = DriftOptions(window=20, reference=50, false_alarms=5.0, bins=5)
BUNDLE = "ab" * 32


@pytest.fixture
def journal() -> Iterator[MemoryJournal]:
    made = MemoryJournal()
    yield made
    made.close()


def monitor_of(folder: Path, journal: MemoryJournal) -> DriftMonitor:
    monitor = DriftMonitor({("top", "cam0"): OPTIONS}, folder, journal, SystemClock())
    monitor.start()
    return monitor


def image(seq: int, value: float, *, generation: int = 1, bundle: str = BUNDLE, is_accepted: bool = True) -> Seen:
    values = {"sharpness": value, "rejected": float(not is_accepted)}
    if is_accepted:
        values["score"] = value
    return Seen(seq, "top", "cam0", generation, bundle, 0, f"{seq}.png", is_accepted, values)


def feed(monitor: DriftMonitor, mean: float, count: int, first: int, seed: int = 0, **more: Any) -> None:
    for seq, value in enumerate(np.random.default_rng(seed).normal(mean, 1.0, count).tolist(), first):
        monitor.seen(image(seq, value, **more))


def drained(monitor: DriftMonitor) -> ViewDrift:
    wait_until(monitor._queue.empty)
    done = threading.Event()
    monitor._queue.put(done.set)
    assert done.wait(WAIT_S)
    (state,) = monitor.state()
    return state


class TestWatch:
    def test_it_learns_and_then_watches(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            assert [(one.state, one.learned) for one in monitor.state()] == [("learning", 0)]
            feed(monitor, 10.0, 30, 1)
            state = drained(monitor)
            assert (state.state, state.learned, state.reference, state.bundle) == ("learning", 30, 50, BUNDLE)
            feed(monitor, 10.0, 60, 31, seed=1)
            state = drained(monitor)
            assert (state.state, state.warnings) == ("watching", ())
            assert {one.name for one in state.quantities} == {"score", "sharpness", "rejected"}
            assert not journal.events
        finally:
            monitor.stop()

    def test_a_heavy_drift_is_an_event_within_a_window_and_over_afterwards(
        self, tmp_path: Path, journal: MemoryJournal
    ) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 80, 1)
            feed(monitor, 15.0, OPTIONS.window, 81, seed=1)
            state = drained(monitor)
            assert state.state == "drift"
            assert len(state.warnings) == 2
            assert state.warnings[0].startswith("cam0: drift of score: mean 10")
            (action, fields), _ = journal.events
            assert (action, fields["object"], fields["old"]) == ("drift", "station top", "view cam0")
            told = msgspec.json.decode(fields["new"])
            assert (told["name"], told["is_drifting"]) == ("score", True)
            assert told["psi"] > told["psi_limit"] or told["rank"] > told["rank_limit"]
            assert set(told["moved"]) <= set(range(81, 101))
            assert f"farthest off: parts {told['moved'][0]}" in fields["reason"]
            feed(monitor, 10.0, 80, 101, seed=2)
            assert drained(monitor).state == "watching"
            assert [action for action, _ in journal.events] == ["drift"] * 2 + ["drift_over"] * 2
        finally:
            monitor.stop()

    def test_a_line_that_rejects_everything_is_found_although_nothing_is_accepted(
        self, tmp_path: Path, journal: MemoryJournal
    ) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 80, 1)
            feed(monitor, 10.0, OPTIONS.window, 81, seed=1, is_accepted=False)
            drifting = [one.name for one in drained(monitor).quantities if one.is_drifting]
            assert drifting == ["rejected"]
        finally:
            monitor.stop()

    def test_another_bundle_has_a_reference_of_its_own(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 80, 1)
            feed(monitor, 50.0, 10, 81, bundle="cd" * 32, generation=2)
            # One that was open while the bundle was exchanged belongs to neither.
            feed(monitor, 10.0, 1, 91)
            state = drained(monitor)
            assert (state.state, state.learned, state.bundle) == ("learning", 10, "cd" * 32)
            # The other view of a station may have been exchanged: this one goes on.
            feed(monitor, 50.0, 10, 92, bundle="cd" * 32, generation=3)
            assert drained(monitor).learned == 20
            assert not journal.events
        finally:
            monitor.stop()


class TestCalibration:
    """A bundle that holds the scores of its calibration: no part of the line has to be learned for it."""

    def test_scores_that_are_not_those_of_the_calibration_are_found_while_it_learns(
        self, tmp_path: Path, journal: MemoryJournal
    ) -> None:
        asked = []

        def calibrated(*names: str) -> list[float]:
            asked.append(names)
            return np.random.default_rng(9).normal(10.0, 1.0, 80).tolist()

        monitor = DriftMonitor({("top", "cam0"): OPTIONS}, tmp_path, journal, SystemClock(), calibrated)
        monitor.start()
        try:
            feed(monitor, 10.0, 20, 1)
            assert drained(monitor).warnings == ()
            feed(monitor, 14.0, 20, 21, seed=1)
            state = drained(monitor)
            assert (state.learned, [one.name for one in state.quantities if one.is_drifting]) == (
                40,
                ["score_calibrated"],
            )
            assert asked == [("top", "cam0", BUNDLE)]
        finally:
            monitor.stop()
        # Of the bundle, and not of the line: it is not stored with its reference.
        assert "score_calibrated" not in msgspec.json.decode((tmp_path / "drift/top/cam0.json").read_bytes())["values"]

    def test_too_few_scores_are_not_used(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = DriftMonitor({("top", "cam0"): OPTIONS}, tmp_path, journal, SystemClock(), lambda *names: [1.0] * 49)
        monitor.start()
        try:
            feed(monitor, 14.0, 45, 1)
            assert drained(monitor).quantities == ()
        finally:
            monitor.stop()

    def test_they_are_those_of_the_bundle_up_to_its_threshold(self, tmp_path: Path) -> None:
        normal = tuple(float(score) for score in range(100, 200))
        thresholds = msgspec.structs.replace(tiny_thresholds(150.0), normal=normal)
        write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=thresholds)
        read = read_line(tmp_path)
        line = Line(read, lambda text: None)
        line.start()
        try:
            measure = line.stations["top"].views["cam0"].measure
            scores = CalibratedScores(read.config, line.stations)
            assert scores("top", "cam0", measure.bundle) == normal[:51]
            assert scores("top", "cam0", "ab" * 32) == scores("other", "cam0", measure.bundle) == ()
        finally:
            line.stop()


class TestReference:
    def test_it_outlives_a_restart(self, tmp_path: Path, journal: MemoryJournal) -> None:
        for first in (1, 26):  # half of it in each life
            monitor = monitor_of(tmp_path, journal)
            feed(monitor, 10.0, 25, first, seed=first)
            monitor.stop()
        monitor = monitor_of(tmp_path, journal)
        try:
            # Were it learned anew, this would be the new normal.
            feed(monitor, 15.0, OPTIONS.window, 51)
            assert drained(monitor).state == "drift"
        finally:
            monitor.stop()

    def test_a_whole_one_is_on_the_disk_at_once(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 50, 1)
            drained(monitor)
            assert len(msgspec.json.decode((tmp_path / "drift/top/cam0.json").read_bytes())["values"]["score"]) == 50
        finally:
            monitor.stop()

    @pytest.mark.parametrize("data", [b"{", b'{"bundle": 1}', b"\xff"])
    def test_a_broken_one_is_learned_anew_and_that_is_on_record(
        self, tmp_path: Path, journal: MemoryJournal, data: bytes
    ) -> None:
        path = tmp_path / "drift" / "top" / "cam0.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 1, 1)
            assert drained(monitor).learned == 1
            ((action, fields),) = journal.events
            assert action == "drift_relearned"
            assert "could not be read" in fields["reason"]
        finally:
            monitor.stop()

    def test_somebody_says_that_this_is_normal_now(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 80, 1)
            feed(monitor, 15.0, 20, 81)
            assert drained(monitor).state == "drift"
            assert monitor.relearn("top", "cam0", "anna", "engineer")
            assert not monitor.relearn("top", "cam9", "anna")
            state = drained(monitor)
            assert (state.state, state.learned, state.warnings) == ("learning", 0, ())
            action, fields = journal.events[-1]
            assert (action, fields["actor"], fields["role"]) == ("drift_relearned", "anna", "engineer")
            feed(monitor, 15.0, 90, 101, seed=1)
            assert drained(monitor).state == "watching"
        finally:
            monitor.stop()

    def test_a_disk_that_refuses_it_stops_nothing(self, tmp_path: Path, journal: MemoryJournal) -> None:
        (tmp_path / "drift").write_text("a file where the folder should be")
        monitor = monitor_of(tmp_path, journal)
        try:
            feed(monitor, 10.0, 80, 1)
            assert drained(monitor).state == "watching"
        finally:
            monitor.stop()


class TestNobodyWaits:
    def test_what_does_not_fit_is_left_out_and_counted(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        gate = threading.Event()
        try:
            monitor._queue.put(functools.partial(_wait, gate))
            wait_until(monitor._queue.empty)
            for seq in range(1, 5001):
                monitor.seen(image(seq, 1.0))
            assert monitor.missed == 5000 - 4096
        finally:
            gate.set()
            monitor.stop()
        assert monitor.state()[0].learned == 50

    def test_a_view_that_is_not_watched(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        monitor.seen(Seen(1, "top", "other", 1, BUNDLE, 0, "", True, {"score": 1.0}))
        assert drained(monitor).learned == 0
        monitor.stop()

    def test_a_mistake_costs_one_image(self, tmp_path: Path, journal: MemoryJournal) -> None:
        monitor = monitor_of(tmp_path, journal)
        try:
            monitor._queue.put(_mistake)
            feed(monitor, 10.0, 3, 1)
            assert drained(monitor).learned == 3
        finally:
            monitor.stop()


def _wait(gate: threading.Event) -> None:
    gate.wait(WAIT_S)


def _mistake() -> None:
    raise KeyError("missing")


def test_what_is_told_of_an_image() -> None:
    record = ViewRecord("cam0", "accept", score=2.0, threshold=3.0, threshold_revision=4, bundle=BUNDLE, source="a.png")
    anomaly_map = np.arange(1000 * 1000, dtype=np.float32).reshape(1000, 1000)
    told = seen_of(7, "top", 2, record, {"sharpness": 5.0}, anomaly_map)
    assert told is not None
    assert (told.seq, told.generation, told.revision, told.source) == (7, 2, 4, "a.png")
    # Of a large map a part is looked at.
    assert told.values.pop("map_mean") == pytest.approx(float(anomaly_map.mean()), rel=0.01)  # type: ignore[attr-defined]
    assert told.values == {"score": 2.0, "rejected": 0.0, "sharpness": 5.0}
    rejected = seen_of(7, "top", 2, msgspec.structs.replace(record, verdict="reject"), {}, anomaly_map)
    assert rejected is not None
    # Rejected images are no normal ones: their scores are not compared.
    assert rejected.values == {"rejected": 1.0}
    assert seen_of(7, "top", 2, ViewRecord("cam0", "fault", "inference"), {}, None) is None
    assert seen_of(7, "top", 2, msgspec.structs.replace(record, score=float("nan")), {}, None) is None


def scene(mean: float, seed: int) -> bytes:
    """Return a PNG file of a scene: noise around a brightness that differs a little from image to image."""
    random = np.random.default_rng(seed)
    pixels = random.normal(mean + random.normal(0.0, 0.5), 3.0, (64, 64, 3))
    return cv2.imencode(".png", np.clip(np.rint(pixels), 0, 255).astype(np.uint8))[1].tobytes()


@pytest.mark.long
def test_a_drift_of_one_percent_is_a_warning_and_no_verdict_changes(tmp_path: Path) -> None:
    view = {
        "name": "cam0",
        "source": dict(PUSH),
        "bundle": "tiny.flaw",
        "backend": "cpu",
        "threads": 1,
        "scene": {"brightness": [60, 140]},
        "drift": {"window": 40, "reference": 60, "false_alarms": 5.0},
    }
    line = Line(read_line(tmp_path, views=[view], depth=1024, deadline_ms=60000), lambda text: None)
    line.start()
    try:
        station = line.stations["top"]

        def show(mean: float, count: int) -> None:
            first = line.journal.last_seq
            for number in range(first, first + count):
                station.push({"cam0": scene(mean, number)})
            wait_until(lambda: station.counters.now().accept + station.counters.now().fault == first + count)
            wait_until(lambda: station.counters.now().unrecorded == 0)

        show(100.0, 100)
        assert line.status().drift[0].state == "watching"
        show(101.0, 60)
        wait_until(lambda: line.status().drift[0].state == "drift")
        warnings = line.status().stations[0].warnings
        assert any("brightness_p50" in warning for warning in warnings)
        metrics = {family.name: family for family in LineMetrics(line, tmp_path).collect()}
        drifting = {sample.labels["quantity"] for sample in metrics["flawscope_drift"].samples if sample.value}
        assert "brightness_p50" in drifting
        # A warning, and nothing else: the station is ready, and the parts are judged by themselves.
        assert (station.readiness.state, station.counters.now().accept) == ("ready", 160)
        line.journal.flush()
        actions = [entry["action"] for entry in line.journal.entries(0, 1000) if entry["kind"] == "event"]
        assert "drift" in actions
        assert {part.verdict for part in line.journal.parts(limit=1000)} == {"accept"}
    finally:
        line.stop()
    assert line.status().account_holds
