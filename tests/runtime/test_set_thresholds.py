"""Thresholds that a program sets for itself: within the bundle's limits, said in results, and written nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from file_contents import files_of
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.bundle import Limits, ProductThresholds, ThresholdLimits, Thresholds, open_bundle
from flawscope.bundle.file_names import overlay_beside
from flawscope.bundle.threshold_overlay import add_revision
from flawscope.errors import ArgumentError
from flawscope.runtime import Inspector

LOW, OWN, HIGH = 100.0, 150.0, 175.0
IMAGE = np.full((16, 16, 3), 160, np.uint8)


def thresholds(**changes: Any) -> Thresholds:
    limits = Limits(LOW, HIGH)
    return msgspec.structs.replace(tiny_thresholds(OWN), limits=ThresholdLimits(limits, limits), **changes)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=thresholds(), min_area_px=1)
    return tmp_path / "t.flaw"


def test_they_decide_from_the_next_image_on_and_results_say_so(bundle: Path) -> None:
    before = files_of(bundle.parent)
    with Inspector.load(bundle, "cpu") as inspector:
        first = inspector(IMAGE)
        inspector.set_thresholds(image=170.0)
        second = inspector(IMAGE)
        assert inspector.thresholds is not None
        assert (inspector.thresholds.image.value, inspector.thresholds.image.upper_bound) == (170.0, None)
    assert (first.decision, first.threshold, first.threshold_revision) == ("reject", 150.0, 0)
    assert (second.decision, second.threshold, second.threshold_revision) == ("accept", 170.0, None)
    assert first.threshold_source == "the bundle's own"
    assert second.threshold_source == "set by the program, within the bundle's limits"
    assert second.to_dict()["threshold_source"] == second.threshold_source
    assert files_of(bundle.parent) == before
    with Inspector.load(bundle, "cpu") as again:
        assert again(IMAGE).threshold == 150.0


def test_in_a_stream_they_count_from_then_on(bundle: Path) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        results = []
        for result in inspector.stream([IMAGE] * 3):
            results.append(result.threshold)
            inspector.set_thresholds(171)
    assert results == [150.0, 171.0, 171.0]


def test_what_is_not_given_stays_as_it_is_in_force(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        add_revision(
            bundle,
            opened.manifest,
            overlay_beside(bundle),
            precision="fp32",
            image=120.0,
            pixel=130.0,
            min_area_px=9,
            by="operator",
            why="drift",
        )
    with Inspector.load(bundle, "cpu") as inspector:
        assert inspector(IMAGE).threshold_revision == 1
        inspector.set_thresholds(pixel=np.float32(140))  # type: ignore[arg-type]
        assert inspector.thresholds is not None
        assert (inspector.thresholds.image.value, inspector.thresholds.pixel.value) == (120.0, 140.0)
        assert inspector.in_force.min_area_px == 9
        inspector.set_thresholds(min_area_px=1000)
        assert inspector.thresholds.pixel.value == 140.0
        assert inspector(IMAGE).boxes == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": HIGH + 1}, "expected the image threshold within the bundle's limits, 100 to 175, got 176"),
        ({"pixel": LOW - 1}, "expected the pixel threshold within the bundle's limits"),
        ({"image": float("nan")}, "within the bundle's limits"),
        ({"image": float("inf")}, "within the bundle's limits"),
        ({"image": "170"}, "image: expected a number, got '170'"),
        ({"pixel": True}, "pixel: expected a number, got True"),
        ({"min_area_px": 0}, "min_area_px: expected a whole number from 1 on, got 0"),
        ({}, "expected image, pixel or min_area_px, got none"),
    ],
)
def test_what_is_outside_of_the_limits_or_no_number_changes_nothing(
    bundle: Path, arguments: dict[str, Any], words: str
) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        with pytest.raises(ArgumentError, match=words):
            inspector.set_thresholds(**arguments)
        assert inspector(IMAGE).threshold == 150.0


@pytest.mark.parametrize(
    ("own", "words"),
    [(tiny_thresholds(OWN), "got one without. Set them with flawscope calibrate"), (None, "Run flawscope calibrate")],
)
def test_a_bundle_without_limits_or_thresholds_takes_none(tmp_path: Path, own: Thresholds | None, words: str) -> None:
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=own)
    with (
        Inspector.load(tmp_path / "t.flaw", "cpu") as inspector,
        pytest.raises(ArgumentError, match=words),
    ):
        inspector.set_thresholds(image=OWN)


def test_they_are_the_common_ones_and_never_those_of_a_product(tmp_path: Path) -> None:
    own = tiny_thresholds(120.0)
    nut = ProductThresholds("nut", 20, own.image, own.pixel)
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=thresholds(products=(nut,)))
    with Inspector.load(tmp_path / "t.flaw", "cpu", product="nut") as inspector:
        with pytest.raises(ArgumentError, match="set_thresholds sets the common ones"):
            inspector.set_thresholds(image=170.0)
        assert inspector(IMAGE).threshold == 120.0
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        assert inspector(IMAGE, product="nut").threshold == 120.0
        inspector.set_thresholds(image=170.0)
        with pytest.raises(ArgumentError, match="Leave the product out"):
            inspector(IMAGE, product="nut")
