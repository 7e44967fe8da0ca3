"""Texture contrast of a box: how much an inpainted box differs from the image by its texture alone.

A model that fills a box with nothing but good material never meets the pixels that were there: grooves and grain lie
elsewhere. That is a change, but no defect. How strong such a change is, the normal image tells itself: the box is
turned about, and compared with what it was by the same method that finds defects.
"""

from __future__ import annotations

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.imaging.boxes import bounds_of
from flawscope.runtime.synthesis.precise_masks import MaskOptions, precise_mask


def texture_contrast(good: UInt8Array, region: BoolArray, options: MaskOptions | None = None) -> float:
    """Return the contrast of an image whose box was turned about, against the image itself, 0 to 1.

    The box is mirrored left to right, top to bottom, and both; the middle one of the three contrasts is returned: one
    mirror image may fall upon the grain, and one may put the dark end of a shaded box where the light one was.

    Args:
        good: uint8 [H, W, 3] RGB, or what the model's autoencoder makes of it.
        region: bool [H, W]; what surrounds it as a rectangle is turned.
        options: As of the precise mask.

    Raises:
        ArgumentError: If shapes or dtypes differ, or the region is empty.
    """
    box = bounds_of(region).window
    found = []
    for rows, columns in ((1, -1), (-1, 1), (-1, -1)):
        turned = good.copy()
        turned[box][region[box]] = good[box][::rows, ::columns][region[box]]
        found.append(precise_mask(turned, good, region, options).contrast)
    return float(np.median(found))
