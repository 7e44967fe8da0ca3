"""Procedural anomalies of trainings: exact masks, drawn by the generator alone, grey where the part is grey."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_judged import part

from flawscope.training.segmentation.procedural import draw_anomaly


@given(seed=st.integers(0, 1 << 32), sides=st.tuples(st.integers(8, 50), st.integers(8, 50)), is_grey=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_mask_is_what_differs_and_chance_comes_from_the_generator_alone(
    seed: int, sides: tuple[int, int], is_grey: bool
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*sides, 3), np.uint8)
    if is_grey:
        image[:] = image[..., :1]
    before = image.copy()
    drawn, mask = draw_anomaly(image, np.random.default_rng(seed))
    assert (image == before).all(), "the normal image is left as it was"
    assert (drawn.shape, drawn.dtype, mask.shape, mask.dtype) == (image.shape, np.uint8, sides, np.bool_)
    differs = (drawn != image).any(axis=2)
    assert not (differs & ~mask).any()
    # A closing fills gaps of unchanged pixels; the rest of the mask has changed.
    assert not mask.any() or differs[mask].mean() > 0.3
    if is_grey:
        assert (drawn == drawn[..., :1]).all()
    again, mask_again = draw_anomaly(image, np.random.default_rng(seed))
    assert (again == drawn).all()
    assert (mask_again == mask).all()


def test_nearly_every_call_draws_something_and_no_two_the_same() -> None:
    image = part(0)[0]
    drawn = [draw_anomaly(image, np.random.default_rng(seed)) for seed in range(60)]
    assert np.mean([mask.any() for _, mask in drawn]) > 0.9
    assert len({picture.tobytes() for picture, _ in drawn}) > 50
