"""Texture contrast of a box: how much an inpainted box differs from the image by its texture alone.

A model that fills a box with normal material does not reproduce its pixels: grooves and grain lie elsewhere. That is a
change, but no defect. Its strength is estimated from the normal image alone: the box is mirrored, and compared with the
original by the same method that finds defects.
"""

from __future__ import annotations

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.imaging.boxes import bounds_of
from flawscope.runtime.synthesis.precise_masks import MaskOptions, precise_mask


def texture_contrast(good: UInt8Array, region: BoolArray, options: MaskOptions | None = None) -> float:
    """Return the contrast between an image whose box was mirrored and the image itself, 0 to 1.

    The box is mirrored left to right, top to bottom, and both; the result is the median of the three contrasts.

    Args:
        good: uint8 [H, W, 3] RGB, or the model's reconstruction of it.
        region: bool [H, W]; the rectangle around it is mirrored.
        options: Options of the precise mask.

    Raises:
        ArgumentError: If shapes or dtypes differ, or the region is empty.
    """
    box = bounds_of(region).window
    contrasts = []
    # The median of three: one mirror image may match the grain, and one may put the dark end of a shaded box where the
    # light one was.
    for rows, columns in ((1, -1), (-1, 1), (-1, -1)):
        mirrored = good.copy()
        # Read from the whole rectangle, written inside the region only: nothing may change outside it.
        mirrored[box][region[box]] = good[box][::rows, ::columns][region[box]]
        contrasts.append(precise_mask(mirrored, good, region, options).contrast)
    return float(np.median(contrasts))
