"""Training of the segmenter that ships: a frozen backbone, labelled defects in any mixture, and an early end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import UInt8Array
from flawscope.config import SegmenterConfig
from flawscope.training.features.backbone import Backbone
from flawscope.training.segmentation.labelled_training import (
    TrainingData,
    draw_batch,
    hold_back,
    validation_error,
    write_preview,
)
from flawscope.training.segmentation.segmenter_network import Segmenter, enlarge
from flawscope.training.segmentation.weak_loss import weak_focal_loss

_MEASURED = 64  # normal images from which the scale of the features is measured


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
        batch = draw_batch(config, self._data, generator)
        pixels, labels, is_coarse = (
            torch.from_numpy(array).to(images.device) for array in (batch.images, batch.labels, batch.is_coarse)
        )
        # In float32 under autocast too: the loss takes logarithms of small probabilities.
        logits = enlarge(network(pixels).float(), config.preprocessing.size)
        return weak_focal_loss(logits, labels[:, None], is_coarse, config.gamma, config.labelled.weak_tau)

    def validate(self) -> dict[str, float]:
        """Return the error on held-back images; see `validation_error`."""
        return validation_error(self._config, self._data.validation, self.held_back, self._logits)

    def preview(self, path: Path) -> None:
        """Write some anomalous images of the validation beside labels and predictions."""
        write_preview(path, self.held_back, self._logits)

    def _logits(self, images: UInt8Array) -> Tensor:
        device = next(self.segmenter.parameters()).device
        self.segmenter.eval()
        with torch.inference_mode():
            logits: Tensor = self.segmenter(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        return enlarge(logits.float().cpu(), self._config.preprocessing.size)
