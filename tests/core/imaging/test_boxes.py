"""Rectangles around defects: margins, parts, and the least one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import Rect, bounds_of, boxes_of, mask_of

masks = st.tuples(st.integers(8, 60), st.integers(8, 60), st.integers(0, 2**32 - 1), st.floats(0.001, 0.2)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random((drawn[0], drawn[1])) < drawn[3]
)


@given(mask=masks, margin=st.floats(0, 0.5), per_component=st.booleans())
def test_boxes_hold_every_pixel_of_the_defect_and_stay_in_the_image(mask, margin, per_component):
    boxes = boxes_of(mask, margin, per_component=per_component)
    assert bool(boxes) == bool(mask.any())
    assert not (mask & ~mask_of(boxes, mask.shape)).any()
    for box in boxes:
        assert box.width > 0
        assert box.height > 0
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= mask.shape[1]
        assert box.top + box.height <= mask.shape[0]
        assert (mask & box.to_mask(mask.shape)).any()
    if mask.any() and not per_component:
        assert len(boxes) == 1
    covered = sum(box.to_mask(mask.shape).astype(int) for box in boxes)
    assert np.max(covered) <= 1, "boxes that overlap are one"
    assert boxes == sorted(boxes, key=lambda box: (box.top, box.left))


def test_the_margin_is_a_tenth_of_the_side_or_8_pixels_in_512_whichever_is_more():
    mask = np.zeros((512, 1024), np.bool_)
    mask[200:400, 300:310] = True  # 200 high, 10 wide
    assert boxes_of(mask) == [Rect(300 - 16, 200 - 20, 10 + 32, 200 + 40)]


def test_the_margin_ends_at_the_border():
    mask = np.zeros((64, 64), np.bool_)
    mask[0, 63] = True
    assert boxes_of(mask) == [Rect(62, 0, 2, 2)]


def test_parts_share_one_box_unless_they_are_to_be_apart():
    mask = np.zeros((64, 64), np.bool_)
    mask[10:12, 10:12] = mask[50:52, 40:42] = True
    mask[12, 12] = True  # joined at a corner
    assert boxes_of(mask) == [Rect(6, 5, 40, 52)]  # 4 and 5 pixels: a tenth of 32 and of 42, rounded up
    assert boxes_of(mask, per_component=True) == [Rect(9, 9, 5, 5), Rect(39, 49, 4, 4)]
    mask[14, 10] = True  # a speck whose box meets that of the part beside it
    assert boxes_of(mask, per_component=True) == [Rect(9, 9, 5, 7), Rect(39, 49, 4, 4)]


def test_a_negative_margin_is_refused():
    with pytest.raises(ArgumentError, match=r"margin: expected a share of the box's side from 0 to 1, got -0.1"):
        boxes_of(np.ones((8, 8), np.bool_), -0.1)


@given(mask=masks.filter(np.any))
def test_the_bounds_of_a_mask_are_the_least_rectangle_that_holds_it(mask):
    box = bounds_of(mask)
    assert box.to_mask(mask.shape)[mask].all()
    inside = mask[box.window]
    assert inside.shape == (box.height, box.width)
    assert all(inside[edge].any() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]))
