"""A network camera in its child process: there, killed, frozen, back again, absent, or faster than the station."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from recording_sink import RecordingSink
from rtsp_server import bars, check_bars, rtsp_server, why_absent

from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.sources.grabber import SourcePlace
from flawscope.runtime.line.sources.table import RtspSource

pytest.importorskip("av", reason="PyAV is not installed")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_absent()), reason=f"no RTSP server: {why_absent()}"),
]

Start = Callable[..., RecordingSink]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Start a source in its child process; it is stopped after the test."""
    sources = []

    def start(url: str, **options: Any) -> RecordingSink:
        source = ChildSource(RtspSource(url=url, **options), SourcePlace("top", "cam0", tmp_path, 1 << 20))
        sink = RecordingSink()
        sources.append((source, sink))
        source.start(sink)
        return sink

    yield start
    for source, sink in sources:
        sink.room.set()
        source.stop(10)


def check_all(sink: RecordingSink) -> None:
    """Fail unless every image has the right colours, whenever it came; none ends the source, none is out of order."""
    frames = list(sink.frames)
    for frame in frames:
        if frame.problem:  # what a killed server was just sending
            assert (frame.problem, frame.image) == ("incomplete_image", None), frame.detail
        else:
            check_bars(frame.image)
    assert sum(bool(frame.problem) for frame in frames) <= 2
    assert not any(frame.is_last for frame in frames)
    times = [frame.mono_ns for frame in frames]
    assert times == sorted(times)


def test_a_server_that_is_killed_is_lost_and_comes_back(started: Start) -> None:
    with rtsp_server() as server:
        sink = started(server.url)
        sink.wait(lambda sink: len(sink.frames) >= 30)
        server.kill()
        sink.wait(lambda sink: bool(sink.downs))
        port = server.port
    seen = len(sink.frames)
    with rtsp_server(port):
        sink.wait(lambda sink: len(sink.frames) >= seen + 30)
    check_all(sink)
    # What looks like the end of a file is none.
    assert "ended" in sink.downs[0] or "broke off" in sink.downs[0]
    assert "its process" not in sink.downs[0]


def test_a_frozen_server_is_noticed_and_found_again(started: Start) -> None:
    with rtsp_server() as server:
        sink = started(server.url)
        for _ in range(5):
            seen, downs = len(sink.frames), len(sink.downs)
            sink.wait(lambda sink, seen=seen: len(sink.frames) >= seen + 30)  # type: ignore[misc]
            server.freeze()
            began = time.monotonic()
            sink.wait(lambda sink, downs=downs: len(sink.downs) > downs, 30)  # type: ignore[misc]
            # Far below what a library would wait by itself.
            assert time.monotonic() - began < 15
            reason = sink.downs[downs]
            if "later than at first" not in reason:
                break
            server.thaw()  # it was this machine that stood still: once more
        assert "within 2 s" in reason or "ended" in reason or "broke off" in reason
        server.thaw()
        seen = len(sink.frames)
        sink.wait(lambda sink: len(sink.frames) >= seen + 30)
    check_all(sink)


def test_a_server_that_is_absent_at_the_start_is_waited_for(started: Start) -> None:
    port = free_port()
    sink = started(f"rtsp://127.0.0.1:{port}/bars")
    sink.wait(lambda sink: bool(sink.downs))
    assert sink.downs[0].startswith(f"rtsp://127.0.0.1:{port}/bars: it could not be opened: Connection refused")
    with rtsp_server(port):
        sink.wait(lambda sink: len(sink.frames) >= 30)
    check_all(sink)
    assert sink.words[0] != "up"


def test_a_full_station_gets_the_newest_image(started: Start) -> None:
    with rtsp_server() as server:
        sink = started(server.url)
        sink.room.clear()
        sink.wait(lambda sink: sink.left_out >= 60)
        opened = time.monotonic_ns()
        sink.room.set()
        sink.wait(lambda sink: len(sink.frames) >= 3)
    # The first one waited in the station, the second for it: none of the sixty in between, and none is older.
    assert opened - sink.frames[1].mono_ns < 2e9
    assert sum(frame.lost for frame in sink.frames) == 0
    check_all(sink)


def test_a_slow_camera_opens_in_time(started: Start) -> None:
    with rtsp_server(0, bars(rate=2, key_every=2)) as server:
        # By default FFmpeg would look at it for five seconds before it gave the first image.
        sink = started(server.url, open_s=8.0)
        sink.wait(lambda sink: len(sink.frames) >= 3)
    check_all(sink)
