"""Images of a video file, through PyAV: each one once, in order, and the end is the end of the source."""

from __future__ import annotations

import stat
import time
from collections import deque
from pathlib import Path
from typing import Any

from flawscope.runtime.line.sources.decoding import Decoded, Decoding
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.pyav import image_of, load_av, reason_of
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import VideoSource
from flawscope.text import printable

_HEADS_WITH_TIME = ("matroska,webm", "flv")
"""Containers whose head says how long they are; for others FFmpeg may have guessed it."""

_ALLOWED_IMAGES = 2
"""How many images may be missing at the end by the time in the head: not all packets say how long they are shown."""


class VideoGrabber:
    """Gives the images of a video file; a process after the first one goes on behind the last image.

    Args:
        options: The file and its pace.
        place: Where the source stands.
    """

    is_triggered = False

    def __init__(self, options: VideoSource, place: SourcePlace) -> None:
        self.policy = options.on_full
        self._path, self._has_pace = options.path, options.pace == "file"
        self._first = 0 if place.last_id is None else place.last_id + 1
        self._next = 0
        self._av: Any = None
        self._container: Any = None
        self._decoding: Decoding | None = None
        self._images: deque[Decoded] = deque()
        self._zero_s: float | None = None

    def open(self) -> None:
        """Open the file.

        Raises:
            SourceLost: If it is not there, is no video, or PyAV is not there.
        """
        self._av = load_av("reading a video file")
        _check_is_file(self._path)
        try:
            with self._av.logging.Capture():
                # As a file whatever its name is, and nothing that it may refer to on a network.
                self._container = self._av.open(f"file:{self._path}", options={"protocol_whitelist": "file"})
        except (self._av.FFmpegError, ValueError, OSError) as err:
            raise self._broken(f"expected a video file, got: {reason_of(err)}") from err
        if not self._container.streams.video:
            raise self._broken("expected a file with video, got none")
        self._decoding = Decoding(self._av, self._container)
        self._next, self._zero_s = 0, None
        self._images.clear()

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next image as RGB with its number, or None if it is not its time yet.

        Raises:
            SourceLost: If the file breaks off.
        """
        if self._decoding is None:
            raise self._broken("it is not open")
        until = time.monotonic() + timeout_s
        while self._next < self._first or not self._images:
            if self._images:  # inspected before this process was started
                self._images.popleft()
                self._next += 1
            elif not self._read(self._decoding):
                return Frame(None, time.monotonic_ns(), is_last=True)
            # Without an end to it, finding the place in a long file would look like a process that hangs.
            if time.monotonic() >= until and self._next < self._first:
                return None
        image, damage = self._images[0]
        if image is not None and not self._is_due(image.time, until):
            return None
        self._images.popleft()
        self._next += 1
        number, now = self._next - 1, time.monotonic_ns()
        if image is None or damage:
            detail = f"image {number} of the file is damaged, or one that it is drawn on ({damage})"
            return Frame(None, now, number, problem="incomplete_image", detail=detail)
        return Frame(image_of(image), now, number)

    def _read(self, decoding: Decoding) -> bool:
        """Decode the next packet; return False at the end of a file that is whole."""
        try:
            images = decoding.read()
        except (self._av.FFmpegError, ValueError, OSError) as err:
            raise self._broken(f"it breaks off behind {self._next} images: {reason_of(err)}") from err
        if images is None:
            self._check_end(decoding)
            return False
        for image, damage in images:
            begun = "" if decoding.has_begun else "it does not begin with a key image"
            self._images.append(Decoded(image, damage or begun))
        return True

    def _check_end(self, decoding: Decoding) -> None:
        """Refuse the end of a file that was cut off: it ends as a whole one does."""
        if decoding.end_complaint:
            raise self._broken(f"it breaks off behind {self._next} images: {decoding.end_complaint}")
        stream = self._container.streams.video[0]
        # Some heads say how many images there are, others until when they go; that of MPEG-TS says nothing.
        if decoding.packets < stream.frames:
            raise self._broken(f"expected {stream.frames} images, as its head says, got {decoding.packets}")
        said = self._container.duration
        if self._container.format.name in _HEADS_WITH_TIME and said is not None and stream.average_rate:
            said_s, left_s = said / self._av.time_base, _ALLOWED_IMAGES / float(stream.average_rate)
            if decoding.end_s + left_s < said_s:
                raise self._broken(f"expected {said_s:.2f} s, as its head says, got {decoding.end_s:.2f} s")

    def _is_due(self, shown_s: float | None, until: float) -> bool:
        """Wait for the time of an image, or until then; images without a time come at once."""
        if not self._has_pace or shown_s is None:
            return True
        if self._zero_s is None:
            self._zero_s = time.monotonic() - shown_s
        due = self._zero_s + shown_s
        time.sleep(max(0.0, min(due, until) - time.monotonic()))
        return time.monotonic() >= due

    def trigger(self) -> None:
        """Do nothing: images come by themselves."""

    def done(self, source: str) -> None:
        """Do nothing: an image is no file."""

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._images.clear()
            self._decoding = None
            self._container.close()
            self._container = None

    def _broken(self, what: str) -> SourceLost:
        return SourceLost(f"{printable(str(self._path))}: {what}. Copy or record it anew.")


def _check_is_file(path: Path) -> None:
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as err:
        raise SourceLost(
            f"{printable(str(path))}: expected a video file, got: {err.strerror or err}. Check its name and "
            "permissions."
        ) from err
    # A pipe would be waited for without an end.
    if not is_file:
        raise SourceLost(f"{printable(str(path))}: expected a video file, got something else. Check its name.")
