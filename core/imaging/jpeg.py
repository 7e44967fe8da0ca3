"""Decoding of JPEG, in which every warning of the decoder is an error.

libjpeg does not stop at damaged data: it warns on stderr, fills the rest of the image with something, and OpenCV
returns that as an image. Here the same library (libjpeg-turbo, through simplejpeg) decodes in its strict mode. The
pixels of a whole file are those of OpenCV, bit for bit: the same inverse transform and the same upsampling.
"""

from __future__ import annotations

import re
import struct
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOUR_OF_OPENCV = ("CMYK", "YCCK")
"""Colour spaces whose conversion to RGB differs between decoders; the pixels are then OpenCV's."""

_PIXELS_PER_BYTE = 512
"""A block of 8 x 8 pixels takes at least one bit: Huffman codes have no shorter ones. OpenCV comes to 255 in an image
of one colour, baseline to 85. Arithmetic coding could do with less, for an image of one colour alone."""

MAX_SCANS = 100
"""Most passes over a progressive JPEG; encoders make 6 to 20."""

_SCAN = b"\xff\xda"
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


class DamagedJpeg(ValueError):
    """The decoder complained about the data."""


def decode_with_opencv(data: bytes) -> npt.NDArray[Any] | None:
    """Decode an image of any format as it is stored, without alpha; None where OpenCV cannot.

    Raises:
        cv2.error: If OpenCV refuses.
    """
    # Not IMREAD_UNCHANGED: it keeps alpha. ANYDEPTH keeps 16 bit, which would otherwise be cut to its upper byte.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def jpeg_excess(data: bytes, width: int, height: int) -> str | None:
    """Return what is wrong with the length of a JPEG of this announced size, or with its passes; None for nothing."""
    if len(data) * _PIXELS_PER_BYTE < width * height:
        return f"{len(data):,} bytes for {width}x{height} pixels"
    # First the quick count, which also finds what is no marker, as in a film behind the image.
    if data.count(_SCAN) > MAX_SCANS and _scans(data) > MAX_SCANS:
        return f"more than {MAX_SCANS} passes over its pixels"
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


def check_jpeg(data: bytes, most_pixels: int) -> None:
    """Decode a JPEG for its errors alone, unless it announces more pixels than `most_pixels`.

    Raises:
        DamagedJpeg: If it does, or the decoder stops or warns.
    """
    try:
        height, width, space = simplejpeg.decode_jpeg_header(data)[:3]
        if width * height > most_pixels:
            raise DamagedJpeg(f"{width}x{height} pixels")
        if excess := jpeg_excess(data, width, height):
            raise DamagedJpeg(excess)
        target = "GRAY" if space == "Gray" else "CMYK" if space in _COLOUR_OF_OPENCV else "BGR"
        simplejpeg.decode_jpeg(data, colorspace=target, strict=True)
    except ValueError as err:
        raise DamagedJpeg(str(err)) from err


def decode_jpeg(data: bytes) -> npt.NDArray[Any] | None:
    """Decode a JPEG to uint8 [H, W] for grey or [H, W, 3] BGR for colour; None where OpenCV cannot.

    Raises:
        DamagedJpeg: If the decoder stops or warns.
    """
    try:
        space = simplejpeg.decode_jpeg_header(data)[2]
        if space in _COLOUR_OF_OPENCV:
            check_jpeg(data, sys.maxsize)  # the size has been looked at before
            return decode_with_opencv(data)
        if space == "Gray":
            grey: npt.NDArray[Any] = simplejpeg.decode_jpeg(data, colorspace="GRAY", fastdct=False, strict=True)
            return grey[:, :, 0]
        # Neither fast transform nor fast upsampling: OpenCV takes the exact ones.
        colour: npt.NDArray[Any] = simplejpeg.decode_jpeg(
            data, colorspace="BGR", fastdct=False, fastupsample=False, strict=True
        )
        return colour
    except ValueError as err:
        raise DamagedJpeg(str(err)) from err
