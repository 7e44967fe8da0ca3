"""Overlays: the anomaly map over the image in the colours of the report, with boxes around anomalous regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.imaging.heat import BOX, HALO, HeatScale, draw_box
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.results import Box

_SCALE = HeatScale(1 / 6, 1.0, 2.0, has_threshold=True)
"""Of map values divided by the reference: the first fifth of the scale has no colour, here what is below half of it."""
_LARGEST = 2.0
_LEAST_TEXT_PX = 320


def draw_overlay(
    image: UInt8Array,
    anomaly_map: npt.NDArray[np.float32],
    spec: Preprocessing | None,
    reference: float | npt.NDArray[np.float32],
    boxes: Iterable[Box] = (),
    lines: Sequence[str] = (),
) -> UInt8Array:
    """Return the source image in grey under its heat map, with boxes, uint8 [H, W, 3] RGB.

    The colours run up to twice `reference`, the same for every image: stretching each map over its own range would
    paint the brightest spot of every good part red. Below half the reference there is none.

    Args:
        image: Source image, uint8 [H, W, 3].
        anomaly_map: float32 [h, w] at `spec.size`, or of the whole image without a spec.
        spec: The preprocessing of the map; None for a map that shows the whole image; see `Manifest.map_spec`.
        reference: The pixel threshold, or another map value to put in the middle of the scale; with zones one for
            each pixel of the map, float32 [h, w].
        boxes: Boxes in source pixels.
        lines: Text to write into the upper left corner; the font is ASCII, other characters become `?`.
    """
    height, width = image.shape[:2]
    # A threshold that was set by hand can be 0 or below.
    floor = np.maximum(reference, np.float32(1e-12)) if isinstance(reference, np.ndarray) else max(reference, 1e-12)
    level = np.clip(anomaly_map / floor, 0.0, _LARGEST)
    canvas = level
    if spec is not None:
        canvas = np.zeros(spec.resize, np.float32)  # the map covers the crop; outside of it nothing was inspected
        top, left = spec.offset
        canvas[top : top + spec.size[0], left : left + spec.size[1]] = level
    level = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    result = _SCALE.laid_on(image, level)
    thickness = max(1, round(max(height, width) / 300))
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)  # OpenCV includes it
        draw_box(result, (box.x, box.y), corner, thickness)
    _write_lines(result, lines)
    return result


def _write_lines(image: UInt8Array, lines: Sequence[str]) -> None:
    # Of small images too the text must be large enough to be read.
    scale, font = max(*image.shape[:2], _LEAST_TEXT_PX) / 800, cv2.FONT_HERSHEY_SIMPLEX
    thickness, margin = max(1, round(2 * scale)), max(2, round(6 * scale))
    for row, line in enumerate(lines, 1):
        text, (x, y) = line.encode("ascii", "replace").decode(), (round(12 * scale), round((38 * row - 6) * scale))
        (width, height), below = cv2.getTextSize(text, font, scale, thickness)
        # A dark strip: an edge around thin letters would fill them.
        cv2.rectangle(image, (x - margin, y - height - margin), (x + width + margin, y + below), HALO, cv2.FILLED)
        cv2.putText(image, text, (x, y), font, scale, BOX, thickness, cv2.LINE_AA)
