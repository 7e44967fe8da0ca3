"""What a trainer is: the face of a method in this room. The table of methods names one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flawscope import methods
from flawscope.config import MethodConfig
from flawscope.config.setting_parts import tag_of
from flawscope.datasets import Sample
from flawscope.errors import ArgumentError, RunError
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.fit_result import FitResult


@dataclass(frozen=True)
class FitRequest:
    """What a trainer is given.

    Attributes:
        config: Settings of the method.
        backbone: Extractor of features on its device.
        samples: Normal images to learn from.
        images: The same as files, or as tiles of files where the settings cut images.
        hashes: Content hash of every file of the dataset.
        out: Run folder that will be written; scratch files may lie beside it.
        workspace: Folder of a training in epochs that is under way, or None for a method that is fitted.
        resume: Whether that folder has checkpoints to go on from.
        progress: Told what is being done.
        start: What an earlier run has fitted, where a part of it is taken over, or None.
    """

    config: Any
    backbone: Backbone
    samples: Sequence[Sample]
    images: list[ImageSource]
    hashes: dict[Path, str]
    out: Path
    workspace: Path | None
    resume: bool
    progress: Progress
    start: FitResult | None = None

    @property
    def folder(self) -> Path:
        """The workspace of a training in epochs."""
        assert self.workspace is not None, "a method with epochs has a workspace"
        return self.workspace


class Trainer:
    """Fits a method and restores it from its run. Subclasses say what is a method's own.

    Attributes:
        has_epochs: Whether it is trained in epochs, with checkpoints that a training can go on from.
        keeps_backbone: Whether the backbone's weights belong to the run.
        is_detector: Whether its run scores images.
    """

    has_epochs: ClassVar[bool] = False
    keeps_backbone: ClassVar[bool] = True
    is_detector: ClassVar[bool] = True

    def fit(self, request: FitRequest) -> FitResult:
        """Learn from normal images."""
        raise AssertionError(f"{type(self).__name__} has no fit of its own")

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fitted: FitResult) -> Any:
        """Return what scores images in torch, with the weights of a run.

        Raises:
            RunError: If a network's weights do not fit.
        """
        raise AssertionError(f"{type(self).__name__} restores nothing of its own")

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the names that the bank of a fitted run must have."""
        return frozenset()

    def needs_transform(self, config: Any) -> bool:
        """Return whether a fitted run multiplies its patches with something."""
        return False

    def check(self, path: Path, record: RunRecord, bank: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Raise RunError unless the run in `path` is fitted."""
        if missing := self.needed_tensors(record) - bank.keys():
            raise RunError(
                f"{path}: expected a fitted detector, got a run without {sorted(missing)[0]}. Train it first."
            )

    def other_weights(self, config: Any) -> str:
        """Return the identity of weights beside the backbone's, as `NAME sha256:...`; empty where there are none.

        Raises:
            ArgumentError: If settings name none where there must be some.
        """
        return ""

    def check_start(self, config: Any) -> None:
        """Raise ArgumentError unless the method can take over what an earlier run has fitted."""
        raise ArgumentError(
            "extractor: expected ddad with an extractor to train on a denoiser that is ready, got none. Set extractor."
        )

    def start_settings(self) -> frozenset[str]:
        """Return the settings in which an earlier run that is taken over may differ."""
        return frozenset()

    def describe(self, config: Any) -> str:
        """Return in words what is worth saying of a run beside its images, or nothing."""
        return ""


def check_rule(path: Path, is_there: bool) -> None:
    """Raise RunError where a run that reconstructs lacks what only a finished training writes."""
    if not is_there:
        raise RunError(f"{path}: expected a trained detector, got a run without its map rule. Train it first.")


def trainer_of(config: MethodConfig) -> Trainer:
    """Return the trainer of a detector or an autoencoder.

    Raises:
        ArgumentError: If these settings are for something else.
    """
    row = methods.METHODS.get(tag_of(type(config)))
    trainer = None if row is None or row.trainer is None else methods.load(row.trainer)
    if not isinstance(trainer, Trainer):
        raise ArgumentError(f"config: expected settings of a detector, got {type(config).__name__}.")
    return trainer
