"""The site's own parts at the start of a line, after a camera was away, at a time of day, and by hand."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path
from typing import Any

import pytest
from line_journals import SetClock
from line_project import png, read_line
from line_stand_ins import wait_until
from swapped_lines import events_of, running, step_of, swapped, swaps_of, top, verdict_of, write_bundle_at

from flawscope.runtime.line.line import Line
from flawscope.runtime.line.station.readiness import Readiness
from flawscope.runtime.line.swap import challenge, challenges, steps
from flawscope.runtime.line.swap.time_of_day import TimesOfDay


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return the folder of parts that the bundle of the line, which accepts up to 150, decides rightly."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    folder = tmp_path / "state" / "challenge" / "top"
    for name, value in (("must_accept/good.png", 120), ("must_reject/scratch.png", 180)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(png(value))
    return folder


class Gate:
    """Holds up each challenge before its first image, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.runs = threading.Event(), 0
        run = challenge.run_challenge

        def held(*arguments: Any) -> str:
            self.runs += 1
            assert self.is_open.wait(30)
            return run(*arguments)

        monkeypatch.setattr(challenges, "run_challenge", held)


def at(text: str) -> int:
    """Return a time in nanoseconds since 1970."""
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1e9)


def state_of(line: Line) -> str:
    return line.stations["top"].readiness.state


class TestAtTheStart:
    def test_ready_waits_for_it(self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate(monkeypatch)
        with running(tmp_path) as line:
            station = line.stations["top"]
            assert (state_of(line), line.has_begun) == ("starting", False)
            assert station.readiness.reason == "challenge at the start: the site's own parts come first"
            # Nobody can wave it through.
            station.acknowledge("eva")
            assert state_of(line) == "starting"
            seq = station.push({"cam0": png(120)})
            wait_until(lambda: line.journal.part_of(seq) is not None)
            assert (record := line.journal.part_of(seq)) is not None
            assert (record.verdict, record.reason) == ("fault", "not_ready")
            gate.is_open.set()
            assert verdict_of(line, 120).verdict == "accept"
            assert line.has_begun
            (last,) = line.status().stations[0].challenges
            assert (last.view, last.state, last.when) == ("cam0", "passed", "at the start")
        (event,) = events_of(tmp_path, "challenge_passed")
        assert (event["actor"], event["object"]) == ("line", "station top view cam0")
        assert event["reason"] == "at the start: 1 accepted and 1 rejected, as they must be"

    def test_one_that_fails_is_an_error_until_one_is_passed_or_acknowledged(self, tmp_path: Path, parts: Path) -> None:
        (parts / "must_reject" / "crack.png").write_bytes(png(130))
        with running(tmp_path) as line:
            station, swaps = line.stations["top"], swaps_of(line)
            wait_until(lambda: state_of(line) == "error")
            assert line.has_begun
            assert "challenge cam0: at the start: 1 of 3 parts: crack.png: expected reject" in station.readiness.reason
            # It fails again: still an error.
            swaps.challenge("top")
            wait_until(lambda: swaps.state("top")["state"] == "failed")
            assert state_of(line) == "error"
            (parts / "must_reject" / "crack.png").unlink()
            swaps.challenge("top")
            wait_until(lambda: station.readiness.is_ready)
            (parts / "must_reject" / "crack.png").write_bytes(png(130))
            swaps.challenge("top")
            wait_until(lambda: state_of(line) == "error")
            station.acknowledge("eva")
            assert verdict_of(line, 120).verdict == "accept"
        failed = events_of(tmp_path, "challenge_failed")
        assert [event["reason"].partition(":")[0] for event in failed] == ["at the start", "by hand", "by hand"]
        assert all("crack.png: expected reject, got accept" in event["reason"] for event in failed)

    def test_a_swap_whose_bundle_passes_mends_it(self, tmp_path: Path, parts: Path) -> None:
        (parts / "must_reject" / "crack.png").write_bytes(png(130))
        write_bundle_at(tmp_path / "other.flaw", 125.0)
        with running(tmp_path) as line:
            wait_until(lambda: state_of(line) == "error")
            assert swapped(line, swaps_of(line).add(tmp_path / "other.flaw"))["state"] == "done"
            assert verdict_of(line, 130).verdict == "reject"
            assert line.status().stations[0].challenges[0].when == "before its swap"

    def test_with_warn_the_station_goes_on(self, tmp_path: Path, parts: Path) -> None:
        (parts / "must_reject" / "crack.png").write_bytes(png(130))
        with running(tmp_path, challenge={"on_failure": "warn"}) as line:
            assert verdict_of(line, 120).verdict == "accept"
            (warning,) = line.status().stations[0].warnings
            assert warning.startswith("challenge of cam0 at the start failed: 1 of 3 parts: crack.png")
            (parts / "must_reject" / "crack.png").unlink()
            swaps_of(line).challenge("top")
            wait_until(lambda: not line.status().stations[0].warnings)

    def test_a_folder_that_is_named_and_not_there_is_no_challenge_that_was_passed(self, tmp_path: Path) -> None:
        write_bundle_at(tmp_path / "other.flaw", 100.0)
        with running(tmp_path, challenge={"folder": "drive/top"}) as line:
            wait_until(lambda: state_of(line) == "error")
            assert "expected the site's own parts in must_accept and must_reject, got none" in (
                line.stations["top"].readiness.reason
            )
            state = swapped(line, swaps_of(line).add(tmp_path / "other.flaw"))
            assert step_of(state, "challenge")["state"] == "failed"

    def test_only_where_it_is_asked_for(self, tmp_path: Path, parts: Path) -> None:
        (parts / "must_reject" / "crack.png").write_bytes(png(130))
        write_bundle_at(tmp_path / "other.flaw", 100.0)
        with running(tmp_path, challenge={"at": []}) as line:
            assert line.has_begun
            assert verdict_of(line, 120).verdict == "accept"
            state = swapped(line, swaps_of(line).add(tmp_path / "other.flaw"))
            assert step_of(state, "challenge")["state"] == "skipped"
        assert not events_of(tmp_path, "challenge_passed", "challenge_failed", "challenge_skipped")

    def test_thresholds_that_change_meanwhile_are_challenged(
        self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = Gate(monkeypatch)
        with running(tmp_path) as line:
            wait_until(lambda: gate.runs == 1)
            swaps_of(line).set_threshold("top", None, 100.0, "too strict", "eva", "engineer")
            gate.is_open.set()
            wait_until(lambda: state_of(line) == "error")
            assert gate.runs == 2
            assert "good.png: expected accept, got reject" in line.stations["top"].readiness.reason

    def test_a_stop_does_not_wait_for_it(self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate(monkeypatch)
        monkeypatch.setattr(challenges, "_HASTE_S", 60.0)
        with running(tmp_path) as line:
            # As if there always were images of others.
            line.stations["top"].measures["cam0"].scoring.idle_s = lambda: 0.0  # type: ignore[method-assign]
            gate.is_open.set()
        assert not line._is_wrong
        assert not line.swaps.challenges._thread.is_alive()
        assert not events_of(tmp_path, "challenge_passed", "challenge_failed")


class TestAfterACameraWasAway:
    @pytest.fixture(autouse=True)
    def _cameras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Images are pushed, as if by a camera.
        monkeypatch.setattr(challenges, "is_camera", lambda source: True)

    def test_it_is_not_ready_for_a_moment_before(
        self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = SetClock()
        with running(tmp_path) as line:
            station = top(line)
            station.readiness._mono_ns = clock.mono_ns
            gate = Gate(monkeypatch)
            station.source_down("cam0", "the camera does not answer")
            clock.now_ns += 60 * 10**9
            station.source_up("cam0")
            # Not longer than a minute.
            assert station.readiness.is_ready
            station.source_down("cam0", "the camera does not answer")
            clock.now_ns += 30 * 10**9
            station.source_down("cam0", "refused")
            clock.now_ns += 31 * 10**9
            assert state_of(line) == "error"
            station.source_up("cam0")
            assert state_of(line) == "starting"
            assert station.readiness.reason.startswith("challenge after cam0 was away")
            gate.is_open.set()
            assert verdict_of(line, 120).verdict == "accept"
            assert gate.runs == 1
        changes = [(event["old"], event["new"]) for event in events_of(tmp_path, "state")]
        assert changes[-4:] == [("ready", "error"), ("error", "starting"), ("starting", "ready"), ("ready", "stopped")]
        assert events_of(tmp_path, "challenge_passed")[-1]["reason"].startswith("after cam0 was away: ")

    def test_one_that_fails_stops_it(self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(challenges, "_AWAY_S", 0.0)
        with running(tmp_path) as line:
            station = top(line)
            (parts / "must_accept" / "good.png").write_bytes(png(160))
            station.source_down("cam0", "the camera does not answer")
            station.source_up("cam0")
            wait_until(lambda: bool(station.readiness.against("challenge cam0")))
            assert "after cam0 was away: 1 of 2 parts: good.png" in station.readiness.reason


def test_a_folder_that_was_away_needs_none(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenges, "_AWAY_S", 0.0)
    with running(tmp_path) as line:
        station = top(line)
        station.source_down("cam0", "the drive is gone")
        station.source_up("cam0")
        assert station.readiness.is_ready


class TestAtATimeOfDay:
    def test_it_comes_between_parts_and_the_station_stays_ready(
        self, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(challenges, "_QUIET_S", 0.01)
        clock = SetClock()
        read = read_line(tmp_path, challenge={"at": ["06:00"]})
        with running(tmp_path, read=read) as line:
            station, swaps = top(line), swaps_of(line)
            assert line.has_begun
            swaps._services.__dict__["clock"] = clock
            swaps.challenges._times = TimesOfDay("UTC", clock.utc_ns())
            gate = Gate(monkeypatch)
            gate.is_open.set()
            # A part whose bundle hangs: the images of the challenge wait for it.
            scoring, go_on = station.measures["cam0"].scoring, threading.Event()
            score = scoring._inspector.score  # type: ignore[attr-defined]
            is_first = [True]

            def slow(*arguments: Any) -> Any:
                if is_first.pop() if is_first else False:
                    assert go_on.wait(30)
                return score(*arguments)

            scoring._inspector.score = slow  # type: ignore[method-assign]
            seq = station.push({"cam0": png(120)})
            images = scoring.images
            clock.wall_ns += 24 * 3600 * 10**9
            line.turn()
            wait_until(lambda: gate.runs == 1)
            assert station.readiness.is_ready
            assert scoring.images == images
            go_on.set()
            wait_until(lambda: len(line.status().stations[0].challenges) == 1)
            assert station.readiness.is_ready
            assert scoring.images == images + 3
            wait_until(lambda: line.journal.part_of(seq) is not None)
            assert (record := line.journal.part_of(seq)) is not None
            assert record.verdict == "accept"
        (event,) = events_of(tmp_path, "challenge_passed")
        assert event["reason"].startswith("at 06:00: ")

    def test_each_day_once_whatever_the_clock_does(self) -> None:
        times = TimesOfDay("UTC", at("2026-11-30T05:59:59+00:00"))
        wanted = ("06:00", "18:30")
        assert times.come(wanted, at("2026-11-30T05:59:59.900+00:00")) == ()
        assert times.come(wanted, at("2026-11-30T06:00:00+00:00")) == ("06:00",)
        assert times.come(wanted, at("2026-11-30T06:00:01+00:00")) == ()
        # Suspended overnight, or set by a server: what came meanwhile comes once.
        assert times.come(wanted, at("2026-12-03T07:00:00+00:00")) == wanted
        assert times.come(wanted, at("2026-12-03T05:00:00+00:00")) == ()
        assert times.come(wanted, at("2026-12-03T06:00:00.100+00:00")) == ("06:00",)
        # Midnight lies between the last look and this one.
        assert times.come(("23:59",), at("2026-12-04T00:00:01+00:00")) == ("23:59",)

    def test_summer_time(self) -> None:
        pytest.importorskip("zoneinfo").ZoneInfo("Europe/Berlin")
        # At 01:00 UTC 02:00 becomes 03:00 and there is no 02:30; in autumn 03:00 becomes 02:00, and there are two.
        for day, first in (("2026-03-29", "01:30"), ("2026-10-25", "00:30")):
            start = at(f"{day}T00:00:00+00:00")
            times = TimesOfDay("Europe/Berlin", start)
            minutes = [step for step in range(1, 600) if times.come(("02:30",), start + step * 60 * 10**9)]
            assert [start + step * 60 * 10**9 for step in minutes] == [at(f"{day}T{first}:00+00:00")]


class TestReadiness:
    def test_a_cause_that_is_lifted_and_one_that_comes_in_its_place(self) -> None:
        states: list[str] = []
        readiness = Readiness(lambda before, now, reason: states.append(now))
        readiness.set_phase(None)
        readiness.forbid("challenge cam0", "wrong", hold=True)
        readiness.allow("challenge cam0")
        assert readiness.state == "error"
        readiness.lift("challenge cam0")
        readiness.lift("challenge cam0")
        assert readiness.is_ready
        readiness.going = lambda cause, lasted_s: readiness.begin("challenge", "first") if cause == "source" else None
        readiness.forbid("source", "gone")
        readiness.allow("source")
        assert states == ["ready", "error", "ready", "error", "starting"]


class TestTheWayBack:
    def test_to_a_bundle_that_failed_its_challenge_is_an_error_again(self, tmp_path: Path, parts: Path) -> None:
        (parts / "must_reject" / "crack.png").write_bytes(png(130))
        write_bundle_at(tmp_path / "other.flaw", 125.0)
        with running(tmp_path) as line:
            wait_until(lambda: state_of(line) == "error")
            assert swapped(line, swaps_of(line).add(tmp_path / "other.flaw"))["state"] == "done"
            assert verdict_of(line, 130).verdict == "reject"
            swaps_of(line).rollback("top", "eva")
            assert state_of(line) == "error"
            station = line.stations["top"]
            assert "challenge cam0: at the start: 1 of 3 parts: crack.png" in station.readiness.reason
            seq = station.push({"cam0": png(130)})
            wait_until(lambda: line.journal.part_of(seq) is not None)
            assert (record := line.journal.part_of(seq)) is not None
            assert (record.verdict, record.reason) == ("fault", "not_ready")
            station.acknowledge("eva")
            assert verdict_of(line, 120).verdict == "accept"


def test_one_by_hand_begins_anew_with_thresholds_that_come_meanwhile(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, is_held, go_on = challenge.run_challenge, threading.Event(), threading.Event()

    def held(*arguments: Any) -> str:
        found = run(*arguments)
        is_held.set()
        assert go_on.wait(30)
        return found

    with running(tmp_path, challenge={"at": []}) as line:
        station, swaps = top(line), swaps_of(line)
        monkeypatch.setattr(steps, "run_challenge", held)
        swaps.challenge("top")
        assert is_held.wait(30)
        # The good part of the challenge has 120.
        swaps.set_threshold("top", None, 110.0, "for a test")
        go_on.set()
        wait_until(lambda: swaps.state("top")["state"] != "running")
        assert swaps.state("top")["state"] == "failed"
        assert "good.png: expected accept, got reject" in station.readiness.reason
