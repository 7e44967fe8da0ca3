"""Small drawings that a manifest holds as PNG: regions, zones and thumbnails, of sides that are bounded."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from flawscope.errors import ImageError
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import decode_stored


def decode_drawing(png: bytes, name: str, longest: int) -> npt.NDArray[Any]:
    """Return the numbers of a drawing, uint8 or uint16, [h, w] for grey or [h, w, 3] for colour.

    Args:
        png: The bytes of the image.
        name: What it is called in messages.
        longest: Largest height and width in pixels.

    Raises:
        ImageError: If it is no image, or broken, or larger.
    """
    header = read_header(png)
    # Before it is decoded: a few kilobytes can announce, and hold, 100 million pixels.
    if header is not None and max(header.height, header.width) > longest:
        raise ImageError(
            f"{name}: expected sides of at most {longest} pixels, got {header.width}x{header.height}; it was not "
            "decoded."
        )
    return decode_stored(png, name)
