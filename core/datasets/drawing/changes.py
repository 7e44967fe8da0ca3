"""What a drawing changes: the mask of the pixels that differ enough, and the image without all other differences."""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array


def keep_changes(
    image: UInt8Array, drawn: UInt8Array, region: BoolArray, level: int, fringe: BoolArray | None = None
) -> tuple[UInt8Array, BoolArray]:
    """Return the image with what a drawing changes, and the mask of that.

    The mask holds the pixels of the region in which a channel changes by at least `level`, and those of it between
    them: gaps that a closing by 3 × 3 pixels fills, and holes. Outside of it the bytes are those of the normal image,
    and it is empty where no pixel changes.

    Args:
        image: The normal image, uint8 [H, W, 3].
        drawn: The drawing, uint8 [H, W, 3].
        region: Where it may differ, bool [H, W].
        level: Least change that counts, in grey levels, at least 1.
        fringe: Pixels of the region around the defect itself, bool [H, W]. There the mean change of the fringe within
            5 × 5 pixels has to reach the level as well: grain that was moved along with a defect is none.
    """
    # absdiff: a difference of uint8 would wrap around. Channel by channel: NumPy is slow along an axis of three.
    red, green, blue = cv2.split(cv2.absdiff(drawn, image))
    changed = (cv2.max(cv2.max(red, green), blue) >= level) & region
    if fringe is not None and fringe.any():
        changed &= ~fringe | (_mean_change(image, drawn, fringe) >= level)
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


def _mean_change(image: UInt8Array, drawn: UInt8Array, fringe: BoolArray) -> Float32Array:
    """Return how much the fringe around each pixel changes in the mean, float32 [H, W]; the largest of the channels."""
    weight = fringe.astype(np.float32)
    # Signed, so that grain cancels out, and of the fringe alone: the defect beside it must not count.
    change = cv2.blur((drawn.astype(np.float32) - image) * weight[..., None], (5, 5), borderType=cv2.BORDER_CONSTANT)
    share = cv2.blur(weight, (5, 5), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(np.abs(change).max(axis=2) / np.maximum(share, np.float32(1e-6)), np.float32)


def as_levels(values: Float32Array) -> UInt8Array:
    """Return grey levels rounded to uint8; what lies beyond 0 to 255 is cut."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
