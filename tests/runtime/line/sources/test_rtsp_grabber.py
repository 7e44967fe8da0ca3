"""A network camera without its child: passwords, refusals, and a stream of which parts are missing."""

from __future__ import annotations

import base64
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from rtsp_server import bars, check_bars, check_moving_bars, rtsp_server, why_absent

from flawscope.runtime.line.sources import rtsp
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.rtsp import RtspGrabber
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import RtspSource

pytest.importorskip("av", reason="PyAV is not installed")

needs_server = pytest.mark.skipif(bool(why_absent()), reason=f"no RTSP server: {why_absent()}")

USER, PASSWORD = "line@press", "s p@ss:w/ord?%41"
LOGIN = {"user": "env:CAMERA_USER", "password": "env:CAMERA_PASSWORD"}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_USER", USER)
    monkeypatch.setenv("CAMERA_PASSWORD", PASSWORD)


@contextlib.contextmanager
def opened(url: str, folder: Path, **options: Any) -> Iterator[RtspGrabber]:
    grabber = RtspGrabber(RtspSource(url=url, **options), SourcePlace("top", "cam0", folder))
    try:
        grabber.open()
        yield grabber
    finally:
        grabber.close()


def take(grabber: RtspGrabber, count: int) -> list[Frame]:
    frames: list[Frame] = []
    for _ in range(600):
        frame = grabber.grab(0.1)
        if frame is not None:
            frames.append(frame)
        if len(frames) == count:
            return frames
    raise AssertionError(f"{len(frames)} of {count} images came")


def take_again(url: str, folder: Path, count: int, **options: Any) -> list[Frame]:
    """Return as many images, opening the stream anew where it is lost, as a source does: this machine may be busy."""
    frames: list[Frame] = []
    for _ in range(6):
        with contextlib.suppress(SourceLost), opened(url, folder, **options) as grabber:
            while len(frames) < count:
                frames += take(grabber, 1)
        if len(frames) == count:
            return frames
    raise AssertionError(f"{len(frames)} of {count} images came")


def assert_no_secret(text: str) -> None:
    forms = [PASSWORD, USER, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()]
    for form in (*forms, "p%40ss", "ss:w", "ss%3Aw", "%2541", "line%40"):
        assert form not in text


@needs_server
@pytest.mark.long
@pytest.mark.parametrize("method", ["basic", "digest"])
def test_a_password_is_sent_and_never_shown(
    tmp_path: Path,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with rtsp_server(method=method, user=USER, password=PASSWORD) as server:
        with opened(server.url, tmp_path, **LOGIN) as grabber:
            check_bars(take(grabber, 1)[0].image)
        with pytest.raises(SourceLost, match="401 Unauthorized") as raised, opened(server.url, tmp_path):
            pass
        said.append(str(raised.value))
        monkeypatch.setenv("CAMERA_PASSWORD", f"{PASSWORD}x")
        with pytest.raises(SourceLost, match="401 Unauthorized") as raised, opened(server.url, tmp_path, **LOGIN):
            pass
        said.append(str(raised.value))
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
    assert_no_secret("\n".join([*said, caplog.text, *capfd.readouterr()]))


def test_a_refusal_shows_no_password(tmp_path: Path) -> None:
    url = f"rtsp://127.0.0.1:{free_port()}/bars"
    with pytest.raises(SourceLost, match="Connection refused") as raised, opened(url, tmp_path, **LOGIN):
        pass
    assert str(raised.value).startswith(f"{url}: it could not be opened: ")
    assert_no_secret(str(raised.value))


def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/bars"
        with (
            pytest.raises(SourceLost, match=r"within 0\.3 s|could not be opened"),
            opened(url, tmp_path, open_s=0.3),
        ):
            pass


def test_a_secret_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAMERA_USER")
    url = "rtsp://127.0.0.1:9/bars"
    with (
        pytest.raises(SourceLost, match="expected an environment variable CAMERA_USER"),
        opened(url, tmp_path, **LOGIN),
    ):
        pass
    with (
        pytest.raises(SourceLost, match="expected a user beside it"),
        opened(url, tmp_path, password="env:CAMERA_PASSWORD"),
    ):
        pass


@needs_server
@pytest.mark.long
def test_an_address_without_a_stream_is_refused(tmp_path: Path) -> None:
    with (
        rtsp_server() as server,
        pytest.raises(SourceLost, match=r"could not be opened: .*404"),
        opened(server.url.replace("/bars", "/none"), tmp_path),
    ):
        pass


@needs_server
@pytest.mark.long
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
def test_an_image_of_which_a_part_was_lost_is_a_fault(tmp_path: Path, codec: str, transport: str) -> None:
    pipeline = bars(codec=codec, rate=40, moving=True, loss=0.02)
    with rtsp_server(0, pipeline) as server:
        frames = take_again(server.url, tmp_path, 120, transport=transport)
    whole = [frame for frame in frames if not frame.problem]
    for frame in whole:
        check_moving_bars(frame.image)
    damaged = [frame for frame in frames if frame.problem]
    assert whole
    assert damaged
    for frame in damaged:
        assert (frame.problem, frame.image) == ("incomplete_image", None)
        assert "parts of the stream are missing or damaged" in frame.detail


@needs_server
@pytest.mark.long
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
def test_what_arrives_whole_is_whole(tmp_path: Path, codec: str, transport: str) -> None:
    pipeline = bars(codec=codec, rate=40)
    with rtsp_server(0, pipeline) as server:
        frames = take_again(server.url, tmp_path, 40, transport=transport)
    for frame in frames:
        assert not frame.problem, frame.detail
        check_bars(frame.image)


@needs_server
@pytest.mark.long
def test_a_half_of_a_key_image_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp, "_DAMAGED_S", 1.0)
    with (
        rtsp_server(0, bars(slices=True)) as server,
        opened(server.url, tmp_path) as grabber,
        pytest.raises(SourceLost, match=r"no whole image came for 1 s \(h264: concealing") as raised,
    ):
        take(grabber, 1)
    assert "take transport: tcp" in str(raised.value)
