"""Perlin anomalies: exact masks, textures, and the same bytes from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.datasets.defects.seeded_choice import generator
from flawscope.datasets.drawing.perlin import PerlinOptions, perlin_anomaly, perlin_mask, perlin_noise
from flawscope.datasets.drawing.textures import as_grey, augment_texture, is_grey, make_texture, shuffle_texture
from flawscope.errors import ArgumentError

sizes = st.tuples(st.integers(8, 100), st.integers(8, 100))
seeds = st.integers(0, 2**32 - 1)


def noise(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@given(
    seed=seeds, size=sizes, texture_size=sizes, level=st.integers(1, 30), low=st.floats(0.01, 1), inside=st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_outside_of_the_mask_no_byte_differs_and_the_same_seed_gives_the_same(
    seed, size, texture_size, level, low, inside
):
    image, texture = noise(seed, size), noise(seed + 1, texture_size)
    before, options = image.copy(), PerlinOptions(opacity=(low, 1.0), level=level)
    within = np.random.default_rng(seed).random(size) < 0.5 if inside else None
    drawn = perlin_anomaly(image, texture, generator(seed), options, within=within)
    assert np.array_equal(image, before)
    again = perlin_anomaly(image, texture, generator(seed), options, within=within)
    if drawn is None:
        assert again is None
        return
    result, mask = drawn
    assert again is not None
    assert np.array_equal(again[0], result)
    assert np.array_equal(again[1], mask)
    assert np.array_equal(result[~mask], image[~mask])
    assert mask.any()
    assert (np.abs(result.astype(int) - image).max(axis=2)[mask] >= level).any()
    if within is not None:
        assert not mask[~within].any()


def test_a_texture_like_the_image_leaves_nothing_to_see():
    image = noise(0, (32, 32))
    assert perlin_anomaly(image, image, generator(0)) is None
    nowhere = np.zeros((32, 32), np.bool_)
    assert perlin_anomaly(image, noise(1, (32, 32)), generator(0), within=nowhere) is None


def test_the_opacity_is_the_share_of_the_texture():
    image, texture = np.full((64, 64, 3), 50, np.uint8), np.full((64, 64, 3), 250, np.uint8)
    for opacity in (0.1, 0.5, 1.0):
        drawn = perlin_anomaly(image, texture, generator(0), PerlinOptions(opacity=(opacity, opacity)))
        assert drawn is not None
        assert (drawn[0][drawn[1]] == round(50 + 200 * opacity)).all()


@given(size=sizes, cells=st.tuples(st.integers(1, 32), st.integers(1, 32)), seed=seeds)
@settings(deadline=None)
def test_noise_is_nothing_at_its_grid_and_bounded(size, cells, seed):
    field = perlin_noise(size, cells, generator(seed))
    assert field.shape == size
    assert np.abs(field).max() <= 1.01
    assert abs(field[0, 0]) < 1e-6


def test_noise_has_no_steps_between_its_cells():
    field = perlin_noise((256, 256), (8, 4), generator(0))
    assert np.abs(np.diff(field, axis=0)).max() < 0.15
    assert np.abs(np.diff(field, axis=1)).max() < 0.1
    assert field.std() > 0.15


def test_masks_have_many_sizes():
    shares = [perlin_mask((128, 128), generator(seed)).mean() for seed in range(60)]
    assert 0.01 < np.mean(shares) < 0.4
    assert np.std(shares) > 0.01


@given(seed=seeds, size=sizes)
@settings(deadline=None)
def test_textures_keep_size_and_type_and_come_back_from_their_seed(seed, size):
    image = noise(seed, size)
    for made in (
        lambda rng: augment_texture(image, rng),
        lambda rng: shuffle_texture(image, rng),
        lambda rng: make_texture(size, rng),
    ):
        first, second = made(generator(seed)), made(generator(seed))
        assert first.dtype == np.uint8
        assert first.shape == image.shape
        assert np.array_equal(first, second)
    assert is_grey(as_grey(image))
    assert not is_grey(np.dstack([image[..., 0], image[..., 0], 255 - image[..., 0]]))


def test_a_shuffled_image_has_the_same_pixels_in_another_order():
    image = noise(3, (64, 128))
    shuffled = shuffle_texture(image, generator(1))
    assert np.array_equal(np.sort(shuffled.reshape(-1, 3), axis=0), np.sort(image.reshape(-1, 3), axis=0))
    assert not np.array_equal(shuffled, image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opacity": (0.0, 1.0)}, "opacity: expected two rising numbers from 0.01 to 1, got 0 and 1"),
        ({"opacity": (0.9, 0.5)}, "opacity: expected two rising numbers from 0.01 to 1, got 0.9 and 0.5"),
        ({"threshold": 1.0}, "threshold: expected a number from 0.05 to 0.95, got 1"),
        ({"level": 0}, "level: expected 1 to 255 grey levels, got 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        PerlinOptions(**change)
