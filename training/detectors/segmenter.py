"""The segmenter: a decoder on a frozen backbone that learns from labelled defects, real, drawn or procedural."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from flawscope.config import SegmenterConfig
from flawscope.datasets import Sample, split_held_out
from flawscope.errors import DataError, RunError
from flawscope.runs import RunRecord
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.loop.epoch_data import LEAST_VALIDATION, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader, Numbers, image_sources
from flawscope.training.loop.loop import run_loop
from flawscope.training.segmentation.labelled_sources import open_sources, sources_identity
from flawscope.training.segmentation.segmenter_network import Segmenter, SegmenterScores
from flawscope.training.segmentation.segmenter_training import SegmenterTask, TrainingData
from flawscope.training.trainer import FitRequest, Trainer

_ENCODER = "encoder."
"""Begins the names of the backbone's tensors in the state of a segmenter."""
_READERS = 4
"""Readers of images that are open at once, each with its part of the memory."""


class SegmenterTrainer(Trainer):
    """Trains and restores segmenters."""

    has_epochs = True

    def fit(self, request: FitRequest) -> FitResult:
        """Train in the workspace."""
        config: SegmenterConfig = request.config
        data = read_data(request)
        task = SegmenterTask(config, request.backbone, data)
        items = Numbers(config.epoch_batches * config.loop.batch_size)
        trained = run_loop(task, items, config, request.folder, resume=request.resume, progress=request.progress)
        finest = stages_of(request.backbone, config.preprocessing.size)[0]
        return FitResult(
            grid=(int(finest.shape[-2]), int(finest.shape[-1])),
            tensors={},
            facts=training_facts(trained)
            | {
                "validation_pictures": len(data.validation),
                "validation_defects": len(task.held_back.images),
                "validation_defects_are_new": "yes" if task.held_back.are_new else "no",
            },
            networks={"segmenter": _stored(trained.state, config)},
            defects=data.sources.record,
            defect_images=data.sources.contents,
        )

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

    def other_weights(self, config: SegmenterConfig) -> str:
        """Return the identity of the sources of labelled defects: with others a training cannot resume."""
        config.labelled.check_named()
        return sources_identity(config.labelled)

    def describe(self, config: SegmenterConfig) -> str:
        """Return which sources it learned from."""
        return "learned from " + ", ".join(f"{name} {share:.0%}" for name, share in config.labelled.shares.items())


def read_data(request: FitRequest) -> TrainingData:
    """Return the images of a training: normal ones, those of the validation, and labelled defects.

    Raises:
        ArgumentError: If a source is not named, or a defect type that none has.
        DataError: If there are too few normal images, or a source is missing or has no defect.
    """
    config: SegmenterConfig = request.config
    assert request.dataset is not None, "train_detector names the dataset"
    learned, validation = split_validation(config, request)
    budget = config.data.memory_budget_mb // _READERS

    def images(samples: Sequence[Sample]) -> ImageReader:
        sources = image_sources(samples, config.tiling)
        return ImageReader(sources, config.preprocessing, config.data.num_workers, budget, request.progress)

    sources = open_sources(
        config.labelled,
        config.preprocessing,
        request.dataset,
        learned,
        validation,
        request.hashes,
        tiling=config.tiling,
        procedural=None,
        workers=config.data.num_workers,
        budget_mb=2 * budget,
        progress=request.progress,
    )
    return TrainingData(images(learned), images(validation), sources)


def split_validation(config: SegmenterConfig, request: FitRequest) -> tuple[list[Sample], list[Sample]]:
    """Return the normal images that are learned from, and those of the validation; as `split_images` chooses them."""
    if len(request.samples) < 2 * LEAST_VALIDATION:
        raise DataError(
            f"segmenter: expected at least {2 * LEAST_VALIDATION} normal training images, got {len(request.samples)}."
        )
    learned, validation = split_held_out(
        request.samples,
        share=config.data.validation,
        minimum=LEAST_VALIDATION,
        seed=config.seed + 1,
        hashes=request.hashes,
    )
    return list(learned), list(validation)


def _stored(state: dict[str, Tensor], config: SegmenterConfig) -> dict[str, Tensor]:
    """Return the tensors that a run keeps of a segmenter: the backbone's own are stored once, beside it."""
    return {name: tensor for name, tensor in state.items() if config.train_encoder or not name.startswith(_ENCODER)}


TRAINER = SegmenterTrainer()
