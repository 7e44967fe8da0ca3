"""The overlay: a fixed colour scale, aligned with the image, boxes drawn where they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flawscope.imaging.heat import BOX, HeatScale
from flawscope.imaging.images import Preprocessing
from flawscope.runtime.overlay import draw_overlay
from flawscope.runtime.results import Box

SPEC = Preprocessing(resize=(32, 32))
GREY = np.full((64, 96, 3), 128, np.uint8)


def test_far_below_the_threshold_the_image_is_shown_in_grey_without_a_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    drawn = draw_overlay(image, np.full((32, 32), 0.49, np.float32), SPEC, reference=1.0)
    np.testing.assert_array_equal(drawn, np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2))


def test_the_threshold_is_an_edge_in_the_colours_of_the_report() -> None:
    scale = HeatScale(0.0, 1.0, 2.0, has_threshold=True)
    for value in (0.999, 1.001, 2.0):
        drawn = draw_overlay(GREY, np.full((32, 32), value, np.float32), SPEC, 1.0)[30, 30]
        red, green, blue, opacity = scale.colours(np.array([value]))[0]
        mixed = 128 * (1 - opacity) + np.array([red, green, blue]) * opacity
        assert np.abs(drawn - mixed).max() <= 1.0, value
    below, above = (
        draw_overlay(GREY, np.full((32, 32), value, np.float32), SPEC, 1.0)[30, 30].astype(int)
        for value in (0.999, 1.001)
    )
    assert below[1] - above[1] > 20  # from yellow to orange


def test_the_scale_is_the_same_for_every_image() -> None:
    weak, strong = np.full((32, 32), 0.2, np.float32), np.full((32, 32), 1.9, np.float32)
    assert np.array_equal(draw_overlay(GREY, weak, SPEC, 1.0), GREY)  # not stretched over its own range
    red = draw_overlay(GREY, strong, SPEC, 1.0)[30, 30].astype(int)
    assert red[0] > red[1] + 40
    assert red[0] > red[2] + 40


@pytest.mark.parametrize("value", [2.0, 3.0, 1e30])
def test_beyond_twice_the_reference_nothing_changes_any_more(value: float) -> None:
    top = draw_overlay(GREY, np.full((32, 32), 2.0, np.float32), SPEC, 1.0)
    np.testing.assert_array_equal(draw_overlay(GREY, np.full((32, 32), value, np.float32), SPEC, 1.0), top)


def test_heat_appears_where_the_map_is_hot_also_behind_a_crop() -> None:
    spec = Preprocessing(resize=(32, 32), crop=(16, 16))
    anomaly_map = np.zeros((16, 16), np.float32)
    anomaly_map[:8, :8] = 2.0  # rows and columns 8 to 16 of the resized image: the quarter before the middle
    drawn = draw_overlay(GREY, anomaly_map, spec, 1.0)
    changed = (drawn != GREY).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert abs(int(rows[0]) - 16) <= 1
    assert abs(int(rows[-1]) - 31) <= 1
    assert abs(int(columns[0]) - 24) <= 2
    assert abs(int(columns[-1]) - 47) <= 2


def test_a_box_is_drawn_on_its_border_and_not_inside() -> None:
    box = Box(x=20, y=10, width=30, height=20, area_px=1, peak=1.0)
    drawn = draw_overlay(GREY, np.zeros((32, 32), np.float32), SPEC, 1.0, [box])
    for y, x in ((10, 30), (29, 30), (15, 20), (15, 49)):
        assert drawn[y, x].tolist() == [*BOX]
    np.testing.assert_array_equal(drawn[14:26, 24:46], GREY[14:26, 24:46])


def test_a_reference_of_zero_is_no_division_by_zero() -> None:
    drawn = draw_overlay(GREY, np.zeros((32, 32), np.float32), SPEC, 0.0)
    np.testing.assert_array_equal(drawn, GREY)
    assert drawn.dtype == np.uint8


def test_the_given_image_is_not_written_to() -> None:
    image = GREY.copy()
    draw_overlay(image, np.full((32, 32), 5.0, np.float32), SPEC, 1.0, [Box(0, 0, 9, 9, 1, 1.0)])
    np.testing.assert_array_equal(image, GREY)
