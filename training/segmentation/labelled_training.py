"""What trainings on labelled defects share: their batches, the images of the validation, its error, and previews.

A batch is normal images and, as `defective_share` says, anomalous ones of all sources by their shares. Normal images,
anomalous ones and augmentation have streams of random numbers of their own: two trainings with one seed and different
mixtures differ in nothing else.

The best state has the least error on held-back images: the mean focal loss of the normal images of the validation, and
with the same weight that of anomalous ones, with one exponent for all trainings. Normal images alone would choose the
network that sees no defect anywhere.
The anomalous ones are drawn on normal images of the validation (drawn sets and procedural anomalies); where there are
none, they are those that are learned from, and the error says only when false alarms on new normal images grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.config import LabelledConfig
from flawscope.imaging.png import write_png
from flawscope.training.loop.draws import rows_here
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.labelled_sources import LabelledSources
from flawscope.training.segmentation.weak_loss import focal_loss

_VALIDATED = 64  # most normal, and most anomalous images of the validation
_PREVIEWS = 4
_GAMMA = 2.0
"""Exponent of the validation's focal loss. At 4, with which DeSTSeg is trained, a network that is undecided everywhere
has less loss than one that has learned and misses a few pixels."""

Logits = Callable[[UInt8Array], Tensor]
"""Images uint8 [N, H, W, 3] -> logits of a defect, float32 [N, 1, H, W] on the CPU, without gradients."""


@dataclass(frozen=True)
class TrainingData:
    """What is learned from.

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
        originals: uint8 [N, H, W, 3], the normal image that an anomaly was drawn on; the image itself for a normal one,
            and where `has_original` is false.
        has_original: Bool [N].
    """

    images: UInt8Array
    labels: BoolArray
    is_coarse: BoolArray
    originals: UInt8Array
    has_original: BoolArray


def draw_batch(config: LabelledConfig, data: TrainingData, generator: torch.Generator) -> Batch:
    """Return the batch of a step, or the images of it that this process has, with random shifts and flips.

    All of it depends on the generator's seed alone: processes that share a batch get different rows of the same one.
    """
    of_good, of_anomalous, of_changes = np.random.default_rng(generator.initial_seed()).spawn(3)
    count, rows = config.loop.batch_size, rows_here(generator)
    rows = np.arange(count) if rows is None else rows
    normal = count - config.anomalous
    # Normal images come first: of those here, and of the anomalous ones, the numbers among their own kind.
    of_normal, of_rest = rows[rows < normal], rows[rows >= normal] - normal
    anomalous = data.sources.draw(config.anomalous, of_anomalous, data.good, of_rest)
    picked = of_good.integers(len(data.good), size=normal)[of_normal]
    height, width = config.preprocessing.size
    good = np.empty((0, height, width, 3), np.uint8)
    if len(picked):
        good = next(iter(data.good.batches(picked, len(picked))))
    images, originals = (np.concatenate([good, part[of_rest]]) for part in (anomalous.images, anomalous.originals))
    labels = np.concatenate([np.zeros((len(good), height, width), np.bool_), anomalous.labels[of_rest]])
    margins = (round(config.shift * height), round(config.shift * width))
    flips = of_changes.random((count, 2)) < [0.5 * config.flip, 0.5 * config.flip_vertical]
    shifts = [of_changes.integers(-margin, margin + 1, size=count) for margin in margins]
    for index, row in enumerate(rows):
        change = (margins, (int(shifts[0][row]), int(shifts[1][row])), flips[row])
        for arrays in (images, originals, labels):
            arrays[index] = moved(arrays[index], *change)
    is_coarse = np.concatenate([np.zeros(len(good), np.bool_), anomalous.is_coarse[of_rest]])
    has_original = np.concatenate([np.ones(len(good), np.bool_), anomalous.has_original[of_rest]])
    return Batch(images, labels, is_coarse, originals, has_original)


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


def hold_back(config: LabelledConfig, data: TrainingData) -> HeldBack:
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
        batch = sources.draw(_VALIDATED // 2, np.random.default_rng(config.seed), data.good)
        images, labels = batch.images, batch.labels
    return HeldBack(images, labels, are_new)


def validation_error(
    config: LabelledConfig, validation: ImageReader, held_back: HeldBack, logits: Logits
) -> dict[str, float]:
    """Return `error`, and its two halves: of normal images (`false_alarms`), and of anomalous ones (`misses`)."""
    count, size = min(_VALIDATED, len(validation)), config.loop.batch_size

    def mean_loss(batches: Iterator[tuple[UInt8Array, BoolArray | None]]) -> float:
        losses = []
        for images, labels in batches:
            maps = logits(images)[:, 0]
            truth = torch.zeros_like(maps, dtype=torch.bool) if labels is None else torch.from_numpy(labels)
            losses.append(focal_loss(maps, truth, _GAMMA).mean(dim=(1, 2)))
        return float(torch.cat(losses).mean())

    normal = mean_loss((images, None) for images in validation.batches(range(count), size))
    anomalous = mean_loss(
        (held_back.images[start : start + size], held_back.labels[start : start + size])
        for start in range(0, len(held_back.images), size)
    )
    return {"error": normal + anomalous, "false_alarms": normal, "misses": anomalous}


def write_preview(path: Path, held_back: HeldBack, logits: Logits) -> None:
    """Write some anomalous images of the validation beside their labels and predicted probabilities."""
    images, labels = held_back.images[:_PREVIEWS], held_back.labels[:_PREVIEWS]
    probabilities = logits(images)[:, 0].sigmoid().numpy()
    rows = []
    for image, label, predicted in zip(images, labels, probabilities, strict=True):
        grey = [np.repeat((255 * values).astype(np.uint8)[..., None], 3, axis=2) for values in (label, predicted)]
        rows.append(np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), *grey]))
    write_png(path, np.vstack(rows), is_bgr=True)
