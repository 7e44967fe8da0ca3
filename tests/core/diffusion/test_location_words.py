"""Words for places: the grid of nine, and texts whose place is filled in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.diffusion.location_words import LOCATIONS, located, location_of
from flawscope.imaging.boxes import Rect


@pytest.mark.parametrize(
    ("centre", "phrase"),
    [
        ((10, 10), "in the upper left"),
        ((150, 10), "in the upper middle"),
        ((290, 10), "in the upper right"),
        ((10, 75), "in the middle left"),
        ((150, 75), "in the center"),
        ((290, 75), "in the middle right"),
        ((10, 140), "in the bottom left"),
        ((150, 140), "in the bottom middle"),
        ((290, 140), "in the bottom right"),
        ((100, 50), "in the center"),  # at exactly one third
        ((200, 100), "in the center"),  # at exactly two thirds
        ((99, 49), "in the upper left"),
        ((201, 101), "in the bottom right"),
    ],
)
def test_the_grid_divides_both_sides_in_three(centre, phrase):
    box = Rect(centre[0] - 4, centre[1] - 4, 8, 8)
    assert location_of(box, (150, 300)) == phrase


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_every_box_has_one_of_nine_places_and_mirroring_mirrors_it(height, width, seed):
    rng = np.random.default_rng(seed)
    w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    box = Rect(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
    mirrored = Rect(width - box.left - w, box.top, w, h)
    location, mirrored_location = (location_of(b, (height, width)) for b in (box, mirrored))
    [(row, column)] = [(r, c) for r in range(3) for c in range(3) if LOCATIONS[r][c] == location]
    # Rounding decides a centre that lies exactly on the grid.
    on_grid = any(abs(box.centre((height, width))[0] - part) < 1e-9 for part in (1 / 3, 2 / 3))
    assert on_grid or mirrored_location == LOCATIONS[row][2 - column]


def test_a_place_is_filled_in_everywhere_with_a_capital_at_the_beginning():
    assert located("{location} lies * {location}", "in the center") == "In the center lies * in the center"
    assert located("a crack", "in the center") == "a crack"
