"""Data that is too short, or has too many passes, for the image that it announces: refused before it is decoded.

A limit on pixels is no limit on memory and time: decoders allocate for the announced size, and go over all of it in
every pass, whatever little data there is.
"""

from __future__ import annotations

import re
import struct

from flawscope.imaging.image_headers import Header
from flawscope.imaging.png_chunks import png_chunks

_JPEG_PIXELS_PER_BYTE = 512
"""A block of 8 x 8 pixels takes at least one bit: Huffman codes have no shorter ones. OpenCV comes to 255 in an image
of one colour, baseline to 85. Arithmetic coding could do with less, for an image of one colour alone."""

_DEFLATE_RATIO = 1032
"""Largest ratio of deflate: 258 bytes for the two bits of one of its shortest codes."""

MAX_SCANS = 100
"""Most passes over a progressive JPEG; encoders make 6 to 20."""

_SCAN = b"\xff\xda"
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type of PNG -> samples of a pixel."""


def excess_of(data: bytes, header: Header) -> str | None:
    """Return what is wrong with the length or the passes of an encoded image, or None.

    Args:
        data: The bytes of the file.
        header: What `read_header` found in them.
    """
    if header.format == "jpeg":
        if len(data) * _JPEG_PIXELS_PER_BYTE < header.width * header.height:
            return f"{len(data):,} bytes for {header.width}x{header.height} pixels"
        # First the quick count, which also finds what is no marker, as in a film behind the image.
        if data.count(_SCAN) > MAX_SCANS and _scans(data) > MAX_SCANS:
            return f"more than {MAX_SCANS} passes over its pixels"
    if header.format == "png" and not _may_inflate(data, header):
        return f"{len(data):,} bytes for {header.width}x{header.height} pixels"
    return None


def _scans(data: bytes) -> int:
    """Return the number of scans of a JPEG, as far as its markers can be followed."""
    position, scans = 2, 0
    while found := _NEXT_MARKER.search(data, position):
        marker = data[found.start() + 1]
        if marker == 0xD9 or found.end() + 2 > len(data):  # the end of the image
            break
        scans += marker == _SCAN[1]
        # Its own length leads over what stands in a segment, such as the thumbnail of EXIF.
        (length,) = struct.unpack_from(">H", data, found.end())
        position = found.end() + length
    return scans


def _may_inflate(data: bytes, header: Header) -> bool:
    """Return whether the compressed data of a PNG can be enough for its rows."""
    bits, colour = struct.unpack_from(">BB", data, 24)  # after the signature, a chunk's length and name, and the size
    row = 1 + (header.width * _PNG_SAMPLES.get(colour, 1) * bits + 7) // 8
    compressed = sum(end - start for kind, start, end in png_chunks(data) if kind == b"IDAT")
    return compressed * _DEFLATE_RATIO >= row * header.height
