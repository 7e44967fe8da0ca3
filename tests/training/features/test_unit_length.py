"""Patches of length 1: exact where lengths are whole, the order of the cosine, and patches without direction."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flawscope.training.features.unit_length import SMALLEST, unit_length


def test_whole_lengths_are_exact() -> None:
    patches = torch.tensor([[[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]]])
    torch.testing.assert_close(unit_length(patches), expected, atol=1e-7, rtol=0)


vectors = hnp.arrays(
    np.float32, (2, 5), elements=st.floats(-1000, 1000, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
)


@settings(max_examples=200, deadline=None)
@given(vectors)
def test_half_the_squared_distance_is_one_minus_the_cosine(pair: np.ndarray) -> None:
    lengths = np.linalg.norm(pair.astype(np.float64), axis=1)
    first, second = unit_length(torch.from_numpy(pair)).double().numpy()
    half = ((first - second) ** 2).sum() / 2
    if lengths.min() == 0:
        # Without a direction there is no angle: a half, or nothing between two of them.
        np.testing.assert_allclose(half, 0.5 if lengths.max() > 0 else 0, atol=1e-6)
        return
    cosine = pair[0].astype(np.float64) @ pair[1] / lengths.prod()
    np.testing.assert_allclose(half, 1 - cosine, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=1), 1, atol=1e-6)


def test_large_and_small_patches_neither_overflow_nor_vanish() -> None:
    patches = torch.tensor([[3e30, 4e30], [3e-5, 4e-5], [3e-30, 4e-30]])
    lengths = unit_length(patches).norm(dim=1)
    torch.testing.assert_close(lengths[:2], torch.ones(2))
    assert lengths[2] < SMALLEST
