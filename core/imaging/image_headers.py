"""Image headers: format and size, read before decoding.

A few hundred bytes can announce an image of many gigabytes, which the decoder would allocate; with this module
`images.py` refuses it first.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from flawscope.imaging.png_chunks import SIGNATURE
from flawscope.imaging.tiff import first_page, size_of


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
    if not data.startswith(SIGNATURE):
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
    page = first_page(data)
    size = None if page is None else size_of(page)
    return None if size is None else Header("tiff", *size)


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


def name_unsupported(data: bytes) -> str:
    """Return in words what bytes without a header that can be read are, as far as their first bytes tell."""
    if not data:
        return "an empty file"
    if data[:4] in (b"II+\x00", b"MM\x00+"):
        return "BigTIFF (save it as classic TIFF)"
    names = {
        b"GIF8": "GIF",
        b"%PDF": "PDF",
        b"\x89HDF": "HDF5",
        b"8BPS": "Photoshop",
        b"\x00\x00\x00\x0cjP": "JPEG 2000",
    }
    for start, name in names.items():
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        return "HEIF, AVIF or a film"
    return "other or broken bytes"
