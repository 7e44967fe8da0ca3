"""Noise of diffusion training and sampling: Gaussian, or simplex noise of several octaves."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flawscope.arrays import Float32Array
from flawscope.diffusion.schedule import Sampling, noises_needed
from flawscope.training.loop import draws

_OCTAVES = 6
_PERSISTENCE = 0.6
_WAVELENGTH_PX = 32.0
# Perlin's twelve gradients: the directions to the edges of a cube.
_GRADIENTS = (
    (1, 1, 0), (-1, 1, 0), (1, -1, 0), (-1, -1, 0), (1, 0, 1), (-1, 0, 1),
    (1, 0, -1), (-1, 0, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1), (0, -1, -1),
)  # fmt: skip
_SKEW, _UNSKEW = 1.0 / 3.0, 1.0 / 6.0  # of the simplex grid in three dimensions


def draw_noise(
    kind: Literal["gaussian", "simplex"], shape: tuple[int, int, int, int], generator: torch.Generator
) -> Tensor:
    """Return noise float32 [N, C, H, W] on the generator's device, different for every image.

    Args:
        kind: `gaussian`; or `simplex`, which has long wavelengths (AnoDDPM, 2022): 6 octaves, the first of 32 pixels,
            each with half the wavelength and 0.6 times the amplitude of the one before; the channel is the third
            coordinate. It is scaled to mean 0 and deviation 1 per image, which the noise levels of diffusion assume.
        shape: N, C, H, W.
        generator: Source of all random numbers.
    """
    if kind == "gaussian":
        return draws.normal(shape, generator)
    count, channels, height, width = shape
    device = generator.device
    # Permutations and an offset for each image. Order and shapes of the draws are part of the noise: changing them
    # changes every trained simplex run and the noise of its bundles.
    table = draws.uniform((count, 256), generator).argsort(dim=1)
    offset = 256.0 * draws.uniform((count, 3, 1), generator, dtype=torch.float64)
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
    """Return the noise that a sampling needs, float32 [K, C, h, w], from its seed alone."""
    # On the CPU on purpose: CUDA's generator gives other numbers for the same seed.
    generator = torch.Generator().manual_seed(sampling.seed)
    noise: Float32Array = draw_noise(sampling.noise, (noises_needed(sampling), *shape), generator).numpy()
    return np.ascontiguousarray(noise)


def _simplex(points: Tensor, table: Tensor) -> Tensor:
    """Return simplex noise float32 [N, P] at points float64 [N, 3, P], with permutations int64 [N, 256].

    Perlin's construction of 2001: space is skewed into cubes, each divided into six tetrahedra; every corner of the
    tetrahedron around a point adds the product of its gradient and the offset, faded out with the distance.
    """
    count = len(table)
    gradients = torch.tensor(_GRADIENTS, device=points.device, dtype=torch.float32)
    cell = torch.floor(points + points.sum(dim=1, keepdim=True) * _SKEW)
    # The cells are found in float64; the offset within one is small enough for float32.
    inside = (points - (cell - cell.sum(dim=1, keepdim=True) * _UNSKEW)).float()
    # The order of the coordinates determines the tetrahedron: its corners are reached by steps along the largest first.
    # Stable, so that ties (flat areas of a grid) are the same on every device.
    rank = inside.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    value = torch.zeros((count, points.shape[-1]), device=points.device)
    indices = cell.long()
    for corner in range(4):
        steps = (rank < corner).long()
        offset = inside - steps + corner * _UNSKEW
        hashed = torch.zeros_like(indices[:, 0])
        for axis in (2, 1, 0):
            hashed = table.gather(1, (indices[:, axis] + steps[:, axis] + hashed) % 256)
        fade = (0.6 - offset.square().sum(dim=1)).clamp_min(0.0)
        direction = gradients[hashed % len(_GRADIENTS)].permute(0, 2, 1)
        value += fade.square().square() * (direction * offset).sum(dim=1)
    return 32.0 * value  # about [-1, 1]


def noise_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Return a random noise level for each of `count` images, int64 [N], uniform from 0 to `levels` - 1."""
    return draws.integers(levels, (count,), generator)


def add_noise(images: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """Return √ᾱ·images + √(1−ᾱ)·noise (arXiv:2006.11239, equation 4), with the shares ᾱ, float32 [N]."""
    share = shares.reshape(-1, 1, 1, 1)
    return share.sqrt() * images + (1.0 - share).sqrt() * noise
