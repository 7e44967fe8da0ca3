"""Figures at the thresholds in force: pixels, and recall by size of the defect."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.bundle import Threshold, Thresholds
from flawscope.calibration.evaluation.measurements import Measured, Outcome
from flawscope.calibration.evaluation.threshold_figures import pixel_figures_at_threshold, recall_by_size
from flawscope.datasets import Sample

AT = Thresholds(Threshold(0.5, "manual"), Threshold(0.5, "manual"))


def measured(
    maps: np.ndarray, masks: np.ndarray, diameters: list[float], accepted: list[bool], inside=None
) -> Measured:
    n = len(maps)
    anomalous = masks.any(axis=(1, 2))
    samples = tuple(
        Sample(path=Path(f"{i}.png"), split="test", defect="spot" if bad else "good") for i, bad in enumerate(anomalous)
    )
    outcomes = tuple(Outcome("accept" if ok else "reject", None, (), 1.0) for ok in accepted)
    return Measured(
        samples,
        outcomes,
        scores=np.zeros(n),
        maps=maps.astype(np.float32),
        masks=masks,
        usable=np.ones(n, np.bool_),
        has_truth=np.ones(n, np.bool_),
        mask_lost=np.zeros(n, np.bool_),
        diameters=np.array(diameters),
        outside=np.zeros(n, np.bool_),
        inside=inside,
    )


@given(seed=st.integers(0, 2**32 - 1), region=st.sampled_from([None, (8, 8), (6, 8, 8)]))
def test_pixel_figures_are_those_of_all_pixels_counted_at_once(seed: int, region: tuple[int, ...] | None) -> None:
    random = np.random.default_rng(seed)
    maps, masks = random.random((6, 8, 8)), random.random((6, 8, 8)) > 0.7
    masks[3:] = False
    inside = None if region is None else random.random(region) > 0.3
    if inside is not None:
        masks &= inside
    if not masks.any():
        return
    called = (maps.astype(np.float32) > 0.5) & (True if inside is None else inside)
    values, intervals = pixel_figures_at_threshold(measured(maps, masks, [1.0] * 6, [True] * 6, inside), AT, 0, 100)
    assert values["pixel_recall"] == pytest.approx((called & masks).sum() / masks.sum())
    assert values["pixel_f1"] == pytest.approx(2 * (called & masks).sum() / (called.sum() + masks.sum()))
    for name, interval in intervals.items():
        assert 0 <= interval.low <= interval.high <= 1, name


def test_without_a_defect_pixel_or_thresholds_there_are_no_pixel_figures() -> None:
    empty = measured(np.ones((2, 4, 4)), np.zeros((2, 4, 4), np.bool_), [math.nan] * 2, [True] * 2)
    masked = measured(np.ones((2, 4, 4)), np.ones((2, 4, 4), np.bool_), [4.0] * 2, [True] * 2)
    for case, thresholds in ((empty, AT), (masked, None)):
        values, intervals = pixel_figures_at_threshold(case, thresholds, 0, 10)
        assert values == {"pixel_f1": None, "pixel_recall": None}
        assert intervals == {}


@given(diameters=st.lists(st.floats(0.5, 50) | st.just(math.nan), max_size=40), seed=st.integers(0, 99))
def test_groups_hold_every_masked_image_once_in_order_of_size(diameters: list[float], seed: int) -> None:
    n = len(diameters)
    accepted = (np.random.default_rng(seed).random(n) > 0.5).tolist()
    masks = np.ones((n, 2, 2), np.bool_)
    sizes = recall_by_size(measured(np.zeros((n, 2, 2)), masks, diameters, accepted), AT)
    known = [index for index, value in enumerate(diameters) if math.isfinite(value)]
    if len(known) < 10:
        assert sizes == ()
        return
    assert sum(size.detection.n for size in sizes) == len(known)
    assert sum(size.detection.count for size in sizes) == sum(not accepted[index] for index in known)
    assert min(size.detection.n for size in sizes) >= 5
    bounds = [value for size in sizes for value in (size.smallest_px, size.largest_px)]
    assert bounds == sorted(bounds)
    assert recall_by_size(measured(np.zeros((n, 2, 2)), masks, diameters, accepted), None) == ()
