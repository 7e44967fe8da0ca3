"""Structural similarity: the formula pixel by pixel, equal images, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.training.segmentation.ssim import ssim


def reference(first: np.ndarray, second: np.ndarray, window: int) -> np.ndarray:
    """The formula of Wang et al. in float64, one window after the other; beyond the border both are black."""
    half = window // 2
    places = np.arange(window) - half
    weights = np.exp(-0.5 * (places[:, None] ** 2 + places[None] ** 2) / 1.5**2)
    weights /= weights.sum()
    one, two = (np.pad(image.astype(np.float64), half) for image in (first, second))
    result = np.empty(first.shape)
    for row in range(first.shape[0]):
        for column in range(first.shape[1]):
            a, b = (image[row : row + window, column : column + window] for image in (one, two))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            result[row, column] = (
                (2 * mean_a * mean_b + 1e-4)
                * (2 * both + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return result


@given(
    seed=st.integers(0, 1000),
    sides=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    window=st.sampled_from([1, 3, 11]),
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_published_formula(seed: int, sides: tuple[int, int], window: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.random((2, 2, 3, *sides))
    got = ssim(torch.from_numpy(first), torch.from_numpy(second), window).numpy()
    for image in range(2):
        for channel in range(3):
            expected = reference(first[image, channel], second[image, channel], window)
            np.testing.assert_allclose(got[image, channel], expected, rtol=1e-9, atol=1e-12)


def test_equal_images_have_1_and_opposite_ones_less_than_0() -> None:
    image = torch.rand((1, 1, 20, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(image, image), torch.ones_like(image))
    assert float(ssim(image, 1 - image).mean()) < 0


def test_it_is_symmetric_and_its_gradient_leads_to_the_other_image() -> None:
    draw = torch.Generator().manual_seed(1)
    first, second = (torch.rand((1, 3, 16, 16), generator=draw) for _ in range(2))
    torch.testing.assert_close(ssim(first, second), ssim(second, first))
    before = float(ssim(first, second).mean())
    first.requires_grad_(True)
    for _ in range(30):
        (1 - ssim(first, second).mean()).backward()
        with torch.no_grad():
            assert first.grad is not None
            first -= 50 * first.grad
            first.grad = None
    assert float(ssim(first.detach(), second).mean()) > before + 0.2


def test_flat_images_of_integers_are_exact() -> None:
    """Between two flat images, away from the border, there is light alone: (2ab + C) / (a² + b² + C)."""
    first, second = (
        torch.full((1, 1, 21, 21), 1.0, dtype=torch.float64),
        torch.zeros((1, 1, 21, 21), dtype=torch.float64),
    )
    assert float(ssim(first, second)[0, 0, 10, 10]) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)
