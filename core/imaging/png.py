"""PNG encoding of images and masks, in one place, so that red and blue are never exchanged."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.errors import ImageError
from flawscope.files import write_bytes


def encode_png(image: UInt8Array, *, is_bgr: bool = False) -> bytes:
    """Encode an image as 8-bit PNG; the same pixels give the same bytes.

    Args:
        image: uint8 [H, W, 3] RGB, or grey [H, W].
        is_bgr: Channels are in OpenCV's order, as its colour maps return them; ignored for grey images.

    Raises:
        ImageError: If the image is empty or has more pixels along a side than PNG writers take.
    """
    is_grey = image.ndim == 2
    try:
        # OpenCV writes BGR: an RGB image that is passed on as it is comes back with red and blue exchanged.
        pixels = image if is_grey or is_bgr else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        is_encoded, data = cv2.imencode(".png", pixels)
    except cv2.error:  # imencode raises for an empty image, but returns False for one that is too wide
        is_encoded, data = False, np.empty(0, np.uint8)
    if not is_encoded:
        raise ImageError(
            f"image: expected uint8 [H, W] or [H, W, 3] that PNG can hold, got {image.dtype.name} {list(image.shape)}. "
            "Make it smaller."
        )
    return bytes(data.tobytes())


def encode_mask(mask: BoolArray) -> bytes:
    """Encode a mask bool [H, W] as 8-bit grey PNG with the values 0 and 255 only.

    Raises:
        ImageError: As `encode_png`.
    """
    return encode_png(mask.astype(np.uint8) * np.uint8(255))


def write_png(path: Path, image: UInt8Array, *, is_bgr: bool = False) -> None:
    """Write an image as PNG, whole or not at all; arguments as `encode_png`.

    Raises:
        ImageError: As `encode_png`.
        StorageError: If the system refuses to write.
    """
    write_bytes(path, encode_png(image, is_bgr=is_bgr))
