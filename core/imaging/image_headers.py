"""Image headers: format and size, read before decoding.

A few hundred bytes can announce an image of many gigabytes, which the decoder would allocate; with this module
`images.py` refuses it first. It also works around two faults of OpenCV's decoder: it applies the orientation tag of
TIFF files although it is told not to, and libpng prints to stderr about a broken PNG.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple


class Header(NamedTuple):
    """Format name and size in pixels of an encoded image."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header | None:
    """Return the header of an encoded image, or None for other formats and broken bytes."""
    try:
        for reader in (_png, _jpeg, _bmp, _tiff, _webp):
            if header := reader(data):
                return header
    # Reading beyond the end: truncated data is not an image.
    except (struct.error, IndexError):
        return None
    return None


def _png(data: bytes) -> Header | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    # IHDR has to be the first chunk: 8 bytes of signature, 4 of length, then its name.
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    return Header("png", width, height) if kind == b"IHDR" else None


def _jpeg(data: bytes) -> Header | None:
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while True:
        while data[position] == 0xFF and data[position + 1] == 0xFF:  # fill bytes before a marker
            position += 1
        if data[position] != 0xFF:
            return None  # the decoder would search for the next marker, and might find another size than we do
        marker = data[position + 1]
        # Start-of-frame markers hold the size; C4, C8 and CC in the same range are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return Header("jpeg", width, height)
        # The length counts its own two bytes, not the two of the marker.
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length


def _bmp(data: bytes) -> Header | None:
    if not data.startswith(b"BM"):
        return None
    # The size of the info header tells the version: 12 is OS/2, with sides of 16 bit.
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return Header("bmp", abs(width), abs(height))  # a negative height means rows from the top


def _tiff(data: bytes) -> Header | None:
    tags = _tiff_tags(data)
    if 256 not in tags or 257 not in tags:  # ImageWidth, ImageLength
        return None
    return Header("tiff", tags[256].value, tags[257].value)


class _TiffTag(NamedTuple):
    position: int  # of the value in the file
    layout: str  # of the value, for struct
    value: int


def _tiff_tags(data: bytes) -> dict[int, _TiffTag]:
    """Return the tags of the first image in a TIFF whose value is one SHORT or LONG; none for other bytes."""
    # Classic TIFF alone: BigTIFF (version 43) is refused as no image.
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(data[:4])
    if order is None:
        return {}
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    tags: dict[int, _TiffTag] = {}
    for start in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, start)
        # A single SHORT or LONG stands in the entry itself; anything longer is an offset, which we need not follow.
        if kind in (3, 4) and values == 1:
            layout = order + ("H" if kind == 3 else "I")
            tags[tag] = _TiffTag(start + 8, layout, struct.unpack_from(layout, data, start + 8)[0])
    return tags


def _webp(data: bytes) -> Header | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return Header("webp", 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    if chunk == b"VP8L":
        # 14 bits each of width - 1 and height - 1, after the signature byte 0x2f.
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("webp", 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF))
    if chunk != b"VP8 ":
        return None
    # The upper two bits of each side are a scaling hint that decoders ignore.
    width, height = struct.unpack_from("<HH", data, 26)
    return Header("webp", width & 0x3FFF, height & 0x3FFF)


def is_whole(data: bytes, header: Header) -> bool:
    """Return whether PNG data is complete and undamaged, by its checksums; true for other formats, which have none.

    The decoder refuses broken PNG data too, but prints to stderr.
    """
    if header.format != "png":
        return True
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return False
        # A capital first letter marks the critical chunks; damaged ancillary ones do no harm.
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            return False
        if kind == b"IEND":
            return True
        position = end + 4
    return False


def without_orientation(data: bytes) -> bytes:
    """Return a TIFF with its orientation tag set to 1 (upright); data of other formats unchanged.

    IMREAD_IGNORE_ORIENTATION works for the other formats.
    """
    tag = _tiff_tags(data).get(274)
    if tag is None or tag.value == 1:
        return data
    patched = bytearray(data)
    struct.pack_into(tag.layout, patched, tag.position, 1)
    return bytes(patched)
