"""A USB camera, by a stand-in: what is opened is a file whose video is as a camera's would be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_videos import plain, write_video

from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import V4l2Format, V4l2Source
from flawscope.runtime.line.sources.v4l2 import FORMATS, V4l2Grabber

av = pytest.importorskip("av", reason="PyAV is not installed")

DEVICE = Path("/dev/video7")
COLOUR = (200, 60, 120)

FILES: dict[V4l2Format, tuple[str, str, str]] = {
    "YUYV": ("a.nut", "rawvideo", "yuyv422"),
    "UYVY": ("a.nut", "rawvideo", "uyvy422"),
    "YU12": ("a.nut", "rawvideo", "yuv420p"),
    "NV12": ("a.nut", "rawvideo", "nv12"),
    "RGB3": ("a.nut", "rawvideo", "rgb24"),
    "BGR3": ("a.nut", "rawvideo", "bgr24"),
    "GREY": ("a.nut", "rawvideo", "gray"),
    "MJPG": ("a.avi", "mjpeg", "yuvj420p"),
    "H264": ("a.mkv", "libx264", "yuv420p"),
}
"""Format -> a file with the same data: name, encoder, pixel format."""

Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Let a file take the place of the camera; returns what it was opened with."""

    def put(form: V4l2Format, images: int = 3, before: Callable[[], object] | None = None) -> Calls:
        name, codec, pixels = FILES[form]
        path = write_video(tmp_path / name, [plain(COLOUR)] * images, codec, pixels)
        really, calls = av.open, []

        def stand_in(name: str, **options: Any) -> Any:
            calls.append((name, options))
            if before is not None:
                before()
            return really(str(path))

        monkeypatch.setattr(av, "open", stand_in)
        return calls

    return put


def opened(**options: Any) -> V4l2Grabber:
    grabber = V4l2Grabber(V4l2Source(device=DEVICE, **options), SourcePlace("top", "cam0", Path("state")))
    try:
        grabber.open()
    except SourceLost:
        grabber.close()
        raise
    return grabber


def take(grabber: V4l2Grabber) -> Frame:
    frame = grabber.grab(20)
    assert frame is not None
    return frame


def test_every_format_is_one_that_ffmpeg_knows() -> None:
    assert "video4linux2,v4l2" in av.formats_available
    for name in FORMATS.values():
        assert name in av.codecs_available or name in av.video.format.names


@pytest.mark.parametrize("form", FORMATS)
def test_what_it_is_set_to_is_asked_for_read_back_and_converted(camera: Callable[..., Calls], form: V4l2Format) -> None:
    calls = camera(form)
    grabber = opened(pixel_format=form, size=(64, 48), read_s=20)
    try:
        frame = take(grabber)
    finally:
        grabber.close()
    ((name, options),) = calls
    assert (name, options["format"]) == ("/dev/video7", "v4l2")
    assert options["options"] == {"input_format": FORMATS[form], "video_size": "64x48"}
    assert isinstance(frame.image, np.ndarray)
    assert frame.image.dtype == np.uint8
    if form == "GREY":
        assert frame.image.shape == (48, 64)
        assert np.abs(frame.image.astype(int) - round(0.299 * 200 + 0.587 * 60 + 0.114 * 120)).max() <= 2
    else:
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.astype(int) - COLOUR).max() <= 4


def test_nothing_is_asked_for_that_is_not_set(camera: Callable[..., Calls]) -> None:
    calls = camera("YUYV")
    opened(read_s=20).close()
    assert calls[0][1]["options"] == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (128, 96)}, "size: expected 128 x 96, got 64 x 48. Take one that the camera has"),
        ({"pixel_format": "MJPG"}, "pixel_format: expected mjpeg, got yuyv422. Take one that the camera has"),
    ],
)
def test_a_setting_that_a_driver_changed_is_refused(
    camera: Callable[..., Calls], options: dict[str, Any], words: str
) -> None:
    camera("YUYV")
    with pytest.raises(SourceLost) as raised:
        opened(**options)
    assert str(raised.value).startswith(f"{DEVICE}: {words}")


def test_a_camera_that_is_unplugged_is_lost(camera: Callable[..., Calls]) -> None:
    camera("YUYV", images=5)
    grabber = opened(read_s=20)
    try:
        for _ in range(5):
            assert not take(grabber).problem
        with pytest.raises(SourceLost, match=f"{DEVICE}: the stream ended"):
            take(grabber)
    finally:
        grabber.close()


def test_a_camera_that_does_not_answer_is_given_up(
    camera: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawscope.runtime.line.sources.v4l2._OPEN_S", 0.05)
    go_on = threading.Event()
    camera("YUYV", before=lambda: go_on.wait(20))
    try:
        with pytest.raises(SourceLost, match=r"expected an answer within 0\.05 s"):
            opened()
    finally:
        go_on.set()
    for thread in threading.enumerate():
        if thread.name == "live images":
            thread.join(20)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_camera_that_does_not_open_says_why(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(SourceLost, match=f"a USB camera that opens, got: {error.strerror}"):
        opened()


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    # The real library, up to the system's answer.
    grabber = V4l2Grabber(V4l2Source(device=tmp_path / "video9"), SourcePlace("top", "cam0", tmp_path))
    with pytest.raises(SourceLost, match=r"video9: expected a USB camera that opens, got: No such file"):
        grabber.open()
    grabber.close()
