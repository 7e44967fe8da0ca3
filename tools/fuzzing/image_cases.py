"""Strategies of damaged and hostile images: headers, chunks, segments and tags, their checksums right, and bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from fuzzing.cases import Case
from fuzzing.changes import NUMBERS, changed_bytes

Piece = tuple[bytes, bytes]
"""Name and content of a chunk or segment."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF = struct.pack("<2sHI H HHIHH I", b"II", 42, 8, 1, 274, 3, 1, 6, 0, 0)
_TIFF_COMPRESSIONS = (1, 5, 8, 32773)


def image_seeds() -> dict[str, tuple[bytes, ...]]:
    """Return format -> encoded images of 28 x 20 pixels: grey, colour and with alpha, in 8 and 16 bit."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :28]
    colour = np.stack([rows * 12, columns * 9, rows * columns], axis=2).astype(np.uint8)
    colour[4:9, 6:13] = rng.integers(0, 256, (5, 7, 3))
    grey, deep = colour[..., 1], colour.astype(np.uint16) * 257
    alpha = np.dstack([colour, grey])

    def encode(ending: str, image: npt.NDArray[np.generic], *options: int) -> bytes:
        done, data = cv2.imencode(ending, image, list(options))
        assert done
        return data.tobytes()

    jpeg = encode(".jpg", colour)
    png = encode(".png", alpha)
    plain = (grey, colour, alpha)
    return {
        "png": (*(encode(".png", image) for image in (*plain, deep, deep[..., 0])), _png_with(png)),
        "jpeg": (
            encode(".jpg", grey),
            jpeg,
            encode(".jpg", colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
            encode(".jpg", colour, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
            _join_jpeg([(b"\xff\xe1", b"Exif\x00\x00" + _EXIF), *_split_jpeg(jpeg)[0]], _split_jpeg(jpeg)[1]),
        ),
        "bmp": tuple(encode(".bmp", image) for image in plain),
        "tiff": tuple(
            encode(".tiff", image, cv2.IMWRITE_TIFF_COMPRESSION, compression)
            for compression in _TIFF_COMPRESSIONS
            for image in (grey, colour, alpha, deep[..., 0])
        ),
        "webp": (
            *(encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 80) for image in (colour, alpha)),
            *(encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 101) for image in (colour, alpha)),
        ),
    }


def _png_with(data: bytes) -> bytes:
    """Return a PNG with chunks of metadata, which readers of facts look at."""
    pieces = _split_png(data)
    extra = [(b"eXIf", _EXIF), (b"acTL", struct.pack(">II", 2, 0)), (b"gAMA", struct.pack(">I", 45455))]
    extra += [(b"tEXt", b"Comment\x00x"), (b"pHYs", struct.pack(">IIB", 1, 1, 1))]
    return _join_png([pieces[0], *extra, *pieces[1:]])


@st.composite
def images(draw: st.DrawFn, seeds: dict[str, tuple[bytes, ...]]) -> Case:
    """Return a changed image."""
    kind = draw(st.sampled_from(sorted(seeds)))
    data = draw(st.sampled_from(seeds[kind]))
    if draw(st.integers(0, 2)) == 0:
        other = draw(st.sampled_from([other for same in seeds.values() for other in same]))
        return Case(draw(changed_bytes(data, other)), {})
    changed = _CHANGES[kind](draw, data)
    # A second, plain change now and then: checks that stand behind each other.
    return Case(draw(changed_bytes(changed, most=1)) if draw(st.integers(0, 5)) == 0 and changed else changed, {})


def _changed_pieces(draw: st.DrawFn, pieces: list[Piece], names: tuple[bytes, ...]) -> list[Piece]:
    """Return pieces of which some are changed, lost, doubled, moved, renamed or new."""
    pieces = list(pieces)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(pieces) - 1))
        name, content = pieces[place]
        how = draw(st.sampled_from(("content", "content", "field", "field", "lose", "double", "move", "rename", "new")))
        if how == "content" and content:
            pieces[place] = (name, draw(changed_bytes(content)))
        elif how == "field" and content:
            width, start = draw(st.sampled_from((1, 2, 4))), draw(st.integers(0, min(len(content) - 1, 40)))
            number = draw(st.sampled_from((*NUMBERS, 9, 16, 20, 28)) | st.integers(0, 300)) % (1 << 8 * width)
            order = draw(st.sampled_from(("big", "little")))
            changed = content[:start] + number.to_bytes(width, order) + content[start + width :]
            pieces[place] = (name, changed)
        elif how == "lose" and len(pieces) > 1:
            del pieces[place]
        elif how == "double":
            pieces[place:place] = [pieces[place]] * draw(st.sampled_from((1, 3, 200)))
        elif how == "move":
            pieces.insert(draw(st.integers(0, len(pieces) - 1)), pieces.pop(place))
        elif how == "rename":
            pieces[place] = (draw(st.sampled_from(names)), content)
        elif how == "new":
            pieces.insert(place, (draw(st.sampled_from(names)), draw(st.binary(max_size=60))))
    return pieces


_PNG_NAMES = tuple(
    b"IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB tEXt zTXt iTXt bKGD hIST pHYs sPLT tIME eXIf".split()
)
_PNG_NAMES += (b"acTL", b"fcTL", b"fdAT", b"ABCD", b"abcd", b"\x00\x00\x00\x00")


def _split_png(data: bytes) -> list[Piece]:
    pieces, position = [], len(_SIGNATURE)
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        pieces.append((name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return pieces


def _join_png(pieces: list[Piece]) -> bytes:
    chunks = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in pieces
    )
    return _SIGNATURE + b"".join(chunks)


def _png(draw: st.DrawFn, data: bytes) -> bytes:
    pieces = _split_png(data)
    if draw(st.integers(0, 3)) == 0:
        # Within the compressed rows: the filters and the pixels of a stream that is whole.
        rows = zlib.decompress(b"".join(content for name, content in pieces if name == b"IDAT"))
        stream = zlib.compress(draw(changed_bytes(rows)), draw(st.sampled_from((0, 1, 9))))
        pieces = [(b"IDAT", stream) if name == b"IDAT" else (name, content) for name, content in pieces]
        return _join_png(pieces)
    return _join_png(_changed_pieces(draw, pieces, _PNG_NAMES))


def _split_jpeg(data: bytes) -> tuple[list[Piece], bytes]:
    """Return the segments before the pixels, and everything from the first scan on."""
    pieces, position = [], 2
    while data[position + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, position + 2)
        pieces.append((data[position : position + 2], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return pieces, data[position:]


def _join_jpeg(pieces: list[Piece], scan: bytes) -> bytes:
    segments = (name + struct.pack(">H", (len(content) + 2) % 65536) + content for name, content in pieces)
    return b"\xff\xd8" + b"".join(segments) + scan


def _jpeg(draw: st.DrawFn, data: bytes) -> bytes:
    pieces, scan = _split_jpeg(data)
    if draw(st.integers(0, 2)) == 0:
        return _join_jpeg(pieces, draw(changed_bytes(scan)))
    names = tuple(bytes((0xFF, marker)) for marker in (*range(0xC0, 0xD0), *range(0xD8, 0xF0), 0xFE, 0x01, 0xFF))
    return _join_jpeg(_changed_pieces(draw, pieces, names), scan)


def _bmp(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place, kind = draw(st.sampled_from([(2, "I"), (10, "I"), (14, "I"), *_BMP_FIELDS]))
        limit = 1 << (16 if kind == "H" else 32)
        numbers = (*NUMBERS, 12, 16, 20, 24, 28, 40, 52, 54, 56, 108, 124, limit - 20, limit - 28)
        struct.pack_into(f"<{kind}", changed, place, draw(st.sampled_from(numbers)) % limit)
    return bytes(changed[: draw(st.integers(0, len(changed)))]) if draw(st.integers(0, 7)) == 0 else bytes(changed)


_BMP_FIELDS = [(18, "I"), (22, "I"), (26, "H"), (28, "H"), (30, "I"), (34, "I"), (46, "I"), (50, "I"), (54, "I")]


def _tiff(draw: st.DrawFn, data: bytes) -> bytes:
    """Change entries of the first directory: tags, types, counts and values."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    body, after = data[: start + 2], data[start + 2 + 12 * count :]
    entries = [list(struct.unpack_from("<HHII", data, start + 2 + 12 * index)) for index in range(count)]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(entries) - 1))
        how = draw(
            st.sampled_from(("value", "value", "value", "tag", "type", "count", "lose", "double", "move", "next"))
        )
        if how == "value":
            numbers = (*NUMBERS, *range(16), 20, 28, 32773, 34712, 50000, start, len(data), len(data) - 4)
            entries[place][3] = draw(st.sampled_from(numbers)) % (1 << 32)
        elif how == "tag":
            tags = (*range(254, 300), *range(320, 334), 338, 339, 347, 512, 513, 529, 530, 532, 34665, 0, 65535)
            entries[place][0] = draw(st.sampled_from(tags))
        elif how == "type":
            entries[place][1] = draw(st.integers(0, 18))
        elif how == "count":
            entries[place][2] = draw(st.sampled_from(NUMBERS)) % (1 << 32)
        elif how == "lose" and len(entries) > 1:
            del entries[place]
        elif how == "double":
            entries.insert(place, list(entries[place]))
        elif how == "move":
            entries.insert(0, entries.pop(place))
        elif how == "next":
            after = struct.pack("<I", draw(st.sampled_from((0, start, 8, len(data), (1 << 32) - 2)))) + after[4:]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    whole = body[:start] + struct.pack("<H", len(entries)) + packed + after
    if start > 8 and draw(st.integers(0, 4)) == 0:  # the strips, which lie before the directory
        strips = draw(changed_bytes(whole[8:start]))[: start - 8].ljust(start - 8, b"\x00")
        whole = whole[:8] + strips + whole[start:]
    return whole


def _webp(draw: st.DrawFn, data: bytes) -> bytes:
    pieces, position = [], 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        pieces.append((name, data[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    names = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ", b"abcd")
    chunks = b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for name, content in _changed_pieces(draw, pieces, names)
    )
    size = len(chunks) + 4
    if draw(st.integers(0, 7)) == 0:
        size = draw(st.sampled_from((*NUMBERS, size - 1, size + 1, size + 2))) % (1 << 32)
    return b"RIFF" + struct.pack("<I", size) + b"WEBP" + chunks


_CHANGES: dict[str, Callable[[st.DrawFn, bytes], bytes]] = {
    "png": _png,
    "jpeg": _jpeg,
    "bmp": _bmp,
    "tiff": _tiff,
    "webp": _webp,
}
