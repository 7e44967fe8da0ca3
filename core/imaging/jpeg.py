"""Decoding of JPEG, in which every warning of the decoder is an error.

libjpeg does not stop at damaged data: it warns on stderr, fills the rest of the image with something, and OpenCV
returns that as an image. Here the same library (libjpeg-turbo, through simplejpeg) decodes in its strict mode. The
pixels of a whole file are those of OpenCV, bit for bit: the same inverse transform and the same upsampling.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOUR_OF_OPENCV = ("CMYK", "YCCK")
"""Colour spaces whose conversion to RGB differs between decoders; the pixels are then OpenCV's."""


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


def check_jpeg(data: bytes) -> None:
    """Decode a JPEG for its errors alone.

    Raises:
        DamagedJpeg: If the decoder stops or warns.
    """
    try:
        space = simplejpeg.decode_jpeg_header(data)[2]
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
            check_jpeg(data)
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
