"""Random boxes that follow the observed sizes and positions of defect boxes.

Source: MvP-Diff, stage 1b, whose code was never published: the percentiles and the jitter are read off its figure.
Departure: boxes lie near a seen one, at its distances to the sides. In the rectangle that spans all centres, which is
`observed` here, the defects of corners and borders come to lie in the middle. Or they lie where the image is most like
the surroundings of a seen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np

from flawscope.datasets.defects.foreground import Coverage
from flawscope.datasets.drawing.correspondence import Correspondence, Surroundings
from flawscope.datasets.drawing.places import SeenPlace, box_at, box_near, place_of_box
from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import Rect

LOW_PERCENTILE, HIGH_PERCENTILE = 5, 95
JITTER = 0.2

Places = Literal["near", "match", "observed", "anywhere"]
PLACES: tuple[Places, ...] = get_args(Places)


class BoxRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and positions of the boxes of one defect type: 5th and 95th percentile of each quantity.

    Attributes:
        boxes: Number of boxes that were measured.
        width: Width as a share of the image's width.
        height: Height as a share of the image's height.
        x: Centre as a share of the image's width.
        y: Centre as a share of the image's height.
        seen: Every box that was measured, by its distances to the sides; empty in records from before they were kept.
    """

    boxes: int
    width: tuple[float, float]
    height: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    seen: tuple[SeenPlace, ...] = ()


class Match(NamedTuple):
    """What places are compared by: a normal image, and the surroundings of every seen box, in the range's order."""

    image: Correspondence
    seen: Sequence[Surroundings]


def range_of(boxes: Sequence[tuple[Rect, tuple[int, int]]]) -> BoxRange:
    """Return the range of sizes and positions of one or more boxes, each given with the size (H, W) of its image."""
    relative = np.array([(b.width / w, b.height / h, *b.centre((h, w))) for b, (h, w) in boxes])
    # Percentiles, not least and largest: one odd box must not set the range.
    low, high = np.percentile(relative, (LOW_PERCENTILE, HIGH_PERCENTILE), axis=0).round(6).tolist()
    width, height, x, y = zip(low, high, strict=True)
    return BoxRange(len(boxes), width, height, x, y, tuple(place_of_box(box, size) for box, size in boxes))


def draw_box(
    seen: BoxRange,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    within: Coverage | None = None,
    overlap: float = 0.75,
    places: Places = "near",
    match: Match | None = None,
    tries: int = 1000,
) -> tuple[Rect, int] | None:
    """Return a random box like the observed ones and the number of tries it took, or None if none fitted.

    `near` takes one of the seen boxes at a time: its sides with a jitter of 20 %, and its distance to the nearer side
    of each axis with a jitter of a tenth of the image's side, or none where it touches the border.

    `match` takes sides likewise, and a place where the image is most like the surroundings of the seen box, at the
    borders that this touched.

    Otherwise sides are uniform between the percentiles, with a jitter of 20 %, because the few images of a support set
    would give almost one size. With `observed` the centre is uniform between its percentiles, which are widened to 20 %
    of the image's side where they are closer; with `anywhere` it is uniform in the whole image.

    Args:
        seen: Observed sizes and positions.
        size: Height and width of the image.
        rng: Random generator.
        within: Where boxes have to lie, of the same size; None allows every position.
        overlap: The box has more than this share of its area within.
        places: How the position is drawn.
        match: The image and the surroundings of the seen boxes, for `match`.
        tries: Most boxes drawn.

    Raises:
        ArgumentError: If `near` or `match` is asked of a range without seen boxes, or `match` without surroundings.
    """
    if places in ("near", "match") and not seen.seen:
        raise ArgumentError("seen: expected the boxes that were seen, got none. Take other places, or measure anew.")
    if places == "match" and (match is None or len(match.seen) != len(seen.seen)):
        got = "none" if match is None else str(len(match.seen))
        raise ArgumentError(
            f"match: expected the surroundings of each of the {len(seen.seen)} seen boxes, got {got}. Find them with "
            "surroundings_of, or take other places."
        )
    for attempt in range(1, tries + 1):
        box = (
            _near(seen, size, rng, match if places == "match" else None)
            if places in ("near", "match")
            else _elsewhere(seen, size, rng, is_anywhere=places == "anywhere")
        )
        if within is None or within.count(*box) > overlap * box.width * box.height:
            return box, attempt
    return None


def _near(seen: BoxRange, size: tuple[int, int], rng: np.random.Generator, match: Match | None) -> Rect:
    height, width = size
    index = int(rng.integers(len(seen.seen)))
    one = seen.seen[index]
    w, h = _side((one.width, one.width), width, rng), _side((one.height, one.height), height, rng)
    left, top, right, bottom = one.sides
    # Between two borders there is no room for a jitter: what reaches from one to the other goes on doing so.
    if left and right:
        w = max(round(one.width * width), 1)
    if top and bottom:
        h = max(round(one.height * height), 1)
    if match is None:
        return box_near(one, (h, w), size, rng)
    centres = match.image.centres(match.seen[index])
    x, y = centres[int(rng.integers(len(centres)))].tolist()
    return box_at(one, (x, y), (h, w), size)


def _elsewhere(seen: BoxRange, size: tuple[int, int], rng: np.random.Generator, *, is_anywhere: bool) -> Rect:
    height, width = size
    # Width before height, size before position: another order would draw other boxes from old seeds.
    w = _side(seen.width, width, rng)
    h = _side(seen.height, height, rng)
    if is_anywhere:
        return Rect(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
    return Rect(_start(seen.x, width, w, rng), _start(seen.y, height, h, rng), w, h)


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
