"""Pastes an inpainted crop back into the source image.

    out = round(a · drawn + (1 - a) · good)            the drawing
    out = round(good + a · (drawn - known))            its change alone

where known is the model's reconstruction of the normal image. The weight a is 1 on the mask, falls to 0 over the
feather around it, and is exactly 0 beyond, where the bytes of the normal image stay as they are.
"""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.errors import ArgumentError
from flawscope.imaging.crops import Crop, check_crop, check_feather, resize_window
from flawscope.imaging.images import check_image


def feather_mask(mask: BoolArray, feather_px: int) -> Float32Array:
    """Return the weight of a paste, float32 [H, W]: 1 on the mask, falling linearly to 0 at a distance, 0 beyond.

    Args:
        mask: bool [H, W]; where it is empty, so is the weight.
        feather_px: Pixels around the mask that are blended; 0 for a hard edge. At the distance `feather_px + 1` from
            the mask, Euclidean, the weight is exactly 0.

    Raises:
        ArgumentError: If the feather is negative.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    check_feather(feather_px)
    if feather_px == 0 or not mask.any():
        return mask.astype(np.float32)
    # PRECISE: the 3 x 3 and 5 x 5 masks only approximate Euclidean distances, and the weight could miss the exact 0.
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.clip(1.0 - distance / np.float32(feather_px + 1), 0.0, 1.0), np.float32)


def paste_drawn(
    image: UInt8Array, drawn: UInt8Array, crop: Crop, weight: Float32Array, known: UInt8Array | None = None
) -> UInt8Array:
    """Return the image with the drawing; where the weight is 0 its pixels are the input's, bit for bit.

    Args:
        image: The normal image, uint8 [H, W, 3]; it is not changed.
        drawn: The window as the model drew it, uint8 [*crop.size, 3].
        crop: The window.
        weight: From `feather_mask`, float32 [H, W], 0 to 1; 0 outside the window.
        known: The model's reconstruction of the window without a defect, uint8 [*crop.size, 3]. With it the change is
            pasted, out = good + a · (drawn - known): detail that the autoencoder loses stays in the image.

    Raises:
        ArgumentError: If shapes differ, the weight is not in 0 to 1, or it reaches beyond the window, which would
            leave a hard edge there.
    """
    check_image(image)
    check_array(drawn, "drawn", (*crop.size, 3), np.uint8)
    check_array(weight, "weight", image.shape[:2], np.float32, finite=True)
    check_crop(crop, image.shape[:2])
    if weight.min() < 0.0 or weight.max() > 1.0:
        raise ArgumentError(f"weight: expected 0 to 1, got {weight.min():.3g} to {weight.max():.3g}.")
    inside = weight[crop.window]
    if np.count_nonzero(weight) > np.count_nonzero(inside):
        raise ArgumentError(
            f"weight: expected 0 outside the window of {crop.height} x {crop.width} pixels, got a feathered mask that "
            "reaches beyond it. Cut a larger window, or feather less."
        )
    result = image.copy()
    window = result[crop.window]
    touched = inside > 0  # only these are computed: a box is small beside its image, and the rest stays as it is
    share = inside[touched][:, None]
    before = window[touched].astype(np.float32)
    if known is None:
        patch = np.asarray(resize_window(drawn, (crop.height, crop.width)), np.float32)
        mixed = share * patch[touched] + (np.float32(1.0) - share) * before
    else:
        check_array(known, "known", (*crop.size, 3), np.uint8)
        # Subtracted before resizing, in float32: as uint8 negative changes would wrap around.
        change = resize_window(drawn.astype(np.float32) - known.astype(np.float32), (crop.height, crop.width))
        mixed = before + share * np.asarray(change, np.float32)[touched]
    # `window` is a view of `result`. Clipped before the cast, in which 256 would become 0; bicubic overshoots.
    window[touched] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return result
