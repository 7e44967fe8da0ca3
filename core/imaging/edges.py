"""Canny edge maps of images, computed outside the graph: ONNX has no operator for hysteresis thresholding."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array

# Shared by training and run time; a change makes exported bundles compare with other sketches than they learned.
_THRESHOLDS = (50.0, 150.0)
_BLUR = 5


def canny_edges(images: UInt8Array) -> npt.NDArray[np.float32]:
    """Return edges float32 [N, 1, H, W], 0 or 1: OpenCV's Canny with thresholds 50 and 150, after a 5 x 5 Gaussian.

    Args:
        images: uint8 [N, H, W, 3] RGB.
    """
    edges = np.zeros((len(images), 1, *images.shape[1:3]), np.float32)
    for index, image in enumerate(images):
        gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (_BLUR, _BLUR), 0)
        edges[index, 0] = cv2.Canny(gray, *_THRESHOLDS) > 0
    return edges
