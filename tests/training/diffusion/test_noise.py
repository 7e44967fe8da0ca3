"""Noise of a training: Gaussian and simplex, and how it is added."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flawscope.diffusion.schedule import Sampling, noises_needed
from flawscope.training.diffusion.noise import add_noise, draw_noise, noise_levels, sampling_noise

SHAPE = (3, 3, 64, 48)


def draw(kind: str, seed: int = 0, shape: tuple[int, int, int, int] = SHAPE) -> torch.Tensor:
    return draw_noise(kind, shape, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gaussian", "simplex"])
def test_noise_has_mean_zero_and_deviation_one_and_comes_from_its_seed(kind: str) -> None:
    noise = draw(kind)
    assert noise.shape == SHAPE
    assert noise.dtype == torch.float32
    for image in noise:
        assert float(image.mean()) == pytest.approx(0.0, abs=0.05)
        assert float(image.std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(noise, draw(kind))
    assert not torch.equal(noise, draw(kind, seed=1))


def test_images_of_one_batch_have_different_simplex_noise() -> None:
    first, second, third = draw("simplex").flatten(1)
    for image, another in ((first, second), (first, third), (second, third)):
        assert abs(float(torch.corrcoef(torch.stack([image, another]))[0, 1])) < 0.5


def test_simplex_noise_has_long_waves_and_gaussian_noise_has_none() -> None:
    def neighbours(noise: torch.Tensor) -> float:
        return float((noise[..., 1:] * noise[..., :-1]).mean())

    assert neighbours(draw("simplex")) > 0.7
    assert abs(neighbours(draw("gaussian"))) < 0.05


def test_simplex_noise_is_continuous_where_its_cells_meet() -> None:
    from flawscope.training.diffusion.noise import _simplex

    table = torch.rand((1, 256), generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    along = torch.linspace(0.0, 6.0, 60_001, dtype=torch.float64)
    for direction in ((1.0, 0.0, 0.0), (0.3, 1.0, -0.4), (1.0, 1.0, 1.0)):
        points = torch.stack([along * part + 0.123 for part in direction])[None]
        value = _simplex(points, table)[0]
        assert float(value.abs().max()) < 1.2
        assert float(value.std()) > 0.1
        assert (
            float((value[1:] - value[:-1]).abs().max()) < 5e-3
        )  # steps of a ten-thousandth of a cell; a jump has a tenth and more


def test_a_sampling_gets_as_much_noise_as_it_takes_and_the_same_every_time() -> None:
    sampling = Sampling(eta=1.0, steps=10, seed=5)
    noise = sampling_noise(sampling, (3, 8, 8))
    assert noise.shape == (noises_needed(sampling), 3, 8, 8) == (10, 3, 8, 8)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, sampling_noise(sampling, (3, 8, 8)))
    assert sampling_noise(Sampling(), (4, 8, 8)).shape == (1, 4, 8, 8)


def test_noise_is_added_in_the_share_of_each_image() -> None:
    images, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 5.0)
    added = add_noise(images, noise, torch.tensor([0.64, 1.0]))
    torch.testing.assert_close(added.flatten(), torch.tensor([0.8 * 3.0 + 0.6 * 5.0, 3.0]))


def test_levels_are_uniform_over_all_of_them() -> None:
    levels = noise_levels(20_000, 1000, torch.Generator().manual_seed(0))
    assert levels.dtype == torch.int64
    assert (int(levels.min()), int(levels.max())) == (0, 999)
    counts = torch.bincount(levels // 100)
    assert counts.shape == (10,)
    assert int((counts - 2000).abs().max()) < 250
