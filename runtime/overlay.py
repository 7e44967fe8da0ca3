"""Overlays: the anomaly map over the image on a fixed colour scale, with boxes around anomalous regions."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.results import Box

_OPACITY = 0.55


def draw_overlay(
    image: UInt8Array,
    anomaly_map: npt.NDArray[np.float32],
    spec: Preprocessing | None,
    reference: float,
    boxes: Iterable[Box] = (),
) -> UInt8Array:
    """Return the source image with its heat map and boxes, uint8 [H, W, 3] RGB.

    The colours run from 0 to twice `reference`, the same for every image: stretching each map over its own range
    would paint the brightest spot of every good part red. Up to half the reference the image shows through.

    Args:
        image: Source image, uint8 [H, W, 3].
        anomaly_map: float32 [h, w] at `spec.size`, or at the image's size without a spec.
        spec: The preprocessing that led to the map; None where it is that of tiles.
        reference: The pixel threshold, or another map value that stands in the middle of the scale.
        boxes: Boxes in source pixels.
    """
    height, width = image.shape[:2]
    level = np.clip(anomaly_map / (2.0 * max(reference, 1e-12)), 0.0, 1.0)
    canvas = level
    if spec is not None:
        canvas = np.zeros(spec.resize, np.float32)  # back from the crop to the whole image
        top, left = spec.offset
        canvas[top : top + spec.size[0], left : left + spec.size[1]] = level
    level = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    colours = cv2.cvtColor(
        cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB
    ).astype(np.float32)
    opacity = (_OPACITY * np.clip(4.0 * level - 1.0, 0.0, 1.0))[:, :, None]
    result = (image * (1.0 - opacity) + colours * opacity).astype(np.uint8)
    thickness = max(1, round(max(height, width) / 300))
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)
        cv2.rectangle(result, (box.x, box.y), corner, (255, 255, 255), thickness + 2)
        cv2.rectangle(result, (box.x, box.y), corner, (220, 0, 0), thickness)
    return result
