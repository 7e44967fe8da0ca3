"""Shared by all trainings in epochs: training and validation images, noise levels, recorded figures."""

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
"""Validation images whose noise is predicted after each epoch."""

_Part = TypeVar("_Part")


def split_images(
    method: str,
    config: MethodConfig,
    data: TrainingDataSettings,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    progress: Progress,
) -> tuple[ImageReader, ImageReader]:
    """Return the images to learn from, and those that choose the best epoch.

    Args:
        method: Name of the method, for the error.
        config: Settings of the method: seed and input.
        data: Share and memory.
        samples: Normal images.
        hashes: Content hash of every image.
        progress: Told how many have been read.

    Raises:
        DataError: If there are too few.
    """
    if len(samples) < 2 * LEAST_VALIDATION:
        raise DataError(
            f"{method}: expected at least {2 * LEAST_VALIDATION} normal training images, got {len(samples)}."
        )
    parts = split_held_out(
        samples, share=data.validation, minimum=LEAST_VALIDATION, seed=config.seed + 1, hashes=hashes
    )
    learned, chosen = (
        ImageReader(
            image_sources(part, config.tiling),
            config.preprocessing,
            data.num_workers,
            data.memory_budget_mb // 2,
            progress,
        )
        for part in parts
    )
    return learned, chosen


def spread_levels(count: int, seed: int) -> Tensor:
    """Return noise levels int64 [count], spread evenly and mixed, so that every batch has high and low ones."""
    spread = (np.arange(count) + 0.5) * TRAINED_STEPS / count
    return torch.from_numpy(spread[np.random.default_rng(seed).permutation(count)].astype(np.int64))


@torch.no_grad()
def mean_error(
    parts: Iterable[_Part], errors: Callable[[_Part, torch.Generator], Tensor], device: torch.device, seed: int
) -> dict[str, float]:
    """Return `error`, the mean over everything that is measured; see `flawscope.training.loop.loop.Task.validate`.

    Args:
        parts: What is measured at once, one after the other.
        errors: Takes a part, and what gives it noise; returns its errors, [N].
        device: Of that generator.
        seed: Of that generator: the noise is always the same.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    return {"error": float(torch.cat([errors(part, generator) for part in parts]).mean())}


def noise_error(
    config: TrainedConfig,
    validation: ImageReader,
    squared_errors: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Return the mean squared error of predicted noise in held-back images, at levels that stay the same.

    Args:
        config: Settings.
        validation: The images, of which at most 64 are taken.
        squared_errors: Takes images uint8 [N, H, W, 3], levels int64 [N] and what gives the noise; returns [N, ...].
        device: Where they are measured.
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
    """Return what the record of a run tells of its training."""
    return {
        "epochs": len(trained.losses),
        "best_epoch": trained.epoch,
        "validation_error": rounded(trained.error),
        "final_loss": rounded(trained.losses[-1]),
    }


def rounded(value: float) -> float:
    """Return a figure with six digits, for the record."""
    return float(f"{value:.6g}")
