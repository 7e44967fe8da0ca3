"""From the maps of a reconstruction to one map and a score, against SciPy's filters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.diffusion.reconstruction import MapRule, finish_maps, signed, unsigned
from flawscope.errors import ArgumentError


def maps(count: int = 2, height: int = 40, width: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed).random((2, count, height, width)).astype(np.float32)
    return drawn[0], drawn[1]


def test_small_integers_are_summed_exactly() -> None:
    pixel, feature = np.full((1, 3, 3), 2, np.float32), np.full((1, 3, 3), 5, np.float32)
    pixel[0, 1, 2] = 7
    anomaly_maps, scores = finish_maps(pixel, feature, MapRule(3.0, 0.5, 0.0))
    expected = np.full((1, 3, 3), 8.5, np.float32)
    expected[0, 1, 2] = 23.5
    np.testing.assert_array_equal(anomaly_maps, expected)
    np.testing.assert_array_equal(scores, [23.5])


def test_the_gaussian_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    pixel, feature = maps()
    anomaly_maps, scores = finish_maps(pixel, feature, MapRule(2.0, 1.0, 4.0))
    for index in range(2):
        summed = (2 * pixel[index] + feature[index]).astype(np.float64)
        expected = scipy.gaussian_filter(summed, 4.0, mode="mirror", truncate=4.0)
        np.testing.assert_allclose(anomaly_maps[index], expected, atol=1e-5)
        assert scores[index] == anomaly_maps[index].max()


def test_pooling_is_that_many_mean_filters_of_eight_before_the_largest_value() -> None:
    pixel, feature = maps(height=64, width=80)
    anomaly_maps, scores = finish_maps(pixel, feature, MapRule(1.0, 1.0, 0.0, pooling=3))
    np.testing.assert_allclose(anomaly_maps, pixel + feature, atol=1e-6)  # the map itself is not pooled
    for index in range(2):
        pooled = (pixel[index] + feature[index]).astype(np.float64)
        for _ in range(3):
            windows = np.lib.stride_tricks.sliding_window_view(pooled, (8, 8))
            pooled = windows.mean(axis=(2, 3))
        assert pooled.shape == (43, 59)
        assert scores[index] == pytest.approx(pooled.max(), rel=1e-5)


def test_maps_too_small_for_the_pooling_are_refused() -> None:
    pixel, feature = maps(height=56)
    with pytest.raises(ArgumentError, match="pooling: expected maps of at least 57 pixels for 8 filters, got 56 x 48"):
        finish_maps(pixel, feature, MapRule(1.0, 1.0, 0.0, pooling=8))


def test_a_map_with_nan_has_a_score_of_nan() -> None:
    pixel, feature = maps()
    pixel[1, 3, 4] = np.nan
    for pooling in (0, 2):
        _, scores = finish_maps(pixel, feature, MapRule(1.0, 1.0, 1.0, pooling))
        assert np.isfinite(scores[0])
        assert np.isnan(scores[1])


@given(count=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_a_map_does_not_depend_on_its_neighbours(count: int, seed: int) -> None:
    pixel, feature = maps(count, 24, 16, seed)
    rule = MapRule(0.3, 1.7, 2.0, pooling=1)
    together, scores = finish_maps(pixel, feature, rule)
    for index in range(count):
        alone, score = finish_maps(pixel[index : index + 1], feature[index : index + 1], rule)
        np.testing.assert_array_equal(alone[0], together[index])
        assert score[0] == scores[index]


def test_images_are_scaled_both_ways_without_loss() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    scaled = signed(levels)
    assert scaled.shape == (1, 3, 16, 16)
    assert (scaled.min(), scaled.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(unsigned(scaled), levels)
    assert unsigned(np.full((1, 3, 1, 1), 5.0, np.float32)).max() == 255
