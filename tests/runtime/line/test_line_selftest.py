"""The self-test: a golden image is scored while the line is idle; one with another score stops what decides by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from line_project import png, read_line
from line_stand_ins import WAIT_S, RuleInspector, grey, wait_until
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.errors import BundleError, DeviceError
from flawscope.runtime import Inspector
from flawscope.runtime.line import selftest as selftest_module
from flawscope.runtime.line.config_file import ReadConfig
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.metrics import LineMetrics
from flawscope.runtime.line.selftest import golden_check
from flawscope.runtime.shared_scoring import SharedScoring

FAR = 3600 * 10**9


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(selftest_module, "_QUIET_S", 0.02)
    read = read_line(tmp_path)
    config = msgspec.structs.replace(read.config, selftest_s=0.05)
    started = Line(ReadConfig(config, read.path, read.sha256), lambda text: None)
    started.start()
    yield started
    started.stop()
    assert started.status().account_holds


def wrong_from_now_on(line: Line, patch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """Let the inspector compute something else, or fail."""
    inspector: Any = line.stations["top"].views["cam0"].measure.scoring._inspector
    scorer = inspector._inspector.scorer
    right = scorer.score

    def wrong(images: Any) -> Any:
        if error is not None:
            raise error
        maps, scores = right(images)
        return maps, scores * np.float32(0.9)

    patch.setattr(scorer, "score", wrong)


def events(line: Line, *actions: str) -> list[dict[str, Any]]:
    line.journal.flush()
    entries = line.journal.entries(0, 1000)
    return [entry for entry in entries if entry["kind"] == "event" and entry["action"] in actions]


def push(line: Line, value: int = 50) -> tuple[str, str]:
    """Push an image and return verdict and reason of its part."""
    seq = line.stations["top"].push({"cam0": png(value)})
    wait_until(lambda: line.journal.part_of(seq) is not None)
    part = line.journal.part_of(seq)
    assert part is not None
    return part.verdict, part.reason


class TestOfALine:
    def test_one_that_holds_again_and_again(self, line: Line) -> None:
        (first,) = line.status().selftests
        assert first.bundle == line.stations["top"].views["cam0"].measure.bundle
        assert first.problem == ""
        tested = next(iter(line._selftest._tested.values()))  # type: ignore[union-attr]
        good_at = tested.good_at
        wait_until(lambda: tested.number >= 3 and tested.good_at > good_at)
        assert line.status().selftests[0].age_s < WAIT_S
        assert line.is_sound(WAIT_S)
        assert push(line) == ("accept", "")
        metrics = {family.name: family for family in LineMetrics(line, Path()).collect()}
        (age,) = metrics["flawscope_selftest_age_seconds"].samples
        assert age.labels == {"bundle": first.bundle}
        assert 0 <= age.value < WAIT_S
        assert not events(line, "selftest_failed", "selftest_passed")

    def test_another_score_is_a_fault_until_it_is_right_and_acknowledged(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(selftest_module, "_AGAIN_S", 0.05)
        station = line.stations["top"]
        assert push(line) == ("accept", "")
        with monkeypatch.context() as patch:
            wrong_from_now_on(line, patch)
            wait_until(lambda: station.readiness.state == "error")
            assert "expected score 200 as at export, got 180" in station.readiness.reason
            assert not line.is_sound(WAIT_S)
            assert push(line) == ("fault", "not_ready")
            # Whoever acknowledges it has not mended it.
            station.acknowledge("anna")
            assert station.readiness.state == "error"
            assert push(line) == ("fault", "not_ready")
            wait_until(lambda: bool(station.readiness.against("self-test")))
            (failed,) = events(line, "selftest_failed")
            assert failed["object"] == f"bundle {station.views['cam0'].measure.bundle}"
            assert "golden image" in failed["reason"]
            assert "expected score 200" in line.status().selftests[0].problem
        wait_until(lambda: not line.status().selftests[0].problem)
        wait_until(lambda: bool(events(line, "selftest_passed")))
        assert line.is_sound(WAIT_S)
        # It was acknowledged before it was mended, which does not count: parts wait for somebody.
        assert push(line) == ("fault", "not_ready")
        station.acknowledge("anna")
        assert station.readiness.state == "ready"
        assert push(line) == ("accept", "")

    def test_a_device_that_fails_it(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        station = line.stations["top"]
        wrong_from_now_on(line, monkeypatch, DeviceError("the GPU fell off the bus"))
        wait_until(lambda: station.readiness.state == "error")
        assert "fell off the bus" in station.readiness.reason
        assert push(line) == ("fault", "not_ready")
        assert events(line, "selftest_failed")

    def test_an_image_that_cannot_be_read_any_more(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        station = line.stations["top"]

        def broken(data: bytes, name: str) -> Any:
            raise BundleError("the golden image is broken")

        monkeypatch.setattr(selftest_module, "decode_image", broken)
        wait_until(lambda: station.readiness.state == "error")
        assert "the golden image is broken" in station.readiness.reason

    def test_a_bundle_that_nobody_uses_any_more_stops_nobody(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(selftest_module, "_AGAIN_S", 0.05)
        view = line.stations["top"].views["cam0"]
        before = view.measure
        scoring = SharedScoring(RuleInspector(), "another")
        try:
            with monkeypatch.context() as patch:
                wrong_from_now_on(line, patch)
                wait_until(lambda: line.stations["top"].readiness.state == "error")
                view.measure = type(before)(scoring, "cd" * 32, None, golden=lambda number: lambda: None)
                wait_until(lambda: [one.bundle for one in line.status().selftests] == ["cd" * 32])
            wait_until(lambda: not line.stations["top"].readiness.against("golden image"))
            line.stations["top"].acknowledge("anna")
            assert line.stations["top"].readiness.state == "ready"
            assert line._selftest is not None
            assert line._selftest.is_good
        finally:
            view.measure = before
            scoring.close()

    def test_a_bundle_that_failed_and_comes_back_has_failed(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        station = line.stations["top"]
        view = station.views["cam0"]
        before = view.measure
        scoring = SharedScoring(RuleInspector(), "another")
        try:
            wrong_from_now_on(line, monkeypatch)
            wait_until(lambda: station.readiness.state == "error")
            view.measure = type(before)(scoring, "cd" * 32, None, golden=lambda number: lambda: None)
            wait_until(lambda: [one.bundle for one in line.status().selftests] == ["cd" * 32])
            wait_until(lambda: not station.readiness.against("golden image"))
            station.acknowledge("anna")
            assert station.readiness.state == "ready"
            # From now on no test of it ends.
            before.scoring.submit_last = lambda *arguments: Future()  # type: ignore[method-assign]
            view.measure = before
            wait_until(lambda: station.readiness.state == "error")
            assert "expected score 200" in station.readiness.reason
        finally:
            view.measure = before
            scoring.close()


class TestOfABundle:
    def test_every_golden_image_has_its_turn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
        with Inspector.load(tmp_path / "tiny.flaw", "cpu") as inspector:
            golden = inspector.manifest.golden
            read: list[str] = []
            real = inspector.bundle.read
            monkeypatch.setattr(type(inspector.bundle), "read", lambda self, name: read.append(name) or real(name))
            for number in range(2 * len(golden)):
                golden_check(inspector, number)()
            assert read == [entry.file for entry in golden] * 2

    @pytest.mark.parametrize("score", [float("nan"), 200.0 * 1.01])
    def test_what_is_not_the_stored_score(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float) -> None:
        write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
        with Inspector.load(tmp_path / "tiny.flaw", "cpu") as inspector:
            check = golden_check(inspector, 0)
            check()
            maps = np.full((1, 16, 16), 200, np.float32)
            monkeypatch.setattr(inspector.scorer, "score", lambda images: (maps, np.float32([score])))
            with pytest.raises(BundleError, match="expected score 200"):
                check()


class TestItsPlaceInTheQueue:
    @pytest.fixture
    def inspector(self) -> RuleInspector:
        return RuleInspector()

    @pytest.fixture
    def scoring(self, inspector: RuleInspector) -> Iterator[SharedScoring]:
        shared = SharedScoring(inspector, "test")
        yield shared
        inspector.gate.set()
        assert shared.close()

    def test_every_image_that_waits_comes_before_it(self, inspector: RuleInspector, scoring: SharedScoring) -> None:
        inspector.gate.clear()
        done: list[str] = []
        now = time.monotonic_ns()
        scoring.submit(grey(1), now + FAR)
        wait_until(lambda: len(inspector.sizes) == 1)
        assert scoring.idle_s() == 0
        last = scoring.submit_last(lambda: done.append("call"))
        for value in range(3):
            scoring.submit(grey(value), now + FAR + value).add_done_callback(lambda future: done.append("image"))
        inspector.gate.set()
        assert last.result(WAIT_S) is None
        assert done == ["image"] * 3 + ["call"]
        wait_until(lambda: scoring.idle_s() > 0)

    def test_where_an_image_always_waits_its_time_comes(self, inspector: RuleInspector, scoring: SharedScoring) -> None:
        inspector.gate.clear()
        done: list[str] = []
        now = time.monotonic_ns()
        scoring.submit(grey(1), now + FAR)
        wait_until(lambda: len(inspector.sizes) == 1)
        # Over already when it comes to its turn, and not thrown out as images are.
        called = scoring.submit_last(lambda: done.append("call"), now)
        scoring.submit(grey(2), now + FAR).add_done_callback(lambda future: done.append("image"))
        late = scoring.submit(grey(3), now)
        inspector.gate.set()
        assert called.result(WAIT_S) is None
        wait_until(lambda: len(done) == 2)
        assert done == ["call", "image"]
        assert "its deadline passed" in (late.result(WAIT_S).reason or "")

    def test_a_line_that_is_never_idle_is_tested_too(self, line: Line) -> None:
        scoring: Any = line.stations["top"].views["cam0"].measure.scoring
        stop, score = threading.Event(), scoring._inspector.score
        scoring._inspector.score = lambda *arguments: time.sleep(0.005) or score(*arguments)

        def feed() -> None:
            waiting = [scoring.submit(grey(1), time.monotonic_ns() + 10**9) for _ in range(40)]
            while not stop.is_set():
                waiting.append(scoring.submit(grey(1), time.monotonic_ns() + 10**9))
                waiting.pop(0).result(WAIT_S)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            tested = next(iter(line._selftest._tested.values()))  # type: ignore[union-attr]
            number, good_at = tested.number, tested.good_at
            wait_until(lambda: tested.number >= number + 2 and tested.good_at > good_at, 10.0)
        finally:
            stop.set()
            feeder.join()

    def test_what_it_raises_is_told_and_ends_nothing(self, scoring: SharedScoring) -> None:
        def fails() -> None:
            raise BundleError("another score")

        assert isinstance(scoring.submit_last(fails).exception(WAIT_S), BundleError)
        assert scoring.submit(grey(50), time.monotonic_ns() + FAR).result(WAIT_S).decision == "accept"

    def test_after_the_end_it_is_not_called(self, inspector: RuleInspector) -> None:
        scoring = SharedScoring(inspector, "test")
        assert scoring.close()
        called = threading.Event()
        assert scoring.submit_last(called.set).result(WAIT_S) is not None
        assert not called.is_set()
