"""Chunks of PNG data, and the check of their checksums before libpng, which prints about broken data to stderr."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_whole_png(data: bytes) -> bool:
    """Return whether PNG data is complete and undamaged, by its checksums."""
    view = memoryview(data)
    for kind, start, end in png_chunks(data):
        # A capital first letter marks the critical chunks; damaged ancillary ones do no harm.
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind[:1].isupper() and zlib.crc32(view[start - 4 : end]) != checksum:
            return False
        if kind == b"IEND":
            return True
    return False


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
