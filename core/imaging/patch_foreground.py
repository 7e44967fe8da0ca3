"""Which patches of an image show the part and not what lies behind it: a weight from 0 to 1 for every patch.

A patch is projected on one direction of the features, the first principal component of normal images (AnomalyDINO,
arXiv:2405.14529), and the projection becomes a weight. A ramp, no step: rounding then changes a weight by rounding, and
does not switch a patch on or off. The weights are grown by one patch, so that the part's edge counts too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array


def foreground_weights(
    patches: Float32Array, direction: Float32Array, limits: npt.NDArray[np.float32], grid: tuple[int, int]
) -> Float32Array:
    """Return the weights of patches, float32 [N, P], 0 to 1.

    An image that shows too little of the part gets weights of 1: were all its patches background, it would have the
    score of a perfect part.

    Args:
        patches: float32 [N, P, D].
        direction: float32 [D, 1]; a patch times it, plus the offset, is 0 where background ends and 1 where the part
            begins.
        limits: The offset, and the least mean weight of an image whose weights count, float32 [2].
        grid: Rows and columns of the patch grid.
    """
    offset, least = limits
    count, positions, channels = patches.shape
    projected = (patches.reshape(-1, channels) @ direction).reshape(count, *grid) + offset
    # A NaN stays one, so that it reaches the score.
    grown = grow(np.clip(projected, np.float32(0), np.float32(1))).reshape(count, positions)
    shows_little = grown.mean(axis=1, keepdims=True) < least
    return np.where(shows_little, np.float32(1), grown)


def grow(weights: Float32Array) -> Float32Array:
    """Return the largest of the 3 x 3 weights around each, float32 [N, h, w]."""
    height, width = weights.shape[1:]
    padded = np.pad(weights, ((0, 0), (1, 1), (1, 1)))
    rows = np.maximum(np.maximum(padded[:, :height], padded[:, 1 : height + 1]), padded[:, 2:])
    return np.maximum(np.maximum(rows[:, :, :width], rows[:, :, 1 : width + 1]), rows[:, :, 2:])
