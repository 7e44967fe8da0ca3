"""Images of a network camera (RTSP), through PyAV.

A server that is killed looks like the end of a file, and one that is frozen like a pause: both are a source that does
not work, never one that has finished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sources.decoding import Decoding
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.lateness import Lateness
from flawscope.runtime.line.sources.live import LiveGrabber, LiveImages
from flawscope.runtime.line.sources.pyav import image_of, load_av, reason_of
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import RtspSource
from flawscope.secrets import read_secret, without_secrets
from flawscope.text import printable

_DAMAGED_S = 10.0
"""How long images may be damaged until the stream is opened anew."""

_LOOK_S = 0.5
"""How long FFmpeg looks at a stream before it hands anything over; by default it takes up to five seconds."""


class RtspGrabber(LiveGrabber):
    """Gives the images of a network camera.

    Args:
        options: Its address and time-outs.
        place: Where the source stands.
    """

    is_triggered = False

    def __init__(self, options: RtspSource, place: SourcePlace) -> None:
        self.policy = options.on_full
        self._options = options
        self._secrets: tuple[str | None, str | None] = (None, None)
        super().__init__(lambda: self._shown)
        self._damaged_since: float | None = None
        self._lateness = Lateness()

    def open(self) -> None:
        """Ask the camera for its images.

        Raises:
            SourceLost: If it does not answer in time, refuses, or has no video; or PyAV or a secret is not there.
        """
        av = load_av("reading a network camera")
        try:
            user, password = (read_secret(at) if at else None for at in (self._options.user, self._options.password))
        except ArgumentError as err:
            raise SourceLost(str(err)) from None
        if password and not user:
            raise SourceLost("password: expected a user beside it, got none. Set user.")
        self._secrets = (user, password)
        self._damaged_since, self._lateness = None, Lateness(self._options.read_s)
        self.begin(
            LiveImages(lambda live: self._read(av, live), self.policy, self._options.read_s), self._options.open_s
        )

    @property
    def _shown(self) -> str:
        return printable(without_secrets(self._options.url, *self._secrets))

    @property
    def _address(self) -> str:
        user, password = self._secrets
        if not user:
            return self._options.url
        scheme, _, rest = self._options.url.partition("://")
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"{scheme}://{login}@{rest}"

    @contextlib.contextmanager
    def _plain(self, av: Any, doing: str) -> Iterator[None]:
        """Turn errors of PyAV into ones without the address, and without a cause that has it."""
        try:
            yield
        except (av.FFmpegError, ValueError, OSError) as err:
            reason = without_secrets(reason_of(err), *self._secrets)
        else:
            return
        raise SourceLost(f"{doing}: {reason}. Check the camera, its address, user and network.")

    def _read(self, av: Any, live: LiveImages) -> None:
        options = {
            "rtsp_transport": self._options.transport,
            "allowed_media_types": "video",
            # Over TCP nothing is out of order, but without a queue FFmpeg does not look whether a packet is missing,
            # which a camera leaves out whose network is too slow.
            **({"reorder_queue_size": "2"} if self._options.transport == "tcp" else {}),
            "analyzeduration": str(round(_LOOK_S * 1e6)),
            "fpsprobesize": "0",
        }
        times = (self._options.open_s, self._options.read_s)
        # What FFmpeg says while it opens is about images that nobody gets.
        with self._plain(av, "it could not be opened"), av.logging.Capture():
            container = av.open(self._address, options=options, timeout=times)
        with container:
            if not container.streams.video:
                raise SourceLost("expected a stream with video, got none. Check the address.")
            decoding = Decoding(av, container)
            live.opened()
            with self._plain(av, "the stream broke off"):
                while not live.is_stopping and (images := decoding.read()) is not None:
                    live.alive()
                    for image, damage in images:
                        frame = self._frame(image, damage) if damage or decoding.has_begun else None
                        # A stream is entered anywhere: what comes before the first whole image is no part.
                        if frame is not None and decoding.has_begun:
                            live.put(frame)

    def _frame(self, image: Any, damage: str) -> Frame:
        now = time.monotonic_ns()
        if image is not None:
            self._lateness.check(now / 1e9, image.time)
        if not damage:
            self._damaged_since = None
            return Frame(image_of(image), now)
        damage = without_secrets(damage, *self._secrets)
        if self._damaged_since is None:
            self._damaged_since = now / 1e9
        elif now / 1e9 - self._damaged_since > _DAMAGED_S:
            raise SourceLost(
                f"no whole image came for {_DAMAGED_S:g} s ({damage}). Check the network, or take transport: tcp."
            )
        detail = f"parts of the stream are missing or damaged, up to the next key image ({damage})"
        return Frame(None, now, problem="incomplete_image", detail=detail)
