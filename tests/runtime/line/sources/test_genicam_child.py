"""A camera in the child process of a source: whatever becomes of camera or process, the next image comes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_camera import ADDRESS, fake_camera, value_of, why_none
from recording_sink import RecordingSink

from flawscope.runtime.line.sources.child import ChildLimits, ChildSource
from flawscope.runtime.line.sources.grabber import SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import GenicamSource

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_none()), reason=why_none())]

Start = Callable[..., tuple[ChildSource, RecordingSink]]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    sources = []

    def start(**options: Any) -> tuple[ChildSource, RecordingSink]:
        place = SourcePlace("top", "cam0", tmp_path, 1 << 20)
        features = {"Width": 64, "Height": 48}
        source = ChildSource(
            GenicamSource(camera=ADDRESS, trigger="software", features=features, heartbeat_s=0.5, **options),
            place,
            ChildLimits(hang_s=2.0),
        )
        sink = RecordingSink()
        sources.append(source)
        source.start(sink)
        sink.wait(lambda sink: sink.words == ["up"])
        return source, sink

    yield start
    for source in sources:
        source.stop(10)


def shot(source: ChildSource, sink: RecordingSink) -> Frame:
    """Trigger an image and return it.

    On a busy machine all packets of an image may be lost, or a trigger be dropped because it waited for too long. Then
    no image comes, as none comes to a line, and another is asked for; that none is missing otherwise is tested by
    `test_every_trigger_has_its_image_in_order`, which has the machine for itself.
    """
    count = len(sink.frames)
    for seq in range(1, 16):
        source.trigger(seq)
        if sink.comes(lambda sink: len(sink.frames) > count, 4.0):
            return sink.frames[-1]
    raise AssertionError((sink.words, count, sink.left_out))


def whole_shot(source: ChildSource, sink: RecordingSink) -> Frame:
    """Trigger images until one comes of which, and before which, no packet is missing: a busy machine may drop some."""
    end = time.monotonic() + 30.0
    while (frame := shot(source, sink)).problem == "incomplete_image" or frame.lost:
        assert time.monotonic() < end
    return frame


def check_whole(frame: Frame) -> None:
    assert (frame.problem, frame.lost) == ("", 0)
    assert isinstance(frame.image, np.ndarray)
    assert frame.image.shape == (48, 64)
    assert np.unique(frame.image).tolist() == [value_of(frame.frame_id or 0)]


def check_numbers(frames: list[Frame]) -> None:
    """Check that each image has the number after the last one's, but for those that are missing or have none."""
    last, unknown = None, 0
    for frame in frames:
        if frame.frame_id is None:
            unknown += 1
            continue
        if last is not None:
            assert frame.frame_id == last + 1 + unknown + frame.lost
        last, unknown = frame.frame_id, 0


def test_each_trigger_has_its_image_and_a_killed_camera_comes_back(started: Start) -> None:
    with fake_camera() as camera:
        source, sink = started()
        for _ in range(50):
            if (frame := shot(source, sink)).problem != "incomplete_image" and not frame.lost:
                check_whole(frame)
        assert any(frame.problem == "" for frame in sink.frames)
        check_numbers(sink.frames)
        camera.kill()
        sink.wait(lambda sink: len(sink.words) > 1)
        assert "no answer" in sink.words[1]
        count = len(sink.frames)
        # Nobody asks in vain twice: what is asked now has no image, and the next one is not taken for it.
        source.trigger(99)
        camera.start()
        sink.wait(lambda sink: sink.words[-1] == "up")
        assert len(sink.frames) == count
        check_whole(whole_shot(source, sink))


def test_lost_packets_come_as_incomplete_images(started: Start) -> None:
    with fake_camera(lost=100.0):
        source, sink = started()
        end = time.monotonic() + 60.0
        while not {"", "incomplete_image"} <= {frame.problem for frame in sink.frames}:
            assert time.monotonic() < end
            frame = shot(source, sink)
            if frame.problem:
                assert (frame.problem, frame.image) == ("incomplete_image", None)
            else:
                assert isinstance(frame.image, np.ndarray)
                assert len(np.unique(frame.image)) == 1


def test_a_child_that_hangs_is_replaced(started: Start) -> None:
    with fake_camera():
        source, sink = started()
        check_whole(whole_shot(source, sink))
        process = source._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        sink.wait(lambda sink: len(sink.words) > 1)
        assert "no sign of life" in sink.words[1]
        # The camera gives its former controller up after 3 s.
        sink.wait(lambda sink: sink.words[-1] == "up")
        check_whole(whole_shot(source, sink))
