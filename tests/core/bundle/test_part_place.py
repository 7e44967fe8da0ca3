"""Where the part lies that a region follows: masks that are moved, edges, and what is stored."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shifted_parts import SIDE, part_image

from flawscope.bundle import PartFollower, PartShift, edge_left, move_mask
from flawscope.bundle.part_place import PartPlace, encode_thumbnail, part_box, reach_of
from flawscope.errors import ArgumentError, BundleError, ImageError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.part_shift import part_thumbnail, thumbnail_size

SIZE = (SIDE, SIDE)
SMALL = thumbnail_size(*SIZE)


def place(**changes: object) -> PartPlace:
    """Return where the part of `part_image` lies."""
    made = PartPlace(
        png=encode_thumbnail(part_thumbnail(part_image(), SMALL)),
        box=(0, 0, *SMALL),
        follow_px=12.0,
        least_clear=0.3,
        images=1,
        measured=0,
        median_px=0.0,
        largest_px=0.0,
    )
    return msgspec.structs.replace(made, **changes)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    down=st.integers(-70, 70),
    right=st.integers(-70, 70),
)
def test_a_moved_mask_is_that_of_the_moved_image(seed, height, width, down, right):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    # The image goes on beyond its edges as it ends there.
    far = np.pad(mask, 70, mode="edge")
    expected = far[70 - down : 70 - down + height, 70 - right : 70 - right + width]
    np.testing.assert_array_equal(move_mask(mask, down, right), expected)


@settings(max_examples=60)
@given(
    rows=st.tuples(st.integers(0, 39), st.integers(1, 40)),
    columns=st.tuples(st.integers(0, 49), st.integers(1, 50)),
    down=st.integers(-10, 10),
    right=st.integers(-10, 10),
)
def test_a_region_that_leaves_the_image_is_noticed_at_every_edge(rows, columns, down, right):
    (top, tall), (left, wide) = rows, columns
    mask = np.zeros((40, 50), np.bool_)
    mask[top : top + tall, left : left + wide] = True
    bottom, end = min(40, top + tall), min(50, left + wide)
    expected = [
        name
        for name, touches, leaves in (
            ("top", top == 0, top + down < 0),
            ("bottom", bottom == 40, bottom + down > 40),
            ("left", left == 0, left + right < 0),
            ("right", end == 50, end + right > 50),
        )
        if leaves and not touches
    ]
    found = edge_left(mask, down, right, None)
    assert found in expected if expected else found is None


def test_the_crop_is_an_edge_too():
    mask = np.zeros((80, 80), np.bool_)
    mask[30:50, 30:50] = True
    spec = Preprocessing((80, 80), (40, 40))  # rows and columns 20 to 59 are inspected
    assert edge_left(mask, 10, 0, spec) is None
    assert edge_left(mask, 11, 0, spec) == "bottom"
    assert edge_left(mask, 0, -11, spec) == "left"
    mask[:, 10:30] = True  # cut off by the crop already
    assert edge_left(mask, 0, -5, spec) is None


@pytest.mark.parametrize("pixels", [0.0, -3.0, float("nan"), float("inf"), 33.0])
def test_a_shift_that_no_region_follows_is_refused(pixels):
    with pytest.raises(ArgumentError, match="--follow: expected 0 to 32 pixels, a quarter of the longest side"):
        reach_of(pixels, SIZE)


def test_a_shift_beyond_what_is_followed_is_still_looked_at():
    assert reach_of(12.0, SIZE) > 24 + 8


@pytest.mark.parametrize(("rows", "columns"), [((60, 70), (0, 128)), ((0, 10), (100, 128)), ((0, 128), (0, 128))])
def test_the_box_holds_what_counts_and_a_margin(rows, columns):
    counted = np.zeros(SIZE, np.bool_)
    counted[slice(*rows), slice(*columns)] = True
    top, left, bottom, right = part_box(counted)
    assert 0 <= top <= max(0, 2 * rows[0] - 30)
    assert 0 <= left <= max(0, 2 * columns[0] - 30)
    assert min(256, 2 * rows[1] + 30) <= bottom <= 256
    assert min(256, 2 * columns[1] + 30) <= right <= 256


@settings(max_examples=20)
@given(
    right=st.integers(-12, 12), down=st.integers(-12, 12), scale=st.sampled_from([1, 2, 3]), gain=st.floats(0.6, 1.5)
)
def test_the_shift_is_in_pixels_of_the_image_whatever_its_size(right, down, scale, gain):
    image = part_image(0, right, down, gain=gain).repeat(scale, axis=0).repeat(scale, axis=1)
    shift = PartFollower(place(), SIZE, "b").shift_of(image)
    assert shift.size == (scale * SIDE, scale * SIDE)
    assert shift.right == pytest.approx(scale * right, abs=0.6 * scale)
    assert shift.down == pytest.approx(scale * down, abs=0.6 * scale)
    assert shift.on(np.zeros(SIZE, np.bool_)) == (down, right)


@pytest.mark.parametrize(("right", "down"), [(14, 0), (-14, 2), (0, 16), (3, -18)])
def test_a_part_further_off_is_an_error_that_says_how_far(right, down):
    with pytest.raises(
        ImageError, match=r"lies \d+ pixels (right|left) and \d+ (down|up) of .* more than the 12 pixels"
    ):
        PartFollower(place(), SIZE, "b").shift_of(part_image(0, right, down))


@pytest.mark.parametrize("image", [np.full((SIDE, SIDE, 3), 70, np.uint8), part_image(9), part_image(0)[::-1].copy()])
def test_an_image_without_the_part_is_an_error(image):
    with pytest.raises(ImageError, match="the place of the part cannot be told"):
        PartFollower(place(), SIZE, "b").shift_of(image)


def test_a_shift_in_words():
    assert PartShift(-12.4, 3.4, SIZE).line == "12 pixels left and 3 down"
    assert PartShift(0.2, -1.6, SIZE).line == "0 pixels right and 2 up"


@settings(max_examples=20)
@given(png=st.binary(min_size=8, max_size=100))
def test_bytes_that_are_no_thumbnail_are_refused(png):
    with pytest.raises(BundleError, match="b: expected a part that the region follows"):
        PartFollower(place(png=png), SIZE, "b")


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (SIDE, 2 * SIDE)),
        ({"box": (0, 0, 257, 256)}, SIZE),
        ({"box": (9, 0, 9, 256)}, SIZE),
        ({"follow_px": 40.0}, SIZE),
        ({"png": encode_thumbnail(np.zeros((8, 8), np.float32))}, SIZE),
    ],
)
def test_a_place_that_contradicts_itself_is_refused(changes, size):
    with pytest.raises(BundleError, match=r"b: expected a .*[Ss]et (it|the region) again"):
        PartFollower(place(**changes), size, "b")
