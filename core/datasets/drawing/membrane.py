"""Membranes: the smoothest continuation of an image into a hole, in place of what would be there without a defect."""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array
from flawscope.errors import ArgumentError

_SWEEPS = 12
"""Averaging steps on each level: the level below has brought the coarse shape already."""


def membrane(values: Float32Array, hole: BoolArray) -> Float32Array:
    """Return values [H, W, C] whose hole is the solution of Laplace's equation with the values around it.

    Solved from coarse to fine, on each level by a few averaging steps. Where the hole reaches the border of the array,
    nothing is known beyond it, and the membrane ends there without slope.

    Args:
        values: The image, float32 [H, W, C].
        hole: What is not known, bool [H, W].

    Raises:
        ArgumentError: If the hole is everything: there is nothing to continue.
    """
    if hole.all():
        raise ArgumentError("mask: expected some surroundings of the defect, got a mask that covers all.")
    if not hole.any():
        return values.copy()
    # Of a single channel OpenCV drops the axis.
    known: Float32Array = values.reshape(*hole.shape, -1)
    weight: Float32Array = (~hole).astype(np.float32)
    return _filled(known, weight).reshape(values.shape)


def _filled(values: Float32Array, weight: Float32Array) -> Float32Array:
    height, width = weight.shape
    hole = weight <= 0
    if not hole.any():
        return values
    size = ((width + 1) // 2, (height + 1) // 2)
    coarse_weight = np.asarray(cv2.resize(weight, size, interpolation=cv2.INTER_AREA), np.float32)
    total = _resized(values * weight[..., None], size, cv2.INTER_AREA)
    # Where nothing is known the total is 0 as well; 1 only keeps the division defined.
    divisor = np.where(coarse_weight > 0, coarse_weight, np.float32(1.0))[..., None]
    coarse: Float32Array = np.asarray(total / divisor, np.float32)
    guess = _resized(_filled(coarse, coarse_weight), (width, height), cv2.INTER_LINEAR)
    filled = np.where(hole[..., None], guess, values).astype(np.float32)
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / np.float32(4.0)
    for _ in range(_SWEEPS):
        # REPLICATE: a pixel outside has the value of the one at the border, so that there is no slope.
        mean = cv2.filter2D(filled, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(values.shape)
        filled[hole] = mean[hole]
    return filled


def _resized(values: Float32Array, size: tuple[int, int], method: int) -> Float32Array:
    return np.asarray(cv2.resize(values, size, interpolation=method), np.float32).reshape(size[1], size[0], -1)
