"""Tone of a window: gain and offset are undone, the defect is not, and nothing is fitted where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.runtime.synthesis.tone import BAND_PX, match_tone, outside_of


@given(st.floats(0.8, 1.2), st.floats(-30, 30), st.floats(30, 60), st.integers(0, 99))
def test_a_change_of_brightness_is_undone_and_the_defect_stays(gain, offset, depth, seed):
    rng = np.random.default_rng(seed)
    known = np.clip(rng.normal(128, 12, (48, 48, 3)), 90, 165)
    region = np.zeros((48, 48), np.bool_)
    region[16:32, 20:30] = True
    defect = known - depth * region[..., None]
    drawn = gain * defect + offset
    matched = match_tone(np.rint(drawn).astype(np.uint8), np.rint(known).astype(np.uint8), region)
    # One level of each rounding; the gain at a level below all others is extrapolated.
    assert np.abs(matched[~region] - known[~region]).max() < 2.5
    assert np.abs(matched[region] - defect[region]).max() < 4.5


def test_where_the_region_fills_the_window_nothing_is_fitted():
    drawn = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(match_tone(drawn, drawn // 2, np.ones((16, 16), np.bool_)), drawn)
    with pytest.raises(ArgumentError, match="known: expected uint8"):
        match_tone(drawn, drawn[:8], np.ones((16, 16), np.bool_))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30))
def test_the_outside_leaves_out_a_band_where_enough_is_left(top, left, height, width):
    region = np.zeros((48, 48), np.bool_)
    region[top : top + height, left : left + width] = True
    band = np.zeros_like(region)
    band[max(0, top - BAND_PX) : top + height + BAND_PX, max(0, left - BAND_PX) : left + width + BAND_PX] = True
    assert np.array_equal(outside_of(region), ~band)
