"""TIFF: tags, pages, and a check of the compressed data, before OpenCV decodes it.

OpenCV reads 8-bit TIFF through libtiff's RGBA interface, which leaves out what it cannot read (those rows come out as
zeros or as rubbish, without a word), multiplies colours by alpha, and turns images by their orientation tag. So the
strips are checked here first, and the tags that would change pixels are neutralized in a copy.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.imaging.jpeg import DamagedJpeg, check_jpeg

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANES = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_EXTRA_SAMPLES, _JPEG_TABLES = 338, 347
_UNASSOCIATED_ALPHA = 2
_LAYOUTS = {1: "B", 3: "H", 4: "I", 7: "B"}
"""Type of a tag's values -> its layout for struct: BYTE, SHORT, LONG, UNDEFINED."""
_MAX_PAGES = 10_000
_MOST_VALUES = 1 << 16
"""Most values of a tag, but for those that have one for every strip."""
_MOST_STRIPS = 1 << 20
_LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE = 5, 7, 8, 32773, 32946
_RATIOS = {1: 1, _LZW: 2560, _JPEG: 4096, _DEFLATE: 1032, _PACKBITS: 64, _OLD_DEFLATE: 1032}
"""Compression -> most bytes that one byte of it can stand for."""
_ROWS_OF_JUDGE = 512
"""Rows of the image as which a strip is judged: OpenCV takes sides up to 2²⁰, so a strip may have 1 GiB."""
_FILLED = 7
"""Bytes that `_lzw_filling` decompresses to; no divisor of the rows."""


class DamagedTiff(ValueError):
    """Data of the file is missing, or does not decompress to what its tags announce."""


class UncheckedTiff(ValueError):
    """The image may be whole, but is stored in a way that cannot be checked; the text says in which."""


class _Tag(NamedTuple):
    position: int  # of the first value in the file
    layout: str  # of one value, for struct
    length: int


class _Strip(NamedTuple):
    """A strip or tile: its bytes, and what it decompresses to."""

    data: bytes
    rows: int  # that the image needs of it
    whole_rows: int  # of a strip that is not the last; some writers fill up the last one
    row_bytes: int


class Directory:
    """The tags of one page.

    Args:
        data: The bytes of the file.
        order: Byte order, `<` or `>`.
        offset: Where the directory begins.

    Raises:
        struct.error: If it reaches beyond the end of the data.
    """

    def __init__(self, data: bytes, order: str, offset: int) -> None:
        self._data = data
        self._order = order
        self._tags: dict[int, _Tag] = {}
        (count,) = struct.unpack_from(order + "H", data, offset)
        for start in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", data, start)
            if (letter := _LAYOUTS.get(kind)) is None or values == 0:
                continue
            # Up to four bytes stand in the entry itself; longer values elsewhere.
            position = start + 8
            if values * struct.calcsize(letter) > 4:
                (position,) = struct.unpack_from(order + "I", data, position)
            # The first of several entries of one tag counts, as in libtiff.
            self._tags.setdefault(tag, _Tag(position, letter, values))
        (self.next_offset,) = struct.unpack_from(order + "I", data, offset + 2 + 12 * count)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a tag; none where it is absent.

        Raises:
            struct.error: If they reach beyond the end of the data, or are too many for a tag of a page.
        """
        entry = self._tags.get(tag)
        if entry is None:
            return ()
        if entry.length > _MOST_VALUES:
            raise struct.error(f"a tag of {entry.length} values")
        values: tuple[int, ...] = struct.unpack_from(
            f"{self._order}{entry.length}{entry.layout}", self._data, entry.position
        )
        return values

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag, or a default where it is absent."""
        entry = self._tags.get(tag)
        if entry is None:
            return default
        (value,) = struct.unpack_from(self._order + entry.layout, self._data, entry.position)
        return int(value)

    def places(self, tag: int) -> npt.NDArray[Any]:
        """Return the values of a tag that has one for every strip or tile, unsigned integers [n]; none if absent.

        Raises:
            struct.error: If they reach beyond the end of the data.
        """
        entry = self._tags.get(tag)
        if entry is None:
            return np.zeros(0, np.uint32)
        try:
            # Not a tuple: a million strips would take forty times the memory.
            return np.frombuffer(self._data, self._order + entry.layout, entry.length, entry.position)
        except ValueError as err:
            raise struct.error(str(err)) from err

    def write(self, target: bytearray, tag: int, values: tuple[int, ...]) -> None:
        """Replace the values of a tag that is there in a copy of the file; their number stays the same."""
        entry = self._tags[tag]
        struct.pack_into(f"{self._order}{entry.length}{entry.layout}", target, entry.position, *values)


def first_page(data: bytes) -> Directory | None:
    """Return the directory of the first page, or None for other bytes and for BigTIFF."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(data[:4])
    if order is None:
        return None
    (offset,) = struct.unpack_from(order + "I", data, 4)
    return Directory(data, order, offset)


def size_of(page: Directory) -> tuple[int, int] | None:
    """Return width and height in pixels, or None where the page does not say."""
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    return (width, height) if width and height else None


def bits_of(page: Directory) -> int:
    """Return the bits of a sample as they are stored."""
    return page.number(_BITS, 1)


def orientation_of(page: Directory) -> int:
    """Return the orientation tag, 1 to 8; 1 is upright."""
    return page.number(_ORIENTATION, 1)


def has_alpha(page: Directory) -> bool:
    """Return whether a sample of each pixel is its alpha."""
    return any(value in (1, _UNASSOCIATED_ALPHA) for value in page.numbers(_EXTRA_SAMPLES))


def count_pages(data: bytes) -> int:
    """Return the number of pages, as far as their directories can be read."""
    page, seen = first_page(data), {0}
    if page is None:
        return 0
    order = "<" if data[:2] == b"II" else ">"
    count, offset = 1, page.next_offset
    while offset not in seen and count < _MAX_PAGES:  # 0 is the end; any other is a loop
        seen.add(offset)
        try:
            # Not as a `Directory`: ten thousand pages could share one of 65,535 tags, all but a few bytes.
            (tags,) = struct.unpack_from(order + "H", data, offset)
            (offset,) = struct.unpack_from(order + "I", data, offset + 2 + 12 * tags)
            count += 1
        except struct.error:
            break
    return count


def as_stored(data: bytes) -> bytes:
    """Return a TIFF of which OpenCV gives the pixels that are stored.

    IMREAD_IGNORE_ORIENTATION does not work for TIFF, so the tag is set to 1 (upright). Alpha that colours are not yet
    multiplied by is declared a sample without a meaning: else libtiff multiplies them, and alpha 0 comes out black.

    Raises:
        DamagedTiff: If the tags are not in the file.
    """
    try:
        return _as_stored(data)
    except struct.error as err:
        raise DamagedTiff(str(err)) from err


def _as_stored(data: bytes) -> bytes:
    page = first_page(data)
    if page is None:
        return data
    turns = page.number(_ORIENTATION, 1) != 1
    extra = page.numbers(_EXTRA_SAMPLES)
    if not turns and _UNASSOCIATED_ALPHA not in extra:
        return data
    patched = bytearray(data)
    if turns:
        page.write(patched, _ORIENTATION, (1,) * len(page.numbers(_ORIENTATION)))
    if _UNASSOCIATED_ALPHA in extra:
        page.write(patched, _EXTRA_SAMPLES, (0,) * len(extra))
    return bytes(patched)


def check_tiff(data: bytes) -> None:
    """Check that every strip or tile of the first page is there and decompresses to its whole size.

    Raises:
        DamagedTiff: If one does not.
        UncheckedTiff: If the compression cannot be checked.
    """
    try:
        page = first_page(data)
        if page is None:
            raise DamagedTiff("no directory")
        compression = page.number(_COMPRESSION, 1)
        if compression not in (1, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE):
            raise UncheckedTiff(f"compression {compression}")
        # Chroma of fewer pixels changes the size of a strip; only within JPEG is it in use.
        if page.number(_PHOTOMETRIC, 1) == 6 and compression != _JPEG:
            raise UncheckedTiff("YCbCr without JPEG")
        for strip in _strips(data, page):
            _check_strip(page, compression, strip)
    except struct.error as err:
        raise DamagedTiff(str(err)) from err


def _strips(data: bytes, page: Directory) -> Iterator[_Strip]:
    """Yield every strip or tile of a page."""
    size = size_of(page)
    if size is None:
        raise DamagedTiff("no size")
    width, height = size
    is_tiled = page.number(_TILE_WIDTH, 0) > 0
    # A strip is a tile of the whole width. 2³² - 1 rows a strip stands for all of them.
    across = page.number(_TILE_WIDTH, 0) if is_tiled else width
    down = page.number(_TILE_HEIGHT, 0) if is_tiled else min(page.number(_ROWS, height), height)
    if down < 1:
        raise DamagedTiff("no rows")
    samples = page.number(_SAMPLES, 1)
    planes, samples = (samples, 1) if page.number(_PLANES, 1) == 2 else (1, samples)
    row_bytes = (across * samples * bits_of(page) + 7) // 8
    offsets = page.places(_TILE_OFFSETS if is_tiled else _OFFSETS)
    counts = page.places(_TILE_COUNTS if is_tiled else _COUNTS)
    per_plane = -(-height // down) * -(-width // across)
    number = planes * per_plane
    if min(len(offsets), len(counts)) < number:
        raise DamagedTiff("strips are missing")
    # Strips may share bytes, which would be read again for each: more than all of them, and the file, nobody writes.
    if number > _MOST_STRIPS or int(counts[:number].sum(dtype=np.uint64)) > 2 * number * down * row_bytes + len(data):
        raise DamagedTiff("its strips have more data than its pixels")
    for index in range(number):
        start, length = int(offsets[index]), int(counts[index])
        strip = data[start : start + length]
        if not strip or len(strip) < length:
            raise DamagedTiff(f"strip {index} is not in the file")
        # The last strip holds what is left; tiles are always whole.
        rows = down if is_tiled else min(down, height - down * (index % per_plane))
        yield _Strip(strip, rows, down, row_bytes)


def _check_strip(page: Directory, compression: int, strip: _Strip) -> None:
    # Before anything is allocated for it.
    if strip.rows * strip.row_bytes > _RATIOS[compression] * len(strip.data):
        raise DamagedTiff("a strip is too short")
    if compression == 1:
        is_whole = len(strip.data) >= strip.rows * strip.row_bytes
    elif compression in (_DEFLATE, _OLD_DEFLATE):
        is_whole = _inflates(strip)
    elif compression == _PACKBITS:
        is_whole = _unpacks(strip)
    elif compression == _JPEG:
        is_whole = _is_jpeg(strip, bytes(page.numbers(_JPEG_TABLES)))
    else:
        is_whole = _is_lzw(strip, page.number(_FILL_ORDER, 1))
    if not is_whole:
        raise DamagedTiff("a strip does not decompress")


def _inflates(strip: _Strip) -> bool:
    """Return whether zlib makes all rows of a strip, and its checksum fits."""
    stream = zlib.decompressobj()
    most = strip.whole_rows * strip.row_bytes
    try:
        found = len(stream.decompress(strip.data, most))
        # One byte more reads the checksum of a stream that ends here.
        found += len(stream.decompress(stream.unconsumed_tail, 1))
    except zlib.error:
        return False
    return stream.eof and strip.rows * strip.row_bytes <= found <= most


def _unpacks(strip: _Strip) -> bool:
    """Return whether runs of PackBits make exactly the rows of a strip; libtiff only warns where it cuts a run."""
    data, size = strip.data, strip.rows * strip.row_bytes
    position = found = 0
    while position < len(data) and found < size:
        code = data[position]
        if code < 128:
            found += code + 1
            position += code + 2
        elif code > 128:
            found += 257 - code
            position += 2
        else:  # a code without a meaning
            position += 1
    return found == size and position <= len(data)


def _is_jpeg(strip: _Strip, tables: bytes) -> bool:
    """Return whether a strip is a whole JPEG, with the tables that all strips share in front of it."""
    # Tables end with a marker EOI, the strip begins with a marker SOI: both go.
    whole = tables[:-2] + strip.data[2:] if tables else strip.data
    try:
        check_jpeg(whole, strip.whole_rows * strip.row_bytes)
    except DamagedJpeg:
        return False
    return True


def _is_lzw(strip: _Strip, fill_order: int) -> bool:
    """Return whether LZW makes all rows of a strip, by the judgement of libtiff itself.

    The strip is presented as a grey image of 16 bit: OpenCV reads those without the RGBA interface, and stops at the
    first error. Its size has to be that of such an image to the byte, so codes of some bytes are put in front.
    """
    size = strip.rows * strip.row_bytes
    count = -size * pow(_FILLED, -1, 2 * _ROWS_OF_JUDGE) % (2 * _ROWS_OF_JUDGE)
    width = (size + count * _FILLED) // (2 * _ROWS_OF_JUDGE)
    data = _lzw_filling(strip.data, fill_order) * count + strip.data
    tags = [(_WIDTH, width), (_HEIGHT, _ROWS_OF_JUDGE), (_BITS, 16), (_COMPRESSION, _LZW), (_PHOTOMETRIC, 1)]
    tags += [(_FILL_ORDER, fill_order), (_OFFSETS, 8), (_SAMPLES, 1), (_ROWS, _ROWS_OF_JUDGE), (_COUNTS, len(data))]
    padded = data + bytes(len(data) % 2)  # a directory begins at an even offset
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    image = b"II*\x00" + struct.pack("<I", 8 + len(padded)) + padded + directory
    try:
        return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_ANYDEPTH) is not None
    except cv2.error:
        return False


def _lzw_filling(data: bytes, fill_order: int) -> bytes:
    """Return nine bytes of LZW that stand for seven; what follows begins with the code that clears the table again."""
    # Eight codes of nine bit: clear the table (256), then seven times a zero.
    if data[0] == 0 and len(data) > 1 and data[1] & 1:  # the first writers of LZW began at the lowest bit
        return (256).to_bytes(9, "little")
    filling = (256 << 63).to_bytes(9, "big")
    # Fill order 2: the bits of every byte are reversed.
    return filling if fill_order != 2 else bytes(int(f"{byte:08b}"[::-1], 2) for byte in filling)
