"""What trainings in epochs share: pictures to learn from and to validate on, noise levels, figures for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flawscope.config import TrainedConfig
from flawscope.datasets import Sample, split_held_out
from flawscope.diffusion import TRAINED_STEPS
from flawscope.errors import DataError
from flawscope.training.loading import Pictures, Progress, pictures_of

LEAST_VALIDATION = 2
MOST_VALIDATED = 64
"""Validation pictures whose noise is predicted after each epoch."""


def split_pictures(
    method: str, config: TrainedConfig, samples: Sequence[Sample], hashes: Mapping[Path, str], progress: Progress
) -> tuple[Pictures, Pictures]:
    """Return the pictures to learn from, and those that choose the best epoch.

    Args:
        method: Name of the method, for the error.
        config: Settings.
        samples: Good pictures.
        hashes: Content hash of every picture.
        progress: Told how many have been read.

    Raises:
        DataError: If there are too few.
    """
    if len(samples) < 2 * LEAST_VALIDATION:
        raise DataError(
            f"{method}: expected at least {2 * LEAST_VALIDATION} good training pictures, got {len(samples)}."
        )
    parts = split_held_out(
        samples, share=config.validation, minimum=LEAST_VALIDATION, seed=config.seed + 1, hashes=hashes
    )
    learned, chosen = (
        Pictures(
            pictures_of(part, config.tiling),
            config.preprocessing,
            config.num_workers,
            config.memory_budget_mb // 2,
            progress,
        )
        for part in parts
    )
    return learned, chosen


def spread_levels(count: int, seed: int) -> Tensor:
    """Return noise levels int64 [count], spread evenly and mixed, so that every batch has high and low ones."""
    spread = (np.arange(count) + 0.5) * TRAINED_STEPS / count
    return torch.from_numpy(spread[np.random.default_rng(seed).permutation(count)].astype(np.int64))


def rounded(value: float) -> float:
    """Return a figure with six digits, for the record."""
    return float(f"{value:.6g}")
