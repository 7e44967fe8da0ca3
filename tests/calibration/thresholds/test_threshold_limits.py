"""Limits of threshold overlays: set by calibrate from normal images or by hand, and always around the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope import cli
from flawscope.bundle import Limits, Threshold, ThresholdLimits, Thresholds, open_bundle
from flawscope.bundle.file_names import overlay_beside
from flawscope.calibration import calibrate_bundle, set_thresholds
from flawscope.calibration.thresholds.threshold_limits import limits_by_hand, limits_from_scores
from flawscope.errors import ArgumentError

NUMBER = st.floats(-1e6, 1e6)


def thresholds(image, pixel, limits=None):
    return Thresholds(Threshold(image, "manual"), Threshold(pixel, "manual"), limits)


def manifest_of(path):
    with open_bundle(path) as bundle:
        return bundle.manifest


def test_the_default_is_half_of_the_distance_to_the_median():
    assert limits_from_scores(20.0, np.array([8.0, 10.0, 20.0])) == Limits(15.0, 25.0)
    # All images alike: the threshold may not be moved.
    assert limits_from_scores(10.0, np.array([10.0, 10.0])) == Limits(10.0, 10.0)


@given(value=NUMBER, normal=st.lists(NUMBER, min_size=1, max_size=9))
def test_the_threshold_always_lies_within_its_limits(value, normal):
    limits = limits_from_scores(value, np.array(normal))
    assert limits.low <= value <= limits.high
    # And never as far down as the median, unless it is the threshold itself.
    assert not min(limits.low, limits.high) < np.median(normal) < value


@given(image=NUMBER, pixel=NUMBER, low=NUMBER, high=NUMBER, only_image=st.booleans())
def test_limits_that_are_given_hold_or_are_refused(image, pixel, low, high, only_image):
    chosen = thresholds(image, pixel)
    ranges = ((low, high), None) if only_image else ((low, high), (low, high))
    held = [image] if only_image else [image, pixel]
    if all(low <= value <= high for value in held):
        expected = Limits(pixel, pixel) if only_image else Limits(low, high)
        assert limits_by_hand(chosen, *ranges) == ThresholdLimits(Limits(low, high), expected)
    else:
        with pytest.raises(ArgumentError, match="limits: expected a lowest and a highest value around the threshold"):
            limits_by_hand(chosen, *ranges)


@pytest.mark.parametrize("wrong", [(float("nan"), 2.0), (0.0, float("inf")), (2.0, 0.0)])
def test_limits_are_finite_and_in_order(wrong):
    with pytest.raises(ArgumentError, match="pixel limits: expected a lowest and a highest value"):
        limits_by_hand(thresholds(1.0, 1.0), None, wrong)


def test_calibrate_states_limits_from_its_images(make_bundle, dataset):
    path = make_bundle()
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c")
    # 20 scores, 50 to 69: the median is 59.5, the threshold 69.
    assert result.new.limits.image == Limits(64.25, 73.75)
    assert manifest_of(path).thresholds == result.new


def test_limits_given_to_calibrate_take_the_place_of_the_default(make_bundle, dataset):
    path = make_bundle()
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, image_limits=(60.0, 70.0), command="c")
    assert result.new.limits == ThresholdLimits(Limits(60.0, 70.0), Limits(64.25, 73.75))
    with pytest.raises(ArgumentError, match=r"image limits: .* around the threshold 69, got 70 and 80"):
        calibrate_bundle(path, dataset, false_reject_rate=0.2, image_limits=(70.0, 80.0), command="c")
    assert manifest_of(path).thresholds == result.new


def test_thresholds_by_hand_keep_limits_that_they_lie_within(make_bundle, dataset):
    path = make_bundle()
    before = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c").new.limits
    assert set_thresholds(path, 65.0, None, None, command="c").new.limits == before
    moved = set_thresholds(path, 90.0, None, None, command="c")
    assert moved.new.limits is manifest_of(path).thresholds.limits is None
    assert any("limits of threshold overlays, which were removed" in note for note in moved.notes)
    again = set_thresholds(path, None, None, None, image_limits=(80.0, 95.0), command="c")
    assert again.new.limits == ThresholdLimits(Limits(80.0, 95.0), Limits(69.0, 69.0))


def test_limits_are_set_and_shown_on_the_command_line(make_bundle, capsys):
    path = make_bundle()
    line = ["calibrate", str(path), "--image-threshold", "5", "--pixel-threshold", "6"]
    assert cli.run([*line, "--image-limits", "4", "8", "--pixel-limits", "5", "7"]) == 0
    assert "a threshold overlay may set image 4 to 8, pixel 5 to 7" in capsys.readouterr().out
    # Limits alone are a request too.
    assert cli.run(["calibrate", str(path), "--image-limits", "5", "6"]) == 0
    assert manifest_of(path).thresholds.limits == ThresholdLimits(Limits(5.0, 6.0), Limits(5.0, 7.0))


def test_a_broken_overlay_does_not_keep_calibrate_from_setting_thresholds(make_bundle, dataset):
    path = make_bundle()
    overlay_beside(path).write_bytes(b"broken")
    calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c")
    assert not overlay_beside(path).exists()
    assert (path.parent / f"{path.name}.thresholds.old-1.json").read_bytes() == b"broken"
