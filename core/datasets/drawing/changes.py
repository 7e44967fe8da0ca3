"""What a drawing changes: the mask of the pixels that differ enough, and the image without all other differences."""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array


def keep_changes(image: UInt8Array, drawn: UInt8Array, region: BoolArray, level: int) -> tuple[UInt8Array, BoolArray]:
    """Return the image with what a drawing changes, and the mask of that.

    The mask holds the pixels of the region in which a channel changes by at least `level`, and those of it between
    them: gaps that a closing by 3 × 3 pixels fills, and holes. Outside of it the bytes are those of the normal image,
    and it is empty where no pixel changes.

    Args:
        image: The normal image, uint8 [H, W, 3].
        drawn: The drawing, uint8 [H, W, 3].
        region: Where it may differ, bool [H, W].
        level: Least change that counts, in grey levels, at least 1.
    """
    # absdiff: a difference of uint8 would wrap around. Channel by channel: NumPy is slow along an axis of three.
    red, green, blue = cv2.split(cv2.absdiff(drawn, image))
    changed = (cv2.max(cv2.max(red, green), blue) >= level) & region
    closed = cv2.morphologyEx(
        changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT
    )
    # Holes are what the surroundings do not reach, from beyond the image.
    outside = np.pad(closed == 0, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    mask = np.asarray((labels != labels[0, 0])[1:-1, 1:-1] & region)
    result = image.copy()
    np.copyto(result, drawn, where=mask[:, :, None])
    return result, mask


def as_levels(values: Float32Array) -> UInt8Array:
    """Return grey levels rounded to uint8; what lies beyond 0 to 255 is cut."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
