"""Images that are late or lost never decide on another part."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from line_stand_ins import WAIT_S, Bench, bench, frame, wait_until

from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.alignment import Alignment
from flawscope.runtime.line.station.part_in_work import PartInWork


@given(offset=st.integers(-(10**6), 10**6), start=st.integers(1, 2**40), steps=st.lists(st.integers(1, 3), max_size=20))
def test_cameras_that_keep_their_distance_are_aligned(offset: int, start: int, steps: list[int]) -> None:
    alignment = Alignment()
    number = start + 10**6
    for step in [0, *steps]:
        number += step
        assert alignment.problem(None, {"left": number, "right": number + offset}) == ""
    assert "Acknowledge" in alignment.problem(None, {"left": number, "right": number + offset + 1})
    # What was learned stays until somebody says that the belt is empty.
    assert "Acknowledge" in alignment.problem(None, {"left": number, "right": number + offset + 1})
    alignment.forget(["left", "right"])
    assert alignment.problem(None, {"left": number, "right": number + offset + 1}) == ""


def test_cameras_that_begin_again_with_1_are_aligned() -> None:
    alignment = Alignment()
    # GigE Vision 1 leaves 0 out: 1 follows 65535.
    left, right = 65530, 3
    for _ in range(70000):
        assert alignment.problem(None, {"left": left, "right": right}) == ""
        left, right = left % 65535 + 1, right % 65535 + 1


def test_images_without_numbers_say_nothing() -> None:
    alignment = Alignment()
    assert alignment.problem(None, {"left": None, "right": 7}) == ""
    assert alignment.problem(1, {"left": None}) == ""
    assert alignment.problem(None, {"only": 7}) == ""
    assert alignment.problem(None, {}) == ""


def test_an_image_that_comes_after_the_next_trigger_decides_on_no_part(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, collect_ms=200, stands=True) as line:
        line.ready()
        line.station.trigger("first")
        line.image("cam0", 50, frame_id=1)
        line.settled(1)
        line.station.trigger("late")
        line.go(200)
        wait_until(lambda: 2 in line.last())
        assert line.last()[2].reason == "missing_view"
        third = line.station.trigger("third")
        # Of the second part, and it looks good; that of the third does not.
        line.image("cam0", 50, frame_id=2)
        wait_until(lambda: third in line.last())
        line.image("cam0", 150, frame_id=3)
        last = line.settled(4)
        assert (last[third].verdict, last[third].reason) == ("fault", "unexpected_image")
        assert last[4].reason == "unexpected_image"
        # Then they are in step again, by themselves.
        fifth = line.station.trigger("fifth")
        line.image("cam0", 150, frame_id=4)
        assert line.settled(5)[fifth].verdict == "reject"


def test_an_image_that_is_lost_costs_its_own_part_alone(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, collect_ms=200, stands=True) as line:
        line.ready()
        line.station.trigger()
        line.image("cam0", 50, frame_id=1)
        line.settled(1)
        line.station.trigger()
        line.go(200)
        wait_until(lambda: 2 in line.last())
        third = line.station.trigger()
        line.image("cam0", 150, frame_id=3, lost=1)
        last = line.settled(3)
        assert (last[2].reason, last[third].verdict) == ("missing_view", "reject")
        assert len(last) == 3


def a_start_in_motion(line: Bench, first: str, parts: int) -> None:
    """One camera sees a trigger before the other works; then both see each, one image before the other.

    The left one finds nothing. Of the right ones every second is bad: a part with the image of another would be good.
    """
    line.station.source_up("left")
    line.image("left", 50, frame_id=1)
    line.station.source_up("right")
    for part in range(1, parts + 1):
        for view in (first, "right" if first == "left" else "left"):
            number, value = (part + 1, 50) if view == "left" else (part, 150 if part % 2 else 50)
            line.image(view, value, frame_id=number)
            line.go(20)


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize("first", ["left", "right"])
def test_of_a_start_in_motion_no_part_is_judged_by_the_image_of_another(
    tmp_path: Path, first: str, is_strict: bool
) -> None:
    with bench(tmp_path, ["left", "right"], collect_ms=400, is_strict=is_strict, stands=True) as line:
        a_start_in_motion(line, first, 7)
        # A gap: from here on the parts begin anew.
        line.go(400)
        wait_until(lambda: line.station.counters.now().open == 0)
        records = line.settled(7).values()
        assert {record.verdict for record in records} == {"fault"}
        reasons = {record.reason for record in records}
        assert reasons <= {"not_ready", "unexpected_image", "missing_view", "overrun"}
        told = [view.detail or record.detail for record in records for view in record.views or ()] + [
            record.detail for record in records
        ]
        assert any("the belt moved when the cameras began" in text for text in told), told
        if is_strict:
            assert "the belt moved" in line.station.readiness.reason
            line.station.acknowledge("anna")
        line.go(450)
        before = len(records)
        line.image("left", 50, frame_id=9)
        line.image("right", 150, frame_id=8)
        assert line.settled(before + 1)[before + 1].verdict == "reject"


def test_an_image_that_was_on_its_way_when_the_other_camera_began_says_nothing_of_their_numbers(tmp_path: Path) -> None:
    with bench(tmp_path, ["left", "right"], collect_ms=400, stands=True) as line:
        line.station.source_up("left")
        line.station.source_up("right")
        # Of a trigger that the right one has not seen.
        line.image("left", 50, frame_id=1)
        for part in (1, 2):
            line.go(20)
            line.image("right", 50, frame_id=part)
            line.image("left", 150, frame_id=part + 1)
        line.go(400)
        assert {record.verdict for record in line.settled(3).values()} == {"fault"}
        line.go(450)
        line.image("left", 50, frame_id=4)
        line.image("right", 150, frame_id=3)
        assert line.settled(4)[4].verdict == "reject"


class _Held:
    """Holds the station's thread at its next part."""

    def __init__(self) -> None:
        self.gate, self.is_there = threading.Event(), threading.Event()

    def begins(self, part: PartInWork, frames: Mapping[str, Frame]) -> None:
        self.is_there.set()
        assert self.gate.wait(WAIT_S)

    def decided(self, part: PartInWork, views: tuple[ViewRecord, ...]) -> None:
        """Nothing is held there."""


def test_an_image_that_did_not_come_counts_where_its_part_had_its_deadline_before_its_turn(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, deadline_ms=300, collect_ms=50, stands=True) as line:
        line.ready()
        line.station.observer = held = _Held()
        line.station.trigger()
        line.image("cam0", 50)  # without a number: it says nothing of how they stand
        assert held.is_there.wait(WAIT_S)
        line.station.trigger("late")
        line.go(300)
        wait_until(lambda: 2 in line.last())
        held.gate.set()
        assert line.last()[2].reason == "deadline"
        third = line.station.trigger("third")
        line.image("cam0", 50, frame_id=1)  # of the second one
        assert line.settled(3)[third].reason == "unexpected_image"


def test_a_first_image_that_comes_after_the_next_trigger_says_nothing_of_the_numbers(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, collect_ms=300, stands=True) as line:
        line.ready()
        # The first one never reaches the camera: its first image is of the second.
        line.station.trigger("not seen")
        line.station.trigger("seen")
        line.image("cam0", 50, frame_id=1)
        line.go(300)
        last = line.settled(2)
        assert (last[1].reason, last[2].reason) == ("unexpected_image", "missing_view")
        assert "after the next trigger" in last[1].detail
        line.station.acknowledge("anna")
        third = line.station.trigger()
        line.image("cam0", 150, frame_id=2)
        assert line.settled(3)[third].verdict == "reject"
        # From then on images may be on their way.
        line.station.trigger()
        line.station.trigger()
        for number in (4, 5):
            line.image("cam0", 50 if number == 4 else 150, frame_id=number - 1)
        last = line.settled(5)
        assert (last[4].verdict, last[5].verdict) == ("accept", "reject")


def test_after_a_trigger_that_the_camera_has_not_seen_a_lost_image_does_not_make_the_next_one_look_right() -> None:
    alignment = Alignment()
    assert alignment.problem(alignment.triggered(), {"cam0": 1}) == ""
    # The second does not reach the camera; the image of the third is lost, and that of the fourth comes in its place.
    alignment.triggered()
    alignment.missed(["cam0"])
    third, fourth = alignment.triggered(), alignment.triggered()
    assert alignment.lost("cam0", 1) == 0
    assert not alignment.is_last(third)
    assert alignment.is_last(fourth)
    assert "after the next trigger" in alignment.problem(third, {"cam0": 3}, is_first=False)
    # One that is there before the next trigger can be of no later one.
    assert alignment.problem(alignment.triggered(), {"cam0": 5}) == ""
    assert alignment.problem(alignment.triggered(), {"cam0": 6}, is_first=False) == ""


def test_cameras_are_asked_in_the_order_of_the_parts(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True) as line:
        line.ready()
        source, is_asking = line.sources["cam0"], threading.Event()
        ask = source.trigger

        def slowly(seq: int) -> None:
            if seq == 1:
                is_asking.set()
                time.sleep(0.2)  # as of a thread that does not get the processor
            ask(seq)

        source.trigger = slowly  # type: ignore[method-assign]
        first = threading.Thread(target=line.station.trigger)
        first.start()
        assert is_asking.wait(WAIT_S)
        line.station.trigger()
        first.join(WAIT_S)
        assert source.triggers == [1, 2]
        for value in (50, 150):
            line.station.frame("cam0", frame(value))
        assert [record.verdict for record in line.settled(2).values()] == ["accept", "reject"]


def test_a_trigger_that_hangs_makes_faults_of_those_behind_it(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, deadline_ms=400, collect_ms=100, stands=True) as line:
        line.ready()
        is_asking, gate = threading.Event(), threading.Event()

        def hanging(seq: int) -> None:
            is_asking.set()
            assert gate.wait(WAIT_S)

        line.sources["cam0"].trigger = hanging  # type: ignore[method-assign]
        first = threading.Thread(target=line.station.trigger)
        first.start()
        assert is_asking.wait(WAIT_S)
        second = line.station.trigger()
        line.go(100)
        assert "still being asked" in line.settled(2)[second].detail
        gate.set()
        first.join(WAIT_S)


def test_after_an_image_that_did_not_come_at_first_nobody_knows_whose_the_next_one_is(tmp_path: Path) -> None:
    with bench(tmp_path, is_triggered=True, collect_ms=100, stands=True) as line:
        line.ready()
        line.station.trigger()
        line.go(100)
        line.settled(1)
        line.station.trigger()
        line.image("cam0", 50, frame_id=1)  # of the first part, and so late
        assert line.settled(2)[2].reason == "unexpected_image"
        line.station.acknowledge("anna")
        line.station.trigger()
        line.image("cam0", 50, frame_id=3)
        assert line.settled(3)[3].verdict == "accept"


@pytest.mark.parametrize("is_reopened", [True, False])
def test_a_camera_that_was_opened_anew_may_count_anew(tmp_path: Path, is_reopened: bool) -> None:
    with bench(tmp_path, is_triggered=True) as line:
        line.ready()
        for number in (7, 8):
            line.station.trigger()
            line.station.frame("cam0", frame(50, frame_id=number))
            line.settled(number - 6)
        if is_reopened:
            line.station.source_down("cam0", "gone")
            line.station.source_up("cam0")
        line.station.trigger()
        line.station.frame("cam0", frame(50, frame_id=1))
        assert line.settled(3)[3].verdict == ("accept" if is_reopened else "fault")
