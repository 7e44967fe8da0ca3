"""Plausible places: where a defect lies relative to the sides of its image, and places like those that were seen.

A break at the left border is no break in the middle. A seen place is kept as its distances to the four sides, and a
new one keeps the distance to the nearer side of each axis, with a jitter: what touches a border goes on touching it.
"""

from __future__ import annotations

import msgspec
import numpy as np

from flawscope.imaging.boxes import MIN_MARGIN, Rect

DISTANCE_JITTER = 0.2
"""Width of the range of a distance, as a share of the image's side: a tenth of it to either side."""

AT_BORDER = MIN_MARGIN
"""Largest distance to a side, as a share of the image's width or height, that counts as touching it."""


class SeenPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a box lies in its image: distances as shares of the image's width (left, right) or height (top, bottom)."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """The box's width as a share of the image's."""
        return 1.0 - self.left - self.right

    @property
    def height(self) -> float:
        """The box's height as a share of the image's."""
        return 1.0 - self.top - self.bottom

    @property
    def sides(self) -> tuple[bool, bool, bool, bool]:
        """Which sides of the image it touches: left, top, right, bottom."""
        left, top, right, bottom = (
            distance <= AT_BORDER for distance in (self.left, self.top, self.right, self.bottom)
        )
        return left, top, right, bottom


def place_of_box(box: Rect, size: tuple[int, int]) -> SeenPlace:
    """Return where a box lies in an image of size (H, W)."""
    height, width = size
    left, top = box.left / width, box.top / height
    right, bottom = (width - box.left - box.width) / width, (height - box.top - box.height) / height
    return SeenPlace(*(round(distance, 6) for distance in (left, top, right, bottom)))


def box_near(
    seen: SeenPlace,
    sides: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.Generator,
    jitter: float = DISTANCE_JITTER,
) -> Rect:
    """Return a box of given sides near a seen place.

    Args:
        seen: The place.
        sides: Height and width of the box in pixels, at most those of the image.
        size: Height and width of the image.
        rng: Random generator.
        jitter: Width of the range of a distance, as a share of the image's side; 0 keeps distances as they were.
    """
    height, width = sides
    left = _start(seen.left, seen.right, size[1], width, rng, jitter)
    top = _start(seen.top, seen.bottom, size[0], height, rng, jitter)
    return Rect(left, top, width, height)


def box_anywhere(seen: SeenPlace, sides: tuple[int, int], size: tuple[int, int], rng: np.random.Generator) -> Rect:
    """Return a box as `box_near`, at the borders that the seen one touched and anywhere along them; else anywhere."""
    near, spare = box_near(seen, sides, size, rng, 0.0), (size[0] - sides[0], size[1] - sides[1])
    left, top = int(rng.integers(spare[1] + 1)), int(rng.integers(spare[0] + 1))
    touched = seen.sides
    return Rect(
        near.left if touched[0] or touched[2] else left,
        near.top if touched[1] or touched[3] else top,
        near.width,
        near.height,
    )


def box_at(seen: SeenPlace, centre: tuple[float, float], sides: tuple[int, int], size: tuple[int, int]) -> Rect:
    """Return a box around a centre (x, y), as shares of the image: moved inside, and at the borders it touched before.

    As `box_near`, at those borders alone: what lay free of one stays a pixel from it, where there is room.
    """
    near = box_near(seen, sides, size, np.random.default_rng(0), 0.0)
    touched, spare = seen.sides, (size[0] - sides[0], size[1] - sides[1])
    left, top = (
        int(np.clip(round(centre[axis] * length - side / 2), min(1, room // 2), max(room - 1, room // 2)))
        for axis, length, side, room in ((0, size[1], sides[1], spare[1]), (1, size[0], sides[0], spare[0]))
    )
    return Rect(
        near.left if touched[0] or touched[2] else left,
        near.top if touched[1] or touched[3] else top,
        near.width,
        near.height,
    )


def _start(before: float, after: float, length: int, side: int, rng: np.random.Generator, jitter: float) -> int:
    # Drawn in every case: whether a defect touches a border must not move the numbers of what is drawn after it.
    shift = rng.uniform(-jitter / 2, jitter / 2)
    nearest, spare = min(before, after), length - side
    if nearest <= AT_BORDER:
        gap = min(round(nearest * length), spare)
    else:
        # At least a pixel: what lay free of the border stays free of it, where there is room.
        gap = min(max(round((nearest + shift) * length), 1), max(spare - 1, spare // 2))
    return gap if before <= after else spare - gap
