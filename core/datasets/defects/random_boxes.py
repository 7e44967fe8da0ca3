"""Random boxes that follow the observed sizes and positions of defect boxes.

Source: MvP-Diff, stage 1b, whose code was never published: the percentiles and the jitter are read off its figure.
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
    """Sizes and positions of the boxes of one defect type: 5th and 95th percentile of each quantity.

    Attributes:
        boxes: Number of boxes that were measured.
        width: Width as a share of the image's width.
        height: Height as a share of the image's height.
        x: Centre as a share of the image's width.
        y: Centre as a share of the image's height.
    """

    boxes: int
    width: tuple[float, float]
    height: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]


def range_of(boxes: Sequence[tuple[Rect, tuple[int, int]]]) -> BoxRange:
    """Return the range of sizes and positions of one or more boxes, each given with the size (H, W) of its image."""
    relative = np.array([(b.width / w, b.height / h, *b.centre((h, w))) for b, (h, w) in boxes])
    # Percentiles, not least and largest: one odd box must not set the range.
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
    """Return a random box like the observed ones and the number of tries it took, or None if none fitted.

    Sides are uniform between the percentiles, with a jitter of 20 %, because the few images of a support set would
    otherwise give almost one size. The centre is uniform between its percentiles, which are widened to 20 % of the
    image's side where they are closer.

    Args:
        seen: Observed sizes and positions.
        size: Height and width of the image.
        rng: Random generator.
        within: Where boxes have to lie, of the same size; None allows every position.
        overlap: The box has more than this share of its area within.
        is_anywhere: Draw the centre from the whole image, not from the observed positions.
        tries: Most boxes drawn.
    """
    height, width = size
    for attempt in range(1, tries + 1):
        # Width before height, size before position: another order would draw other boxes from old seeds.
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
    # A defect type that was seen at one position alone must not be drawn there alone.
    spare = max(0.0, JITTER - (high - low)) / 2
    centre = rng.uniform(max(low - spare, 0.0), min(high + spare, 1.0)) * length
    # A box at the border is moved inside, not cut: its size stays in the observed range.
    return int(np.clip(round(centre - side / 2), 0, length - side))
