"""Settings of what has epochs, of what learns to tell noise, and of STFPM."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.detector import DetectorConfig, check

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
"""How the learning rate goes on after the warm-up; see `flawscope.training.loop.loop.learning_rate_share`."""


class TrainedConfig(DetectorConfig, frozen=True, kw_only=True):
    """What everything shares that has epochs.

    Attributes:
        epochs: Passes over the good pictures.
        learning_rate: Rate after the warm-up.
        schedule: `constant`; or to zero at the end: `linear`, `cosine`, `cosine_with_restarts`, `polynomial`.
        cycles: How often `cosine_with_restarts` falls from the full rate to zero.
        power: Of `polynomial`; 1 is `linear`.
        warmup_steps: Batches in which the rate rises to its value.
        accumulate: Batches whose gradients are summed before a step of the optimizer.
        clip_norm: Largest norm of the gradients; 0 does not limit it.
        ema: Decay of the averaged parameters that are validated and kept; 0 keeps the parameters themselves.
        max_steps: Steps of the optimizer after which the training ends, if `epochs` have not ended it before; null for
            no such limit. The last epoch may be cut short; it is validated as every other.
        mixed_precision: `no`, `bf16` or `fp16`.
        tf32: Whether a GPU may round matrix products to TF32. Its convolutions may in any case, as is torch's default.
        validation: Share of the training pictures that chooses the best epoch. They count as learned: thresholds are
            never set on them.
        checkpoint_every: Epochs between checkpoints.
        checkpoints_kept: How many of the newest are kept.
        preview_every: Epochs between preview pictures.
        tensorboard: Whether figures and previews are written for TensorBoard as well.
    """

    epochs: int = 100
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
    validation: float = 0.2
    checkpoint_every: int = 1
    checkpoints_kept: int = 2
    preview_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.epochs <= 1_000_000, "epochs", "1 to 1,000,000", self.epochs)
        check(0.0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self.learning_rate)
        check(1 <= self.cycles <= 1_000_000, "cycles", "1 to 1,000,000", self.cycles)
        check(0.0 < self.power < math.inf, "power", "a positive number", self.power)
        check(self.warmup_steps >= 0, "warmup_steps", "a count of at least 0", self.warmup_steps)
        check(1 <= self.accumulate <= 4096, "accumulate", "1 to 4096", self.accumulate)
        check(0.0 <= self.clip_norm < math.inf, "clip_norm", "a number of at least 0", self.clip_norm)
        check(0.0 <= self.ema < 1.0, "ema", "a decay from 0 to below 1", self.ema)
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        check(0.0 < self.validation < 1.0, "validation", "a share above 0 and below 1", self.validation)
        check(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        check(1 <= self.checkpoints_kept <= 1_000_000, "checkpoints_kept", "1 to 1,000,000", self.checkpoints_kept)
        check(self.preview_every >= 1, "preview_every", "at least 1", self.preview_every)


class DenoisingConfig(TrainedConfig, frozen=True, kw_only=True):
    """What everything shares in which a UNet of diffusers tells the noise.

    Attributes:
        optimizer: `adamw` (arXiv:1711.05101); `adamw8bit`, the same with its state in 8 bits (arXiv:2110.02861, by the
            package bitsandbytes); or `adam`, whose decay goes through the gradients.
        weight_decay: Of the optimizer.
        betas: Of the optimizer.
        gradient_checkpointing: Whether what the blocks of the UNet compute is not kept for the gradients but computed
            again (arXiv:1604.06174): less memory, more time.
    """

    optimizer: Literal["adamw", "adamw8bit", "adam"] = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0.0 <= self.weight_decay < math.inf, "weight_decay", "a number of at least 0", self.weight_decay)
        check(all(0.0 <= one < 1.0 for one in self.betas), "betas", "two decays from 0 to below 1", list(self.betas))


class StfpmConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="stfpm"):
    """Student-teacher feature pyramid matching (arXiv:2103.04257).

    The teacher is the backbone with its weights, the student the same architecture from a random start.

    Attributes:
        momentum: Of the stochastic gradient descent.
        weight_decay: Of the stochastic gradient descent.
        loss: `paper` has half the squared distance of a position (equation 3), `seed` the whole, which is a rate twice
            as large.
    """

    backbone: str = "resnet18"
    upsample: Literal["nearest", "bilinear"] = "bilinear"
    sigma: float = 0.0
    batch_size: int = 32
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: Literal["paper", "seed"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0.0 <= self.momentum < 1.0, "momentum", "0 to below 1", self.momentum)
        check(0.0 <= self.weight_decay < math.inf, "weight_decay", "a number of at least 0", self.weight_decay)
        check(self.backbone != "scattering", "backbone", "a network that can be trained, with weights", self.backbone)
