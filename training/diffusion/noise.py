"""Noise that diffusion is trained with: Gaussian, or simplex noise of several octaves."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flawscope.arrays import Float32Array
from flawscope.diffusion.schedule import Sampling, noises_needed

_OCTAVES = 6
_PERSISTENCE = 0.6
_WAVELENGTH_PX = 32.0
_GRADIENTS = (
    (1, 1, 0), (-1, 1, 0), (1, -1, 0), (-1, -1, 0), (1, 0, 1), (-1, 0, 1),
    (1, 0, -1), (-1, 0, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1), (0, -1, -1),
)  # fmt: skip
_SKEW, _UNSKEW = 1.0 / 3.0, 1.0 / 6.0


def draw_noise(
    kind: Literal["gaussian", "simplex"], shape: tuple[int, int, int, int], generator: torch.Generator
) -> Tensor:
    """Return noise float32 [N, C, H, W] on the generator's device, every image its own.

    Args:
        kind: `gaussian`; or `simplex`, which has long waves (AnoDDPM, 2022): 6 octaves from 32 pixels, each half as
            long and 0.6 times as strong as the one before, the channel as third coordinate; brought to mean 0 and
            deviation 1 per image, because the noise levels of diffusion mean a deviation of 1.
        shape: N, C, H, W.
        generator: Gives the randomness.
    """
    if kind == "gaussian":
        return torch.randn(shape, generator=generator, device=generator.device)
    count, channels, height, width = shape
    device = generator.device
    # Each image has permutations and an offset of its own; all images are computed together.
    table = torch.rand((count, 256), generator=generator, device=device).argsort(dim=1)
    offset = 256.0 * torch.rand((count, 3, 1), generator=generator, device=device, dtype=torch.float64)
    depth, rows, columns = torch.meshgrid(
        *(torch.arange(size, device=device, dtype=torch.float64) for size in (channels, height, width)), indexing="ij"
    )
    points = torch.stack([columns, rows, depth]).flatten(1)[None]
    total = torch.zeros((count, points.shape[-1]), device=device)
    for octave in range(_OCTAVES):
        wavelength = _WAVELENGTH_PX / 2**octave
        total += _PERSISTENCE**octave * _simplex(points / wavelength + offset, table)
    deviation, mean = torch.std_mean(total, dim=1, keepdim=True)
    return ((total - mean) / deviation).reshape(shape)


def sampling_noise(sampling: Sampling, shape: tuple[int, int, int]) -> Float32Array:
    """Return the noise that a sampling takes, float32 [K, C, h, w], from its seed alone."""
    generator = torch.Generator().manual_seed(sampling.seed)
    noise: Float32Array = draw_noise(sampling.noise, (noises_needed(sampling), *shape), generator).numpy()
    return np.ascontiguousarray(noise)


def _simplex(points: Tensor, table: Tensor) -> Tensor:
    """Return simplex noise float32 [N, P] at points float64 [N, 3, P], with permutations int64 [N, 256].

    Perlin's construction of 2001: space is skewed into cubes, each cut into six tetrahedra; every corner of the one
    that holds a point adds a gradient's product, faded out with the distance.
    """
    count = len(table)
    gradients = torch.tensor(_GRADIENTS, device=points.device, dtype=torch.float32)
    cell = torch.floor(points + points.sum(dim=1, keepdim=True) * _SKEW)
    inside = (points - (cell - cell.sum(dim=1, keepdim=True) * _UNSKEW)).float()
    # The order of the coordinates tells the tetrahedron: along the largest first, along the smallest last.
    rank = inside.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    value = torch.zeros((count, points.shape[-1]), device=points.device)
    whole = cell.long()
    for corner in range(4):
        passed = (rank < corner).long()
        away = inside - passed + corner * _UNSKEW
        hashed = torch.zeros_like(whole[:, 0])
        for axis in (2, 1, 0):
            hashed = table.gather(1, (whole[:, axis] + passed[:, axis] + hashed) % 256)
        fade = (0.6 - away.square().sum(dim=1)).clamp_min(0.0)
        direction = gradients[hashed % len(_GRADIENTS)].permute(0, 2, 1)
        value += fade.square().square() * (direction * away).sum(dim=1)
    return 32.0 * value


def noise_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Return a noise level for each of `count` images, int64 [N], uniform in 0 to levels - 1."""
    return torch.randint(0, levels, (count,), generator=generator, device=generator.device)


def add_noise(images: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """Return √ᾱ·images + √(1−ᾱ)·noise (arXiv:2006.11239, equation 4); shares ᾱ float32 [N]."""
    share = shares.reshape(-1, 1, 1, 1)
    return share.sqrt() * images + (1.0 - share).sqrt() * noise
