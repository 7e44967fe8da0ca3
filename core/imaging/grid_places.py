"""Where the positions of a feature grid lie in the image: grids of convolutions are rarely centred on it.

A convolution of stride 2 with symmetric padding puts its first value on the first pixel, not between the first two;
each further one adds to the shift, and trained filters move features too. A grid drawn as if it were centred shows a
defect beside its place.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from flawscope.ranges import MAX_SIDE

_Start = Annotated[float, msgspec.Meta(ge=-MAX_SIDE, le=MAX_SIDE)]
_Step = Annotated[float, msgspec.Meta(ge=0.01, le=MAX_SIDE)]


class GridPlaces(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Places of a feature grid, in pixels of the graph's input: index i lies at start + i * step.

    Attributes:
        start: Row and column of the position of index 0; the centre of the first pixel is 0.
        step: Pixels from one index to the next, along rows and along columns.
    """

    start: tuple[_Start, _Start]
    step: tuple[_Step, _Step]

    def axis(self, axis: int) -> tuple[float, float]:
        """Return start and step along rows (0) or columns (1)."""
        return self.start[axis], self.step[axis]


def centred_places(grid: tuple[int, int], size: tuple[int, int]) -> GridPlaces:
    """Return the places of a grid (h, w) that is centred on an image of a size (H, W)."""
    steps = [side / count for side, count in zip(size, grid, strict=True)]
    return GridPlaces((steps[0] / 2 - 0.5, steps[1] / 2 - 0.5), (steps[0], steps[1]))
