"""Images of the report: the image itself, and with anomaly map in one fixed colour scale, outline and boxes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.imaging.heat import HALO, HeatScale, draw_box
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.png import encode_png

if TYPE_CHECKING:
    from flawscope.runtime import Box

SIDE_PX = 480
"""Longer side of an image in the report."""
QUALITY = 80
"""Of WebP, 0 to 100."""
_GAP_PX = 2  # between an image and its map
_OUTLINE = (255, 255, 255)


def make_scale(maps: Float32Array, good: BoolArray, usable: BoolArray, threshold: float | None) -> HeatScale:
    """Choose the colour scale of a report from all its maps.

    Args:
        maps: float32 [N, H, W].
        good: bool [N], normal images.
        usable: bool [N], images that were scored.
        threshold: The pixel threshold, or None.
    """
    chosen = np.flatnonzero(usable & good) if (usable & good).any() else np.flatnonzero(usable)
    # The median of normal images is background. Every 16th pixel is enough for it, and a copy of all maps is not made.
    low = float(np.median(maps[chosen, ::4, ::4])) if chosen.size else 0.0
    # The 98th percentile of the maxima, so that one extreme image does not take the colour from all others.
    high = float(np.percentile(maps[usable].max(axis=(1, 2)), 98)) if usable.any() else 1.0
    middle = (low + high) / 2 if threshold is None else threshold
    # A threshold set by hand may lie below the background or above all maps: the scale must rise all the same, because
    # np.interp wants ascending points.
    if low >= middle:
        low = min(float(maps[usable].min()) if usable.any() else 0.0, middle - max(abs(middle), 1.0) * 1e-3)
    return HeatScale(low, middle, max(high, middle + (middle - low) / 2), threshold is not None)


def plain(image: UInt8Array, quality: int = QUALITY) -> str:
    """Return an image as a data URI; uint8 [H, W, 3] RGB."""
    return _encoded(image, quality)


def overlay(
    image: UInt8Array,
    anomaly_map: Float32Array,
    spec: Preprocessing,
    scale: HeatScale,
    mask: BoolArray | None,
    boxes: Sequence[Box],
    source_size: tuple[int, int],
) -> UInt8Array:
    """Return an image with map, outline of the true defect and boxes, uint8 [H, W, 3] RGB.

    Args:
        image: uint8 [H, W, 3] RGB, the source image at the size that is shown.
        anomaly_map: float32 [H', W'] at the model's input size.
        spec: The preprocessing between them: the map is laid where its pixels come from.
        scale: Colours of the map values.
        mask: bool [H", W"], the true defect in the source image, or None.
        boxes: Regions in pixels of the source image.
        source_size: Height and width of the source image.
    """
    size = (image.shape[1], image.shape[0])
    whole = np.full(spec.resize, scale.low, np.float32)  # what a crop cut off has no value and gets no colour
    top, left = spec.offset
    whole[top : top + spec.size[0], left : left + spec.size[1]] = anomaly_map
    canvas = scale.laid_on(image, np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_LINEAR), np.float32))
    # Lines that are right on a large image would cover a small one.
    line = 2 if max(size) >= SIDE_PX // 2 else 1
    if mask is not None and mask.any():
        enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        # A wide dark line under a narrow light one is visible on any colour.
        outlines, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, HALO, 2 * line + 1, cv2.LINE_AA)
        cv2.drawContours(canvas, outlines, -1, _OUTLINE, line, cv2.LINE_AA)
    # Rounded sizes make both zooms slightly different: boxes must follow each side, or they drift on long images.
    zoom = size[0] / source_size[1], size[1] / source_size[0]
    for box in boxes:
        first = round(box.x * zoom[0]), round(box.y * zoom[1])
        last = round((box.x + box.width) * zoom[0]) - 1, round((box.y + box.height) * zoom[1]) - 1
        draw_box(canvas, first, last, line)
    return canvas


def side_by_side(images: Sequence[UInt8Array], quality: int) -> str:
    """Return images of one size as one, as a data URI: wide ones stand below each other; uint8 [H, W, 3] RGB each."""
    height, width = images[0].shape[:2]
    across = not is_wide(images[0])
    gap = np.full((height, _GAP_PX, 3) if across else (_GAP_PX, width, 3), 128, np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    return _encoded(np.concatenate(parts, axis=1 if across else 0), quality)


def is_wide(image: UInt8Array) -> bool:
    """Return whether an image and its map are larger below each other than beside each other."""
    height, width = image.shape[:2]
    return bool(width > 1.4 * height)


def fit(image: UInt8Array, side: int = SIDE_PX) -> UInt8Array:
    """Resize an image so that its longer side has `side` pixels: outlines are then equally thin on every image."""
    height, width = image.shape[:2]
    zoom = side / max(height, width)
    size = max(round(width * zoom), 1), max(round(height * zoom), 1)
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def fit_mask(mask: BoolArray, image: UInt8Array) -> BoolArray:
    """Resize a mask to the size of an image, uint8 [H, W, 3]."""
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0, np.bool_)


def colour_bar(scale: HeatScale) -> str:
    """Return the scale as a data URI, low on the left, over mid grey."""
    # A PNG, because JPEG would blur the step at the threshold. Its middle value comes once, from the lower half.
    values = np.concatenate((np.linspace(scale.low, scale.middle, 256), np.linspace(scale.middle, scale.high, 257)[1:]))
    heat = scale.colours(values)
    row = 128 * (1 - heat[:, 3:]) + heat[:, :3] * heat[:, 3:]
    bar = np.repeat(row[None].round().astype(np.uint8), 16, axis=0)
    return "data:image/png;base64," + base64.b64encode(encode_png(bar)).decode()


def _encoded(image: npt.NDArray[np.uint8], quality: int) -> str:
    # OpenCV expects BGR. WebP: at the size of a preview, the tables at the head of a JPEG alone weigh as much.
    _, data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()
