"""Training of the segmenter that ships: a frozen backbone, labelled defects in any mixture, and an early end.

A batch is normal images and, as `defective_share` says, anomalous ones of all sources by their shares. Normal images,
anomalous ones and augmentation have streams of random numbers of their own: two trainings with one seed and different
mixtures differ in nothing else.

The best state has the least error on held-back images: the mean focal loss of the normal images of the validation, and
with the same weight that of anomalous ones. Normal images alone would choose the network that sees no defect anywhere.
The anomalous ones are drawn on normal images of the validation (drawn sets and procedural anomalies); where there are
none, they are those that are learned from, and the error says only when false alarms on new normal images grow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.config import SegmenterConfig
from flawscope.imaging.png import write_png
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.labelled_sources import LabelledSources
from flawscope.training.segmentation.segmenter_network import Segmenter, enlarge
from flawscope.training.segmentation.weak_loss import focal_loss, weak_focal_loss

_MEASURED = 64  # normal images from which the scale of the features is measured
_VALIDATED = 64  # most normal, and most anomalous images of the validation
_PREVIEWS = 4


@dataclass(frozen=True)
class TrainingData:
    """What a segmenter learns from.

    Attributes:
        good: Normal images that are learned from.
        validation: Normal images of the validation.
        sources: Labelled defects.
    """

    good: ImageReader
    validation: ImageReader
    sources: LabelledSources


@dataclass(frozen=True)
class Batch:
    """The batch of a step.

    Attributes:
        images: uint8 [N, H, W, 3], normal ones first.
        labels: Bool [N, H, W].
        is_coarse: Bool [N].
    """

    images: UInt8Array
    labels: BoolArray
    is_coarse: BoolArray


def draw_batch(config: SegmenterConfig, data: TrainingData, seed: int) -> Batch:
    """Return the batch of a step, with random shifts and flips; all of it depends on the seed alone."""
    of_good, of_anomalous, of_changes = np.random.default_rng(seed).spawn(3)
    count = config.loop.batch_size
    anomalous = data.sources.draw(config.anomalous, of_anomalous, data.good)
    normal = count - config.anomalous
    picked = of_good.integers(len(data.good), size=normal)
    images = np.concatenate([next(iter(data.good.batches(picked, normal))), anomalous.images])
    labels = np.concatenate([np.zeros((normal, *images.shape[1:3]), np.bool_), anomalous.labels])
    height, width = config.preprocessing.size
    margins = (round(config.shift * height), round(config.shift * width))
    flips = of_changes.random((count, 2)) < [0.5 * config.flip, 0.5 * config.flip_vertical]
    shifts = [of_changes.integers(-margin, margin + 1, size=count) for margin in margins]
    for index in range(count):
        change = (margins, (int(shifts[0][index]), int(shifts[1][index])), flips[index])
        images[index], labels[index] = moved(images[index], *change), moved(labels[index], *change)
    return Batch(images, labels, np.concatenate([np.zeros(normal, np.bool_), anomalous.is_coarse]))


def moved(
    array: npt.NDArray[Any], margins: tuple[int, int], shift: tuple[int, int], flips: BoolArray
) -> npt.NDArray[Any]:
    """Shift an array [H, W, ...] by whole pixels, then mirror it left to right and top to bottom."""
    height, width = array.shape[:2]
    sides = [(margin, margin) for margin in margins] + [(0, 0)] * (array.ndim - 2)
    padded = np.pad(array, sides, mode="reflect")
    top, left = margins[0] - shift[0], margins[1] - shift[1]
    shifted = padded[top : top + height, left : left + width]
    return shifted[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]


@dataclass(frozen=True)
class HeldBack:
    """Anomalous images of the validation.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: Bool [N, H, W].
        are_new: Whether none of them is learned from.
    """

    images: UInt8Array
    labels: BoolArray
    are_new: bool


def hold_back(config: SegmenterConfig, data: TrainingData) -> HeldBack:
    """Return the anomalous images of the validation: the same ones after every epoch."""
    sources, parts = data.sources, list[tuple[UInt8Array, BoolArray]]()
    if sources.held_back is not None:
        count = min(_VALIDATED, len(sources.held_back.images))
        rows = np.linspace(0, len(sources.held_back.images) - 1, count).round().astype(np.int64)
        parts.append((next(iter(sources.held_back.images.batches(rows, count))), sources.held_back.labels[rows]))
    if sources.procedural is not None:
        for number in range(min(_VALIDATED // 2, len(data.validation))):
            (image,) = next(iter(data.validation.batches([number], 1)))
            drawn, label = sources.procedural(image.copy(), np.random.default_rng((config.seed, number)))
            parts.append((drawn[None], label[None]))
    if are_new := bool(parts):
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    else:
        drawn = sources.draw(_VALIDATED // 2, np.random.default_rng(config.seed), data.good)
        images, labels = drawn.images, drawn.labels
    return HeldBack(images, labels, are_new)


class SegmenterTask:
    """The training of a segmenter; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        encoder: Backbone with its weights; it is copied.
        data: Training data.

    Attributes:
        network: The segmenter; the initial weights of its decoder depend on `config.seed` alone.
        held_back: Anomalous images of the validation.
    """

    def __init__(self, config: SegmenterConfig, encoder: Backbone, data: TrainingData) -> None:
        self._config, self._data = config, data
        self.held_back = hold_back(config, data)
        torch.manual_seed(config.seed)
        # A copy: trainings on several mixtures start from the same backbone, and one may train it.
        self.segmenter = Segmenter(
            copy.deepcopy(encoder).cpu(), config.preprocessing.size, config.width, train_encoder=config.train_encoder
        )
        measured = range(min(_MEASURED, len(data.good)))
        self.segmenter.standardise(data.good.batches(measured, config.loop.batch_size))
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
        return weak_focal_loss(logits, labels[:, None], is_coarse, config.gamma, config.labelled.weak_tau)

    def validate(self) -> dict[str, float]:
        """Return `error`, and its two halves: of normal images (`false_alarms`), and of anomalous ones (`misses`)."""
        count = min(_VALIDATED, len(self._data.validation))
        size = self._config.loop.batch_size
        normal = self._losses((images, None) for images in self._data.validation.batches(range(count), size))
        anomalous = self._losses(
            (self.held_back.images[start : start + size], self.held_back.labels[start : start + size])
            for start in range(0, len(self.held_back.images), size)
        )
        return {"error": normal + anomalous, "false_alarms": normal, "misses": anomalous}

    def _losses(self, batches: Iterator[tuple[UInt8Array, BoolArray | None]]) -> float:
        losses = []
        for images, labels in batches:
            maps = enlarge(self._logits(images), self._config.preprocessing.size)[:, 0]
            truth = torch.zeros_like(maps, dtype=torch.bool) if labels is None else torch.from_numpy(labels)
            losses.append(focal_loss(maps, truth, self._config.gamma).mean(dim=(1, 2)))
        return float(torch.cat(losses).mean())

    def _logits(self, images: UInt8Array) -> Tensor:
        device = next(self.segmenter.parameters()).device
        self.segmenter.eval()
        with torch.inference_mode():
            logits: Tensor = self.segmenter(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        return logits.float().cpu()

    def preview(self, path: Path) -> None:
        """Write some anomalous images of the validation beside their labels and predicted probabilities."""
        images, labels = self.held_back.images[:_PREVIEWS], self.held_back.labels[:_PREVIEWS]
        logits = enlarge(self._logits(images), self._config.preprocessing.size)
        probabilities: Float32Array = logits[:, 0].sigmoid().numpy()
        rows = []
        for image, label, predicted in zip(images, labels, probabilities, strict=True):
            grey = [np.repeat((255 * values).astype(np.uint8)[..., None], 3, axis=2) for values in (label, predicted)]
            rows.append(np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), *grey]))
        write_png(path, np.vstack(rows), is_bgr=True)
