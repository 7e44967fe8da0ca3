"""Running the feature module over a set of images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from flawscope.config import FittedConfig
from flawscope.config.feature_settings import Standardization
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.training.features.backbone import SCATTERING
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.loop.image_batches import load_batches

_SAMPLE_IMAGES = 64
"""Images from which the channels' covariance is measured: tens of thousands of patches."""

WHITENING_FLOOR = 1e-4
"""Added to the variances of the principal axes, as a share of the largest, so that axes that hold only noise are not
blown up. Chosen on generated parts: the best mean AUROC of 1e-2, 1e-3 and 1e-4."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`.

    Raises:
        ArgumentError: If `cuda` was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "device: expected cuda, got a machine where torch finds no CUDA device. Use --set device=cpu."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def iterate_patches(
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, what: str, progress: Progress
) -> Iterator[Tensor]:
    """Yield float32 [N, P, D] patches on the features' device, batch by batch, in order.

    Raises:
        DataError: If the network gives NaN or infinity for an image.
    """
    done = 0
    progress(what, 0, len(paths))
    for batch in load_batches(paths, config.preprocessing, config.patches.batch_size, config.patches.num_workers):
        with torch.inference_mode():
            patches = features(torch.from_numpy(batch).to(features.device))
        if not bool(torch.isfinite(patches).all()):
            raise DataError(
                f"features: expected finite numbers, got NaN or infinity in one of {paths[done]} and the next "
                f"{len(batch) - 1} images. Are these the weights' mean and std?"
            )
        yield patches
        done += len(batch)
        progress(what, done, len(paths))


def standardization(config: FittedConfig) -> Standardization:
    """Resolve `standardize`.

    `auto` gives a backbone without learned scale what its method is better with: distances to a bank need whitened
    channels, PaDiM whitens every position by itself.
    """
    if config.patches.standardize != "auto":
        return config.patches.standardize
    if config.features.backbone != SCATTERING:
        return "none"
    return config.AUTO_STANDARDIZE


def measure_transform(
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, progress: Progress
) -> Tensor | None:
    """Return what patches are multiplied with before they are compared, measured on normal images.

    Returns:
        One over every channel's deviation, float32 [D], a whitening matrix, float32 [D, D], or None, as
        `standardization` says.
    """
    wanted = standardization(config)
    if wanted == "none":
        return None
    step = max(1, len(paths) // _SAMPLE_IMAGES)
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for patches in iterate_patches(features, paths[::step], config, "measuring channels", progress):
        flat = patches.flatten(0, 1).double().cpu()
        count += len(flat)
        total = total + flat.sum(dim=0)
        products = products + flat.T @ flat
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if wanted == "scale":
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        # A channel that never moves (a grey set has no colour) must not be blown up by a division by nothing.
        factors: Tensor = 1.0 / torch.maximum(deviation, 1e-3 * deviation.max().clamp(min=1e-12))
        return factors.float()
    variances, axes = torch.linalg.eigh(covariance)
    floors = WHITENING_FLOOR * variances.max().clamp(min=1e-12)
    whitening: Tensor = axes / (variances.clamp(min=0) + floors).sqrt()
    return whitening.float()


def to_numpy(patches: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a tensor as a float32 NumPy array on the CPU."""
    return patches.cpu().numpy().astype(np.float32, copy=False)
