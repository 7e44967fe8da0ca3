"""Where a part usually lies: one reference made of several images of it, and how far they lie from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.errors import ArgumentError
from flawscope.imaging.part_shift import SIDE, Box, Found, PartFinder, moved

LEAST_CLEAR = 0.25
"""How clearly normal images have to show their place: parts do with 0.29 to 0.75, most textures with less than 0.02."""
_RIGHT = 0.1
"""From here on shifts were right, so that such images may join the mean."""
_ANCHORS = 5
_ROUNDS = 4
FEWEST = 3
"""Images of which a mean is made, and that say how far a part shifts; of fewer, one of them is the reference."""
_MOSTLY = 0.9


class PartShifts(msgspec.Struct, frozen=True):
    """How far a part shifts from image to image, the longer of down and right, in pixels of an image.

    Attributes:
        images: Images that were looked at.
        told: Those whose shift can be told.
        median_px: Median of their shifts from the reference.
        largest_px: The largest one.
    """

    images: int
    told: int
    median_px: float
    largest_px: float

    @property
    def are_told(self) -> bool:
        """Whether the images show a part with a place; a few that do not may be bad images."""
        return self.images >= FEWEST and self.told >= _MOSTLY * self.images


class Reference(NamedTuple):
    """A reference, and what was found on the images that it was made of.

    Attributes:
        image: Grey thumbnail, float32 [h, w].
        found: The shift of each image, each measured against a reference that it is not part of.
        images: How many images it is the mean of.
    """

    image: Float32Array
    found: tuple[Found, ...]
    images: int

    def shifts(self, size: tuple[int, int], first: int = 0) -> PartShifts:
        """Return how far the part shifts on the images from `first` on, in pixels of an image of a size (H, W)."""
        scale = max(size) / SIDE
        rows = self.found[first:]
        told = [scale * max(abs(row.down), abs(row.right)) for row in rows if row.clear >= LEAST_CLEAR]
        median, largest = (float(np.median(told)), max(told)) if told else (0.0, 0.0)
        return PartShifts(len(rows), len(told), median, largest)


def learn_reference(thumbnails: Sequence[Float32Array], box: Box, reach: int, *, is_first: bool) -> Reference:
    """Return the reference of images of one part: their mean, after each was moved to one place.

    Args:
        thumbnails: Grey, float32 [h, w], all of one size.
        box: What is looked for, see `PartFinder`.
        reach: Largest shift in pixels of a thumbnail.
        is_first: The place is that of the first image; otherwise it is the median place.

    Raises:
        ArgumentError: If there is no image.
    """
    if not thumbnails:
        raise ArgumentError("part: expected at least one image of it, got none.")
    anchor, found = _best_anchor(thumbnails[: 1 if is_first else _ANCHORS], thumbnails, box, reach)
    told = [row for row in found if row.clear >= _RIGHT]
    if not is_first and told:
        # The other way round from one image to the median place: no image is preferred.
        down, right = (float(np.median([row[axis] for row in told])) for axis in (0, 1))
        anchor = moved(anchor, down, right)
        found = tuple(Found(row.down - down, row.right - right, row.alike, row.clear) for row in found)
    reference = Reference(anchor, found, 1)
    # Against a mean more images are told than against one image: of parts that turn, or with much noise.
    for _ in range(_ROUNDS):
        before, reference = reference, _meant(thumbnails, reference, box, reach)
        if reference.images <= before.images:
            break
    return reference


def _meant(thumbnails: Sequence[Float32Array], last: Reference, box: Box, reach: int) -> Reference:
    """Return the mean of the images whose place is told by a reference, and what each is against all others."""
    placed = {
        number: moved(image, -row.down, -row.right)
        for number, (image, row) in enumerate(zip(thumbnails, last.found, strict=True))
        if row.clear >= _RIGHT
    }
    if len(placed) < FEWEST:
        return last
    total = np.sum(list(placed.values()), axis=0, dtype=np.float64)
    found = []
    for number, image in enumerate(thumbnails):
        # An image is alike a mean that it is part of: the limit would be too high for all others.
        rest, count = (total - placed[number], len(placed) - 1) if number in placed else (total, len(placed))
        found.append(PartFinder(np.asarray(rest / count, np.float32), box, reach).find(image))
    return Reference(np.asarray(total / len(placed), np.float32), tuple(found), len(placed))


def _best_anchor(
    candidates: Sequence[Float32Array], thumbnails: Sequence[Float32Array], box: Box, reach: int
) -> tuple[Float32Array, tuple[Found, ...]]:
    """Return the image against which the place of most others is told, and what was found against it."""
    best: tuple[int, Float32Array, tuple[Found, ...]] | None = None
    for candidate in candidates:
        finder = PartFinder(candidate, box, reach)
        found = tuple(finder.find(image) for image in thumbnails)
        told = sum(row.clear >= _RIGHT for row in found)
        if best is None or told > best[0]:
            best = told, candidate, found
        if told == len(thumbnails):
            break
    assert best is not None, "there is at least one candidate"
    return best[1], best[2]
