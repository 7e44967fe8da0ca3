"""Views of fitting images: exact where pixels only move, turned within the frame elsewhere, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.arrays import UInt8Array
from flawscope.imaging.fitting_views import Views, fitting_views, rotate


def random_images(height: int, width: int, seed: int = 0, count: int = 2) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "count"), [("none", 1), ("flips", 4), ("quarters", 4), ("rotations", 8), ("both", 16)]
)
@pytest.mark.parametrize("shape", [(9, 9), (8, 8), (12, 7)])
def test_a_setting_has_so_many_different_views_of_the_images_shape(
    kind: Views, count: int, shape: tuple[int, int]
) -> None:
    images = random_images(*shape)
    views = fitting_views(kind)
    shown = [view.make(images) for view in views]
    assert len({view.name for view in views}) == len({one.tobytes() for one in shown}) == count
    assert {one.shape for one in shown} == {images.shape}
    assert {one.dtype for one in shown} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(shown[0], images)
    for one, again in zip(shown, fitting_views(kind), strict=True):
        np.testing.assert_array_equal(one, again.make(images))


def test_pixels_only_move_in_flips_and_quarter_turns_of_squares() -> None:
    images = random_images(5, 5)
    left, upside, half = (view.make(images) for view in fitting_views("flips")[1:])
    np.testing.assert_array_equal(left, np.flip(images, 2))
    np.testing.assert_array_equal(upside, np.flip(images, 1))
    np.testing.assert_array_equal(half, rotate(images, 180))
    corner = np.zeros((1, 5, 5, 3), np.uint8)
    corner[0, 0, 4] = 200
    places = [np.argwhere(view.make(corner)[0, :, :, 0]).tolist() for view in fitting_views("quarters")]
    assert places == [[[0, 4]], [[0, 0]], [[4, 0]], [[4, 4]]]  # counter-clockwise, as the others


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000))
def test_no_view_shows_what_is_not_in_the_image(height: int, width: int, seed: int) -> None:
    images = random_images(height, width, seed, 1)
    low, high = images.min(axis=(1, 2)).astype(int), images.max(axis=(1, 2)).astype(int)
    for view in fitting_views("both"):
        shown = view.make(images)
        assert (shown >= low - 1).all()
        assert (shown <= high + 1).all()  # rounding of the interpolation


def test_a_turn_at_any_angle_is_the_one_that_four_of_ninety_degrees_make() -> None:
    """At 90 degrees a square moves without interpolation, an oblong by it; within a disc both must agree."""
    square = np.zeros((1, 41, 41, 3), np.uint8)
    square[0, 10:14, 24:30] = 180
    oblong = np.zeros((1, 41, 61, 3), np.uint8)
    oblong[:, :, 10:51] = square
    for degrees in (90, 270):
        np.testing.assert_array_equal(rotate(oblong, degrees)[:, :, 10:51], rotate(square, degrees))
    twice = rotate(rotate(square, 45), 45)
    assert np.abs(twice.astype(int) - rotate(square, 90)).mean() < 2


def test_the_border_is_mirrored_and_never_black() -> None:
    images = np.full((1, 32, 48, 3), 90, np.uint8)
    for degrees in range(0, 360, 45):
        np.testing.assert_array_equal(rotate(images, degrees), images)
