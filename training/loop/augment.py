"""Random augmentation of normal images, on the device, drawn anew for every batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from flawscope.training.loop import draws

_GREY = (0.299, 0.587, 0.114)  # luminance of ITU-R BT.601


def augment(images: Tensor, generator: torch.Generator, *, flip: bool, rotate: float, color_jitter: float) -> Tensor:
    """Return augmented images.

    The draws come in a fixed order, and only for what is switched on: a resumed training repeats them.

    Args:
        images: Float32 [N, 3, H, W] in [-1, 1].
        generator: Source of all random numbers.
        flip: Mirror left to right with probability 0.5.
        rotate: Largest angle in degrees, either way about the centre; borders are continued by reflection.
        color_jitter: Largest change of brightness, contrast and saturation, as a share, either way.
    """
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (2.0 * draws.uniform((count, 1, 1, 1), generator) - 1.0) * limit

    if flip:
        mirrored = draws.uniform((count, 1, 1, 1), generator) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if rotate > 0:
        images = _rotate(images, uniform(rotate).flatten())
    if color_jitter > 0:
        # Brightness, contrast and saturation, in this order, on [0, 1]; clipped once at the end, not in between.
        value = (images + 1.0) / 2.0 * (1.0 + uniform(color_jitter))
        mean = value.mean(dim=(1, 2, 3), keepdim=True)
        value = mean + (value - mean) * (1.0 + uniform(color_jitter))
        weights = torch.tensor(_GREY, device=value.device).reshape(1, 3, 1, 1)
        grey = (value * weights).sum(dim=1, keepdim=True)
        value = grey + (value - grey) * (1.0 + uniform(color_jitter))
        images = value.clamp(0.0, 1.0) * 2.0 - 1.0
    return images


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images rotated by angles [N] about their centres."""
    height, width = images.shape[-2:]
    angle = degrees * (math.pi / 180.0)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # grid_sample's coordinates reach from -1 to 1 on both axes: without the ratios of the sides a rotation would shear
    # images that are not square.
    rows = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
