"""Chunks of PNG data, and the check of their checksums before libpng, which prints about broken data to stderr."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type -> values a pixel (PNG, third edition, 11.2.1)."""
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def pixels_of_png(data: bytes) -> bytes | None:
    """Return PNG data with the chunks alone that decide on pixels, or None if it is incomplete or damaged.

    What libpng is not given it cannot print a warning about, and cannot take for an instruction: of an animation,
    OpenCV would return something else than the image that the file holds. Colours do not depend on other chunks, as
    OpenCV applies no gamma and no profile, and alpha is dropped.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    is_indexed = has_pixels = False
    before = b""
    for kind, start, end in png_chunks(data):
        earlier, before = before, kind
        if not kind[:1].isupper():
            continue
        # A capital first letter marks the critical chunks; damaged ancillary ones do no harm.
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind not in _CRITICAL or zlib.crc32(view[start - 4 : end]) != checksum:
            return None
        if kind == b"IHDR":
            is_indexed = data[start + 9 : start + 10] == b"\x03"
        # A palette that pixels do not refer to is a mere suggestion, about which libpng warns where it is odd.
        if kind == b"PLTE" and not is_indexed:
            continue
        # The pixels are one piece: one that begins again after something else is another writer's.
        if kind == b"IDAT":
            if has_pixels and earlier != b"IDAT":
                return None
            has_pixels = True
        kept.append(view[start - 8 : end + 4])
        # libpng warns of an end with something in it, and takes the image.
        if kind == b"IEND" and end > start:
            return None
        if kind == b"IEND":
            whole = len(SIGNATURE) + sum(map(len, kept))
            return data if whole == len(data) else b"".join((SIGNATURE, *kept))
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first and one-past-last byte of the content of every chunk of PNG data that is there as a whole."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        yield kind, position + 8, end
        position = end + 4
