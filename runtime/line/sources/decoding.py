"""Images of a stream, and which of them are not whole: a decoder draws what is missing and returns it as an image."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from flawscope.runtime.line.sources.pyav import reason_of
from flawscope.text import printable

_COMPLAINTS = ("concealing", "missed", "corrupt", "Frame num gap")
"""Words of messages that are no errors for FFmpeg: parts drawn by guess, packets lost on the network, a buffer with
damage, an image of H.264 lost before this one, which is drawn on it."""


class Decoded(NamedTuple):
    """One image.

    Attributes:
        image: PyAV's; None where it could not be decoded at all.
        damage: Why it is not whole; empty where it is.
    """

    image: Any
    damage: str


class Decoding:
    """Decodes the video of a container, in the thread that asks for it.

    An image that is not whole damages all that follow, which are drawn on it, up to the next key image whose data came
    after the damage.

    Args:
        av: PyAV.
        container: An open container with video.

    Attributes:
        has_begun: Whether a whole key image has come. A stream is entered anywhere, and what comes before is grey.
        packets: Packets of video that were read.
        end_s: Until when the packets go that were read, in seconds of the container, sound included; 0 where none has a
            time.
        end_complaint: What FFmpeg complained of when it came to the end; empty where it did not.
    """

    def __init__(self, av: ModuleType, container: Any) -> None:
        self._av = av
        self._stream = container.streams.video[0]
        # One thread: with slices in threads FFmpeg does not even notice that parts are missing, with images in threads
        # nobody can say which image a message is about, and as many images are kept back as there are threads.
        self._stream.codec_context.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        # Sound as well: a file is as long as the longer of the two.
        self._packets = container.demux()
        self.has_begun = False
        self.packets = 0
        self.end_s = 0.0
        self.end_complaint = ""
        self._damage = ""
        self._last_bad = 0
        self._keys: dict[int | None, int] = {}

    def read(self) -> list[Decoded] | None:
        """Return the images that the next packet completes; None at the end of the stream.

        Raises:
            FFmpegError: If the stream cannot be read further.
        """
        with self._av.logging.Capture() as messages:
            packet = next(self._packets, None)
        is_end = packet is None or (packet.dts is None and not packet.size)
        complaint = _complaint(messages)
        if is_end:
            self.end_complaint = self.end_complaint or complaint
        if packet is None:
            return None
        if packet.pts is not None and packet.time_base:
            self.end_s = max(self.end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != self._stream.index:
            return []
        if not is_end:
            self.packets += 1
            if packet.is_keyframe:
                self._keys[packet.pts] = self.packets
        return self._decode(packet, complaint)

    def _decode(self, packet: Any, complaint: str) -> list[Decoded]:
        with self._av.logging.Capture() as messages:
            try:
                images, error = packet.decode(), ""
            except self._av.error.InvalidDataError as err:
                images, error = [], reason_of(err)
        damaged = "a damaged packet" if packet.is_corrupt else ""
        self._complain(complaint or _complaint(messages) or error or damaged)
        if complaint:
            # What was lost on the network may be of this image or of the next, which is being put together.
            self._last_bad = self.packets + 1
        decoded = [Decoded(image, self._judged(image)) for image in images]
        return [*decoded, Decoded(None, error)] if error else decoded

    def _complain(self, complaint: str) -> None:
        if complaint:
            self._damage = complaint
            self._last_bad = self.packets

    def _judged(self, image: Any) -> str:
        """Return why an image is not whole."""
        if image.is_corrupt:
            self._complain(self._damage or "parts are missing")
        elif image.key_frame and self._keys.pop(image.pts, self.packets) > self._last_bad:
            # A decoder may hand it over later than its packet: damage between the two is that of images behind it.
            self._damage, self.has_begun = "", True
            self._keys.clear()
        return self._damage


def _complaint(messages: Sequence[tuple[int, str, str]]) -> str:
    """Return the first message (level, who, text) that means damage."""
    import av.logging

    for level, who, text in messages:
        if level <= av.logging.ERROR or any(word in text for word in _COMPLAINTS):
            return printable(f"{who}: {text.strip()}")
    return ""
