"""Images of a USB camera (Video4Linux), through PyAV."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from flawscope.runtime.line.sources.decoding import Decoding
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.lateness import Lateness
from flawscope.runtime.line.sources.live import LiveGrabber, LiveImages
from flawscope.runtime.line.sources.pyav import image_of, load_av, reason_of
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import V4l2Format, V4l2Source
from flawscope.text import printable

_OPEN_S = 10.0

FORMATS: dict[V4l2Format, str] = {
    "YUYV": "yuyv422",
    "UYVY": "uyvy422",
    "YU12": "yuv420p",
    "NV12": "nv12",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "GREY": "gray",
    "MJPG": "mjpeg",
    "H264": "h264",
}
"""Format of Video4Linux -> name of FFmpeg."""


class V4l2Grabber(LiveGrabber):
    """Gives the images of a USB camera.

    Args:
        options: Its file, size and format.
        place: Where the source stands.
    """

    is_triggered = False

    def __init__(self, options: V4l2Source, place: SourcePlace) -> None:
        self.policy = options.on_full
        self._options = options
        super().__init__(lambda: self._shown)

    def open(self) -> None:
        """Open the camera, write format and size, read them back and compare.

        Raises:
            SourceLost: If it is not there, does not answer, or a setting does not read back; or PyAV is not there.
        """
        av = load_av("reading a USB camera")
        self.begin(LiveImages(lambda live: self._read(av, live), self.policy, self._options.read_s), _OPEN_S)

    @property
    def _shown(self) -> str:
        return printable(str(self._options.device))

    def _read(self, av: Any, live: LiveImages) -> None:
        form, size = self._options.pixel_format, self._options.size
        options = {"input_format": FORMATS[form]} if form else {}
        if size:
            options["video_size"] = f"{size[0]}x{size[1]}"
        times = (_OPEN_S, self._options.read_s)
        with _plain(av, "expected a USB camera that opens, got"), av.logging.Capture():
            container = av.open(str(self._options.device), format="v4l2", options=options, timeout=times)
        with container:
            self._check(container.streams.video[0].codec_context)
            decoding, lateness = Decoding(av, container), Lateness(self._options.read_s)
            live.opened()
            with _plain(av, "it gave no image"):
                while not live.is_stopping and (images := decoding.read()) is not None:
                    live.alive()
                    for image, damage in images:
                        # FFmpeg keeps up to 256 images of a camera.
                        lateness.check(time.monotonic(), None if image is None else image.time)
                        live.put(_frame(image, damage or ("" if decoding.has_begun else "no key image yet")))

    def _check(self, found: Any) -> None:
        """Compare what the camera is set to with what was asked for: a driver takes the nearest that it has."""
        form, size = self._options.pixel_format, self._options.size
        got_form = str(found.pix_fmt if found.name == "rawvideo" else found.name)
        got_size = (int(found.width), int(found.height))
        for key, wanted, got in (
            ("pixel_format", form and FORMATS[form], got_form),
            ("size", size and f"{size[0]} x {size[1]}", f"{got_size[0]} x {got_size[1]}"),
        ):
            if wanted and wanted != got:
                raise SourceLost(
                    f"{key}: expected {wanted}, got {printable(got)}. Take one that the camera has "
                    "(v4l2-ctl --list-formats-ext)."
                )


@contextlib.contextmanager
def _plain(av: Any, doing: str) -> Iterator[None]:
    """Turn errors of PyAV into the word that the camera does not work."""
    try:
        yield
    except (av.FFmpegError, ValueError, OSError) as err:
        raise SourceLost(f"{doing}: {reason_of(err)}. Check its cable, name, format and permissions.") from err


def _frame(image: Any, damage: str) -> Frame:
    now = time.monotonic_ns()
    if image is None or damage:
        return Frame(None, now, problem="incomplete_image", detail=f"the image is damaged ({damage})")
    return Frame(image_of(image), now)
