"""A network camera: GStreamer's RTSP server in a process of its own, under the system's Python."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

_PYTHON = "/usr/bin/python3"

_CHECK = """
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
names = "videotestsrc videoconvert identity x264enc rtph264pay x265enc rtph265pay jpegenc rtpjpegpay".split()
missing = [name for name in names if not Gst.ElementFactory.find(name)]
if missing: raise SystemExit("no element " + ", ".join(missing))
"""

_PROGRAM = (
    _CHECK
    + """
import sys
from gi.repository import GLib, GstRtsp
port, pipeline, method, user, password = sys.argv[1:]
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1"); server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory.new()
factory.set_launch(pipeline); factory.set_shared(True)
if method:
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "line")
    if method == "basic": auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    else: auth.add_digest(user, password, token)
    auth.set_supported_methods(getattr(GstRtsp.RTSPAuthMethod, method.upper()))
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for what in ("access", "construct"):
        permissions.add_permission_for_role("line", "media.factory." + what, True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/bars", factory)
if not server.attach(None): raise SystemExit("the port is taken")
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""
)


_H264 = (
    "x264enc tune=zerolatency sliced-threads={slices} threads=2 speed-preset=ultrafast bitrate=4000 "
    "key-int-max={key_every} ! rtph264pay config-interval=-1 pt=96"
)
_CODECS = {
    "h264": _H264,
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max={key_every} "
    "! rtph265pay config-interval=-1 pt=96",
    "jpeg": "jpegenc quality=90 ! rtpjpegpay pt=26",
}


def bars(
    *,
    codec: str = "h264",
    rate: int = 20,
    key_every: int = 10,
    slices: bool = False,
    moving: bool = False,
    loss: float = 0.0,
) -> str:
    """Return a pipeline of seven colour bars above, 320 x 240.

    Args:
        codec: `h264`, `h265` or `jpeg`.
        rate: Images a second.
        key_every: Images from one key image to the next.
        slices: Whether an image of H.264 comes in two slices; GStreamer puts parameters before each slice of a key
            image, and FFmpeg takes its two halves for two images.
        moving: Whether the bars move to the side.
        loss: Share of network packets that are left out.
    """
    move = "horizontal-speed=3 " if moving else ""
    form = f"width=320,height=240,framerate={rate}/1"
    if codec == "jpeg":  # it has the full range of values, and the encoder does not see to it
        drawn = f"video/x-raw,format=RGB,{form} ! videoconvert ! video/x-raw,format=I420,colorimetry=1:4:0:0"
    else:
        drawn = f"video/x-raw,format=I420,{form}"
    coded = _CODECS[codec].format(slices=str(slices).lower(), key_every=key_every)
    return f"( videotestsrc is-live=true pattern=smpte {move}! {drawn} ! {coded} " + (
        f"! identity name=pay0 drop-probability={loss} )" if loss else "name=pay0 )"
    )


@cache
def why_absent() -> str:
    """Return why there is no server here; empty where there is one."""
    try:
        done = subprocess.run([_PYTHON, "-W", "ignore", "-c", _CHECK], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"{_PYTHON}: {type(err).__name__}"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


class RtspServer:
    """A server that runs until `kill`.

    Args:
        port: Its port; 0 for a free one.
        pipeline: What it sends.
        method: How it asks for a password: `basic` or `digest`; empty for not at all.
        user: Who may see it.
        password: The password.

    Attributes:
        port: Its port.
    """

    def __init__(
        self, port: int = 0, pipeline: str = "", *, method: str = "", user: str = "", password: str = ""
    ) -> None:
        told = [str(port), pipeline or bars(), method, user, password]
        command = [_PYTHON, "-W", "ignore", "-c", _PROGRAM, *told]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], 60)[0]
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.kill()
        self.port = int(line)

    @property
    def url(self) -> str:
        """Its address."""
        return f"rtsp://127.0.0.1:{self.port}/bars"

    def freeze(self) -> None:
        """Stop the process; its connections stay."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def rtsp_server(port: int = 0, pipeline: str = "", **login: str) -> Iterator[RtspServer]:
    """Run a server for as long as the block takes; arguments are those of `RtspServer`."""
    server = RtspServer(port, pipeline, **login)
    try:
        yield server
    finally:
        server.kill()


_BARS = [(255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0), (0, 0, 255)]
_CODEC_ERROR = 12
"""Largest error of a value: limited range, halved colour, and compression. It was 2."""


def check_bars(image: Any) -> None:
    """Fail unless an image is white, yellow, cyan, green, magenta, red and blue of 100 %, from left to right."""
    _check_form(image)
    for number, colour in enumerate(_BARS):
        middle = round((number + 0.5) * 320 / 7)
        found = image[16:144, middle - 8 : middle + 8].reshape(-1, 3).astype(int)
        assert np.abs(found - colour).max() <= _CODEC_ERROR, (number, colour, found.mean(0))


def check_moving_bars(image: Any) -> None:
    """Fail unless all rows of the bars are equal: where a part of the image is an older one, they are not."""
    _check_form(image)
    rows = image[16:144].astype(int)
    assert np.abs(rows - np.median(rows, axis=0)).max() <= _CODEC_ERROR


def _check_form(image: Any) -> None:
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.uint8
    assert image.shape == (240, 320, 3)
