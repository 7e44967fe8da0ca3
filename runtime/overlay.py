"""Overlays: the anomaly map over the image on a fixed colour scale, with boxes around anomalous regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    reference: float | npt.NDArray[np.float32],
    boxes: Iterable[Box] = (),
    lines: Sequence[str] = (),
) -> UInt8Array:
    """Return the source image with its heat map and boxes, uint8 [H, W, 3] RGB.

    The colours run from 0 to twice `reference`, the same for every image: stretching each map over its own range
    would paint the brightest spot of every good part red. Below half the reference the image is not covered at all.

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
    level = np.clip(anomaly_map / (2.0 * floor), 0.0, 1.0)
    canvas = level
    if spec is not None:
        canvas = np.zeros(spec.resize, np.float32)  # the map covers the crop; outside of it nothing was inspected
        top, left = spec.offset
        canvas[top : top + spec.size[0], left : left + spec.size[1]] = level
    level = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    colours = cv2.cvtColor(
        cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB
    ).astype(np.float32)
    # 0 up to half the reference, full at the reference (level 0.5).
    opacity = (_OPACITY * np.clip(4.0 * level - 1.0, 0.0, 1.0))[:, :, None]
    result = (image * (1.0 - opacity) + colours * opacity).astype(np.uint8)
    thickness = max(1, round(max(height, width) / 300))
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)  # OpenCV includes it
        # A white edge first: red alone disappears on the red end of the colour scale.
        cv2.rectangle(result, (box.x, box.y), corner, (255, 255, 255), thickness + 2)
        cv2.rectangle(result, (box.x, box.y), corner, (220, 0, 0), thickness)
    _write_lines(result, lines)
    return result


def _write_lines(image: UInt8Array, lines: Sequence[str]) -> None:
    scale, font = max(image.shape[:2]) / 800, cv2.FONT_HERSHEY_SIMPLEX
    for row, line in enumerate(lines, 1):
        text, place = line.encode("ascii", "replace").decode(), (round(12 * scale), round(32 * scale * row))
        # As with boxes, on a white edge.
        for colour, thickness in (((255, 255, 255), 5), ((220, 0, 0), 2)):
            cv2.putText(image, text, place, font, scale, colour, max(1, round(thickness * scale)), cv2.LINE_AA)
