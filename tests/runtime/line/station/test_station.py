"""The life of a part: one verdict each, in time, never an accept where something was wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_stand_ins import bench, frame, grey, wait_until

from flawscope.errors import StorageError
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.results import Result


def png(value: int) -> bytes:
    return cv2.imencode(".png", grey(value))[1].tobytes()


def test_each_verdict(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        for value in (50, 150, 250):
            line.station.frame("cam0", frame(value, source=f"{value}.png", frame_id=value))
        last = line.settled(3)
        assert [last[seq].verdict for seq in (1, 2, 3)] == ["accept", "reject", "fault"]
        assert [last[seq].reason for seq in (1, 2, 3)] == ["", "", "inference"]
        view = last[2].views[0]
        assert (view.view, view.score, view.threshold, view.bundle, view.frame_id) == ("cam0", 150, 100, "ab" * 32, 150)
        assert last[2].score == 150
        assert last[1].latency_ms.keys() == {"collected", "scored", "verdict"}
        wait_until(lambda: sorted(line.sources["cam0"].done_files) == ["150.png", "250.png", "50.png"])


def test_a_reject_is_given_out_before_its_record_and_an_accept_after_it(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        line.journal.gate.clear()
        line.station.frame("cam0", frame(150))
        line.station.frame("cam0", frame(50))
        wait_until(lambda: len(line.output.signals) == 1)
        assert line.output.signals[0].verdict == "reject"
        assert line.station.counters.now().open == 1
        line.journal.gate.set()
        assert line.settled(2)[2].verdict == "accept"


@pytest.mark.parametrize("records_first", [True, False])
def test_a_deadline_that_comes_before_the_record_of_an_accept(tmp_path: Path, records_first: bool) -> None:
    with bench(tmp_path, deadline_ms=300, collect_ms=100, records_first=records_first, stands=True) as line:
        line.ready()
        line.journal.gate.clear()
        line.image("cam0", 50)
        wait_until(lambda: line.journal.asked == 1 and (records_first or bool(line.output.signals)))
        line.go(300)
        wait_until(lambda: bool(line.output.signals))
        line.journal.gate.set()
        last = line.settled(1)
        if records_first:
            assert (last[1].verdict, last[1].reason, last[1].revision) == ("fault", "deadline", 1)
            assert [record.verdict for record in line.journal.records] == ["accept", "fault"]
        else:
            assert (last[1].verdict, last[1].revision) == ("accept", 0)


def test_an_accept_that_cannot_be_recorded_is_a_fault_and_stops_the_station(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        line.journal.failure = StorageError("journal.db: could not be written: disk full")
        line.station.frame("cam0", frame(50))
        wait_until(lambda: line.station.readiness.state == "error")
        assert "disk full" in line.station.readiness.reason
        assert [signal.verdict for signal in line.output.signals] == ["fault"]
        line.journal.failure = None
        # It stays noted as open: the next start knows of it.
        seq = line.station.trigger()
        assert seq == 2
        wait_until(lambda: 2 in line.last())
        assert line.last()[2].reason == "not_ready"


def test_what_hangs_costs_its_part_and_its_late_verdict_changes_nothing(tmp_path: Path) -> None:
    with bench(tmp_path, deadline_ms=300, collect_ms=100, stands=True) as line:
        line.ready()
        line.inspector.gate.clear()
        line.image("cam0", 50)
        wait_until(lambda: line.inspector.sizes == [1])
        line.go(300)
        wait_until(lambda: len(line.output.signals) == 1)
        line.inspector.gate.set()
        wait_until(lambda: line.station.counters.now().late == 1)
        # It is counted first.
        told = ("late_verdict", "accept")
        wait_until(lambda: told in [(action, fields.get("new")) for action, fields in line.journal.events])
        line.image("cam0", 150)
        last = line.settled(2)
        assert [(last[seq].verdict, last[seq].reason) for seq in (1, 2)] == [("fault", "deadline"), ("reject", "")]


@pytest.mark.parametrize(
    "rule",
    [
        lambda image: 1 / 0,
        lambda image: Result("image", "accept"),
        lambda image: Result("image", "accept", 1.0),
        lambda image: Result("image", "fault", reason=None),
        lambda image: None,
    ],
    ids=["raises", "accept without score", "accept without threshold", "fault without reason", "nothing"],
)
def test_whatever_the_inspector_gives_is_no_accept(tmp_path: Path, rule: object) -> None:
    with bench(tmp_path) as line:
        line.ready()
        line.inspector.rule = rule  # type: ignore[assignment]
        line.station.frame("cam0", frame(50))
        assert (line.settled(1)[1].verdict, line.last()[1].reason) == ("fault", "inference")
        line.inspector.rule = lambda image: Result("image", "accept", 1.0, 2.0)
        line.station.frame("cam0", frame(50))
        assert line.settled(2)[2].verdict == "accept"


def test_a_burst_is_faults_at_once(tmp_path: Path) -> None:
    with bench(tmp_path, depth=3) as line:
        line.ready()
        line.inspector.gate.clear()
        for _ in range(30):
            line.station.frame("cam0", frame(50))
        assert [signal.verdict for signal in line.output.signals] == ["fault"] * 27
        line.inspector.gate.set()
        last = line.settled(30)
        assert [seq for seq, record in last.items() if record.verdict == "accept"] == [1, 2, 3]
        assert {record.reason for seq, record in last.items() if seq > 3} == {"overrun"}


def test_a_station_that_is_not_ready_gives_faults(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.station.trigger("early")
        line.ready()
        line.station.frame("cam0", frame(50))
        line.settled(2)
        line.station.source_down("cam0", "the camera does not answer")
        line.station.frame("cam0", frame(50))
        line.station.halt("anna")
        line.station.source_up("cam0")
        line.station.frame("cam0", frame(50))
        line.station.acknowledge("anna")
        line.station.frame("cam0", frame(50))
        last = line.settled(5)
        assert [record.verdict for record in last.values()] == ["fault", "accept", "fault", "fault", "accept"]
        assert last[1].part_id == "early"
        assert "does not answer" in last[3].detail
        states = [call for call in line.output.calls if not isinstance(call, Signal)]
        assert states == ["starting", "ready", "error", "halted", "ready"]


def test_lost_images_are_parts(tmp_path: Path) -> None:
    with bench(tmp_path, depth=8) as line:
        line.ready()
        line.station.frame("cam0", frame(50, lost=3))
        last = line.settled(4)
        assert [last[seq].reason for seq in (1, 2, 3, 4)] == ["lost_frame"] * 3 + [""]


def test_a_broken_counter_of_images_does_not_fill_the_disk(tmp_path: Path) -> None:
    with bench(tmp_path, depth=8) as line:
        line.ready()
        line.station.frame("cam0", frame(50, lost=10**9))
        wait_until(lambda: line.station.counters.now().open == 0)
        assert line.station.counters.now().parts == 1001
        wait_until(lambda: line.unrecorded() == 0)
        assert "1000000000" in line.last()[5].detail or line.last()[5].reason == "overrun"


def test_incomplete_and_unreadable_images_are_not_scored(tmp_path: Path) -> None:
    with bench(tmp_path, depth=8) as line:
        line.ready()
        whole = png(50)
        for source in (
            Frame(None, 0, problem="incomplete_image", detail="12 packets are missing"),
            Frame(None, 0),
            Frame(b"", line.station._services.clock.mono_ns()),
            Frame(whole[: len(whole) // 2], line.station._services.clock.mono_ns()),
            Frame(b"no image", line.station._services.clock.mono_ns()),
        ):
            line.station.frame(
                "cam0", Frame(source.image, line.station._services.clock.mono_ns(), problem=source.problem)
            )
        last = line.settled(5)
        assert {record.verdict for record in last.values()} == {"fault"}
        assert not any("cam0: cam0: " in record.detail for record in last.values()), "its name is said once"
        assert not line.inspector.sizes


def test_files_are_decoded(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        seq = line.station.push({"cam0": png(150)}, "part 7")
        last = line.settled(1)
        assert (last[seq].verdict, last[seq].score, last[seq].part_id) == ("reject", 150, "part 7")


class TestTwoViews:
    def test_the_worst_decides(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"]) as line:
            line.ready()
            for left, right in ((50, 50), (50, 150), (250, 150), (60, 250)):
                line.station.push({"left": png(left), "right": png(right)})
                wait_until(lambda: line.station.counters.now().open == 0)
            last = line.settled(4)
            assert [last[seq].verdict for seq in (1, 2, 3, 4)] == ["accept", "reject", "fault", "fault"]
            assert last[2].score == 150
            assert "right" in last[4].detail

    def test_images_join_their_part(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"], collect_ms=300, stands=True) as line:
            line.ready()
            line.go(350)  # until nothing can be on its way
            for seq in (1, 2):
                line.image("left", 50, frame_id=seq)
            for seq in (1, 2):
                line.image("right", 150, frame_id=seq + 7)
            last = line.settled(2)
            assert [last[seq].verdict for seq in (1, 2)] == ["reject", "reject"]

    def test_a_missing_view_is_a_fault(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"], collect_ms=50, stands=True) as line:
            line.ready()
            line.image("left", 50)
            line.go(50)
            last = line.settled(1)
            assert (last[1].reason, last[1].verdict) == ("missing_view", "fault")
            line.station.push({"right": png(50)})
            assert line.settled(2)[2].reason == "missing_view"

    def test_a_lost_image_does_not_shift_the_others(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"], collect_ms=300, stands=True) as line:
            line.ready()
            line.go(350)  # until nothing can be on its way
            for seq in (1, 2, 3):
                line.image("left", 50, frame_id=seq)
            line.image("right", 50, frame_id=1)
            line.image("right", 150, frame_id=3, lost=1)
            last = line.settled(3)
            assert [last[seq].reason for seq in (1, 2, 3)] == ["", "lost_frame", ""]
            assert last[3].verdict == "reject"

    @pytest.mark.parametrize("is_strict", [False, True])
    def test_images_of_different_triggers_are_noticed(self, tmp_path: Path, is_strict: bool) -> None:
        with bench(tmp_path, ["left", "right"], is_strict=is_strict, collect_ms=500, stands=True) as line:
            line.ready()
            line.go(550)  # until nothing can be on its way
            for left, right in ((1, 5), (2, 6), (3, 8), (4, 9)):
                line.image("left", 50, frame_id=left)
                line.image("right", 50, frame_id=right)
                wait_until(lambda: line.station.counters.now().open == 0)
            last = line.settled(4)
            assert [record.verdict for record in last.values()][:2] == ["accept", "accept"]
            assert {last[seq].verdict for seq in (3, 4)} == {"fault"}
            assert line.station.readiness.is_ready is not is_strict
            line.station.acknowledge("anna")
            line.go(550)  # until the belt is empty
            line.image("left", 50, frame_id=5)
            line.image("right", 50, frame_id=10)
            assert line.settled(5)[5].verdict == "accept"

    def test_images_of_a_part_that_was_refused_are_one_part(self, tmp_path: Path) -> None:
        with bench(tmp_path, ["left", "right"], collect_ms=400, stands=True) as line:
            for number in range(3):
                line.image("left", 50, frame_id=number)
                line.image("right", 50, frame_id=number)
            line.ready()
            line.go(450)
            line.image("left", 50, frame_id=3)
            line.image("right", 50, frame_id=3)
            assert [record.verdict for record in line.settled(4).values()] == ["fault"] * 3 + ["accept"]
            # The numbers are in step: whoever halts it on a belt that moves has nothing to wait for afterwards.
            line.station.halt("anna")
            line.station.acknowledge("anna")
            line.image("left", 50, frame_id=4)
            line.image("right", 50, frame_id=4)
            assert line.settled(5)[5].verdict == "accept"


class TestTriggered:
    def test_a_trigger_asks_for_an_image(self, tmp_path: Path) -> None:
        with bench(tmp_path, is_triggered=True) as line:
            line.ready()
            assert line.station.trigger("a") == 1
            assert line.sources["cam0"].triggers == [1]
            line.station.frame("cam0", frame(50))
            assert (line.settled(1)[1].verdict, line.last()[1].part_id) == ("accept", "a")

    def test_a_trigger_without_an_image_is_a_fault(self, tmp_path: Path) -> None:
        with bench(tmp_path, is_triggered=True, collect_ms=50) as line:
            line.ready()
            line.station.trigger()
            assert line.settled(1)[1].reason == "missing_view"

    @pytest.mark.parametrize("is_strict", [False, True])
    def test_an_image_without_a_trigger_is_a_fault(self, tmp_path: Path, is_strict: bool) -> None:
        with bench(tmp_path, is_triggered=True, is_strict=is_strict) as line:
            line.ready()
            line.station.frame("cam0", frame(50))
            assert line.settled(1)[1].reason == "unexpected_image"
            assert line.station.readiness.is_ready is not is_strict


class TestPolicies:
    def test_latest_waits_for_room_and_skips_while_nobody_scores(self, tmp_path: Path) -> None:
        with bench(tmp_path, policy="latest", depth=1) as line:
            for _ in range(3):
                line.station.frame("cam0", frame(50))
            line.ready()
            for _ in range(5):
                line.station.frame("cam0", frame(50))
            line.settled(5)
            assert (line.station.counters.now().parts, line.station.counters.now().skipped) == (5, 3)

    def test_wait_waits_for_room_and_for_a_ready_station(self, tmp_path: Path) -> None:
        import threading

        with bench(tmp_path, policy="wait", depth=2) as line:
            sender = threading.Thread(
                target=lambda: [line.station.frame("cam0", frame(50, source=str(n))) for n in range(20)]
            )
            sender.start()
            try:
                assert line.station.counters.now().parts == 0
                line.ready()
                last = line.settled(20)
            finally:
                sender.join(20)
            assert {record.verdict for record in last.values()} == {"accept"}
            assert [last[seq].views[0].source for seq in range(1, 21)] == [str(n) for n in range(20)]


def test_an_output_that_fails_stops_the_station(tmp_path: Path) -> None:
    with bench(tmp_path) as line:
        line.ready()
        line.output.failure = OSError("the wire is broken")
        line.station.frame("cam0", frame(50))
        wait_until(lambda: line.station.readiness.state == "error")
        line.output.failure = None
        line.station.frame("cam0", frame(50))
        assert line.settled(2)[2].reason == "not_ready"
        line.station.acknowledge("anna")
        assert line.station.readiness.is_ready


def test_stop_gives_open_parts_a_verdict(tmp_path: Path) -> None:
    with bench(tmp_path, deadline_ms=500, collect_ms=400) as line:
        line.ready()
        line.inspector.gate.clear()
        for _ in range(3):
            line.station.frame("cam0", frame(50))
        line.station.stop(5.0)
        counts = line.station.counters.now()
        assert (counts.parts, counts.fault, counts.open) == (3, 3, 0)
        line.station.frame("cam0", frame(50))
        wait_until(lambda: 4 in line.last())
        assert line.last()[4].reason == "stopped"
        assert line.output.calls.index("stopped") < line.output.calls.index(line.output.signals[0])


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.sampled_from([50, 150, 250]), st.integers(0, 2)),
        st.tuples(st.just("trigger"), st.just(0), st.just(0)),
        st.tuples(st.just("down"), st.just(0), st.just(0)),
        st.tuples(st.just("up"), st.just(0), st.just(0)),
        st.tuples(st.just("hang"), st.just(0), st.just(0)),
        st.tuples(st.just("go"), st.just(0), st.just(0)),
        st.tuples(st.just("disk"), st.just(0), st.just(0)),
        st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, depth=st.integers(1, 4), records_first=st.booleans())
def test_parts_equal_accept_reject_fault_and_open(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], depth: int, records_first: bool
) -> None:
    folder = tmp_path_factory.mktemp("line")
    with bench(folder, deadline_ms=150, collect_ms=50, depth=depth, records_first=records_first) as line:
        line.ready()
        for step, value, lost in steps:
            if step == "frame":
                line.station.frame("cam0", frame(value, lost=lost))
            elif step == "trigger":
                line.station.trigger()
            elif step == "down":
                line.station.source_down("cam0", "gone")
            elif step == "up":
                line.station.source_up("cam0")
            elif step == "hang":
                line.inspector.gate.clear()
            elif step == "go":
                line.inspector.gate.set()
            elif step == "disk":
                line.journal.gate.clear() if line.journal.gate.is_set() else line.journal.gate.set()
            else:
                line.station.acknowledge("anna")
            assert line.station.counters.now().holds
        line.inspector.gate.set()
        line.journal.gate.set()
        line.settled(line.station.counters.now().parts)
        for record in line.last().values():
            if record.verdict == "accept":
                assert (record.score or 1000) <= 100
                assert all(view.verdict == "accept" for view in record.views)
