"""Structural similarity of two images (Wang et al., IEEE TIP 13, 2004), as a map through which gradients flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
"""Side of the window in pixels, as published."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for values from 0 to 1


def ssim(first: Tensor, second: Tensor, window: int = WINDOW) -> Tensor:
    """Return the structural similarity around every pixel, [N, C, H, W], at most 1, and 1 where images are equal.

    Means, variances and covariance are weighted by a Gaussian of 1.5 pixels within the window; beyond the border both
    images count as black, as in DRAEM.

    Args:
        first: Float32 [N, C, H, W] in [0, 1].
        second: The same.
        window: Side of the window in pixels, odd.
    """
    # One pass over all that is smoothed: five maps of each channel.
    parts = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    mean_1, mean_2, square_1, square_2, product = _smooth(parts, window).chunk(5, dim=1)
    covariance = product - mean_1 * mean_2
    variances = (square_1 - mean_1 * mean_1) + (square_2 - mean_2 * mean_2)
    light = (2.0 * mean_1 * mean_2 + _C1) / (mean_1 * mean_1 + mean_2 * mean_2 + _C1)
    return light * (2.0 * covariance + _C2) / (variances + _C2)


def _smooth(maps: Tensor, window: int) -> Tensor:
    """Return maps [N, C, H, W] smoothed by the Gaussian of the window, rows first, then columns."""
    places = torch.arange(window, dtype=maps.dtype, device=maps.device) - window // 2
    weights = torch.exp(-0.5 * (places / _SIGMA).square())
    weights = weights / weights.sum()
    channels = maps.shape[1]
    for shape, padding in (((1, 1, window, 1), (window // 2, 0)), ((1, 1, 1, window), (0, window // 2))):
        kernel = weights.reshape(shape).expand(channels, -1, -1, -1)
        maps = functional.conv2d(maps, kernel, padding=padding, groups=channels)
    return maps
