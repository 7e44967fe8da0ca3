"""Settings of what has epochs, and of STFPM."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.detector import DetectorConfig, check


class TrainedConfig(DetectorConfig, frozen=True, kw_only=True):
    """What everything shares that has epochs.

    Attributes:
        epochs: Passes over the good pictures.
        learning_rate: Rate after the warm-up.
        schedule: `constant`, or `cosine` to zero at the end.
        warmup_steps: Steps in which the rate rises to its value.
        accumulate: Batches whose gradients are summed before a step of the optimizer.
        clip_norm: Largest norm of the gradients; 0 does not limit it.
        ema: Decay of the averaged parameters that are validated and kept; 0 keeps the parameters themselves.
        mixed_precision: `no`, `bf16` or `fp16`.
        validation: Share of the training pictures that chooses the best epoch. They count as learned: thresholds are
            never set on them.
        checkpoint_every: Epochs between checkpoints.
        preview_every: Epochs between preview pictures.
    """

    epochs: int = 100
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    validation: float = 0.2
    checkpoint_every: int = 1
    preview_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.epochs <= 1_000_000, "epochs", "1 to 1,000,000", self.epochs)
        check(0.0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self.learning_rate)
        check(self.warmup_steps >= 0, "warmup_steps", "a count of at least 0", self.warmup_steps)
        check(1 <= self.accumulate <= 4096, "accumulate", "1 to 4096", self.accumulate)
        check(0.0 <= self.clip_norm < math.inf, "clip_norm", "a number of at least 0", self.clip_norm)
        check(0.0 <= self.ema < 1.0, "ema", "a decay from 0 to below 1", self.ema)
        check(0.0 < self.validation < 1.0, "validation", "a share above 0 and below 1", self.validation)
        check(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        check(self.preview_every >= 1, "preview_every", "at least 1", self.preview_every)


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
