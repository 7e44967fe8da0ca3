"""Random box masks: sides drawn from a range, rotated if allowed, mostly inside a template.

Source: AnoGen (ECCV 2024), stage 2. Its rectangles hold their last row and column, so they are one pixel wider and
higher than the sides drawn, and rotated ones have a rim of grey; `edges="published"` draws all these pixels.
Departures: masks are binary, where the reference dithers the grey rim later; whether a defect may be rotated is a
boolean, where the reference takes the text "False" for true; the number of tries is limited.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.datasets.defects.foreground import Coverage
from flawscope.errors import ArgumentError

MAX_TRIES = 100_000
MIN_OVERLAP = 0.75
Edges = Literal["published", "exact"]
"""Pixels of a rectangle: the `published` ones, with a further row and column and, where it is rotated, every pixel that
it touches; or `exact`, width x height pixels, and of a rotated one those whose centre lies in it."""


class Sides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sides and rotation of the box masks of one defect type.

    Attributes:
        width: Least and largest width as a share of the mask's side.
        height: Least and largest height as a share of the mask's side.
        rotate: Whether masks are rotated, by 0 to 180 degrees. A boolean; the texts "True" and "False" are refused.
    """

    width: tuple[float, float]
    height: tuple[float, float]
    rotate: bool

    def __post_init__(self) -> None:
        for name, (low, high) in (("width", self.width), ("height", self.height)):
            if not 0 < low <= high <= 1:
                raise ArgumentError(
                    f"{name}: expected two shares of the side above 0 and up to 1, the smaller one first, "
                    f"got [{low:g}, {high:g}]."
                )


class BoxMask(NamedTuple):
    """A mask that was accepted.

    Attributes:
        mask: bool [size, size], true where the defect goes.
        left: Left edge of the rectangle before its rotation, in pixels.
        top: Top edge of the rectangle before its rotation, in pixels.
        width: Width of the rectangle in pixels, that of its edges included.
        height: Height of the rectangle in pixels, that of its edges included.
        angle: Rotation about its centre, in degrees.
        overlap: Pixels of the mask inside the template, as a share of width x height, at most 1.
        tries: Rectangles drawn until this one fitted.
    """

    mask: BoolArray
    left: int
    top: int
    width: int
    height: int
    angle: int
    overlap: float
    tries: int


def side_limits(limits: tuple[float, float], size: int) -> tuple[int, int]:
    """Return the least and largest side in pixels, at least 1, of a mask of `size` pixels; both are rounded down."""
    # 1e-9: 0.29 * 100 is 28.999999999999996.
    low, high = (max(math.floor(part * size + 1e-9), 1) for part in limits)
    return low, high


def draw_mask(
    sides: Sides,
    template: Coverage,
    rng: np.random.Generator,
    *,
    overlap: float = MIN_OVERLAP,
    tries: int = MAX_TRIES,
    edges: Edges = "published",
) -> BoxMask:
    """Draw rectangles until one lies inside the template with more than `overlap` of its area.

    Args:
        sides: Sides and rotation of the masks.
        template: Where they may lie; [size, size].
        rng: Random generator.
        overlap: Share of width x height that has to be exceeded. What a rotated rectangle loses at the image's border
            counts as outside.
        tries: Most rectangles drawn.
        edges: Which pixels a rectangle covers.

    Raises:
        ArgumentError: If none fits.
    """
    more = 1 if edges == "published" else 0
    size = template.mask.shape[0]
    widths, heights = side_limits(sides.width, size), side_limits(sides.height, size)
    # Fail at once where the whole template is smaller than the overlap that the smallest box needs.
    drawn = tries if template.total > overlap * widths[0] * heights[0] else 0
    for attempt in range(1, drawn + 1):
        # The order of the draws is part of the result: a seed has to give the same mask as in earlier versions.
        width, height = int(rng.integers(*widths, endpoint=True)), int(rng.integers(*heights, endpoint=True))
        left = int(rng.integers(0, size - width, endpoint=True))
        top = int(rng.integers(0, size - height, endpoint=True))
        angle = int(rng.integers(0, 180, endpoint=True)) if sides.rotate else 0
        # Cut off at the border of the mask, as a rectangle that reaches it has no further row there.
        width, height = min(width + more, size - left), min(height + more, size - top)
        rotated = _RotatedRect(left, top, width, height, angle, size, _RIM if more and angle % 180 else 0.0)
        # The count in the window around a rotated rectangle is an upper bound of that in the rectangle, and constant in
        # time: most misfits are rejected here.
        inside = template.count(*rotated.window)
        if angle and inside > overlap * width * height:
            inside = int(np.count_nonzero(rotated.pixels() & rotated.part_of(template.mask)))
        if inside > overlap * width * height:
            mask = np.zeros((size, size), np.bool_)
            rotated.part_of(mask)[:] = rotated.pixels()
            # The rim of a rotated rectangle is no part of width x height.
            share = min(inside / (width * height), 1.0)
            return BoxMask(mask, left, top, width, height, angle, share, attempt)
    raise ArgumentError(_misfit(widths, heights, template, overlap, drawn))


_RIM = 0.5
"""Half a pixel: interpolation makes every pixel grey whose centre is nearer than that to the rectangle."""


class _RotatedRect:
    """A rectangle rotated about its centre, in an image of `size` x `size` pixels, with a rim around it.

    Attributes:
        window: Left, top, width and height of its bounding window, clipped to the image.
    """

    def __init__(self, left: int, top: int, width: int, height: int, angle: int, size: int, rim: float = 0.0) -> None:
        self._centre = (left + width / 2, top + height / 2)
        # Less than the rim: a pixel at its very end has a weight of 0.
        more = rim - 1e-6 if rim else 0.0
        self._half = (width / 2 + more, height / 2 + more)
        self._cos, self._sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        spans = []
        for middle, along, across in (
            (self._centre[0], self._half[0] * self._cos, self._half[1] * self._sin),
            (self._centre[1], self._half[0] * self._sin, self._half[1] * self._cos),
        ):
            reach = abs(along) + abs(across) - 1e-9  # a rotation by 180 degrees must not gain a column by rounding
            spans.append((max(math.floor(middle - reach), 0), min(math.ceil(middle + reach), size)))
        (x0, x1), (y0, y1) = spans
        self.window = (x0, y0, x1 - x0, y1 - y0)

    def part_of(self, mask: BoolArray) -> BoolArray:
        """Return the view of a mask that the window cuts out."""
        left, top, width, height = self.window
        return mask[top : top + height, left : left + width]

    def pixels(self) -> BoolArray:
        """Return the window's pixels, true where the centre of the pixel lies in the rectangle."""
        left, top, width, height = self.window
        x = np.arange(left, left + width) + 0.5 - self._centre[0]
        y = (np.arange(top, top + height) + 0.5 - self._centre[1])[:, None]
        along, across = x * self._cos + y * self._sin, y * self._cos - x * self._sin
        return np.asarray((np.abs(along) <= self._half[0]) & (np.abs(across) <= self._half[1]))


def _misfit(widths: tuple[int, int], heights: tuple[int, int], template: Coverage, overlap: float, drawn: int) -> str:
    boxes = f"boxes {widths[0]}-{widths[1]} pixels wide and {heights[0]}-{heights[1]} high"
    got = f"none in {drawn} tries" if drawn else "too small an area for any"
    return (
        f"expected {boxes}, more than {overlap:.0%} of them inside an area of {template.total} of "
        f"{template.mask.size} pixels, got {got}. Ask for smaller sides or a lower --overlap, or enlarge the area."
    )
