"""Images of a camera that does not wait, between the thread that reads them and the grabber."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flawscope.runtime.line.sources import live as live_images
from flawscope.runtime.line.sources.grabber import SourceLost
from flawscope.runtime.line.sources.live import LiveImages
from flawscope.runtime.line.sources.source import Frame, Policy

Start = Callable[..., LiveImages]


@pytest.fixture
def started() -> Iterator[Start]:
    made = []

    def start(read: Callable[[LiveImages], None], policy: Policy = "latest", read_s: float = 20.0) -> LiveImages:
        live = LiveImages(read, policy, read_s)
        made.append(live)
        live.start(20.0)
        return live

    yield start
    for live in made:
        live.stop(20.0)


def frame(number: int) -> Frame:
    return Frame(None, number, number)


def take(live: LiveImages) -> Frame:
    found = live.take(20.0)
    assert found is not None
    return found


def until_lost(live: LiveImages) -> str:
    until = time.monotonic() + 20
    try:
        while time.monotonic() < until:
            live.take(0.1)
    except SourceLost as err:
        return str(err)
    raise AssertionError("it was not lost")


def test_images_come_in_order_and_then_the_end(started: Start) -> None:
    def read(live: LiveImages) -> None:
        live.opened()
        for number in range(50):  # more than there is room for: it has not ended before the first is taken
            live.put(frame(number))

    live = started(read)
    assert [take(live).frame_id for _ in range(50)] == list(range(50))
    # A stream that ends is lost: nothing says that its camera has finished.
    assert until_lost(live) == "the stream ended"


def test_a_station_that_waits_loses_older_images_and_is_told(started: Start) -> None:
    done = threading.Event()

    def read(live: LiveImages) -> None:
        live.opened()
        for number in range(100):
            live.put(frame(number))
        done.set()
        while not live.is_stopping:
            time.sleep(0.005)

    live = started(read, policy="wait")
    assert done.wait(20)  # the camera was never held up
    frames = [take(live) for _ in range(4)]
    assert [one.frame_id for one in frames] == [96, 97, 98, 99]
    assert sum(one.lost for one in frames) == 96


def test_silence_is_the_end(started: Start) -> None:
    def read(live: LiveImages) -> None:
        live.opened()
        live.put(frame(1))
        while not live.is_stopping:
            time.sleep(0.005)

    live = started(read, read_s=0.2)
    assert take(live).frame_id == 1
    assert until_lost(live).startswith("expected an image within 0.2 s, got none.")


def test_data_without_an_image_is_the_end_later(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_images, "_FIRST_S", 1.2)

    def read(live: LiveImages) -> None:
        live.opened()
        while not live.is_stopping:
            live.alive()
            time.sleep(0.002)

    live = started(read, read_s=1.0)
    assert until_lost(live).startswith("expected a first image within 1.2 s, got data without one.")


def test_a_camera_that_does_not_open_is_given_up() -> None:
    stop = threading.Event()

    def read(live: LiveImages) -> None:
        stop.wait(20)

    live = LiveImages(read, "latest", 2.0)
    with pytest.raises(SourceLost, match=r"expected an answer within 0\.05 s, got none\."):
        live.start(0.05)
    stop.set()
    live.stop(20.0)


def test_an_error_of_a_library_shows_no_address(started: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    go_on = threading.Event()

    def read(live: LiveImages) -> None:
        live.opened()
        assert go_on.wait(20)
        raise KeyError("rtsp://user:hunter2@host/1")

    live = started(read)
    go_on.set()
    assert until_lost(live) == "reading it failed: KeyError"
    assert "hunter2" not in caplog.text


def test_it_ends_while_a_full_room_waits(started: Start) -> None:
    def read(live: LiveImages) -> None:
        live.opened()
        while not live.is_stopping:
            live.put(frame(0))

    live = started(read)
    live.stop(20.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "live images"]
