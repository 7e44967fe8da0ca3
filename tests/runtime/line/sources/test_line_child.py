"""Sources in child processes: whatever happens in there, the line goes on, and stops in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project_paths import ROOT
from recording_sink import RecordingSink
from stand_in_grabbers import PLACE, CounterSource

from flawscope.runtime.line.sources.child import ChildLimits, ChildSource
from flawscope.runtime.line.sources.child_messages import Done, FromChild, Lost
from flawscope.runtime.line.sources.child_process import ChildProcess
from flawscope.runtime.line.sources.grabber import SourcePlace

WAIT_S = 20.0

# A child that starves on a busy machine must not be taken for one that hangs, unless that is what is tested.
PATIENT = ChildLimits(hang_s=30.0, open_s=60.0)


Start = Callable[..., tuple[ChildSource, RecordingSink]]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Start a source of `Counter`; it is stopped after the test."""
    sources = []

    def start(
        limits: ChildLimits = PATIENT, *, full: bool = False, grabber: str = PLACE, **options: Any
    ) -> tuple[ChildSource, RecordingSink]:
        place = SourcePlace("top", "cam0", tmp_path / "state", 1 << 20)
        source = ChildSource(CounterSource(folder=tmp_path, **options), place, limits, grabber=grabber)
        sink = RecordingSink()
        if full:
            sink.room.clear()
        sources.append((source, sink))
        source.start(sink)
        return source, sink

    yield start
    for source, sink in sources:
        sink.room.set()
        source.stop(10)


def pids(folder: Path) -> list[int]:
    """Return the processes that were started, in order."""
    starts = folder / "starts"
    return [int(line.split()[0]) for line in starts.read_text().splitlines()] if starts.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def numbers(sink: RecordingSink) -> list[int]:
    """Return the numbers of the frames, which are in their pixels too."""
    found = []
    for frame in sink.frames:
        if not frame.is_last:
            assert isinstance(frame.image, np.ndarray)
            assert len(np.unique(frame.image)) == 1
            found.append(int(frame.image.flat[0]))
    return found


def test_images_come_in_order_and_whole(started: Start) -> None:
    _, sink = started(images=50, on_full="wait", ends=True, size=(300, 200))
    sink.wait(lambda sink: bool(sink.frames) and sink.frames[-1].is_last)
    assert numbers(sink) == list(range(50))
    assert [frame.frame_id for frame in sink.frames] == [*range(50), None]
    assert sink.words == ["up"]


def test_a_reason_is_heard_from_a_child_that_ended_before_it_had_read_all(tmp_path: Path) -> None:
    place = SourcePlace("top", "cam0", tmp_path / "state", 1 << 20)
    options = CounterSource(folder=tmp_path, at=0, act="lost unread")
    process = ChildProcess(ChildSource(options, place, PATIENT, grabber=PLACE)._order)
    try:
        end = time.monotonic() + WAIT_S
        # The line is busy elsewhere: nothing is received until the child has gone.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            assert time.monotonic() < end
            process.send(Done("0.png"))
            time.sleep(0.05)
        heard: list[FromChild] = []
        while (messages := process.receive(0.1)) is not None:
            heard += messages
        assert Lost("the cable is out") in heard
    finally:
        process.end(0.0)


def test_a_full_station_makes_the_child_wait_and_nothing_is_lost(started: Start) -> None:
    _, sink = started(images=30, on_full="wait", full=True)
    sink.wait(lambda sink: sink.entered == 1)
    time.sleep(0.5)  # the child could have sent them all
    assert sink.entered == 1
    sink.room.set()
    sink.wait(lambda sink: len(sink.frames) == 30)
    assert numbers(sink) == list(range(30))
    assert sink.left_out == 0


def test_latest_leaves_older_images_out_and_counts_them(started: Start) -> None:
    _, sink = started(images=200, on_full="latest", full=True)
    sink.wait(lambda sink: sink.left_out == 198)
    sink.room.set()
    sink.wait(lambda sink: len(sink.frames) == 2)
    # The first is whichever came while nothing was in the hands of the station.
    assert numbers(sink)[1] == 199


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("raise", "ValueError: no such register"),
        ("segv", "SIGSEGV: Fatal Python error: Segmentation fault"),
        ("hang", "no sign of life for"),
        ("lost", "the cable is out"),
        ("hang in open", "it did not open for"),
    ],
)
@pytest.mark.long
def test_a_child_that_fails_is_named_and_started_anew(started: Start, tmp_path: Path, act: str, expected: str) -> None:
    short = {"hang": ChildLimits(hang_s=3.0, open_s=60.0), "hang in open": ChildLimits(hang_s=5.0, open_s=5.0)}
    limits = short.get(act, PATIENT)
    _, sink = started(limits, images=10, at=5, act=act, on_full="every")
    sink.wait(lambda sink: len(sink.frames) == 10)
    assert numbers(sink) == list(range(10))
    assert len(sink.downs) == 1
    assert expected in sink.downs[0]
    assert sink.words[-1] == "up"
    first, second = pids(tmp_path)
    assert not is_alive(first)
    assert is_alive(second)


@pytest.mark.long
def test_a_stopped_child_is_replaced(started: Start, tmp_path: Path) -> None:
    _, sink = started(ChildLimits(hang_s=2.0), images=10**6, pause_s=0.01, on_full="every")
    sink.wait(lambda sink: len(sink.frames) > 5)
    os.kill(pids(tmp_path)[0], signal.SIGSTOP)
    sink.wait(lambda sink: len(sink.words) > 2)
    assert sink.words[:3] == ["up", "down: its process gave no sign of life for 2 s and was killed", "up"]
    assert not is_alive(pids(tmp_path)[0])
    seen = len(sink.frames)
    sink.wait(lambda sink: len(sink.frames) > seen + 5)


def test_a_killed_child_is_replaced_and_goes_on_behind_the_last_image(started: Start, tmp_path: Path) -> None:
    _, sink = started(images=100, pause_s=0.01, on_full="wait")
    sink.wait(lambda sink: len(sink.frames) > 5)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    sink.wait(lambda sink: len(sink.frames) == 100)
    assert numbers(sink) == list(range(100))
    assert sink.downs == ["its process was ended by SIGKILL"]


def test_files_in_flight_are_told_to_the_next_child_and_verdicts_reach_it(started: Start, tmp_path: Path) -> None:
    source, sink = started(images=12, at=8, act="lost", on_full="wait", named=True, full=True)
    sink.wait(lambda sink: sink.entered == 1)
    sink.room.set()
    sink.wait(lambda sink: len(sink.frames) >= 3)
    for name in ("0.png", "1.png"):
        source.done(name)
    sink.wait(lambda sink: len(sink.downs) == 1)
    source.done("2.png")  # nobody hears it now; it must reach the next child
    sink.wait(lambda sink: len(sink.words) == 3)
    sink.wait(lambda sink: any(frame.source == "11.png" for frame in sink.frames))
    names = [frame.source for frame in sink.frames]
    told = (tmp_path / "starts").read_text().splitlines()[1].split()[2].split(",")
    assert "2.png" in told
    assert not {"0.png", "1.png"} & set(told)
    # What was handed over and has no verdict comes once; the two with a verdict come again, as this grabber forgets.
    assert sorted(set(names)) == sorted(f"{number}.png" for number in range(12))
    assert all(names.count(name) == 1 for name in told)
    until = time.monotonic() + 20
    while "2.png" not in (tmp_path / "done").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "done").read_text().splitlines()[:3] == ["0.png", "1.png", "2.png"]


@pytest.mark.long
def test_a_source_that_is_absent_at_start_is_found_later(started: Start, tmp_path: Path) -> None:
    (tmp_path / "absent").touch()
    _, sink = started(images=3, on_full="every")
    sink.wait(lambda sink: len(sink.words) == 1)
    (tmp_path / "absent").unlink()
    sink.wait(lambda sink: len(sink.frames) == 3)
    assert sink.words == ["down: it is not there", "up"]


@pytest.mark.slow
def test_a_child_that_leaks_is_exchanged_between_two_images(started: Start, tmp_path: Path) -> None:
    limits = ChildLimits(hang_s=5, memory_mb=150, young_s=0.2)
    _, sink = started(limits, images=200, at=5, act="leak", pause_s=0.05, on_full="wait")
    sink.wait(lambda sink: len(pids(tmp_path)) == 2 and len(sink.frames) == 200, 60)
    assert numbers(sink) == list(range(200))
    assert sink.words == ["up", "up"]


def test_a_trigger_asks_for_one_image(started: Start) -> None:
    source, sink = started(images=10, trigger="software")
    sink.wait(lambda sink: sink.words == ["up"])
    assert source.is_triggered
    for _ in range(3):
        shot(source, sink)
    assert numbers(sink) == [0, 1, 2]


def shot(source: ChildSource, sink: RecordingSink) -> None:
    """Ask for one image, again where the child could not take the trigger in time."""
    count = len(sink.frames)
    for seq in range(1, 11):
        source.trigger(seq)
        if sink.comes(lambda sink: len(sink.frames) > count, 5.0):
            return
    raise AssertionError(sink.words)


@pytest.mark.long
def test_a_trigger_that_waited_for_a_stopped_child_is_dropped(started: Start, tmp_path: Path) -> None:
    source, sink = started(ChildLimits(hang_s=30), images=10, trigger="software")
    sink.wait(lambda sink: sink.words == ["up"])
    pid = pids(tmp_path)[0]
    os.kill(pid, signal.SIGSTOP)
    source.trigger(1)
    time.sleep(1.2)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.3)
    shot(source, sink)
    time.sleep(0.2)
    assert numbers(sink) == [0]


@pytest.mark.parametrize("state", ["new", "running", "full", "hanging", "stopped", "down", "hang in close", "ended"])
def test_stop_ends_it_in_every_state(tmp_path: Path, state: str) -> None:
    options: dict[str, Any] = {
        "running": {"images": 10**6, "pause_s": 0.01, "on_full": "every"},
        "full": {"images": 10**6, "on_full": "wait"},
        "hanging": {"images": 10**6, "at": 1, "act": "hang", "on_full": "every"},
        "stopped": {"images": 10**6, "pause_s": 0.01, "on_full": "every"},
        "hang in close": {"images": 10**6, "pause_s": 0.01, "act": "hang in close", "on_full": "every"},
        "ended": {"images": 2, "ends": True, "on_full": "wait"},
    }.get(state, {})
    place = SourcePlace("top", "cam0", tmp_path / "state", 1 << 20)
    source = ChildSource(CounterSource(folder=tmp_path, **options), place, ChildLimits(hang_s=60), grabber=PLACE)
    sink = RecordingSink()
    if state == "down":
        (tmp_path / "absent").touch()
    if state == "full":
        sink.room.clear()
    if state != "new":
        source.start(sink)
        wanted = {"down": lambda sink: bool(sink.downs), "ended": lambda sink: len(sink.frames) == 3}
        sink.wait(wanted.get(state, lambda sink: sink.entered >= 1))
    if state == "stopped":
        os.kill(pids(tmp_path)[0], signal.SIGSTOP)
    began = time.monotonic()
    source.done("x.png")
    source.trigger(1)
    if state == "full":
        source.stop(2)  # its thread is in the hands of the station
        sink.room.set()
    source.stop(20)
    assert time.monotonic() - began < 30
    seen = sink.entered
    source.done("x.png")
    source.trigger(1)
    time.sleep(0.2)
    assert sink.entered == seen
    if state != "new":
        assert not any(is_alive(pid) for pid in pids(tmp_path))


def test_another_policy_than_that_of_its_options_is_refused(started: Start) -> None:
    _, sink = started(images=3, on_full="every", grabber="stand_in_grabbers:WrongPolicy")
    sink.wait(lambda sink: bool(sink.downs))
    assert "expected the policy and trigger of its options" in sink.downs[0]


_LINE = """
import sys, time
sys.path[:] = sys.argv[2].split(chr(10))
from pathlib import Path
from recording_sink import RecordingSink
from stand_in_grabbers import PLACE, CounterSource
from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.sources.grabber import SourcePlace
folder = Path(sys.argv[1])
options = CounterSource(folder=folder, images=10**6, pause_s=0.01, on_full="every", **eval(sys.argv[3]))
ChildSource(options, SourcePlace("top", "cam0", folder, 1 << 20), grabber=PLACE).start(RecordingSink())
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("options", [{}, {"act": "hang", "at": 5}])
def test_the_child_dies_with_a_line_that_is_killed(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments = [sys.executable, "-c", _LINE, str(tmp_path), "\n".join(sys.path), repr(options)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as line:
        assert line.stdout is not None
        assert line.stdout.readline() == b"started\n"
        until = time.monotonic() + 30
        while not pids(tmp_path) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)
        line.kill()
    until = time.monotonic() + 30
    while is_alive(pids(tmp_path)[0]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(pids(tmp_path)[0])
    # Others have files there, too, such as tests of this project that run beside this one.
    assert not [path for path in Path("/dev/shm").iterdir() if "flawscope-images" in path.name]


def test_pauses_grow_and_a_child_that_keeps_crashing_is_tried_once_a_minute() -> None:
    from flawscope.runtime.line.sources.restarts import Restarts

    absent = Restarts()
    assert [absent.pause_s(float(now), 0.0, crashed=False) for now in range(8)] == [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert absent.pause_s(100.0, 11.0, crashed=False) == 0.5
    crashing = Restarts()
    assert [crashing.pause_s(10.0 * now, 0.0, crashed=True) for now in range(6)] == [0.5, 1, 2, 4, 60, 60]
    assert crashing.pause_s(500.0, 30.0, crashed=True) == 0.5
