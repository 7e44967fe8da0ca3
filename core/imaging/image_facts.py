"""Facts about an image file that its pixels, as they are used, no longer tell."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy.typing as npt

from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import decode_stored, read_encoded
from flawscope.imaging.png_chunks import png_chunks
from flawscope.imaging.tiff import bits_of, count_pages, first_page, has_alpha, orientation_of

_EXIF = b"Exif\x00\x00"


class ImageFacts(NamedTuple):
    """What an image file holds, beyond the pixels that are used.

    Attributes:
        format: `png`, `jpeg`, `bmp`, `tiff` or `webp`, whatever the ending of its name.
        width: Width in pixels, as stored.
        height: Height in pixels, as stored.
        channels: What is stored for a pixel; alpha does not count.
        has_alpha: The file has alpha, which is left out.
        bits_stored: Bits of one sample in the file, 1 to 16.
        pages: Images in the file, of which the first is used.
        orientation: Orientation tag (EXIF), 1 to 8, which is not applied; 1 is upright.
        largest_value: Largest number among the pixels as they are decoded: at most 255, or 65,535 from 16 bit.
    """

    format: str
    width: int
    height: int
    channels: Literal["grey", "colour"]
    has_alpha: bool
    bits_stored: int
    pages: int
    orientation: int
    largest_value: int


class _Stored(NamedTuple):
    has_alpha: bool = False
    bits: int = 8
    pages: int = 1
    orientation: int = 1
    is_grey: bool = False  # although it is decoded to three channels


def read_image_with_facts(path: Path) -> tuple[npt.NDArray[Any], ImageFacts]:
    """Read an image file once; return its pixels as `decode_stored` does, and its facts.

    Raises:
        ImageError: As `decode_stored`, or if the file cannot be read.
    """
    data = read_encoded(path)
    pixels = decode_stored(data, str(path))
    return pixels, facts_of(data, pixels)


def facts_of(data: bytes, pixels: npt.NDArray[Any]) -> ImageFacts:
    """Return the facts of an encoded image.

    Args:
        data: The bytes of the file, which were decoded without an error.
        pixels: What `decode_stored` made of them: uint8 or uint16, [H, W] or [H, W, 3].
    """
    header = read_header(data)
    kind = header.format if header else ""
    try:
        stored = {"png": _png, "jpeg": _jpeg, "bmp": _bmp, "tiff": _tiff, "webp": _webp}[kind](data)
    # Metadata may be broken where the pixels are whole: then nothing is known but them.
    except (struct.error, IndexError, KeyError):
        stored = _Stored(bits=8 * pixels.itemsize)
    height, width = pixels.shape[:2]
    channels: Literal["grey", "colour"] = "grey" if pixels.ndim == 2 or stored.is_grey else "colour"
    largest = int(pixels.max())
    return ImageFacts(
        kind, width, height, channels, stored.has_alpha, stored.bits, stored.pages, stored.orientation, largest
    )


def _png(data: bytes) -> _Stored:
    alpha, bits, pages, turned, colour = False, 8, 1, 1, 0
    for kind, start, end in png_chunks(data):
        if kind == b"IHDR":
            bits, colour = struct.unpack_from(">BB", data, start + 8)
            alpha = colour in (4, 6)
            bits = 8 if colour == 3 else bits  # indices into a palette, whose colours have 8 bit
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"acTL":
            (pages,) = struct.unpack_from(">I", data, start)
        elif kind == b"eXIf":
            turned = _orientation(data[start:end])
    # OpenCV makes three channels of grey with alpha.
    return _Stored(alpha, bits, max(pages, 1), turned, is_grey=colour in (0, 4))


def _jpeg(data: bytes) -> _Stored:
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:  # pixels follow
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xE1 and data[position + 4 : position + 10] == _EXIF:
            return _Stored(orientation=_orientation(data[position + 10 : position + 2 + length]))
        position += 2 + length
    return _Stored()


def _bmp(data: bytes) -> _Stored:
    size, bits, alpha = struct.unpack_from("<I", data, 14)[0], 8, 0
    if size >= 56:  # the first version of the header with a mask of alpha
        bits, alpha = struct.unpack_from("<H", data, 28)[0], struct.unpack_from("<I", data, 66)[0]
    return _Stored(has_alpha=bits == 32 and alpha != 0)


def _tiff(data: bytes) -> _Stored:
    page = first_page(data)
    if page is None:
        raise KeyError
    return _Stored(has_alpha(page), bits_of(page), count_pages(data), _valid(orientation_of(page)))


def _webp(data: bytes) -> _Stored:
    alpha, turned, pages = False, 1, 0
    for name, start, end in _riff_chunks(data):
        if name == b"VP8X":
            alpha = bool(data[start] & 0x10)
        elif name == b"VP8L":
            # After the signature byte 28 bits of size; the next one says whether alpha is in use.
            alpha = alpha or bool(data[start + 4] & 0x10)
        elif name == b"ANMF":
            pages += 1
        elif name == b"EXIF":
            turned = _orientation(data[start:end].removeprefix(_EXIF))
    return _Stored(alpha, 8, max(pages, 1), turned)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first and one-past-last byte of the content of every chunk of a WebP file."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, position + 8 + length
        position += 8 + length + length % 2


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, which has the form of a TIFF."""
    try:
        page = first_page(exif)
    except struct.error:
        return 1
    return 1 if page is None else _valid(orientation_of(page))


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1
