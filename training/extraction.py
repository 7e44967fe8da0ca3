"""Running the feature module over a set of pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flawscope.config import DetectorConfig
from flawscope.errors import ArgumentError, DataError
from flawscope.training.backbone import SCATTERING
from flawscope.training.features import PatchFeatures
from flawscope.training.loading import Progress, load_batches

_SCALE_IMAGES = 64
"""Pictures from which the channels' deviations are measured; more change them by less than a percent."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`.

    Raises:
        ArgumentError: If `cuda` was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device: expected cuda, got a machine where torch finds no CUDA device. Use --set device=cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def iterate_patches(
    features: PatchFeatures, paths: Sequence[Path], config: DetectorConfig, what: str, progress: Progress
) -> Iterator[Tensor]:
    """Yield float32 [N, P, D] patches on the features' device, batch by batch, in order.

    Raises:
        DataError: If the network gives NaN or infinity for a picture.
    """
    done = 0
    progress(what, 0, len(paths))
    for batch in load_batches(paths, config.preprocessing, config.batch_size, config.num_workers):
        with torch.inference_mode():
            patches = features(torch.from_numpy(batch).to(features.device))
        if not bool(torch.isfinite(patches).all()):
            raise DataError(
                f"features: expected finite numbers, got NaN or infinity in one of {paths[done]} and the next "
                f"{len(batch) - 1} pictures. Are these the weights' mean and std?"
            )
        yield patches
        done += len(batch)
        progress(what, done, len(paths))


def measure_scale(
    features: PatchFeatures, paths: Sequence[Path], config: DetectorConfig, progress: Progress
) -> Tensor | None:
    """Return 1/deviation of every channel over good patches, float32 [D], or None where the config asks for none."""
    wanted = config.standardize == "yes" or (config.standardize == "auto" and config.backbone == SCATTERING)
    if not wanted:
        return None
    step = max(1, len(paths) // _SCALE_IMAGES)
    total, mean, square = 0, 0.0, 0.0
    for patches in iterate_patches(features, paths[::step], config, "measuring channel scale", progress):
        flat = patches.flatten(0, 1).double()
        total += len(flat)
        mean = mean + flat.sum(dim=0)
        square = square + (flat * flat).sum(dim=0)
    mean = torch.as_tensor(mean / total)
    deviation = (torch.as_tensor(square / total) - mean * mean).clamp(min=0).sqrt()
    # A channel that never moves (a grey set has no colour) must not be blown up: it keeps the smallest useful scale.
    floor = 1e-3 * deviation.max().clamp(min=1e-12)
    return (1.0 / deviation.clamp(min=float(floor))).float()


def to_numpy(patches: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a tensor as a float32 NumPy array on the CPU."""
    return patches.cpu().numpy().astype(np.float32, copy=False)
