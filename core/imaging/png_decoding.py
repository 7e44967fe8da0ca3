"""Decoding of PNG, in which every warning of the decoder is an error.

libpng only warns where the checksum over all pixels is wrong but is read after the last of them, and where more pixels
follow than the image has; OpenCV returns the image. So the compressed stream is checked here, in a thread of its own
while OpenCV decodes: both leave Python's lock, and together they take hardly longer than one.
"""

from __future__ import annotations

import struct
import threading
import zlib
from typing import Any

import numpy.typing as npt

from flawscope.imaging.jpeg import decode_with_opencv
from flawscope.imaging.png_chunks import SAMPLES, pixels_of_png, png_chunks

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7: first column, first row, step of columns, step of rows of every pass."""
_BLOCK = 1 << 20
_IN_A_THREAD_BYTES = 1 << 15
"""Below this a thread costs more than it saves."""


def decode_png(data: bytes) -> npt.NDArray[Any] | None:
    """Decode a PNG as it is stored, without alpha; None where it is damaged, or more than one image's pixels.

    Raises:
        cv2.error: If OpenCV refuses.
    """
    pixels = pixels_of_png(data)
    if pixels is None:
        return None
    if len(pixels) < _IN_A_THREAD_BYTES:
        return decode_with_opencv(pixels) if _inflates(pixels) else None
    answers: list[bool] = []
    checker = threading.Thread(target=lambda: answers.append(_inflates(pixels)), daemon=True)
    checker.start()
    try:
        image = decode_with_opencv(pixels)
    finally:
        checker.join()
    # No answer: the check itself failed, for want of memory.
    return image if answers == [True] else None


def _inflates(data: bytes) -> bool:
    """Return whether the compressed stream makes just the rows of the image, and its checksum fits."""
    stream, view = zlib.decompressobj(), memoryview(data)
    size = left = -1
    try:
        for kind, start, end in png_chunks(data):
            if kind == b"IHDR":
                size = left = _row_bytes(*struct.unpack_from(">IIBBxxB", data, start))
            elif kind == b"IDAT":
                piece = bytes(view[start:end])
                while piece and not stream.eof and left >= 0:
                    left -= len(stream.decompress(piece, _BLOCK))
                    piece = stream.unconsumed_tail
                if stream.eof and (piece or stream.unused_data):
                    return False
    except (zlib.error, struct.error, KeyError):
        return False
    return size >= 0 and left == 0 and stream.eof


def _row_bytes(width: int, height: int, bits: int, colour: int, interlace: int) -> int:
    """Return the bytes of all rows of an image, each with one that names its filter."""
    bits_per_pixel = bits * SAMPLES[colour]
    if not interlace:
        return height * (1 + (width * bits_per_pixel + 7) // 8)
    total = 0
    for left, top, across, down in _PASSES:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits_per_pixel + 7) // 8)
    return total
