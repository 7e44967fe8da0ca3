"""Which aspect ratios are far from the input's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.imaging.aspect_ratios import FAR, aspect_remark, stretch_of

SIDES = st.integers(8, 4096)


@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES)
def test_a_stretch_is_the_ratio_of_both_shrinks(height, width, rows, columns):
    down, across = height / rows, width / columns
    assert stretch_of((height, width), (rows, columns)) == pytest.approx(max(down / across, across / down))


@given(sizes=st.dictionaries(st.tuples(SIDES, SIDES), st.integers(1, 9), max_size=4))
def test_a_remark_counts_the_images_that_are_far(sizes):
    far = sum(count for size, count in sizes.items() if max(size) / min(size) >= FAR)
    text = aspect_remark(sizes)
    assert (text is None) == (far == 0)
    if text is not None:
        assert text.startswith(
            f"has {far} of {sum(sizes.values())} images whose aspect ratio is far from that of the square"
        )
        assert "tiles" in text
        assert "letterbox" in text


def test_an_input_of_the_same_ratio_needs_no_remark():
    assert aspect_remark({(60, 2048): 3}, (30, 1024)) is None
    text = aspect_remark({(64, 64): 1}, (30, 1024))
    assert text is not None
    assert "the 1024x30 input, such as 64x64: one side shrinks 34.1 times more" in text
