"""Places like those seen: distances to the sides are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flawscope.datasets.defects.seeded_choice import generator
from flawscope.datasets.drawing.places import AT_BORDER, box_near, place_of_box
from flawscope.imaging.boxes import Rect

boxes = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(1, 56), st.integers(1, 56)).map(
    lambda b: Rect(*b)
)
SIZE = (256, 256)


@given(box=boxes, seed=st.integers(0, 2**32))
def test_without_a_jitter_the_place_is_the_one_that_was_seen(box, seed):
    seen = place_of_box(box, SIZE)
    near = box_near(seen, (box.height, box.width), SIZE, generator(seed), jitter=0)
    assert near == box


@given(
    box=boxes,
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_a_box_lies_in_the_image_at_the_borders_it_touched_and_a_tenth_off_elsewhere(box, size, seed, share):
    seen = place_of_box(box, SIZE)
    sides = (max(round(size[0] * share), 1), max(round(size[1] * share), 1))
    near = box_near(seen, sides, size, generator(seed))
    assert (near.height, near.width) == sides
    gaps = ((near.left, size[1] - near.left - near.width), (near.top, size[0] - near.top - near.height))
    for (before, after), length, old in zip(
        gaps, size[::-1], ((seen.left, seen.right), (seen.top, seen.bottom)), strict=True
    ):
        assert min(before, after) >= 0
        gap, old_gap = (before, old[0]) if old[0] <= old[1] else (after, old[1])
        if old_gap <= AT_BORDER:
            assert gap == min(round(old_gap * length), before + after)
        else:
            assert gap >= 1 or before + after < 2
            expected = old_gap * length
            assert gap <= expected + 0.1 * length + 1
            assert gap >= min(expected - 0.1 * length - 1, before + after - 1)
