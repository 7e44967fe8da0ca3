"""Pasted defects: exact masks, places, and the same bytes from the same seed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.datasets.defects.seeded_choice import generator
from flawscope.datasets.drawing.membrane import membrane
from flawscope.datasets.drawing.pasting import (
    BLENDS,
    PASTE_PLACES,
    PasteOptions,
    apply_placement,
    cut_defects,
    paste_defect,
    try_paste,
)
from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import bounds_of

sides = st.integers(24, 90)
boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.6), st.floats(0.05, 0.6))
options = st.builds(
    PasteOptions,
    blend=st.sampled_from(BLENDS),
    places=st.sampled_from(PASTE_PLACES),
    rotate=st.sampled_from([0.0, 15.0, 180.0]),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (3.0, 8.0), (0.05, 0.1)]),
    level=st.integers(1, 20),
    feather_px=st.integers(1, 8),
    mirror=st.booleans(),
)


def grainy(seed, size, channels=3):
    chance = np.random.default_rng(seed)
    image = chance.integers(90, 130, (*size, channels)).astype(np.uint8)
    return image if channels == 3 else np.repeat(image, 3, axis=2)


def defect_at(box, size):
    """Return a mask with one rectangle, given as shares of the image; far ends touch the border."""
    height, width = max(round(box[3] * size[0]), 2), max(round(box[2] * size[1]), 2)
    top, left = round(box[1] * (size[0] - height)), round(box[0] * (size[1] - width))
    mask = np.zeros(size, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def defective(seed, size, mask, channels=3):
    image = grainy(seed, size, channels)
    image[mask] -= 70
    return image


@given(
    seed=st.integers(0, 2**32 - 1),
    own=st.tuples(sides, sides),
    other=st.tuples(sides, sides),
    box=boxes,
    how=options,
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_outside_of_the_mask_no_byte_differs_and_the_same_seed_gives_the_same(seed, own, other, box, how, channels):
    mask = defect_at(box, own)
    (cutout,) = cut_defects(defective(seed, own, mask, channels), mask, how.feather_px)
    image = grainy(seed + 1, other, channels)
    before = image.copy()
    pasted = try_paste(image, cutout, generator(seed), how)
    assert np.array_equal(image, before)
    if pasted is None:
        return
    drawn, found, placement = pasted
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    assert np.array_equal(drawn[~found], image[~found])
    assert found.any()
    assert (np.abs(drawn.astype(int) - image).max(axis=2)[found] >= how.level).any()
    again = paste_defect(image, cutout, generator(seed), how)
    assert again is not None
    assert np.array_equal(again[0], drawn)
    assert np.array_equal(again[1], found)
    redrawn = apply_placement(image, cutout, placement, how)
    assert np.array_equal(redrawn[0], drawn)
    assert np.array_equal(redrawn[1], found)
    if channels == 1:
        assert (drawn[..., 0] == drawn[..., 2]).all(), "a grey image stays grey"


@given(seed=st.integers(0, 2**32 - 1), box=boxes, other=st.tuples(sides, sides), how=options)
@settings(max_examples=50, deadline=None)
def test_a_defect_at_a_border_is_pasted_at_that_border(seed, box, other, how):
    size = (64, 48)
    mask = defect_at((0.0, *box[1:]), size)  # at the left
    (cutout,) = cut_defects(defective(seed, size, mask), mask)
    pasted = try_paste(grainy(seed, other), cutout, generator(seed), how)
    if pasted is not None:
        assert pasted.placement.box.left == 0
        assert pasted.placement.angle == 0
        assert not pasted.placement.mirror[0]


def test_a_flat_defect_comes_back_as_it_was():
    mask = defect_at((0.5, 0.5, 0.3, 0.2), (64, 64))
    image = np.full((64, 64, 3), 120, np.uint8)
    image[mask] = (20, 60, 100)
    (cutout,) = cut_defects(image, mask)
    for blend in BLENDS:
        how = PasteOptions(blend=blend, rotate=0, scale=(1, 1), strength=(1, 1), mirror=False)
        pasted = paste_defect(np.full((64, 64, 3), 120, np.uint8), cutout, generator(3), how)
        assert pasted is not None
        assert np.array_equal(pasted[1].sum(), mask.sum())
        assert (pasted[0][pasted[1]] == (20, 60, 100)).all()


def test_a_hole_is_darker_in_a_brighter_image():
    mask = defect_at((0.5, 0.5, 0.2, 0.2), (64, 64))
    image = np.full((64, 64, 3), 100, np.uint8)
    image[mask] = 20
    (cutout,) = cut_defects(image, mask)
    how = PasteOptions(rotate=0, scale=(1, 1), strength=(1, 1))
    for level, inside in ((50, 10), (100, 20), (200, 40)):
        pasted = paste_defect(np.full((64, 64, 3), level, np.uint8), cutout, generator(1), how)
        assert pasted is not None
        assert (np.abs(pasted[0][pasted[1]].astype(int) - inside) <= 1).all()


def test_distant_parts_are_defects_of_their_own_and_each_knows_its_place():
    mask = np.zeros((80, 80), np.bool_)
    mask[:10, 5:15] = mask[50:60, 40:70] = True
    first, second = cut_defects(defective(0, (80, 80), mask), mask)
    assert first.mask.sum() == 100
    assert second.mask.sum() == 300
    assert first.place.sides == (False, True, False, False)
    assert second.place.sides == (False, False, False, False)
    assert not np.abs(first.change[first.weight == 0]).any()


def test_a_small_defect_is_the_same_whatever_lies_around_it():
    image = grainy(0, (200, 300))
    mask = np.zeros((200, 300), np.bool_)
    mask[90:100, 120:140] = True
    image[mask] -= 70
    small = cut_defects(image[60:140, 80:200], mask[60:140, 80:200])[0]
    large = cut_defects(image, mask)[0]
    for name in ("change", "mask", "weight"):
        assert np.array_equal(getattr(small, name), getattr(large, name))
    assert (small.tone, small.size, large.size) == (large.tone, (80, 120), (200, 300))


def test_only_the_part_is_drawn_on():
    mask = defect_at((0.5, 0.5, 0.15, 0.15), (64, 64))
    (cutout,) = cut_defects(defective(0, (64, 64), mask), mask)
    within = np.zeros((64, 64), np.bool_)
    within[:, 40:] = True
    how = PasteOptions(places="anywhere")
    for seed in range(20):
        pasted = try_paste(grainy(1, (64, 64)), cutout, generator(seed), how, within=within)
        assert pasted is not None
        box = pasted.placement.box
        assert within[box.window].mean() > 0.5
    assert try_paste(grainy(1, (64, 64)), cutout, generator(0), how, within=np.zeros((64, 64), np.bool_)) is None


def test_what_changes_nothing_is_no_defect():
    mask = defect_at((0.5, 0.5, 0.2, 0.2), (32, 32))
    image = np.full((32, 32, 3), 90, np.uint8)
    (cutout,) = cut_defects(image, mask)
    assert paste_defect(image, cutout, generator(0)) is None


def test_masks_that_show_nothing_or_all_are_refused():
    image = grainy(0, (32, 32))
    with pytest.raises(ArgumentError, match="mask: expected a defect, got an all-black mask"):
        cut_defects(image, np.zeros((32, 32), np.bool_))
    with pytest.raises(
        ArgumentError, match="mask: expected some surroundings of the defect, got a mask that covers all"
    ):
        cut_defects(image, np.ones((32, 32), np.bool_))


def test_a_placement_of_another_defect_is_refused():
    mask = defect_at((0.5, 0.5, 0.2, 0.2), (64, 64))
    (cutout,) = cut_defects(defective(0, (64, 64), mask), mask)
    pasted = try_paste(grainy(1, (64, 64)), cutout, generator(0), PasteOptions())
    assert pasted is not None
    for box in (pasted.placement.box._replace(left=60), pasted.placement.box._replace(width=3)):
        with pytest.raises(ArgumentError, match="placement: expected one of this defect in this image"):
            apply_placement(
                grainy(1, (64, 64)), cutout, msgspec.structs.replace(pasted.placement, box=box), PasteOptions()
            )


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (1e6, 1e6)},
        {"scale": (1.0, 1e300)},
        {"scale": (-1.0, 1.0)},
        {"scale": (float("nan"), 1.0)},
        {"scale": (1.0, float("nan"))},
        {"angle": float("inf")},
        {"strength": -1e300},
        {"strength": 1e30},
        {"strength": float("nan")},
    ],
)
def test_a_placement_with_numbers_that_no_run_draws_is_refused_before_anything_is_moved(change):
    mask = defect_at((0.5, 0.5, 0.2, 0.2), (64, 64))
    (cutout,) = cut_defects(defective(0, (64, 64), mask), mask)
    pasted = try_paste(grainy(1, (64, 64)), cutout, generator(0), PasteOptions())
    assert pasted is not None
    with pytest.raises(ArgumentError, match="placement: expected one of this defect in this image, got the scale"):
        apply_placement(
            grainy(1, (64, 64)), cutout, msgspec.structs.replace(pasted.placement, **change), PasteOptions()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (2.0, 1.0)}, "scale: expected two rising numbers from 0.05 to 20, got 2 and 1"),
        ({"scale": (float("nan"), 1.0)}, "scale: expected two rising numbers"),
        ({"strength": (0.0, 1.0)}, "strength: expected two rising numbers from 0.01 to 10, got 0 and 1"),
        ({"rotate": 181.0}, "rotate: expected 0 to 180 degrees, got 181"),
        ({"feather_px": 0}, "feather: expected 1 to 64 pixels, got 0"),
        ({"level": 0}, "level: expected 1 to 255 grey levels, got 0"),
        ({"blend": "glue"}, "blend: expected one of feather, poisson, got 'glue'"),
        ({"places": "far"}, "places: expected one of near, match, anywhere, got 'far'"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        PasteOptions(**change)


@given(
    seed=st.integers(0, 2**32 - 1), height=st.integers(8, 60), width=st.integers(8, 60), density=st.floats(0.05, 0.9)
)
@settings(deadline=None)
def test_a_membrane_stays_between_its_surroundings_and_keeps_them(seed, height, width, density):
    chance = np.random.default_rng(seed)
    values = chance.uniform(0, 255, (height, width, 3)).astype(np.float32)
    hole = chance.random((height, width)) < density
    if hole.all():
        return
    filled = membrane(values, hole)
    assert np.array_equal(filled[~hole], values[~hole])
    assert filled.min() >= values[~hole].min() - 0.1
    assert filled.max() <= values[~hole].max() + 0.1


def test_a_membrane_over_a_slope_is_the_slope():
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    slope = np.dstack([rows, columns, rows + 2 * columns]).astype(np.float32)
    hole = np.zeros((64, 64), np.bool_)
    hole[20:45, 10:50] = True
    assert np.abs(membrane(slope, hole) - slope).max() < 2.0
    assert bounds_of(hole).width == 40
