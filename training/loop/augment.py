"""Random changes of normal images, drawn anew at every access, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_GREY = (0.299, 0.587, 0.114)


def augment(images: Tensor, generator: torch.Generator, *, flip: bool, rotate: float, color_jitter: float) -> Tensor:
    """Return changed images.

    Args:
        images: Float32 [N, 3, H, W] in [-1, 1].
        generator: Gives the randomness.
        flip: Mirror left to right half of the time.
        rotate: Turn by up to so many degrees either way about the centre; borders are continued by reflection.
        color_jitter: Change brightness, contrast and saturation by up to this share either way.
    """
    count = len(images)

    def uniform(limit: float) -> Tensor:
        drawn = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device)
        return (2.0 * drawn - 1.0) * limit

    if flip:
        mirrored = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if rotate > 0:
        images = _turned(images, uniform(rotate).flatten())
    if color_jitter > 0:
        value = (images + 1.0) / 2.0 * (1.0 + uniform(color_jitter))
        mean = value.mean(dim=(1, 2, 3), keepdim=True)
        value = mean + (value - mean) * (1.0 + uniform(color_jitter))
        weights = torch.tensor(_GREY, device=value.device).reshape(1, 3, 1, 1)
        grey = (value * weights).sum(dim=1, keepdim=True)
        value = grey + (value - grey) * (1.0 + uniform(color_jitter))
        images = value.clamp(0.0, 1.0) * 2.0 - 1.0
    return images


def _turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images turned by angles [N] about their centres."""
    height, width = images.shape[-2:]
    angle = degrees * (math.pi / 180.0)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # Coordinates of grid_sample reach from -1 to 1 on both axes: sides of other length would shear the turn.
    rows = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
