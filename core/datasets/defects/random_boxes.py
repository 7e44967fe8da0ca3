"""Random boxes whose size and position follow the observed distribution of defect boxes.

Source: MvP-Diff, stage 1b, whose code was never published: the percentiles and the jitter are readings of its figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from flawscope.datasets.defects.foreground import Coverage
from flawscope.imaging.boxes import Rect

LOW_PERCENTILE, HIGH_PERCENTILE = 5, 95
JITTER = 0.2


class BoxRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the boxes of one defect type lie: 5th and 95th percentile of each quantity.

    Attributes:
        boxes: Boxes the range was taken from.
        width: Width as a part of the image's width.
        height: Height as a part of the image's height.
        x: Centre as a part of the image's width.
        y: Centre as a part of the image's height.
    """

    boxes: int
    width: tuple[float, float]
    height: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]


def range_of(boxes: Sequence[tuple[Rect, tuple[int, int]]]) -> BoxRange:
    """Return the range of sizes and places of boxes, each given with the size (H, W) of its image; at least one."""
    relative = np.array([(b.width / w, b.height / h, *b.centre((h, w))) for b, (h, w) in boxes])
    low, high = np.percentile(relative, (LOW_PERCENTILE, HIGH_PERCENTILE), axis=0).round(6).tolist()
    width, height, x, y = zip(low, high, strict=True)
    return BoxRange(len(boxes), width, height, x, y)


def draw_box(
    seen: BoxRange,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    within: Coverage | None = None,
    overlap: float = 0.75,
    is_anywhere: bool = False,
    tries: int = 1000,
) -> tuple[Rect, int] | None:
    """Return a random box like those seen and the number of tries it took, or None where none fitted.

    Sides are uniform between the percentiles and changed by up to 20 %; so few images as a support set holds would
    otherwise give one size only. The centre is uniform between its percentiles, with the same share of the image's
    side around them where they are closer than that.

    Args:
        seen: Range of sizes and places.
        size: Height and width of the image.
        rng: Source of chance.
        within: Where boxes belong, of the same size; None allows every place.
        overlap: More than this part of the box lies within.
        is_anywhere: Take the centre from the whole image and not from where defects were seen.
        tries: Boxes drawn at most.
    """
    height, width = size
    for attempt in range(1, tries + 1):
        w = _side(seen.width, width, rng)
        h = _side(seen.height, height, rng)
        if is_anywhere:
            box = Rect(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
        else:
            box = Rect(_start(seen.x, width, w, rng), _start(seen.y, height, h, rng), w, h)
        if within is None or within.count(box.left, box.top, w, h) > overlap * w * h:
            return box, attempt
    return None


def _side(limits: tuple[float, float], length: int, rng: np.random.Generator) -> int:
    side = rng.uniform(*limits) * rng.uniform(1 - JITTER, 1 + JITTER) * length
    return int(np.clip(round(side), 1, length))


def _start(limits: tuple[float, float], length: int, side: int, rng: np.random.Generator) -> int:
    low, high = limits
    spare = max(0.0, JITTER - (high - low)) / 2
    centre = rng.uniform(max(low - spare, 0.0), min(high + spare, 1.0)) * length
    return int(np.clip(round(centre - side / 2), 0, length - side))
