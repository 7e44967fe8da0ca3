"""Defects drawn on normal images: exact masks, seeded, on images of every look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.arrays import UInt8Array
from flawscope.datasets.drawn_defects import KINDS, draw_defect

TEXTURED = ("moved", "smear")
"""Kinds that need something to move or to wipe."""


def textured(seed: int, height: int = 64, width: int = 64) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(16, 96),
    width=st.integers(16, 96),
    level=st.sampled_from([None, 0, 3, 128, 252, 255]),
    strength=st.floats(0, 1),
)
def test_a_mask_has_exactly_the_pixels_that_differ(
    kind: str, seed: int, height: int, width: int, level: int | None, strength: float
) -> None:
    image = textured(seed, height, width) if level is None else np.full((height, width, 3), level, np.uint8)
    before = image.copy()
    drawn = draw_defect(image, kind, strength, np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before)
    if drawn is None:
        # Nothing can be wiped or moved on a plain image; everything else can always be drawn.
        assert kind in TEXTURED
        assert level is not None
        return
    changed, mask = drawn
    assert (changed.dtype, changed.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(mask, (changed != image).any(axis=2))
    assert 4 <= mask.sum() < mask.size
    assert np.abs(changed.astype(int) - image)[mask].max(axis=1).min() >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same(kind: str) -> None:
    first, again, other = (draw_defect(textured(1), kind, 0.5, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("kind", ["crack", "scratch", "spot", "stain"])
def test_a_stronger_defect_changes_the_image_more(kind: str) -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    faint, clear = (draw_defect(image, kind, strength, np.random.default_rng(3)) for strength in (0.0, 1.0))
    assert faint is not None
    assert clear is not None
    assert np.abs(clear[0].astype(int) - image).max() > 2 * np.abs(faint[0].astype(int) - image).max()
