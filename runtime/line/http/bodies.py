"""Bodies of requests: read in bounded time and memory, and taken apart into the images of a part."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from email.message import Message
from typing import Any

from flawscope.runtime.line.http.refusal import ClientGone, Refusal
from flawscope.text import printable

BODY_S = 30.0
"""Longest time that a body may take."""

OVERHEAD_BYTES = 1 << 16
"""Of a multipart body, beside its images."""

SMALLER = "Send smaller images, or raise slot_mb in the configuration."
"""What to do about images that are too large."""

_MOST_HEADER_BYTES = 4096
_MOST_PARTS = 64


class BodyMemory:
    """Bounds the bytes of all bodies that are being read at once.

    Args:
        most_bytes: The bound; it is raised to the largest body that a station takes.
    """

    def __init__(self, most_bytes: int = 256 << 20) -> None:
        self._most, self._used = most_bytes, 0

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold a number of bytes for a block; raises Refusal where too many are held. All in one loop, so unlocked."""
        if self._used and self._used + size > self._most:
            raise Refusal(503, "expected fewer images at once, got more than the line has memory for. Try again later.")
        self._used += size
        try:
            yield
        finally:
            self._used -= size


async def read_body(
    receive: Callable[[], Awaitable[Any]], most_bytes: int, seconds: float | None = None, *, advice: str = "Send less."
) -> bytes:
    """Return the body of a request.

    Args:
        receive: As ASGI has it.
        most_bytes: Longest body that is read.
        seconds: Longest time that it may take, by default `BODY_S`.
        advice: What whoever sends a longer one is told to do.

    Raises:
        Refusal: If it is longer, or takes longer.
        ClientGone: If the client leaves before it is whole.
    """
    end = time.monotonic() + (BODY_S if seconds is None else seconds)
    body = bytearray()
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            raise Refusal(408, "expected the whole body in time, got a part of it. Send it again.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise too_large(most_bytes, advice)
        if not message.get("more_body", False):
            return bytes(body)


def too_large(most_bytes: int, advice: str) -> Refusal:
    """Return the refusal of a body that is too large."""
    return Refusal(413, f"expected a body of at most {most_bytes:,} bytes, got a larger one. {advice}")


def images_of(body: bytes, content_type: str) -> dict[str, bytes]:
    """Take a `multipart/form-data` body apart: name -> bytes.

    Raises:
        Refusal: If it is none, or has a name twice.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 200 or not boundary.isascii():
        raise Refusal(400, "expected multipart/form-data with a boundary, got none. Send it with one.")
    mark = b"--" + boundary.encode()
    images: dict[str, bytes] = {}
    for name, content in _parts(body, mark):
        if name in images:
            raise Refusal(400, f"expected every view once, got {name!r} twice. Leave one out.")
        images[name] = content
    return images


def _parts(body: bytes, mark: bytes) -> Iterator[tuple[str, bytes]]:
    if not body.startswith(mark):
        raise _broken()
    place, count = len(mark), 0
    while not body.startswith(b"--", place):
        start = body.find(b"\r\n\r\n", place, place + _MOST_HEADER_BYTES)
        end = body.find(b"\r\n" + mark, start)
        count += 1
        if not body.startswith(b"\r\n", place) or start < 0 or end < 0 or count > _MOST_PARTS:
            raise _broken()
        yield _name_of(body[place:start]), body[start + 4 : max(end, start + 4)]
        place = end + 2 + len(mark)


def _broken() -> Refusal:
    # Made where it is raised: an error that its own frame names keeps the frame, and so the body, until Python collects
    # its garbage.
    return Refusal(400, "expected a whole multipart body, got a broken one. Send it again.")


def _name_of(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            header = Message()
            header["Content-Disposition"] = value.decode("utf-8", "replace").strip()
            name = header.get_param("name", header="content-disposition")
            if isinstance(name, str) and name:
                return printable(name)
    raise Refusal(400, "expected the name of a view for every image (Content-Disposition), got none. Name it.")
