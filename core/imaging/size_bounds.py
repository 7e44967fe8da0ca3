"""Data that is too short, or has too many passes, for the image that it announces: refused before it is decoded.

A limit on pixels is no limit on memory and time: decoders allocate for the announced size, and go over all of it in
every pass, whatever little data there is.
"""

from __future__ import annotations

import struct

from flawscope.imaging.image_headers import Header
from flawscope.imaging.jpeg import jpeg_excess
from flawscope.imaging.png_chunks import SAMPLES, png_chunks

_DEFLATE_RATIO = 1032
"""Largest ratio of deflate: 258 bytes for the two bits of one of its shortest codes."""


def excess_of(data: bytes, header: Header) -> str | None:
    """Return what is wrong with the length or the passes of an encoded image, or None.

    Args:
        data: The bytes of the file.
        header: What `read_header` found in them.
    """
    if header.format == "jpeg":
        return jpeg_excess(data, header.width, header.height)
    if header.format == "png" and not _may_inflate(data, header):
        return f"{len(data):,} bytes for {header.width}x{header.height} pixels"
    return None


def _may_inflate(data: bytes, header: Header) -> bool:
    """Return whether the compressed data of a PNG can be enough for its rows."""
    if len(data) < 26:  # the header is cut off after the size: that is for the decoder to say
        return True
    bits, colour = struct.unpack_from(">BB", data, 24)  # after the signature, a chunk's length and name, and the size
    row = 1 + (header.width * SAMPLES.get(colour, 1) * int(bits) + 7) // 8
    compressed = sum(end - start for kind, start, end in png_chunks(data) if kind == b"IDAT")
    # None at all: the file is cut off, which is for the decoder to say too.
    return compressed == 0 or bool(compressed * _DEFLATE_RATIO >= row * header.height)
