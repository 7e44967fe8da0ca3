"""A video file: every image once, with its colours; a file that is cut off or damaged does not pass for a whole one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_videos import noise, plain, write_video
from recording_sink import RecordingSink

from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import VideoSource
from flawscope.runtime.line.sources.video import VideoGrabber

pytest.importorskip("av", reason="PyAV is not installed")

PLACE = SourcePlace("top", "cam0", Path("state"))

LOSSLESS = {"ffv1": ("a.mkv", "ffv1", "bgr0"), "raw": ("a.mov", "rawvideo", "rgb24"), "png": ("a.mov", "png", "rgb24")}
FAST = {"movflags": "faststart"}


@contextmanager
def opened(path: Path, *, last_id: int | None = None, **options: Any) -> Iterator[VideoGrabber]:
    place = SourcePlace("top", "cam0", Path("state"), last_id=last_id)
    grabber = VideoGrabber(VideoSource(path=path, **options), place)
    try:
        grabber.open()
        yield grabber
    finally:
        grabber.close()


def frames_of(grabber: VideoGrabber) -> list[Frame]:
    """Return the images up to the end, without the word that it is the end."""
    frames: list[Frame] = []
    while True:
        frame = grabber.grab(20)
        assert frame is not None
        if frame.is_last:
            return frames
        frames.append(frame)


def frames_up_to_the_end(path: Path) -> tuple[list[Frame], str]:
    """Return the images of a file and how it is lost; empty where it ends as a whole one does."""
    frames: list[Frame] = []
    try:
        with opened(path) as grabber:
            while (frame := grabber.grab(20)) is not None and not frame.is_last:
                frames.append(frame)
    except SourceLost as err:
        return frames, str(err)
    return frames, ""


@pytest.mark.parametrize("kind", LOSSLESS)
def test_images_of_a_lossless_file_are_those_that_were_written(tmp_path: Path, kind: str) -> None:
    name, codec, form = LOSSLESS[kind]
    images = noise(12)
    with opened(write_video(tmp_path / name, images, codec, form)) as grabber:
        frames = frames_of(grabber)
    assert [frame.frame_id for frame in frames] == list(range(12))
    for frame, image in zip(frames, images, strict=True):
        assert not frame.problem
        np.testing.assert_array_equal(frame.image, image)


BT709 = {"colorspace": 1, "color_range": 1, "dst_colorspace": 1, "dst_color_range": 1}
FULL = {"colorspace": 5, "color_range": 2, "dst_colorspace": 5, "dst_color_range": 2}


@pytest.mark.parametrize(
    ("codec", "form", "said"),
    [
        ("libx264", "yuv444p", {}),
        ("libx264", "yuv444p", BT709),
        ("libx264", "yuv444p", FULL),
        ("mjpeg", "yuvj444p", {}),
        ("libx265", "yuv444p", {}),
    ],
    ids=["says nothing", "BT.709", "full range", "MJPEG", "H.265"],
)
def test_colours_are_what_the_file_says(tmp_path: Path, codec: str, form: str, said: dict[str, Any]) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (200, 60, 120), (0, 0, 0), (255, 255, 255)]
    options = {"libx264": {"crf": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}}.get(codec)
    images = [plain(colour) for colour in colours]
    path = write_video(tmp_path / "a.mkv", images, codec, form, options=options, frames=said)
    with opened(path) as grabber:
        frames = frames_of(grabber)
    assert len(frames) == len(colours)
    for frame, image in zip(frames, images, strict=True):
        assert isinstance(frame.image, np.ndarray)
        assert np.abs(frame.image.astype(int) - image).max() <= 4


def test_a_grey_file_stays_grey(tmp_path: Path) -> None:
    image = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 3, axis=2).repeat(48, axis=0)
    with opened(write_video(tmp_path / "a.mkv", [image], "ffv1", "gray")) as grabber:
        frame = frames_of(grabber)[0]
    assert isinstance(frame.image, np.ndarray)
    assert frame.image.shape == (48, 64)
    assert np.abs(frame.image.astype(int) - image[:, :, 0]).max() <= 1


class TestCut:
    FILES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
        ("a.mkv", "ffv1", "bgr0", {}),
        ("b.mkv", "libx264", "yuv420p", {}),
        ("a.webm", "libvpx-vp9", "yuv420p", {}),
        ("a.mp4", "libx264", "yuv420p", FAST),
        ("a.mov", "png", "rgb24", FAST),
        ("a.avi", "mjpeg", "yuvj420p", {}),
        ("a.flv", "libx264", "yuv420p", {}),
    )

    @pytest.mark.parametrize(("name", "codec", "form", "container"), FILES, ids=[file[0] for file in FILES])
    def test_a_file_that_is_cut_off_never_ends_as_a_whole_one(
        self, tmp_path: Path, name: str, codec: str, form: str, container: dict[str, str]
    ) -> None:
        options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
        path = write_video(tmp_path / name, noise(30), codec, form, container=container, options=options)
        data = path.read_bytes()
        for length in np.random.default_rng(0).integers(64, len(data) - 2000, 15):
            path.write_bytes(data[:length])
            seen, lost = frames_up_to_the_end(path)
            # Where only its last image is cut, that one is a fault.
            assert lost.startswith(f"{path}: ") or (len(seen) >= 27 and seen[-1].problem == "incomplete_image"), length

    def test_what_is_whole_before_the_cut_is_given(self, tmp_path: Path) -> None:
        images = noise(30)
        path = write_video(tmp_path / "a.mkv", images, "ffv1", "bgr0")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        frames, lost = frames_up_to_the_end(path)
        assert lost.startswith(f"{path}: it breaks off behind {len(frames)} images: ")
        assert "prematurely" in lost
        assert 10 <= len(frames) <= 15
        for frame, image in zip(frames, images, strict=False):
            np.testing.assert_array_equal(frame.image, image)


def test_a_flipped_bit_is_a_fault_where_the_codec_has_checksums(tmp_path: Path) -> None:
    images = noise(12)
    path = write_video(tmp_path / "a.mkv", images, "ffv1", "bgr0", options={"slicecrc": "1", "level": "3", "g": "1"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with opened(path) as grabber:
        frames = frames_of(grabber)
    assert sum(bool(frame.problem) for frame in frames) == 1
    for frame, image in zip(frames, images, strict=True):
        if frame.problem:
            assert (frame.problem, frame.image) == ("incomplete_image", None)
            assert "CRC" in frame.detail
        else:
            np.testing.assert_array_equal(frame.image, image)


@pytest.mark.parametrize("ahead", [0, 3], ids=["in order", "out of order"])
def test_damage_goes_on_up_to_the_next_key_image(tmp_path: Path, ahead: int) -> None:
    options = {"x264-params": f"keyint=12:min-keyint=12:scenecut=0:bframes={ahead}:b-adapt=0"}
    path = write_video(tmp_path / "a.mkv", noise(36), "libx264", "yuv420p", options=options)
    with opened(path) as grabber:
        whole = frames_of(grabber)
    assert [bool(frame.problem) for frame in whole] == [False] * 36
    right = {frame.image.tobytes() for frame in whole if isinstance(frame.image, np.ndarray)}
    data = path.read_bytes()
    for share in range(20, 80, 4):
        middle = len(data) * share // 100
        path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
        frames, lost = frames_up_to_the_end(path)
        assert [frame.frame_id for frame in frames] == list(range(len(frames)))
        assert lost or any(frame.problem for frame in frames), share
        assert sum(not frame.problem for frame in frames) >= 5, share
        for frame in frames:
            assert frame.problem or (isinstance(frame.image, np.ndarray) and frame.image.tobytes() in right), share


def test_it_goes_on_behind_the_last_image(tmp_path: Path) -> None:
    images = noise(12)
    path = write_video(tmp_path / "a.mkv", images, "ffv1", "bgr0")
    with opened(path, last_id=7) as grabber:
        frames = frames_of(grabber)
    assert [frame.frame_id for frame in frames] == [8, 9, 10, 11]
    np.testing.assert_array_equal(frames[0].image, images[8])
    with opened(path, last_id=11) as grabber:
        assert frames_of(grabber) == []


def test_images_come_at_their_time_where_they_should(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", noise(6), "ffv1", "bgr0", rate=10)
    with opened(path, pace="file") as grabber:
        times = [frame.mono_ns / 1e9 for frame in frames_of(grabber)]
        began = time.monotonic()
        assert grabber.grab(0.0) is not None
    assert time.monotonic() - began < 5
    for number, at in enumerate(times):
        # Never before its time; how long after depends on the machine.
        assert at - times[0] > number * 0.1 - 0.05


@pytest.mark.parametrize("kind", ["none", "empty", "text", "pipe", "folder", "sound"])
def test_what_is_no_video_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mkv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        write_sound(path)
    elif kind != "none":
        path.write_text("rtsp://host/1\n" * 100 if kind == "text" else "")
    with pytest.raises(SourceLost, match=r"expected a (video file|file with video), got") as raised, opened(path):
        pass
    assert str(raised.value).startswith(f"{path}: ")


def write_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("pcm_s16le", rate=8000)
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.long
def test_a_child_that_is_killed_loses_no_image_and_gives_none_twice(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", noise(60), "ffv1", "bgr0", rate=30)
    source = ChildSource(VideoSource(path=path, pace="file"), SourcePlace("top", "cam0", tmp_path, 1 << 20))
    sink = RecordingSink()
    source.start(sink)
    try:
        sink.wait(lambda sink: len(sink.frames) >= 10)
        assert source._process is not None
        source._process._process.kill()
        sink.wait(lambda sink: bool(sink.frames) and sink.frames[-1].is_last)
    finally:
        source.stop(10)
    assert len(sink.downs) == 1
    assert [frame.frame_id for frame in sink.frames] == [*range(60), None]
    for frame, image in zip(sink.frames, noise(60), strict=False):
        np.testing.assert_array_equal(frame.image, image)
