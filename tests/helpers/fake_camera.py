"""A GigE Vision camera on loopback, in a process of its own that can be killed, stopped and started again.

It is Aravis' own fake camera, filled with what a test wants: by default every pixel of an image has one value that
changes with each image, so that an image made of two shows. Run as a script it is that process.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ADDRESS = "127.0.0.1"
_SONAME = "libaravis-0.8.so.0"
_PORT = 3956
"""Of GigE Vision's control channel: fixed by the standard, so that there is one fake camera on a machine at a time."""
_LOCK = Path(tempfile.gettempdir()) / f"flawscope-fake-camera-{os.getuid()}.lock"
_WAIT_S = 600.0


def why_none() -> str:
    """Return why there can be no fake camera on this machine; empty where there can."""
    try:
        ctypes.CDLL(_SONAME)
    except OSError:
        return f"{_SONAME} is not installed (Debian: libaravis-0.8-0)"
    return ""


def value_of(frame_id: int) -> int:
    """Return the grey value of all pixels of an image."""
    return frame_id % 251 + 2


class FakeCamera:
    """The process.

    Args:
        serial: Serial number; the camera's name is `Aravis-Fake-SERIAL`.
        lost: Packets that are lost, in a thousand.
        pixels: Raw bytes of every image, instead of one value.
        hertz: How often it looks for a trigger.
        command: Command to run instead of this script, as the tool of Debian.
    """

    def __init__(
        self,
        serial: str = "T1",
        *,
        lost: float = 0.0,
        pixels: Path | None = None,
        hertz: float = 400.0,
        command: list[str] | None = None,
    ) -> None:
        own = [sys.executable, __file__, "--serial", serial, "--lost", str(lost), "--hertz", str(hertz)]
        self.name = f"Aravis-Fake-{serial}"
        self._command = command or [*own, *(["--pixels", str(pixels)] if pixels else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        _wait_until_port(is_free=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_until_port(is_free=False)

    def kill(self) -> None:
        """End it as a pulled plug does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it without ending it: packets to it are received by nobody."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def fake_camera(
    serial: str = "T1",
    *,
    lost: float = 0.0,
    pixels: Path | None = None,
    hertz: float = 400.0,
    command: list[str] | None = None,
) -> Iterator[FakeCamera]:
    """Yield a fake camera that is running, the only one of this machine; waits for others to end."""
    camera = FakeCamera(serial, lost=lost, pixels=pixels, hertz=hertz, command=command)
    with _only_one():
        try:
            camera.start()
            yield camera
        finally:
            camera.kill()


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    with _LOCK.open("w") as file:
        end = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < end, f"another test has held {_LOCK} for {_WAIT_S} s"
                time.sleep(0.05)
        yield


def _wait_until_port(*, is_free: bool) -> None:
    # The camera itself goes on without a word when its port is taken. So it is not tried by taking it for a moment:
    # that would be the moment at which the camera wants it.
    end = time.monotonic() + 20.0
    while _is_port_free() != is_free:
        assert time.monotonic() < end, f"port {_PORT} of {ADDRESS} is {'taken' if is_free else 'free'}"
        time.sleep(0.01)


def _is_port_free() -> bool:
    places = {f"{address}:{_PORT:04X}" for address in ("0100007F", "00000000")}  # as Linux writes 127.0.0.1 and all
    return all(row.split()[1] not in places for row in Path("/proc/net/udp").read_text().splitlines()[1:])


class _Value(ctypes.Structure):
    _fields_ = [("type", ctypes.c_size_t), ("data", ctypes.c_uint64 * 2)]


_Fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
_TYPE_DOUBLE = 15 << 2


def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serial")
    parser.add_argument("--lost", type=float)
    parser.add_argument("--hertz", type=float)
    parser.add_argument("--pixels", type=Path)
    options = parser.parse_args()
    aravis = ctypes.CDLL(_SONAME)
    for name, result, arguments in (
        ("arv_gv_fake_camera_new", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
        ("arv_gv_fake_camera_get_fake_camera", ctypes.c_void_p, [ctypes.c_void_p]),
        ("arv_fake_camera_set_trigger_frequency", None, [ctypes.c_void_p, ctypes.c_double]),
        ("arv_fake_camera_set_fill_pattern", None, [ctypes.c_void_p, _Fill, ctypes.c_void_p]),
        ("arv_fake_camera_get_payload", ctypes.c_size_t, [ctypes.c_void_p]),
        ("arv_buffer_get_data", ctypes.c_void_p, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]),
        ("arv_buffer_get_frame_id", ctypes.c_uint64, [ctypes.c_void_p]),
        ("g_value_init", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
        ("g_value_set_double", None, [ctypes.c_void_p, ctypes.c_double]),
        ("g_object_set_property", None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]),
    ):
        function = getattr(aravis, name)
        function.restype, function.argtypes = result, arguments
    server = aravis.arv_gv_fake_camera_new(ADDRESS.encode(), options.serial.encode())
    lost = _Value()
    aravis.g_value_init(ctypes.byref(lost), _TYPE_DOUBLE)
    aravis.g_value_set_double(ctypes.byref(lost), options.lost / 1000.0)
    aravis.g_object_set_property(server, b"gvsp-lost-ratio", ctypes.byref(lost))
    camera = aravis.arv_gv_fake_camera_get_fake_camera(server)
    aravis.arv_fake_camera_set_trigger_frequency(camera, options.hertz)
    pixels = options.pixels.read_bytes() if options.pixels else b""

    def fill(buffer: int, data: int | None, exposure: int, gain: int, pixel_format: int) -> None:
        size = aravis.arv_fake_camera_get_payload(camera)
        where = aravis.arv_buffer_get_data(buffer, ctypes.byref(ctypes.c_size_t()))
        if pixels:
            ctypes.memmove(where, pixels, min(size, len(pixels)))
        else:
            ctypes.memset(where, value_of(aravis.arv_buffer_get_frame_id(buffer)), size)

    callback = _Fill(fill)
    aravis.arv_fake_camera_set_fill_pattern(camera, callback, None)

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while os.getppid() != 1:  # ends with the test that started it
        time.sleep(0.2)


if __name__ == "__main__":
    _serve()
