"""Settings of training in epochs: the loop, its images, and the optimizer of denoising networks."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.feature_settings import check_memory_budget
from flawscope.config.setting_parts import SettingPart, check

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "drop", "drops"]
"""Learning-rate schedule after the warm-up; see `flawscope.training.loop.schedule.learning_rate_share`."""


class LoopSettings(SettingPart, frozen=True, kw_only=True):
    """The training loop.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per batch.
        learning_rate: Peak learning rate, after the warm-up.
        schedule: Learning-rate schedule after the warm-up: `constant`; `drop`, a tenth from 4/5 of the batches on, as
            LafitE has it; `drops`, a tenth from 4/7 on and a hundredth from 6/7 on, as DRAEM has it; the others fall
            to zero.
        cycles: Cycles of `cosine_with_restarts`.
        power: Exponent of `polynomial`; 1 is `linear`.
        warmup_steps: Batches of linear learning-rate warm-up.
        accumulate: Gradient accumulation: batches per optimizer step.
        clip_norm: Gradient clipping: largest norm; 0 for none.
        ema: Decay of the exponential moving average of the parameters, which is validated and saved; 0 for none.
        max_steps: Most optimizer steps, if `epochs` do not end the training before; null for no limit. A last epoch cut
            short is validated all the same.
        patience: Epochs without a lower validation error after which the training ends; null takes all epochs.
        mixed_precision: Mixed precision of the training.
        tf32: Allow TF32 for matrix products on a GPU. Convolutions may use it in any case, as is torch's default.
        checkpoint_every: Epochs between checkpoints.
        checkpoints_kept: Newest checkpoints kept.
        preview_every: Epochs between preview images.
        tensorboard: Write metrics and previews for TensorBoard too.
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
    patience: int | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    tf32: bool = False
    checkpoint_every: int = 1
    checkpoints_kept: int = 2
    preview_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check(1 <= self.epochs <= 1_000_000, "epochs", "1 to 1,000,000", self.epochs)
        check(1 <= self.batch_size <= 1024, "batch_size", "1 to 1024", self.batch_size)
        # Comparisons in this form refuse NaN, which YAML can write as .nan.
        check(0.0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self.learning_rate)
        check(1 <= self.cycles <= 1_000_000, "cycles", "1 to 1,000,000", self.cycles)
        check(0.0 < self.power < math.inf, "power", "a positive number", self.power)
        check(self.warmup_steps >= 0, "warmup_steps", "a count of at least 0", self.warmup_steps)
        check(1 <= self.accumulate <= 4096, "accumulate", "1 to 4096", self.accumulate)
        check(0.0 <= self.clip_norm < math.inf, "clip_norm", "a number of at least 0", self.clip_norm)
        # A decay of 1 would keep the random start forever.
        check(0.0 <= self.ema < 1.0, "ema", "a decay from 0 to below 1", self.ema)
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        check(self.patience is None or self.patience >= 1, "patience", "at least 1, or null", self.patience)
        check(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        check(1 <= self.checkpoints_kept <= 1_000_000, "checkpoints_kept", "1 to 1,000,000", self.checkpoints_kept)
        check(self.preview_every >= 1, "preview_every", "at least 1", self.preview_every)


class TrainingDataSettings(SettingPart, frozen=True, kw_only=True):
    """Training and validation images.

    Attributes:
        validation: Share of the training images that selects the best epoch. They count as seen: thresholds are never
            set on them.
        num_workers: Threads that decode and resize images; 0 does so between the batches, without threads.
        memory_budget_mb: Most memory for decoded images, in MiB; the others are decoded again in each epoch.
    """

    validation: float = 0.2
    num_workers: int = 2
    # A limit, because decoded datasets may be larger than the memory of the machine.
    memory_budget_mb: int = 1024

    def __post_init__(self) -> None:
        check(0.0 < self.validation < 1.0, "validation", "a share above 0 and below 1", self.validation)
        check(0 <= self.num_workers <= 64, "num_workers", "0 to 64", self.num_workers)
        check_memory_budget(self.memory_budget_mb)


class DenoisingSettings(SettingPart, frozen=True, kw_only=True):
    """Training of the denoising UNet.

    Attributes:
        optimizer: `adamw` (arXiv:1711.05101); `adamw8bit`, with 8-bit state (arXiv:2110.02861, needs bitsandbytes); or
            `adam`, with L2 regularization in place of decoupled decay.
        weight_decay: Weight decay of the optimizer.
        betas: Betas of Adam.
        gradient_checkpointing: Recompute activations in the backward pass (arXiv:1604.06174): less memory, more time.
    """

    optimizer: Literal["adamw", "adamw8bit", "adam"] = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_decay(self.weight_decay)
        check_betas(self.betas)


def check_decay(weight_decay: float) -> None:
    """Raise ArgumentError if a weight decay is negative, infinite or NaN."""
    check(0.0 <= weight_decay < math.inf, "weight_decay", "a number of at least 0", weight_decay)


def check_betas(betas: tuple[float, float]) -> None:
    """Raise ArgumentError unless both betas of Adam are from 0 to below 1."""
    check(all(0.0 <= beta < 1.0 for beta in betas), "betas", "two decays from 0 to below 1", list(betas))
