"""DRAEM: learns to rebuild images without their defects, and from the difference where a defect is.

Source: Zavrtanik and others, ICCV 2021 (arXiv:2108.07610); weights for coarse labels and drawn defects beside Perlin
anomalies as AnoGen has them (arXiv:2505.09263). Departures: labelled defects come from any mixture of sources; normal
images are half of every batch, and those of the anomalous ones whose own normal image is not known teach nothing about
what lies in their label (`draem_loss`); the best state on held-back images is kept, not the last; the map is `evidence`
of the logits and not a probability.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import UInt8Array
from flawscope.config import DraemConfig
from flawscope.runs import RunRecord
from flawscope.training.detectors.draem_loss import draem_loss
from flawscope.training.detectors.draem_network import DraemNetwork, DraemNetworks, pixels_of
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

_NETWORKS = "draem"
"""Name of both networks among the tensors of a run."""


class DraemTask:
    """The training of both networks; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        data: Training data.

    Attributes:
        network: Both networks; their initial weights depend on `config.seed` alone.
        held_back: Anomalous images of the validation.
    """

    def __init__(self, config: DraemConfig, data: TrainingData) -> None:
        self._config, self._data = config, data
        self.held_back = hold_back(config, data)
        self.network: nn.Module = _build(config)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self._config.loop.learning_rate)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a step. `images` are mere numbers and ignored: the seed of the step draws the batch."""
        config, batch = self._config, draw_batch(self._config, self._data, generator)
        pixels, originals, labels, is_coarse, is_paired = (
            torch.from_numpy(array).to(images.device)
            for array in (batch.images, batch.originals, batch.labels, batch.is_coarse, batch.has_original)
        )
        rebuilt, logits = network(pixels_of(pixels))
        # In float32 under autocast too: the loss takes logarithms and differences of squares.
        return draem_loss(
            rebuilt.float(),
            logits.float(),
            pixels_of(originals),
            labels[:, None],
            is_paired=is_paired,
            is_coarse=is_coarse,
            gamma=config.gamma,
            tau=config.labelled.weak_tau,
        )

    def validate(self) -> dict[str, float]:
        """Return the error on held-back images; see `validation_error`."""
        return validation_error(self._config, self._data.validation, self.held_back, self._logits)

    def preview(self, path: Path) -> None:
        """Write some anomalous images of the validation beside labels and predictions."""
        write_preview(path, self.held_back, self._logits)

    def _logits(self, images: UInt8Array) -> Tensor:
        self.network.eval()
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits: Tensor = self.network(pixels_of(torch.from_numpy(np.ascontiguousarray(images)).to(device)))[1]
        return logits.float().cpu()


class DraemTrainer(LabelledTrainer[DraemConfig]):
    """Trains and restores DRAEM."""

    network_name = _NETWORKS

    def task(self, config: DraemConfig, backbone: Backbone, data: TrainingData) -> DraemTask:
        """Return the training of both networks; there is no backbone."""
        return DraemTask(config, data)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> DraemNetwork:
        """Return the detector; a run whose networks lack tensors is refused."""
        config = cast("DraemConfig", record.config)
        networks = _build(config)
        load_state(networks, fit_result.networks.get(_NETWORKS, {}), f"{path}: {_NETWORKS}")
        return DraemNetwork(networks, config.score_window)


def _build(config: DraemConfig) -> DraemNetworks:
    # Directly before the networks are built: their initial weights depend on the seed alone.
    torch.manual_seed(config.seed)
    return DraemNetworks(config.width, config.depth, config.segmentation_width, config.segmentation_depth)


TRAINER = DraemTrainer()
