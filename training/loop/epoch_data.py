"""Shared by all trainings in epochs: the validation split, noise levels, validation errors, recorded figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from flawscope.arrays import UInt8Array
from flawscope.config import MethodConfig, TrainedConfig, TrainingDataSettings
from flawscope.datasets import Sample, split_held_out
from flawscope.diffusion.schedule import TRAINED_STEPS
from flawscope.errors import DataError
from flawscope.progress import Progress
from flawscope.training.loop.image_batches import ImageReader, image_sources
from flawscope.training.loop.loop import Trained

LEAST_VALIDATION = 2
MOST_VALIDATED = 64
"""Most validation images that are measured after each epoch."""

_Part = TypeVar("_Part")


def split_images(
    method: str,
    config: MethodConfig,
    data: TrainingDataSettings,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    progress: Progress,
) -> tuple[ImageReader, ImageReader]:
    """Return the images to train on, and the validation images that choose the best epoch.

    Args:
        method: Name of the method, for the error.
        config: Settings of the method: seed and input.
        data: Share of validation images, and memory.
        samples: Normal images.
        hashes: Content hash of every image.
        progress: Receives how many have been read.

    Raises:
        DataError: If there are too few.
    """
    if len(samples) < 2 * LEAST_VALIDATION:
        raise DataError(
            f"{method}: expected at least {2 * LEAST_VALIDATION} normal training images, got {len(samples)}."
        )
    # The seed is not that of the split for thresholds (`config.seed`), so that the two choices are independent. Both
    # depend on contents alone: renamed files give the same split.
    parts = split_held_out(
        samples, share=data.validation, minimum=LEAST_VALIDATION, seed=config.seed + 1, hashes=hashes
    )
    training, validation = (
        ImageReader(
            image_sources(part, config.tiling),
            config.preprocessing,
            data.num_workers,
            data.memory_budget_mb // 2,  # each of the two readers gets half
            progress,
        )
        for part in parts
    )
    return training, validation


def spread_levels(count: int, seed: int) -> Tensor:
    """Return noise levels int64 [count], spread evenly and shuffled, so that every batch has high and low ones."""
    spread = (np.arange(count) + 0.5) * TRAINED_STEPS / count
    return torch.from_numpy(spread[np.random.default_rng(seed).permutation(count)].astype(np.int64))


@torch.no_grad()
def mean_error(
    parts: Iterable[_Part], errors: Callable[[_Part, torch.Generator], Tensor], device: torch.device, seed: int
) -> dict[str, float]:
    """Return `error`, the mean over all measured parts; see `flawscope.training.loop.loop.Task.validate`.

    Args:
        parts: Batches, measured one after the other.
        errors: Takes a part and a generator for its noise; returns its errors, [N].
        device: Device of the generator.
        seed: Seed of the generator: every epoch is measured with the same noise.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    # One mean over all errors: a mean of the parts' means would give a smaller last batch more weight.
    return {"error": float(torch.cat([errors(part, generator) for part in parts]).mean())}


def noise_error(
    config: TrainedConfig,
    validation: ImageReader,
    squared_errors: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Return the mean squared error of the predicted noise in validation images, at the same levels every time.

    Args:
        config: Settings.
        validation: The images, of which at most `MOST_VALIDATED` are used.
        squared_errors: Takes images uint8 [N, H, W, 3], levels int64 [N] and a generator for the noise; returns
            [N, C, h, w].
        device: Device of the network.
    """
    count = min(len(validation), MOST_VALIDATED)
    levels = spread_levels(count, config.seed).to(device)
    batches = validation.batches(range(count), config.loop.batch_size)

    def errors(part: tuple[UInt8Array, Tensor], generator: torch.Generator) -> Tensor:
        return squared_errors(torch.from_numpy(part[0]).to(device), part[1], generator).mean(dim=(1, 2, 3))

    return mean_error(
        zip(batches, torch.split(levels, config.loop.batch_size), strict=True), errors, device, config.seed
    )


def training_facts(trained: Trained) -> dict[str, int | float | str]:
    """Return the figures of a training for the record of its run."""
    return {
        "epochs": len(trained.losses),
        "best_epoch": trained.epoch,
        "validation_error": rounded(trained.error),
        "final_loss": rounded(trained.losses[-1]),
        **trained.processes,
    }


def rounded(value: float) -> float:
    """Return a figure rounded to six significant digits, for the record."""
    return float(f"{value:.6g}")
