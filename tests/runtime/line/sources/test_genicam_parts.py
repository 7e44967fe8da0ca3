"""What surrounds a GenICam camera, without one: numbers of images, the control thread, a library that is missing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.sources.genicam import GenicamGrabber, aravis, find_cameras
from flawscope.runtime.line.sources.genicam.control import PATIENCE_S, Control
from flawscope.runtime.line.sources.genicam.frame_ids import FrameIds
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.table import GenicamSource

_WAIT_S = 10.0


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([1, 2, 3], [0, 0, 0]),
        ([7, 8, 12, 13], [0, 0, 3, 0]),
        # USB3 Vision begins at 0.
        ([0, 1, 3], [0, 0, 1]),
        # 16 bits: 1 follows 65535, 0 is left out.
        ([65534, 65535, 1, 2], [0, 0, 0, 0]),
        ([65533, 65535, 3], [0, 1, 2]),
        ([40000, 65535 - 100, 100], None),
        ([65000, 30000], [0, 30534]),
        # 64 bits: 65536 follows 65535.
        ([65534, 65535, 65536, 65540], [0, 0, 0, 3]),
        ([2**40, 2**40 + 2], [0, 1]),
    ],
)
def test_gaps_between_numbers_are_missing_images(numbers: list[int], lost: list[int] | None) -> None:
    ids = FrameIds()
    steps = [ids.step(number, is_whole=True) for number in numbers]
    assert [number for number, _ in steps] == numbers
    if lost is None:  # what matters: no number is counted twice, and none is passed over
        lost = [0, 65535 - 100 - 40000 - 1, 199]
    assert [missing for _, missing in steps] == lost


@pytest.mark.parametrize(("last", "number"), [(500, 1), (500, 500), (500, 40000), (70000, 69999), (3, 0)])
def test_a_camera_that_counts_anew_is_lost(last: int, number: int) -> None:
    ids = FrameIds()
    ids.step(last, is_whole=True)
    with pytest.raises(SourceLost, match=rf"a number after {last}, got {number}: it counts anew"):
        ids.step(number, is_whole=True)


def test_an_image_without_its_first_packet_has_no_number_and_fills_a_gap() -> None:
    ids = FrameIds()
    # Nothing has come before: 0 is no number of GigE Vision.
    assert ids.step(0, is_whole=False) == (None, 0)
    assert ids.step(10, is_whole=True) == (10, 0)
    # The number of the buffer's former image, or of no image.
    assert ids.step(4, is_whole=False) == (None, 0)
    assert ids.step(0, is_whole=False) == (None, 0)
    # 11 and 12 are the two; 13 is missing.
    assert ids.step(14, is_whole=True) == (14, 1)
    # One with its first packet counts as any other.
    assert ids.step(16, is_whole=False) == (16, 1)
    assert ids.step(17, is_whole=True) == (17, 0)
    # More came in part than are missing: none is missing twice.
    assert ids.step(17, is_whole=False) == (None, 0)
    assert ids.step(18, is_whole=True) == (18, 0)
    assert ids.step(20, is_whole=True) == (20, 1)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_control_thread_reads_and_triggers_until_it_is_stopped() -> None:
    done, reads, triggers = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    control = Control(reads.release, triggers.release, 0.02, done.set)
    for _ in range(3):
        control.trigger()
        assert triggers.acquire(timeout=_WAIT_S)
        assert reads.acquire(timeout=_WAIT_S)
    assert control.problem == ""
    assert not done.is_set()
    control.stop()
    assert done.wait(_WAIT_S)


@pytest.mark.parametrize("fails", ["ping", "trigger"])
def test_what_fails_is_the_problem_and_ends_the_thread(fails: str) -> None:
    def fail() -> None:
        raise aravis.AravisError("read_register timeout")

    def work() -> None:
        pass

    done = threading.Event()
    control = Control(
        fail if fails == "ping" else work,
        fail if fails == "trigger" else work,
        0.02 if fails == "ping" else 60.0,
        done.set,
    )
    control.trigger()
    assert done.wait(_WAIT_S)
    assert control.problem == "read_register timeout"


@pytest.mark.long
def test_a_call_that_does_not_return_is_a_problem_and_late_triggers_are_dropped() -> None:
    done, go_on, triggered = threading.Event(), threading.Event(), threading.Event()
    began = threading.Event()

    def hang() -> None:
        began.set()
        assert go_on.wait(2 * _WAIT_S)

    control = Control(hang, triggered.set, 0.02, done.set)
    assert began.wait(_WAIT_S)
    control.trigger()
    wait_until(lambda: control.problem != "")
    said = re.fullmatch(r"no answer for ([\d.]+) s", control.problem)
    assert said is not None
    assert float(said[1]) >= PATIENCE_S
    control.stop()
    go_on.set()
    assert done.wait(_WAIT_S)
    # Its part was over long ago.
    assert not triggered.is_set()


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(soname: str) -> None:
        monkeypatch.setattr(aravis, "SONAME", soname)
        monkeypatch.setattr(aravis, "library", aravis.library.__wrapped__)  # not what was loaded before
        for module in ("grabber", "discovery"):
            monkeypatch.setattr(f"flawscope.runtime.line.sources.genicam.{module}.library", aravis.library)

    return use


@pytest.mark.parametrize(
    ("soname", "found"), [("libnothere-0.8.so.0", "none"), ("libc.so.6", "one without g_object_ref")]
)
def test_a_missing_library_is_named_with_its_package(
    soname: str, found: str, other_library: Callable[[str], None]
) -> None:
    other_library(soname)
    options = GenicamSource(camera="Vendor-123")
    for action in (find_cameras, lambda: GenicamGrabber(options, SourcePlace("top", "cam0", Path("unused")))):
        with pytest.raises(MissingExtra, match=rf"got {found}\. Install it with: apt install libaravis-0.8-0"):
            action()


def test_options_that_write_the_same_feature_are_refused() -> None:
    place = SourcePlace("top", "cam0", Path("unused"))
    options = GenicamSource(camera="x", trigger="software", features={"TriggerSource": "Line1", "PixelFormat": "Mono8"})
    with pytest.raises(ArgumentError, match="got PixelFormat, TriggerSource"):
        GenicamGrabber(options, place)
    with pytest.raises(ArgumentError, match="expected one of BGR8"):
        GenicamGrabber(GenicamSource(camera="x", pixel_format="Mono9"), place)
