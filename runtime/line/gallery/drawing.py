"""Drawing images of parts: as they are, or under their anomaly map, whose colours are the same for every part."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.errors import DataError
from flawscope.imaging.images import decode_stored, to_8_bit
from flawscope.runtime.line.gallery.keeper import Heat, Kept, Pixels
from flawscope.runtime.overlay import draw_overlay
from flawscope.runtime.results import Box

_log = logging.getLogger(__name__)

MIDDLE = 0.5
"""Level of the reference of a map, the pixel threshold; 1 is twice as much, and more."""


def pixels_of(kept: Kept) -> UInt8Array:
    """Return an image as uint8 [H, W, 3] RGB.

    Raises:
        DataError: If there is none.
        ImageError: If its bytes are no image.
    """
    if kept.image is None:
        raise DataError(f"{kept.view}: expected an image, got none: {kept.record.detail or 'it never came'}.")
    return rgb(kept.image, kept.view, kept.color, kept.bits)


def rgb(image: Pixels | bytes, name: str, color: str, bits: int | None) -> UInt8Array:
    """Return an image as uint8 [H, W, 3] RGB.

    Args:
        image: uint8 or uint16 [H, W] or [H, W, 3], or the bytes of an image file.
        name: What it is called in messages.
        color: Order of the channels of an array, `rgb` or `bgr`.
        bits: Bits in use of 16-bit images; None for all.

    Raises:
        ImageError: If the bytes are no image.
    """
    if isinstance(image, bytes):
        image, color = decode_stored(image, name), "bgr"
    shown = to_8_bit(image, name, bits)
    if shown.ndim == 2:
        return np.asarray(cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(cv2.cvtColor(shown, cv2.COLOR_BGR2RGB), np.uint8) if color == "bgr" else shown


def levels_of(kept: Kept) -> Float32Array | None:
    """Return the map of an image as `levels` does; None where it has none, or none that can be drawn."""
    if kept.anomaly_map is None or kept.heat is None:
        return None
    try:
        return levels(kept.anomaly_map, kept.heat(kept.anomaly_map))
    except Exception:  # of a bundle that was closed meanwhile: a map that cannot be drawn costs no image
        _log.exception("An anomaly map of view %s could not be drawn.", kept.view)
        return None


def levels(anomaly_map: Float32Array, heat: Heat) -> Float32Array:
    """Return a map as float32 [h, w] from 0 to 1 that shows the whole image; its reference becomes `MIDDLE`.

    Args:
        anomaly_map: float32 [h, w]; what is no number becomes 0.
        heat: How it lies on the image.
    """
    # A threshold that was set by hand can be 0 or below.
    floor = np.maximum(np.asarray(heat.reference, np.float32), np.float32(1e-12))
    level = np.clip(np.nan_to_num(anomaly_map * MIDDLE / floor, nan=0.0), 0.0, 1.0).astype(np.float32)
    if heat.spec is None:
        return level
    # The map covers the crop of the bundle; outside of it nothing was inspected.
    whole = np.zeros(heat.spec.resize, np.float32)
    top, left = heat.spec.offset
    whole[top : top + level.shape[0], left : left + level.shape[1]] = level
    return whole


def with_map(image: UInt8Array, level: Float32Array, boxes: tuple[Box, ...] = ()) -> UInt8Array:
    """Return an image uint8 [H, W, 3] RGB under its map, with boxes in its pixels; see `levels`."""
    return draw_overlay(image, level, None, MIDDLE, boxes)


def jpeg(image: UInt8Array, longest_px: int, quality: int = 85) -> bytes:
    """Return an image uint8 [H, W, 3] RGB as JPEG, made smaller where its longer side has more pixels."""
    height, width = image.shape[:2]
    if (share := longest_px / max(height, width)) < 1.0:
        size = (max(1, round(width * share)), max(1, round(height * share)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    # The order of OpenCV is BGR.
    is_done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_done:
        raise DataError(f"expected an image that can be encoded as JPEG, got {list(image.shape)}.")
    return data.tobytes()
