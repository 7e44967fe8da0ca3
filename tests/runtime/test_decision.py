"""Decisions and boxes: a fault is never an accept, and a box never cuts off what it marks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.bundle import Threshold, Thresholds
from flawscope.imaging.images import Preprocessing, prepare
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.results import Box

LIMITS = Thresholds(Threshold(2.0, "manual"), Threshold(3.0, "manual"))
FLAT = np.zeros((4, 4), np.float32)


def map_with(*values: float) -> npt.NDArray[np.float32]:
    anomaly_map = FLAT.copy()
    anomaly_map.flat[: len(values)] = values
    return anomaly_map


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.0, "accept"), (-5.0, "accept"), (2.0, "accept"), (np.nextafter(2.0, 3.0), "reject"), (1e30, "reject")],
)
def test_strictly_above_the_threshold_is_a_reject(score: float, decision: str) -> None:
    assert decide(score, FLAT, LIMITS) == (decision, None)


def test_only_the_image_threshold_decides() -> None:
    assert decide(1.0, map_with(1e6), LIMITS) == ("accept", None)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("limits", [LIMITS, None])
def test_a_score_that_is_no_number_is_a_fault(score: float, limits: Thresholds | None) -> None:
    assert decide(score, FLAT, limits) == ("fault", "inference gave NaN or infinity")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_map_value_that_is_no_number_is_a_fault(value: float) -> None:
    assert decide(0.0, map_with(0, value), LIMITS) == ("fault", "inference gave NaN or infinity")


def test_without_thresholds_there_is_no_accept() -> None:
    decision, reason = decide(-1e30, FLAT, None)
    assert decision == "fault"
    assert reason == "the bundle has no thresholds: run flawscope calibrate"


SQUARE = Preprocessing(resize=(16, 16))


def boxes_of(
    anomaly_map: npt.NDArray[np.float32],
    spec: Preprocessing = SQUARE,
    source: tuple[int, int] = (16, 16),
    min_area_px: int = 1,
) -> tuple[Box, ...]:
    return find_boxes(anomaly_map, 1.0, min_area_px, spec, source)


def spot(top: int, left: int, height: int, width: int, peak: float = 5.0, size: int = 16) -> npt.NDArray[np.float32]:
    anomaly_map = np.zeros((size, size), np.float32)
    anomaly_map[top : top + height, left : left + width] = peak
    return anomaly_map


def test_nothing_above_gives_no_box() -> None:
    assert boxes_of(np.full((16, 16), 1.0, np.float32)) == ()  # strictly above


def test_a_region_becomes_its_box() -> None:
    assert boxes_of(spot(3, 5, 2, 4)) == (Box(x=5, y=3, width=4, height=2, area_px=8, peak=5.0),)


def test_corners_that_touch_are_one_region() -> None:
    anomaly_map = spot(2, 2, 2, 2) + spot(4, 4, 1, 1)
    (box,) = boxes_of(anomaly_map)
    assert (box.x, box.y, box.width, box.height, box.area_px) == (2, 2, 3, 3, 5)


def test_the_highest_peak_comes_first_and_each_box_has_its_own() -> None:
    anomaly_map = spot(0, 0, 2, 2, 3.0) + spot(8, 8, 3, 3, 9.0) + spot(12, 0, 1, 1, 4.0)
    assert [box.peak for box in boxes_of(anomaly_map)] == [9.0, 4.0, 3.0]


def test_a_ring_does_not_borrow_the_peak_inside_its_box() -> None:
    anomaly_map = spot(2, 2, 7, 7, 2.0)
    anomaly_map[3:8, 3:8] = 0
    anomaly_map[5, 5] = 9.0
    peaks = {(box.width, box.peak) for box in boxes_of(anomaly_map)}
    assert peaks == {(7, 2.0), (1, 9.0)}


@pytest.mark.parametrize(("min_area_px", "count"), [(1, 2), (4, 2), (5, 1), (9, 1), (10, 0)])
def test_small_regions_are_left_out(min_area_px: int, count: int) -> None:
    anomaly_map = spot(0, 0, 2, 2) + spot(8, 8, 3, 3)
    assert len(boxes_of(anomaly_map, min_area_px=min_area_px)) == count


def test_boxes_are_in_pixels_of_a_source_that_is_not_square() -> None:
    (box,) = boxes_of(spot(4, 8, 2, 4), source=(32, 160))
    assert (box.x, box.y, box.width, box.height) == (80, 8, 40, 4)
    assert box.area_px == 8  # of the map


def test_boxes_find_their_place_behind_a_crop() -> None:
    spec = Preprocessing(resize=(32, 64), crop=(16, 16))  # 8 rows and 24 columns are cut off before the map begins
    (box,) = boxes_of(spot(0, 0, 4, 2), spec, source=(64, 64))
    assert (box.x, box.y, box.width, box.height) == (24, 16, 2, 8)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_box_covers_every_source_pixel_of_its_region_and_stays_inside(data: st.DataObject) -> None:
    resize = (data.draw(st.integers(16, 40)), data.draw(st.integers(16, 40)))
    crop = (data.draw(st.integers(16, resize[0])), data.draw(st.integers(16, resize[1])))
    spec = Preprocessing(resize=resize, crop=crop)
    source = (data.draw(st.integers(8, 300)), data.draw(st.integers(8, 300)))
    top, left = data.draw(st.integers(0, crop[0] - 1)), data.draw(st.integers(0, crop[1] - 1))
    bottom, right = data.draw(st.integers(top + 1, crop[0])), data.draw(st.integers(left + 1, crop[1]))
    anomaly_map = np.zeros(crop, np.float32)
    anomaly_map[top:bottom, left:right] = 2.0
    (box,) = find_boxes(anomaly_map, 1.0, 1, spec, source)
    scale_y, scale_x = source[0] / resize[0], source[1] / resize[1]
    row, column = spec.offset
    assert box.y <= (top + row) * scale_y
    assert box.x <= (left + column) * scale_x
    assert box.y + box.height >= (bottom + row) * scale_y - 1e-6
    assert box.x + box.width >= (right + column) * scale_x - 1e-6
    assert 0 <= box.y < box.y + box.height <= source[0]
    assert 0 <= box.x < box.x + box.width <= source[1]


def test_the_box_lies_where_the_spot_was_in_the_source() -> None:
    source = np.zeros((120, 200, 3), np.uint8)
    source[60:72, 130:150] = 255
    spec = Preprocessing(resize=(60, 100), crop=(40, 80))
    anomaly_map = prepare(source, spec).mean(axis=2).astype(np.float32)
    (box,) = find_boxes(anomaly_map, 100.0, 1, spec, (120, 200))
    assert (box.x, box.y, box.width, box.height) == (130, 60, 20, 12)
