"""Settings of what has epochs: the loop, the images it learns from, and the optimizer of denoising networks."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.feature_settings import check_memory_budget
from flawscope.config.setting_parts import SettingPart, check

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
"""How the learning rate goes on after the warm-up; see `flawscope.training.loop.loop.learning_rate_share`."""


class LoopSettings(SettingPart, frozen=True, kw_only=True):
    """The training loop.

    Attributes:
        epochs: Passes over what is learned from.
        batch_size: Images per batch.
        learning_rate: Rate after the warm-up.
        schedule: `constant`; or to zero at the end: `linear`, `cosine`, `cosine_with_restarts`, `polynomial`.
        cycles: How often `cosine_with_restarts` falls from the full rate to zero.
        power: Exponent of `polynomial`; 1 is `linear`.
        warmup_steps: Batches in which the rate rises to its value.
        accumulate: Batches whose gradients are summed before a step of the optimizer.
        clip_norm: Largest norm of the gradients; 0 does not limit it.
        ema: Decay of the averaged parameters that are validated and kept; 0 keeps the parameters themselves.
        max_steps: Steps of the optimizer after which the training ends, if `epochs` have not ended it before; null for
            no such limit. The last epoch may be cut short; it is validated as every other.
        mixed_precision: `no`, `bf16` or `fp16`.
        tf32: Whether a GPU may round matrix products to TF32. Its convolutions may in any case, as is torch's default.
        checkpoint_every: Epochs between checkpoints.
        checkpoints_kept: How many of the newest are kept.
        preview_every: Epochs between preview images.
        tensorboard: Whether figures and previews are written for TensorBoard as well.
    """

    epochs: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    cycles: int = 1
    power: float = 1.0
    warmup_steps: int = 0
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    max_steps: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    tf32: bool = False
    checkpoint_every: int = 1
    checkpoints_kept: int = 2
    preview_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check(1 <= self.epochs <= 1_000_000, "epochs", "1 to 1,000,000", self.epochs)
        check(1 <= self.batch_size <= 1024, "batch_size", "1 to 1024", self.batch_size)
        check(0.0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self.learning_rate)
        check(1 <= self.cycles <= 1_000_000, "cycles", "1 to 1,000,000", self.cycles)
        check(0.0 < self.power < math.inf, "power", "a positive number", self.power)
        check(self.warmup_steps >= 0, "warmup_steps", "a count of at least 0", self.warmup_steps)
        check(1 <= self.accumulate <= 4096, "accumulate", "1 to 4096", self.accumulate)
        check(0.0 <= self.clip_norm < math.inf, "clip_norm", "a number of at least 0", self.clip_norm)
        check(0.0 <= self.ema < 1.0, "ema", "a decay from 0 to below 1", self.ema)
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        check(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        check(1 <= self.checkpoints_kept <= 1_000_000, "checkpoints_kept", "1 to 1,000,000", self.checkpoints_kept)
        check(self.preview_every >= 1, "preview_every", "at least 1", self.preview_every)


class TrainingDataSettings(SettingPart, frozen=True, kw_only=True):
    """The images of a training in epochs.

    Attributes:
        validation: Share of the training images that chooses the best epoch. They count as learned: thresholds are
            never set on them.
        num_workers: Threads that decode and resize.
        memory_budget_mb: Upper bound of the decoded images held in memory; more are decoded anew in each epoch.
    """

    validation: float = 0.2
    num_workers: int = 2
    memory_budget_mb: int = 1024

    def __post_init__(self) -> None:
        check(0.0 < self.validation < 1.0, "validation", "a share above 0 and below 1", self.validation)
        check(1 <= self.num_workers <= 64, "num_workers", "1 to 64", self.num_workers)
        check_memory_budget(self.memory_budget_mb)


class DenoisingSettings(SettingPart, frozen=True, kw_only=True):
    """How a UNet of diffusers learns to predict noise.

    Attributes:
        optimizer: `adamw` (arXiv:1711.05101); `adamw8bit`, the same with its state in 8 bits (arXiv:2110.02861, by the
            package bitsandbytes); or `adam`, whose decay goes through the gradients.
        weight_decay: Weight decay of the optimizer.
        betas: Decays of the optimizer's first and second moment.
        gradient_checkpointing: Whether what the blocks of the UNet compute is not kept for the gradients but computed
            again (arXiv:1604.06174): less memory, more time.
    """

    optimizer: Literal["adamw", "adamw8bit", "adam"] = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_decay(self.weight_decay)
        check_betas(self.betas)


def check_decay(weight_decay: float) -> None:
    """Raise ArgumentError unless the weight decay of an optimizer is one."""
    check(0.0 <= weight_decay < math.inf, "weight_decay", "a number of at least 0", weight_decay)


def check_betas(betas: tuple[float, float]) -> None:
    """Raise ArgumentError unless the betas of Adam are decays."""
    check(all(0.0 <= beta < 1.0 for beta in betas), "betas", "two decays from 0 to below 1", list(betas))
