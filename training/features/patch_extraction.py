"""Patches of a set of images, batch by batch, and the transform that standardizes their channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from flawscope.config import BankSettings, FittedConfig, PatchcoreConfig, standardization
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.fitting_views import View
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.features.whitening import whitening_matrix
from flawscope.training.loop.image_batches import load_batches

_SAMPLE_IMAGES = 64
"""Images from which the channels' covariance is measured: tens of thousands of patches."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`.

    Raises:
        ArgumentError: If `cuda` is asked for and torch finds no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "device: expected cuda, got a machine where torch finds no CUDA device. Use --set device=cpu."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def iterate_patches(
    features: PatchFeatures,
    paths: Sequence[ImageSource],
    config: FittedConfig,
    stage: str,
    progress: Progress,
    view: View | None = None,
) -> Iterator[Tensor]:
    """Yield float32 [N, P, D] patches of images or a view of them, on the features' device, batch by batch, in order.

    Raises:
        DataError: If the network gives NaN or infinity for an image.
    """
    count = 0
    progress(stage, 0, len(paths))
    for batch in load_batches(paths, config.preprocessing, config.patches.batch_size, config.patches.num_workers):
        shown = batch if view is None else np.ascontiguousarray(view.make(batch))  # torch takes no mirrored strides
        with torch.inference_mode():
            patches = features(torch.from_numpy(shown).to(features.device))
        # Checked here, once for all methods: a single NaN would spread through every covariance and distance.
        if not bool(torch.isfinite(patches).all()):
            raise DataError(
                f"features: expected finite numbers, got NaN or infinity in one of {paths[count]} and the next "
                f"{len(batch) - 1} images. Are these the weights' mean and std?"
            )
        yield patches
        count += len(batch)
        progress(stage, count, len(paths))


def measure_transform(
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, progress: Progress
) -> Tensor | None:
    """Return the transform that patches are multiplied with, measured on normal images as they are.

    Returns:
        One over every channel's deviation, float32 [D], a whitening matrix, float32 [D, k], or None, as
        `standardization` says. Layers that are kept apart have a block each on the diagonal of the matrix.
    """
    kind = standardization(config)
    if kind == "none":
        return None
    count, _, covariance = measure_covariance(features, paths, config, "measuring channels", progress)
    if kind == "scale":
        return scale_factors(covariance)
    # PaDiM whitens every position itself, with all axes.
    bank = config.bank if isinstance(config, PatchcoreConfig) else BankSettings()
    blocks, start = [], 0
    for width in features.layer_widths or (len(covariance),):
        of_layer = covariance[start : start + width, start : start + width]
        blocks.append(whitening_matrix(of_layer, count, bank.components, bank.shrinkage))
        start += width
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix.float()


def measure_covariance(
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, stage: str, progress: Progress
) -> tuple[int, Tensor, Tensor]:
    """Return the number of patches measured, their mean float64 [D] and covariance float64 [D, D]."""
    return covariance_of(iterate_patches(features, sample_of(paths), config, stage, progress))


def covariance_of(batches: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Return the number of patches, their mean float64 [D] and covariance float64 [D, D].

    Args:
        batches: Patches, float32 [N, P, D] each.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for patches in batches:
        # float64: a covariance from sums of squares loses the small variances in float32.
        flat = patches.flatten(0, 1).double().cpu()
        count += len(flat)
        total = total + flat.sum(dim=0)
        products = products + flat.T @ flat
    mean = total / count
    return count, mean, products / count - torch.outer(mean, mean)


def scale_factors(covariance: Tensor) -> Tensor:
    """Return one over every channel's deviation, float32 [D], from their covariance float64 [D, D]."""
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    # Bounded: a channel that never changes (a grey dataset has no colour) would be divided by zero.
    factors: Tensor = 1.0 / torch.maximum(deviation, 1e-3 * deviation.max().clamp(min=1e-12))
    return factors.float()


def sample_of(paths: Sequence[ImageSource]) -> Sequence[ImageSource]:
    """Return the images on which channels are measured, spread evenly over all."""
    return paths[:: max(1, len(paths) // _SAMPLE_IMAGES)]


def to_numpy(patches: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a tensor as a float32 NumPy array on the CPU."""
    return patches.cpu().numpy().astype(np.float32, copy=False)
