"""Base of the trainers of detectors that learn from labelled defects; reads what they learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from torch import Tensor

from flawscope.config import LabelledConfig
from flawscope.config.setting_parts import tag_of
from flawscope.datasets import Sample, split_held_out
from flawscope.errors import ArgumentError, DataError
from flawscope.files import storage_errors, write_bytes
from flawscope.learned_defects import LearnedDefects
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.text import encode_json
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.epoch_data import LEAST_VALIDATION, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader, Numbers, image_sources
from flawscope.training.loop.loop import Task, run_loop
from flawscope.training.segmentation.labelled_sources import Procedural, open_sources
from flawscope.training.segmentation.labelled_training import HeldBack, TrainingData
from flawscope.training.segmentation.procedural import draw_anomaly
from flawscope.training.segmentation.source_reading import sources_identity
from flawscope.training.trainer import FitRequest, Trainer

_LEARNED = "labelled_defects.json"
_READERS = 4
"""Readers of images that are open at once, each with its part of the memory."""
_Config = TypeVar("_Config", bound=LabelledConfig)


class LabelledTask(Task, Protocol):
    """A task of the loop that learns from labelled defects.

    Attributes:
        held_back: Anomalous images of the validation.
    """

    held_back: HeldBack


class LabelledTrainer(Trainer, Generic[_Config]):
    """A trainer of a detector that learns from labelled defects, in one loop.

    Attributes:
        network_name: Name of the trained network among the tensors of a run.
        with_originals: Whether it learns from the normal images too that defects were drawn on.
    """

    has_epochs = True
    takes_processes = True
    network_name: ClassVar[str]
    with_originals: ClassVar[bool] = True

    def task(self, config: _Config, backbone: Backbone, data: TrainingData) -> LabelledTask:
        """Return what the loop trains."""
        raise AssertionError(f"{type(self).__name__} has no task of its own")

    def kept(self, config: _Config, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the best state that a run keeps."""
        return state

    def grid(self, config: _Config, backbone: Backbone) -> tuple[int, int]:
        """Return rows and columns of the grid, for the record of a run."""
        return config.preprocessing.size

    def fit(self, request: FitRequest) -> FitResult:
        """Train in the workspace."""
        config: _Config = request.config
        data = read_data(request, procedural=draw_anomaly, with_originals=self.with_originals)
        _check_same(request, data.sources.record)
        task = self.task(config, request.backbone, data)
        items = Numbers(config.epoch_batches * config.loop.batch_size)
        trained = run_loop(task, items, config, request.folder, resume=request.resume, progress=request.progress)
        return FitResult(
            grid=self.grid(config, request.backbone),
            tensors={},
            facts=training_facts(trained)
            | {
                "validation_pictures": len(data.validation),
                "validation_defects": len(task.held_back.images),
                "validation_defects_are_new": "yes" if task.held_back.are_new else "no",
            },
            networks={self.network_name: self.kept(config, trained.state)},
            defects=data.sources.record,
            defect_images=data.sources.contents,
        )

    def other_weights(self, config: Any) -> str:
        """Return the identity of the sources of labelled defects: with others a training cannot resume."""
        config.labelled.check_named()
        return sources_identity(config.labelled)

    def describe(self, config: Any) -> str:
        """Return which sources it learned from."""
        return "learned from " + ", ".join(f"{name} {share:.0%}" for name, share in config.labelled.shares.items())


def _check_same(request: FitRequest, learned: LearnedDefects) -> None:
    """Raise ArgumentError if a training that resumes was begun with other labelled defects; record them otherwise.

    The identity of the folders does not cover the masks of anomalous training images, which no other method reads.
    """
    path = request.folder / _LEARNED
    if request.resume and path.is_file():
        if msgspec.json.decode(read_regular(path, RECORD_BYTES)) != msgspec.json.decode(encode_json(learned)):
            raise ArgumentError(
                f"{request.folder}: expected the labelled defects that the training was begun with, got images or "
                "masks that have changed. Put them back, or remove the folder."
            )
        return
    with storage_errors(path):
        write_bytes(path, encode_json(learned))


def read_data(request: FitRequest, *, procedural: Procedural | None, with_originals: bool) -> TrainingData:
    """Return the images of a training: normal ones, those of the validation, and labelled defects.

    Args:
        request: Input of the trainer, with its dataset.
        procedural: Draws procedural anomalies, for settings that ask for them.
        with_originals: Read the normal images that defects were drawn on too.

    Raises:
        ArgumentError: If a source is not named, or a defect type that none has.
        DataError: If there are too few normal images, or a source is missing or has no defect.
    """
    config: LabelledConfig = request.config
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
        procedural=procedural,
        with_originals=with_originals,
        workers=config.data.num_workers,
        budget_mb=2 * budget,
        progress=request.progress,
    )
    return TrainingData(images(learned), images(validation), sources)


def split_validation(config: LabelledConfig, request: FitRequest) -> tuple[list[Sample], list[Sample]]:
    """Return the normal images that are learned from, and those of the validation; as `split_images` chooses them."""
    if len(request.samples) < 2 * LEAST_VALIDATION:
        raise DataError(
            f"{tag_of(type(config))}: expected at least {2 * LEAST_VALIDATION} normal training images, got "
            f"{len(request.samples)}."
        )
    learned, validation = split_held_out(
        request.samples,
        share=config.data.validation,
        minimum=LEAST_VALIDATION,
        seed=config.seed + 1,
        hashes=request.hashes,
    )
    return list(learned), list(validation)
