"""DeSTSeg: a student denoises the features of a frozen teacher, and a head segments by how the two differ.

Source: Zhang and others, CVPR 2023 (arXiv:2211.11317); weights for coarse labels as AnoGen has them (arXiv:2505.09263).
Departures: student and head learn at the same time, the head from a student that its gradient does not reach, where the
paper trains the student for 1,000 steps and then the head for 4,000; any backbone is the teacher, and the student's
encoder is of its own; labelled defects come from any mixture of sources; the best state on held-back images is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.arrays import UInt8Array
from flawscope.config import DestsegConfig
from flawscope.runs import RunRecord
from flawscope.training.detectors.destseg_loss import segmentation_loss, student_loss
from flawscope.training.detectors.destseg_network import DestsegNetwork, DestsegNetworks
from flawscope.training.detectors.labelled_trainer import LabelledTrainer
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.network_state import load_state
from flawscope.training.segmentation.labelled_training import (
    TrainingData,
    draw_batch,
    hold_back,
    validation_error,
    write_preview,
)

_NETWORKS = "destseg"
"""Name of student and head among the tensors of a run."""


class DestsegTask:
    """The training of student and head; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        teacher: Frozen backbone with its weights.
        data: Training data.

    Attributes:
        network: Student and head; their initial weights depend on `config.seed` alone.
        held_back: Anomalous images of the validation.
    """

    def __init__(self, config: DestsegConfig, teacher: Backbone, data: TrainingData) -> None:
        self._config, self._teacher, self._data = config, teacher, data
        self.held_back = hold_back(config, data)
        self._networks = _build(config, teacher)
        self.network: nn.Module = self._networks

    def optimizer(self) -> torch.optim.Optimizer:
        """Return stochastic gradient descent with momentum, at a rate each for student, residual blocks and head."""
        config, head = self._config, self._networks.head
        of_blocks = {id(parameter) for parameter in head.residual.parameters()}
        rest = [parameter for parameter in head.parameters() if id(parameter) not in of_blocks]
        groups = [
            {"params": list(self._networks.student.parameters()), "lr": config.loop.learning_rate},
            {"params": list(head.residual.parameters()), "lr": config.residual_rate},
            {"params": rest, "lr": config.head_rate},
        ]
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a step. `images` are mere numbers and ignored: the seed of the step draws the batch."""
        config, batch = self._config, draw_batch(self._config, self._data, generator)
        pictures, originals, labels, is_coarse, is_paired = (
            torch.from_numpy(array).to(images.device)
            for array in (batch.images, batch.originals, batch.labels, batch.is_coarse, batch.has_original)
        )
        self._teacher.to(images.device)
        with torch.no_grad():
            seen, wanted = self._teacher(pictures), self._teacher(originals)
        features, logits = network(pictures, seen)
        # In float32 under autocast too: the losses take logarithms, and cosines near 1.
        enlarged = _enlarge(logits.float(), config.preprocessing.size)
        student = student_loss(wanted, [stage.float() for stage in features], labels[:, None], is_paired)
        return student + segmentation_loss(enlarged, labels[:, None], is_coarse, config.gamma, config.labelled.weak_tau)

    def validate(self) -> dict[str, float]:
        """Return the error on held-back images; see `validation_error`."""
        return validation_error(self._config, self._data.validation, self.held_back, self._logits)

    def preview(self, path: Path) -> None:
        """Write some anomalous images of the validation beside labels and predictions."""
        write_preview(path, self.held_back, self._logits)

    def _logits(self, images: UInt8Array) -> Tensor:
        self.network.eval()
        device = next(self.network.parameters()).device
        pictures = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        with torch.inference_mode():
            logits: Tensor = self.network(pictures, self._teacher.to(device)(pictures))[1]
        return _enlarge(logits.float(), self._config.preprocessing.size).cpu()


class DestsegTrainer(LabelledTrainer[DestsegConfig]):
    """Trains and restores DeSTSeg."""

    network_name = _NETWORKS

    def task(self, config: DestsegConfig, backbone: Backbone, data: TrainingData) -> DestsegTask:
        """Return the training of student and head."""
        return DestsegTask(config, backbone, data)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> DestsegNetwork:
        """Return the detector; a run whose networks lack tensors is refused."""
        config = cast("DestsegConfig", record.config)
        networks = _build(config, backbone)
        load_state(networks, fit_result.networks.get(_NETWORKS, {}), f"{path}: {_NETWORKS}")
        return DestsegNetwork(backbone, networks, config.preprocessing.size, config.top)


def _build(config: DestsegConfig, teacher: Backbone) -> DestsegNetworks:
    # Directly before the networks are built: their initial weights depend on the seed alone.
    torch.manual_seed(config.seed)
    return DestsegNetworks(teacher, config.preprocessing.size, config.width, config.blocks, config.head_width)


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


TRAINER = DestsegTrainer()
