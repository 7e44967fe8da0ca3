"""Decision and boxes of an image from its anomaly score and map."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.bundle import Thresholds
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.results import Box, Decision, ZoneScore


def decide(
    score: float,
    anomaly_map: npt.NDArray[np.float32],
    thresholds: Thresholds | None,
    zones: Sequence[ZoneScore] = (),
) -> tuple[Decision, str | None]:
    """Return the decision and, for a fault, its reason. Only a finite score within the threshold is an accept.

    Where the bundle has zones, the scores of all of them have to be.
    """
    # Before the thresholds: NaN > threshold is false, so a comparison alone would accept a failed inference. The map
    # is checked too, because a score can be finite while a pixel is not.
    if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
        return "fault", "inference gave NaN or infinity"
    if unseen := next((zone.name for zone in zones if not np.isfinite(zone.score)), None):
        return "fault", f"the image is too small to show the zone {unseen}"
    if thresholds is None:
        return "fault", "the bundle has no thresholds: run flawscope calibrate"
    if zones:
        return ("reject" if any(zone.is_rejected for zone in zones) else "accept"), None
    # Strictly above: calibration sets the threshold to the score of a normal image, which must stay accepted.
    return ("reject" if score > thresholds.image.value else "accept"), None


def find_boxes(
    anomaly_map: npt.NDArray[np.float32],
    threshold: float | npt.NDArray[np.float32],
    min_area_px: int,
    spec: Preprocessing | None,
    source_size: tuple[int, int],
) -> tuple[Box, ...]:
    """Return the 8-connected regions above a threshold as boxes in source pixels, highest peak first.

    Args:
        anomaly_map: float32 [H, W] at `spec.size`, or of the whole image at any size without a spec.
        threshold: Pixels strictly above it count; or one for each pixel, float32 [H, W].
        min_area_px: Smaller regions are left out; in pixels of the map.
        spec: The preprocessing of the map; None for a map that shows the whole image; see `Manifest.map_spec`.
        source_size: Height and width of the source image.
    """
    above = anomaly_map > threshold
    if not above.any():
        return ()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    # From map to source: undo the crop (offset), then the resize (scale).
    scale_y, scale_x = source_size[0] / anomaly_map.shape[0], source_size[1] / anomaly_map.shape[1]
    top = left = 0
    if spec is not None:
        scale_y, scale_x = source_size[0] / spec.resize[0], source_size[1] / spec.resize[1]
        top, left = spec.offset
    boxes = []
    for label in range(1, count):  # label 0 is the background
        x, y, width, height, area = (int(value) for value in stats[label])
        if area < min_area_px:
            continue
        region = (slice(y, y + height), slice(x, x + width))
        # Of the label's own pixels: another region can reach into the same rectangle with a higher value.
        peak = float(anomaly_map[region][labels[region] == label].max())
        # Rounded outward: a box must not cut off a part of its region.
        x0, y0 = int(np.floor((x + left) * scale_x)), int(np.floor((y + top) * scale_y))
        x1, y1 = int(np.ceil((x + left + width) * scale_x)), int(np.ceil((y + top + height) * scale_y))
        x1, y1 = min(x1, source_size[1]), min(y1, source_size[0])
        boxes.append(Box(x0, y0, x1 - x0, y1 - y0, area, peak))
    return tuple(sorted(boxes, key=lambda box: -box.peak))
