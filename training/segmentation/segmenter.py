"""A small defect segmenter, trained on labelled images for the downstream benchmark of synthetic data.

U-shaped (arXiv:1505.04597): a backbone gives features at several strides, and a decoder joins them from the coarsest to
the finest (lateral 1×1 convolutions, doubling, 3×3 convolutions) to one logit per cell, upsampled bilinearly to the
image. The backbone is frozen unless `train_encoder` is set, so that a training takes minutes on a CPU.

Half of every batch is normal images, half anomalous ones: real, or with probability `synthetic_share` synthetic. Normal
and real images and all augmentation are drawn before, and independently of, what synthetic images replace: two
trainings with the same seed and different synthetic images differ in these alone. The result is the state after the
last step; no state is selected on the way.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import BoolArray, Float32Array, Float64Array, UInt8Array
from flawscope.config import (
    FeatureSettings,
    InputSettings,
    LoopSettings,
    TrainedConfig,
    TrainingDataSettings,
    from_flat,
)
from flawscope.config.setting_parts import check, places_of
from flawscope.errors import ArgumentError
from flawscope.imaging.png import write_png
from flawscope.progress import Progress
from flawscope.training.features.backbone import SCATTERING, Backbone
from flawscope.training.loop.image_batches import ImageReader, Numbers
from flawscope.training.loop.loop import Trained, run_loop
from flawscope.training.segmentation.segmenter_network import GROUPS, Segmenter, enlarge
from flawscope.training.segmentation.weak_loss import focal_loss, weak_focal_loss

_MEASURED = 64  # normal images from which the scale of the features is measured
_VALIDATED = 64  # at most, for the validation error
_PREVIEWS = 4


class SegmenterConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="segmenter"):
    """Settings of the segmenter and its training.

    Attributes:
        steps: Steps of the optimizer.
        width: Channels of the decoder, a multiple of 8.
        train_encoder: Train the backbone too; the statistics of its batch norm stay fixed.
        encoder_rate: Learning rate of the backbone, as a share of `learning_rate`.
        gamma: Exponent of the focal loss.
        defective_share: Share of anomalous images in a batch.
        synthetic_share: Share of these that come from the synthetic set.
        weak_tau: Use the boxes of synthetic images as labels, and count pixels inside only where the probability of a
            defect is above this (`flawscope.training.segmentation.weak_loss`); null uses their precise masks.
        flip: Mirror half of the images left to right.
        flip_vertical: Mirror half of the images top to bottom.
        shift: Largest shift, as a share of the sides; borders are continued by reflection.
        top: An image's score is the mean probability of this many pixels, the highest ones (DeSTSeg).
        weight_decay: Weight decay of AdamW.
    """

    features: FeatureSettings = FeatureSettings()
    input: InputSettings = InputSettings(resize=(128, 128))
    loop: LoopSettings = LoopSettings(
        epochs=1, batch_size=16, learning_rate=2e-3, schedule="cosine", warmup_steps=20, ema=0.98
    )
    data: TrainingDataSettings = TrainingDataSettings(validation=0.1)
    steps: int = 400
    width: int = 48
    train_encoder: bool = False
    encoder_rate: float = 0.1
    gamma: float = 2.0
    defective_share: float = 0.5
    synthetic_share: float = 0.5
    weak_tau: float | None = None
    flip: bool = True
    flip_vertical: bool = False
    shift: float = 0.03
    top: int = 100
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        loop, batch_size, backbone = self.loop, self.loop.batch_size, self.features.backbone
        check(loop.epochs == 1, "epochs", "1 (steps says how long a segmenter learns)", loop.epochs)
        check(1 <= self.steps <= 1_000_000, "steps", "1 to 1,000,000", self.steps)
        check(loop.max_steps is None, "max_steps", "none (steps says how long a segmenter learns)", loop.max_steps)
        check(batch_size >= 2, "batch_size", "at least 2, of which one is good", batch_size)
        check(8 <= self.width <= 1024 and self.width % GROUPS == 0, "width", "a multiple of 8, 8 to 1024", self.width)
        can_learn = not self.train_encoder or backbone != SCATTERING
        check(can_learn, "backbone", "a network that can be trained (train_encoder is set)", backbone)
        check(0.0 < self.encoder_rate <= 1.0, "encoder_rate", "a share above 0 up to 1", self.encoder_rate)
        check(0.0 <= self.gamma <= 10.0, "gamma", "0 to 10", self.gamma)
        check(0.0 < self.defective_share < 1.0, "defective_share", "a share above 0 and below 1", self.defective_share)
        check(0.0 <= self.synthetic_share <= 1.0, "synthetic_share", "a share from 0 to 1", self.synthetic_share)
        if self.weak_tau is not None:
            check(0.0 <= self.weak_tau < 1.0, "weak_tau", "a probability from 0 to below 1", self.weak_tau)
        check(0.0 <= self.shift <= 0.25, "shift", "a share from 0 to 0.25", self.shift)
        check(self.top >= 1, "top", "at least 1", self.top)
        check(0.0 <= self.weight_decay < math.inf, "weight_decay", "a number of at least 0", self.weight_decay)

    @property
    def defective(self) -> int:
        """Number of anomalous images in a batch: at least one, and at least one fewer than the batch."""
        return min(max(1, round(self.loop.batch_size * self.defective_share)), self.loop.batch_size - 1)


def build_segmenter_config(*layers: Mapping[str, Any]) -> SegmenterConfig:
    """Merge layers of settings (later layers win); one number stands for both sides, or for all three channels.

    Raises:
        ArgumentError: If a key or a value is unknown or out of range.
    """
    merged: dict[str, Any] = {}
    for key, value in (entry for layer in layers for entry in layer.items()):
        settings = places_of(SegmenterConfig)
        if key not in settings:
            close = difflib.get_close_matches(key, settings, 1)
            raise ArgumentError(
                f"{key}: is no setting of the segmenter. "
                + (f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(settings))}.")
            )
        # bool is a subclass of int.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        count = {"resize": 2, "crop": 2, "mean": 3, "std": 3, "stages": 1}.get(key, 0)
        merged[key] = [value] * count if is_number and count else value
    return from_flat(SegmenterConfig, merged, strict=False, what="the segmenter")


@dataclass(frozen=True)
class Labelled:
    """Anomalous images and their labels.

    Attributes:
        images: The images.
        labels: Bool [N, H, W], true at the defect, of the size of the prepared images.
        is_coarse: Whether labels are boxes, whose pixels count in part (`weak_focal_loss`).
    """

    images: ImageReader
    labels: BoolArray
    is_coarse: bool = False


@dataclass(frozen=True)
class SegmenterData:
    """Training data of a segmenter.

    Attributes:
        good: Normal images.
        held_back: Normal images for the validation error.
        real: Real anomalous images.
        synthetic: Synthetic anomalous images, or None.
    """

    good: ImageReader
    held_back: ImageReader
    real: Labelled
    synthetic: Labelled | None = None


@dataclass(frozen=True)
class Batch:
    """The batch of a step.

    Attributes:
        images: uint8 [N, H, W, 3], normal ones first.
        labels: Bool [N, H, W].
        is_coarse: Bool [N].
        is_synthetic: Bool [N].
    """

    images: UInt8Array
    labels: BoolArray
    is_coarse: BoolArray
    is_synthetic: BoolArray


def draw_batch(config: SegmenterConfig, data: SegmenterData, seed: int) -> Batch:
    """Return the batch of a step, with random shifts and flips.

    Normal and real images and the augmentation depend on the seed alone; after them synthetic images replace some of
    the real ones.

    Args:
        config: Settings.
        data: Training data.
        seed: Seed of the step.
    """
    chance = np.random.default_rng(seed)
    defective = config.defective
    good = config.loop.batch_size - defective
    height, width = config.preprocessing.size
    margins = (round(config.shift * height), round(config.shift * width))
    # All draws that do not concern synthetic images come first: with other synthetic images, or none, they stay the
    # same, so that the benchmark compares pairs of trainings that differ in nothing else.
    of_good = chance.integers(len(data.good), size=good)
    of_real = chance.integers(len(data.real.images), size=defective)
    flips = chance.random((config.loop.batch_size, 2)) < [0.5 * config.flip, 0.5 * config.flip_vertical]
    shifts = [chance.integers(-margin, margin + 1, size=config.loop.batch_size) for margin in margins]

    images = np.empty((config.loop.batch_size, height, width, 3), np.uint8)
    labels = np.zeros((config.loop.batch_size, height, width), np.bool_)
    is_synthetic, is_coarse = np.zeros((2, config.loop.batch_size), np.bool_)
    images[:good] = _read(data.good, of_good)
    images[good:], labels[good:] = _read(data.real.images, of_real), data.real.labels[of_real]
    if data.synthetic is not None:
        is_synthetic[good:] = chance.random(defective) < config.synthetic_share
        of_synthetic = chance.integers(len(data.synthetic.images), size=defective)[is_synthetic[good:]]
        if of_synthetic.size:
            images[is_synthetic] = _read(data.synthetic.images, of_synthetic)
            labels[is_synthetic] = data.synthetic.labels[of_synthetic]
            is_coarse = is_synthetic & data.synthetic.is_coarse
    for index in range(config.loop.batch_size):
        change = (margins, (int(shifts[0][index]), int(shifts[1][index])), flips[index])
        images[index], labels[index] = _augment(images[index], *change), _augment(labels[index], *change)
    return Batch(images, labels, is_coarse, is_synthetic)


def _read(images: ImageReader, numbers: npt.NDArray[np.int64]) -> UInt8Array:
    batch: UInt8Array = next(iter(images.batches(numbers, len(numbers))))
    return batch


def _augment(
    array: npt.NDArray[Any], margins: tuple[int, int], shift: tuple[int, int], flips: BoolArray
) -> npt.NDArray[Any]:
    """Shift an array [H, W, ...] by whole pixels, then mirror it left to right and top to bottom."""
    height, width = array.shape[:2]
    sides = [(margin, margin) for margin in margins] + [(0, 0)] * (array.ndim - 2)
    padded = np.pad(array, sides, mode="reflect")
    top, left = margins[0] - shift[0], margins[1] - shift[1]
    shifted = padded[top : top + height, left : left + width]
    return shifted[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]


class SegmenterTask:
    """The training of a segmenter; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        encoder: Backbone with its weights; it is copied.
        data: Training data.

    Attributes:
        network: The segmenter; the initial weights of its decoder depend on `config.seed` alone.
    """

    def __init__(self, config: SegmenterConfig, encoder: Backbone, data: SegmenterData) -> None:
        self._config, self._data = config, data
        torch.manual_seed(config.seed)
        # A copy: trainings on several data sets start from the same backbone, and one may train it.
        self.segmenter = Segmenter(
            copy.deepcopy(encoder), config.preprocessing.size, config.width, train_encoder=config.train_encoder
        )
        self.segmenter.standardise(
            data.good.batches(range(min(_MEASURED, len(data.good))), config.loop.batch_size),
        )
        self.network: nn.Module = self.segmenter

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW over the decoder, and over the encoder, if it is trained, at a lower rate."""
        config = self._config
        trained = [parameter for parameter in self.segmenter.encoder.parameters() if parameter.requires_grad]
        # By identity: `in` on a list of tensors would compare their elements.
        of_encoder = {id(parameter) for parameter in self.segmenter.encoder.parameters()}
        decoder = [parameter for parameter in self.segmenter.parameters() if id(parameter) not in of_encoder]
        groups: list[dict[str, Any]] = [{"params": decoder}]
        if trained:
            groups.append({"params": trained, "lr": config.loop.learning_rate * config.encoder_rate})
        return torch.optim.AdamW(groups, lr=config.loop.learning_rate, weight_decay=config.weight_decay)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a step. `images` are mere numbers and ignored: the seed of the step draws the batch."""
        config = self._config
        batch = draw_batch(config, self._data, generator.initial_seed())
        pixels, labels, is_coarse = (
            torch.from_numpy(array).to(images.device) for array in (batch.images, batch.labels, batch.is_coarse)
        )
        # In float32 under autocast too: the loss takes logarithms of small probabilities.
        logits = enlarge(network(pixels).float(), config.preprocessing.size)
        return weak_focal_loss(logits, labels[:, None], is_coarse, config.gamma, config.weak_tau)

    def validate(self) -> dict[str, float]:
        """Return the mean loss of the held-back normal images, for the metrics alone: no state is selected by it."""
        count = min(_VALIDATED, len(self._data.held_back))
        maps = torch.from_numpy(predict(self.segmenter, self._data.held_back, count))
        losses = focal_loss(maps, torch.zeros_like(maps, dtype=torch.bool), self._config.gamma)
        return {"error": float(losses.mean())}

    def preview(self, path: Path) -> None:
        """Write some real anomalous images beside their labels and predicted probabilities."""
        real = self._data.real
        count = min(_PREVIEWS, len(real.images))
        images = _read(real.images, np.arange(count))
        maps = torch.from_numpy(predict(self.segmenter, real.images, count))
        probabilities = enlarge(maps[:, None].sigmoid(), self._config.preprocessing.size)[:, 0].numpy()
        rows = []
        # Not strict: the labels are those of all images.
        for image, label, predicted in zip(images, real.labels, probabilities, strict=False):
            grey = [np.repeat((255 * values).astype(np.uint8)[..., None], 3, axis=2) for values in (label, predicted)]
            rows.append(np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), *grey]))
        write_png(path, np.vstack(rows), is_bgr=True)


def train_segmenter(
    config: SegmenterConfig, encoder: Backbone, data: SegmenterData, folder: Path, progress: Progress
) -> tuple[Segmenter, Trained]:
    """Train a segmenter.

    Args:
        config: Settings.
        encoder: Backbone with its weights; it is copied.
        data: Training data.
        folder: Where metrics, a preview and a checkpoint are written.
        progress: Receives the number of steps so far.

    Returns:
        The segmenter after the last step (averaged over steps where `ema` is above 0), on the CPU, and the record of
        the loop.

    Raises:
        RunError: If memory runs out, or the loss is not finite.
    """
    task = SegmenterTask(config, encoder, data)
    # One epoch of `steps` batches: its only validation makes the last state the best, averaged where `ema` is set.
    trained = run_loop(task, Numbers(config.steps * config.loop.batch_size), config, folder, progress=progress)
    segmenter = task.segmenter.cpu()
    segmenter.load_state_dict(trained.state)
    return segmenter.eval(), trained


def predict(segmenter: Segmenter, reader: ImageReader, count: int | None = None, batch_size: int = 16) -> Float32Array:
    """Return the logits of the first `count` images, or of all images: float32 [N, h, w] on the grid of the network."""
    device = next(segmenter.parameters()).device
    segmenter.eval()
    parts = []
    with torch.inference_mode():
        for images in reader.batches(range(len(reader) if count is None else count), batch_size):
            parts.append(segmenter(torch.from_numpy(images).to(device))[:, 0].float().cpu().numpy())
    return np.concatenate(parts)


def image_scores(logits: Float32Array, top: int) -> Float64Array:
    """Return the mean probability of each image's `top` highest pixels, float64 [N].

    Args:
        logits: Float32 [N, H, W].
        top: Number of pixels; if an image has fewer, all count.
    """
    flat = logits.reshape(len(logits), -1)
    # Partitioning is linear, unlike sorting; float64, for the exponential and the mean.
    highest = np.partition(flat, flat.shape[1] - min(top, flat.shape[1]), axis=1)[:, -min(top, flat.shape[1]) :]
    return np.asarray((1.0 / (1.0 + np.exp(-highest.astype(np.float64)))).mean(axis=1))
