"""The segmenter: a decoder on a frozen backbone that learns from labelled defects, real, drawn or procedural."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor

from flawscope.config import SegmenterConfig
from flawscope.errors import RunError
from flawscope.runs import RunRecord
from flawscope.training.detectors.labelled_trainer import LabelledTrainer
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.segmentation.labelled_training import TrainingData
from flawscope.training.segmentation.segmenter_network import Segmenter, SegmenterScores
from flawscope.training.segmentation.segmenter_training import SegmenterTask

_ENCODER = "encoder."
"""Begins the names of the backbone's tensors in the state of a segmenter."""


class SegmenterTrainer(LabelledTrainer[SegmenterConfig]):
    """Trains and restores segmenters."""

    network_name = "segmenter"
    with_originals = False

    def task(self, config: SegmenterConfig, backbone: Backbone, data: TrainingData) -> SegmenterTask:
        """Return the training of the decoder, and of the encoder, if it is trained."""
        return SegmenterTask(config, backbone, data)

    def kept(self, config: SegmenterConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that a run keeps: the backbone's own are stored once, beside it."""
        return _stored(state, config)

    def grid(self, config: SegmenterConfig, backbone: Backbone) -> tuple[int, int]:
        """Return the grid of the finest stage, on which logits are computed."""
        finest = stages_of(backbone, config.preprocessing.size)[0]
        return int(finest.shape[-2]), int(finest.shape[-1])

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> SegmenterScores:
        """Return the segmenter as a detector; a run that lacks tensors of it is refused."""
        config = cast("SegmenterConfig", record.config)
        size = config.preprocessing.size
        segmenter = Segmenter(backbone, size, config.width, train_encoder=config.train_encoder)
        stored = fit_result.networks.get("segmenter", {})
        expected = _stored(segmenter.state_dict(), config)
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        for name, tensor in expected.items():
            if shapes.get(name) != tuple(tensor.shape):
                raise RunError(
                    f"{path}: expected the tensor {name} {list(tensor.shape)} of a segmenter, got "
                    f"{list(shapes[name]) if name in shapes else 'none'}. Train again."
                )
        segmenter.load_state_dict(stored, strict=False)
        return SegmenterScores(segmenter.requires_grad_(False), size, config.maps.sigma, config.top)


def _stored(state: dict[str, Tensor], config: SegmenterConfig) -> dict[str, Tensor]:
    """Return the tensors that a run keeps of a segmenter: the backbone's own are stored once, beside it."""
    return {name: tensor for name, tensor in state.items() if config.train_encoder or not name.startswith(_ENCODER)}


TRAINER = SegmenterTrainer()
