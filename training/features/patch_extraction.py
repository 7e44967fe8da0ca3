"""Patches of a set of images, batch by batch, and the transform that standardizes their channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

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
"""Added to the variances of the principal axes, as a share of the largest, so that pure noise is not amplified.
Chosen on generated parts: the best mean AUROC of 1e-2, 1e-3 and 1e-4."""


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
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, stage: str, progress: Progress
) -> Iterator[Tensor]:
    """Yield float32 [N, P, D] patches on the features' device, batch by batch, in order.

    Raises:
        DataError: If the network gives NaN or infinity for an image.
    """
    count = 0
    progress(stage, 0, len(paths))
    for batch in load_batches(paths, config.preprocessing, config.patches.batch_size, config.patches.num_workers):
        with torch.inference_mode():
            patches = features(torch.from_numpy(batch).to(features.device))
        # Checked here, once for all methods: a single NaN would spread through every covariance and distance.
        if not bool(torch.isfinite(patches).all()):
            raise DataError(
                f"features: expected finite numbers, got NaN or infinity in one of {paths[count]} and the next "
                f"{len(batch) - 1} images. Are these the weights' mean and std?"
            )
        yield patches
        count += len(batch)
        progress(stage, count, len(paths))


def standardization(config: FittedConfig) -> Standardization:
    """Return the setting `standardize`, with `auto` resolved.

    For a pretrained backbone it is `none`. The channels of the scattering network have no learned scale, so the
    method's own choice is taken: PatchCore needs whitened channels for its distances, PaDiM whitens every position
    itself.
    """
    if config.patches.standardize != "auto":
        return config.patches.standardize
    if config.features.backbone != SCATTERING:
        return "none"
    return config.AUTO_STANDARDIZE


def measure_transform(
    features: PatchFeatures, paths: Sequence[ImageSource], config: FittedConfig, progress: Progress
) -> Tensor | None:
    """Return the transform that patches are multiplied with, measured on normal images.

    Returns:
        One over every channel's deviation, float32 [D], a whitening matrix, float32 [D, D], or None, as
        `standardization` says.
    """
    kind = standardization(config)
    if kind == "none":
        return None
    step = max(1, len(paths) // _SAMPLE_IMAGES)
    return channel_transform(iterate_patches(features, paths[::step], config, "measuring channels", progress), kind)


def channel_transform(batches: Iterable[Tensor], kind: Literal["scale", "whiten"]) -> Tensor:
    """Return the transform of the channels of some patches.

    Args:
        batches: Patches, float32 [N, P, D] each.
        kind: `scale` for one over every channel's deviation, float32 [D]; `whiten` for a matrix, float32 [D, D].
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for patches in batches:
        # float64: a covariance from sums of squares loses the small variances in float32.
        flat = patches.flatten(0, 1).double().cpu()
        count += len(flat)
        total = total + flat.sum(dim=0)
        products = products + flat.T @ flat
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if kind == "scale":
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        # Bounded: a channel that never changes (a grey dataset has no colour) would be divided by zero.
        factors: Tensor = 1.0 / torch.maximum(deviation, 1e-3 * deviation.max().clamp(min=1e-12))
        return factors.float()
    # Rounding can leave eigenvalues slightly below zero, hence the clamp.
    variances, axes = torch.linalg.eigh(covariance)
    floors = WHITENING_FLOOR * variances.max().clamp(min=1e-12)
    whitening: Tensor = axes / (variances.clamp(min=0) + floors).sqrt()
    return whitening.float()


def to_numpy(patches: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a tensor as a float32 NumPy array on the CPU."""
    return patches.cpu().numpy().astype(np.float32, copy=False)
