"""`GenicamGrabber` with a fake camera on loopback: every trigger has its image, and none that is torn or false."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_camera import ADDRESS, fake_camera, value_of, why_none

from flawscope.resident_memory import resident_kib
from flawscope.runtime.line.sources.genicam import GenicamGrabber, find_cameras
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import GenicamSource

pytestmark = pytest.mark.skipif(bool(why_none()), reason=why_none())

_SMALL: dict[str, Any] = {"Width": 64, "Height": 48}
_WAIT_S = 10.0
_UDP = (socket.AF_INET, socket.SOCK_DGRAM)


def grabber(**options: Any) -> GenicamGrabber:
    source = GenicamSource(**{"camera": ADDRESS, "trigger": "software", "features": _SMALL, **options})
    return GenicamGrabber(source, SourcePlace("top", "cam0", Path("unused")))


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[GenicamGrabber]:
    source = grabber(**options)
    try:
        source.open()
        yield source
    finally:
        source.close()


def shot(source: GenicamGrabber, timeout_s: float = _WAIT_S) -> Frame | None:
    """Trigger an image and return it."""
    source.trigger()
    return source.grab(timeout_s)


def whole_shot(source: GenicamGrabber, timeout_s: float = _WAIT_S) -> Frame:
    """Trigger images until one comes of which, and before which, no packet is missing: a busy machine may drop some."""
    end = time.monotonic() + 30.0
    while (frame := shot(source, timeout_s)) is None or frame.problem == "incomplete_image" or frame.lost:
        assert time.monotonic() < end
    return frame


def check_whole(frame: Frame | None) -> int:
    """Check that all pixels are those of this image, and return its number."""
    assert frame is not None
    assert (frame.problem, frame.lost, frame.source, frame.is_last) == ("", 0, "", False)
    assert isinstance(frame.image, np.ndarray)
    assert frame.frame_id is not None
    assert frame.image.dtype == np.uint8
    assert np.unique(frame.image).tolist() == [value_of(frame.frame_id)]
    return frame.frame_id


def follows(number: int) -> int:
    """Return the number of the next image of GigE Vision 1."""
    return number + 1 if number < 65535 else 1


def lost_within(source: GenicamGrabber, seconds: float) -> str:
    """Return why the source is lost, which it must be in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            source.grab(0.1)
        except SourceLost as err:
            return str(err)
    raise AssertionError(f"the camera was not lost within {seconds} s")


def check_triggers(count: int) -> None:
    with fake_camera() as camera, opened() as source:
        assert source.is_triggered
        assert source.policy == "every"
        before = time.monotonic_ns()
        numbers = []
        for _ in range(count):
            frame = shot(source)
            numbers.append(check_whole(frame))
            assert frame is not None
            assert before < frame.mono_ns <= time.monotonic_ns()
        assert numbers[1:] == [follows(number) for number in numbers[:-1]]
        # The fake camera begins at 65401: the number has begun anew on the way, and nothing is missing there.
        assert 65535 in numbers
        assert source.grab(0.0) is None
        counted = source.statistics()
        assert counted["images"] == counted["completed_buffers"] == count
        assert counted["incomplete_images"] == counted["lost_images"] == counted["missing_packets"] == 0
        assert camera.name == "Aravis-Fake-T1"


@pytest.mark.serial  # a busy machine drops packets
def test_every_trigger_has_its_image_in_order() -> None:
    check_triggers(150)


@pytest.mark.long
@pytest.mark.serial  # a busy machine drops packets
def test_500_triggers_have_500_images() -> None:
    check_triggers(500)


@pytest.mark.serial  # a busy machine drops packets
def test_the_fake_camera_of_debian_gives_an_image_for_each_trigger() -> None:
    tool = shutil.which("arv-fake-gv-camera-0.8")
    if tool is None:
        pytest.skip("arv-fake-gv-camera-0.8 is not installed (Debian: aravis-tools-cli)")
    with fake_camera(command=[tool, "-i", ADDRESS, "-s", "T2"]), opened(features={**_SMALL, "Width": 128}) as source:
        numbers = []
        for _ in range(20):
            frame = shot(source)
            assert frame is not None
            assert (frame.problem, frame.lost) == ("", 0)
            assert isinstance(frame.image, np.ndarray)
            assert frame.image.shape == (48, 128)
            numbers.append(frame.frame_id)
            # Its ramp: a neighbour at the right has the value of the neighbour below.
            assert (frame.image[1:, :-1] == frame.image[:-1, 1:]).all()
        assert None not in numbers
        assert numbers == list(range(numbers[0] or 0, (numbers[0] or 0) + 20))


def check_losses(triggers: int, lost: float, width: int, height: int) -> None:
    with fake_camera(lost=lost), opened(features={"Width": width, "Height": height}) as source:
        frames, silent = [], 0
        for _ in range(triggers):
            frame = shot(source, 2.0)
            if frame is None:  # every packet of it was lost
                silent += 1
            else:
                frames.append(frame)
        incomplete = [frame for frame in frames if frame.problem]
        assert 0 < len(incomplete) < len(frames)
        for frame in frames:
            if frame.problem:
                assert frame.problem == "incomplete_image"
                assert frame.image is None
                assert frame.detail.removeprefix("the camera's image did not arrive whole: ") in (
                    "MISSING_PACKETS",
                    "TIMEOUT",
                )
            else:
                assert isinstance(frame.image, np.ndarray)
                assert frame.image.shape == (height, width)
                assert np.unique(frame.image).tolist() == [value_of(frame.frame_id or 0)]
        assert len(frames) + silent == triggers
        # An image that came in part is one of these and no missing one, whichever of its packets are there.
        assert sum(frame.lost for frame in frames) <= silent
        counted = source.statistics()
        assert counted["incomplete_images"] == len(incomplete)
        assert counted["missing_packets"] > 0


def test_an_image_of_which_packets_are_lost_is_a_problem_and_never_torn() -> None:
    check_losses(25, 100.0, 64, 48)


@pytest.mark.long
@pytest.mark.serial  # a busy machine drops packets
def test_two_packets_in_a_hundred_lost_of_large_images() -> None:
    check_losses(60, 20.0, 256, 192)


@contextlib.contextmanager
def other_traffic() -> Iterator[None]:
    """Send what is no image through the interface of the camera, as fast as one thread can."""
    ended = threading.Event()

    def send() -> None:
        with socket.socket(*_UDP) as ours, socket.socket(*_UDP) as theirs:
            theirs.bind((ADDRESS, 0))
            while not ended.is_set():
                ours.sendto(os.urandom(1200), theirs.getsockname())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_what_others_send_while_a_camera_is_opened_is_no_image() -> None:
    with fake_camera():
        for _ in range(3):
            with other_traffic(), opened(packet_size=1400) as source:
                check_whole(whole_shot(source))
                counted = source.statistics()
            # Those of the images: a first and a last one, and three of pixels.
            assert counted["received_packets"] <= 5 * counted["images"] + 4


@pytest.mark.long
def test_a_killed_camera_is_lost_in_time_and_works_again_when_it_is_back() -> None:
    with fake_camera() as camera, opened(heartbeat_s=0.5) as source:
        check_whole(whole_shot(source))
        camera.kill()
        assert "no answer" in lost_within(source, 10.0)
        with pytest.raises(SourceLost, match=r"no answer|timeout"):
            source.trigger()
        camera.start()
        source.open()
        check_whole(whole_shot(source))


@pytest.mark.long
def test_a_camera_that_hangs_is_lost_in_time_and_works_again_afterwards() -> None:
    with fake_camera() as camera, opened(heartbeat_s=0.5) as source:
        check_whole(whole_shot(source))
        camera.pause()
        try:
            # A trigger that nobody answers is noticed as well, and blocks nobody.
            started = time.monotonic()
            source.trigger()
            assert time.monotonic() - started < 2.5
            assert "no answer" in lost_within(source, 10.0)
        finally:
            camera.resume()
        source.open()
        check_whole(whole_shot(source))


@pytest.mark.long
def test_a_camera_that_was_restarted_unnoticed_is_lost_as_nobody_controls_it() -> None:
    with fake_camera() as camera, opened(heartbeat_s=0.1) as source:
        check_whole(whole_shot(source))
        camera.kill()
        camera.start()
        assert "restarted, or another program took it" in lost_within(source, _WAIT_S)


@pytest.mark.long
def test_a_camera_that_somebody_else_has_is_not_opened() -> None:
    with fake_camera(), opened() as source:
        rival = grabber()
        with pytest.raises(SourceLost, match="got a camera that another program controls"):
            rival.open()
        rival.close()
        check_whole(whole_shot(source))


def test_settings_that_the_camera_does_not_take_are_named() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"Nope": 1}, r"feature Nope = 1: 127.0.0.1 refused it: it has no such feature"),
        ({"TriggerActivation": "FallingEdge"}, r"feature TriggerActivation = FallingEdge: 127.0.0.1 refused it: .*not"),
        # YAML 1.1 makes False of Off.
        ({"TriggerActivation": False}, r"feature TriggerActivation = false: .* Write On and Off in quotes"),
        ({"Width": "wide"}, r"feature Width = wide: 127.0.0.1 refused it"),
        # Its register counts whole microseconds, and takes a shorter exposure for none.
        ({"ExposureTimeAbs": 0.4}, r"feature ExposureTimeAbs = 0.4: expected to read it back, got 0"),
    ]
    with fake_camera():
        for features, message in wrong:
            source = grabber(features=features)
            with pytest.raises(SourceLost, match=message):
                source.open()
            # A failed open leaves nothing behind.
            with pytest.raises(SourceLost, match="not open"):
                source.grab(0.0)
        with pytest.raises(SourceLost, match=r"PixelFormat = Mono12: 127\.0\.0\.1 refused it"):
            grabber(pixel_format="Mono12").open()
        with opened(features={**_SMALL, "ExposureTimeAbs": 800, "AcquisitionFrameRate": 20.0}) as source:
            check_whole(whole_shot(source))


def test_a_hardware_trigger_waits_without_being_lost_and_needs_a_line() -> None:
    with fake_camera():
        with opened():  # leaves the source of the trigger at Software
            pass
        with pytest.raises(SourceLost, match="expected a line for trigger: hardware, got Software"):
            grabber(trigger="hardware").open()
        line = {**_SMALL, "TriggerSource": "Line0"}
        with opened(trigger="hardware", features=line, heartbeat_s=0.05) as source:
            assert not source.is_triggered
            assert source.policy == "every"
            source.trigger()  # means nothing to it
            assert source.grab(0.5) is None


@pytest.mark.serial  # a busy machine drops packets
def test_a_free_camera_gives_images_one_after_the_other() -> None:
    with fake_camera(), opened(trigger="free", features={**_SMALL, "AcquisitionFrameRate": 100.0}) as source:
        assert not source.is_triggered
        assert source.policy == "latest"
        numbers = [check_whole(source.grab(_WAIT_S)) for _ in range(10)]
        assert numbers == list(range(numbers[0], numbers[0] + 10))


@pytest.mark.serial  # a busy machine drops packets
def test_images_that_found_no_buffer_are_counted_as_lost() -> None:
    with fake_camera(), opened(trigger="free", features={**_SMALL, "AcquisitionFrameRate": 100.0}) as source:
        first = check_whole(source.grab(_WAIT_S))
        end = time.monotonic() + _WAIT_S
        while source.statistics()["underruns"] == 0:
            assert time.monotonic() < end
            time.sleep(0.05)
        frames = [source.grab(_WAIT_S) for _ in range(12)]
        numbers = [frame.frame_id for frame in frames if frame is not None and frame.frame_id is not None]
        whole_or_not = sum(1 for frame in frames if frame is not None)
        lost = sum(frame.lost for frame in frames if frame is not None)
        assert lost > 0
        # Every number up to the last is accounted for: it came, in whole or in part, or it was lost.
        assert (numbers[-1] - first) % 65535 == whole_or_not + lost


@pytest.mark.parametrize("size", [576, 9000, "auto"])
def test_packets_have_the_size_that_was_asked_for(size: int | str) -> None:
    with fake_camera(), opened(packet_size=size) as source:
        check_whole(whole_shot(source))
        counted = source.statistics()
        # Of the 3072 bytes of an image, besides 2 packets that frame it; on a busy machine some are asked for again.
        if size == 576:
            assert counted["received_packets"] >= 6 + 2
        elif size == 9000:
            assert 1 + 2 <= counted["received_packets"] < 6 + 2
        else:
            assert counted["received_packets"] >= 1 + 2


def test_an_unknown_camera_is_not_opened() -> None:
    with pytest.raises(SourceLost, match="expected 'Nobody-1' to answer"):
        grabber(camera="Nobody-1").open()


def test_cameras_are_found_by_name_and_address() -> None:
    with fake_camera(serial="T7"):
        found = [camera for camera in find_cameras() if camera.serial == "T7"]
        assert [(camera.id, camera.vendor, camera.model, camera.protocol) for camera in found] == [
            ("Aravis-Fake-T7", "Aravis", "Fake", "GigEVision")
        ]
        with opened(camera="Aravis-Fake-T7"):
            pass


def bars() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return eight colour bars, uint8 [48, 64, 3] RGB."""
    colours = [[255 * (i >> shift & 1) for shift in (2, 1, 0)] for i in range(8)]
    return np.tile(np.repeat(np.array(colours, np.uint8), 8, axis=0), (48, 1, 1))


def sent(name: str) -> bytes:
    """Return what a camera sends of the bars."""
    if name == "RGB8":
        return bars().tobytes()
    if name.startswith("Mono"):
        grey = cv2.cvtColor(bars(), cv2.COLOR_RGB2GRAY)
        return grey.tobytes() if name == "Mono8" else (grey.astype("<u2") * 256 + 7).tobytes()
    first, second = {"RG": ("RG", "GB"), "GR": ("GR", "BG"), "GB": ("GB", "RG"), "BG": ("BG", "GR")}[name[5:7]]
    grey = np.empty((48, 64), np.uint8)
    for y, letters in enumerate((first, second)):
        for x, letter in enumerate(letters):
            grey[y::2, x::2] = bars()[y::2, x::2, "RGB".index(letter)]
    return grey.tobytes()


@pytest.mark.parametrize("name", ["Mono8", "Mono16", "RGB8", "BayerRG8", "BayerGR8", "BayerGB8", "BayerBG8"])
def test_colour_bars_come_with_the_right_colours(name: str, tmp_path: Path) -> None:
    (tmp_path / "bars.raw").write_bytes(sent(name))
    with fake_camera(pixels=tmp_path / "bars.raw"), opened(pixel_format=name) as source:
        frame = whole_shot(source)
    assert frame is not None
    image = frame.image
    assert isinstance(image, np.ndarray)
    if name.startswith("Mono"):
        assert image.tolist() == cv2.cvtColor(bars(), cv2.COLOR_RGB2GRAY).tolist()
    elif name == "RGB8":
        assert image.tolist() == bars().tolist()
    else:
        inner = np.arange(64) % 8
        inside = (inner > 1) & (inner < 6)
        assert image[2:-2, inside].tolist() == bars()[2:-2, inside].tolist()


def test_an_image_of_another_format_than_was_asked_for_is_a_problem() -> None:
    with fake_camera(), opened() as source:
        check_whole(whole_shot(source))
        camera = source._camera
        assert camera is not None
        camera.write("PixelFormat", "BayerRG8")  # as large as Mono8
        frame = shot(source)
        assert frame is not None
        assert (frame.image, frame.problem) == (None, "unreadable_image")
        assert frame.detail == "buffer: expected pixel format Mono8, 0x01080001, got 0x01080009."
        camera.write("PixelFormat", "Mono8")
        camera.write("Height", 40)
        frame = shot(source)
        assert frame is not None
        # The fake camera goes on sending 48 rows and says 40: what is left over is not looked at.
        assert isinstance(frame.image, np.ndarray)
        assert frame.image.shape == (40, 64)
        assert source.statistics()["unreadable_images"] == 1


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 every path would be opened


def test_opening_again_and_again_leaves_no_file_open() -> None:
    with fake_camera():
        source = grabber()
        counts = []
        for _ in range(6):
            source.open()
            check_whole(whole_shot(source))
            source.close()
            # The thread that talked with the camera lets go of it when it has ended, which nobody waits for.
            end = time.monotonic() + 30.0
            while any(thread.name == "camera control" for thread in threading.enumerate()):
                assert time.monotonic() < end
                time.sleep(0.01)
            counts.append(open_files())
        assert counts[-1] == counts[1]


@pytest.mark.long
@pytest.mark.serial
def test_memory_does_not_grow_with_images() -> None:
    with fake_camera(), opened(trigger="free", features={**_SMALL, "AcquisitionFrameRate": 500.0}) as source:

        def take(count: int) -> int:
            for _ in range(count):
                frame = source.grab(_WAIT_S)
                assert frame is not None
                assert isinstance(frame.image, np.ndarray)
            return resident_kib() or 0

        before = take(300)
        after = take(1000)
    # Images that are kept would be 3 MiB.
    assert after - before < 1024


def test_a_camera_that_is_not_open_gives_nothing() -> None:
    source = grabber()
    with pytest.raises(SourceLost, match="not open"):
        source.grab(0.0)
    with pytest.raises(SourceLost, match="not open"):
        source.trigger()
    source.done("part.png")
    source.close()
    assert source.statistics()["images"] == 0
