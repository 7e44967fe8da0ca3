"""The base class of trainers: how a method is fitted and restored. The table of methods names one for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.config import MethodConfig
from flawscope.config.setting_parts import tag_of
from flawscope.datasets import Dataset, Sample
from flawscope.errors import ArgumentError, RunError
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.network_scores import network_scores
from flawscope.training.loop.ranks import Ranks, ranks


@dataclass(frozen=True)
class FitRequest:
    """Input of a trainer.

    Attributes:
        config: Settings of the method.
        backbone: Extractor of features on its device.
        samples: Normal images to learn from.
        images: The same images as files, or as tiles of files where the settings tile images.
        hashes: Content hash of every file of the dataset.
        out: Run folder that will be written; temporary files may lie beside it.
        workspace: Workspace of a training in epochs, or None for a method that is fitted.
        resume: Resume from the newest checkpoint in the workspace.
        progress: Receives progress.
        start: Fit result of an earlier run of which a part is reused, or None.
        dataset: The dataset that the images are of: what learns from labelled defects has to know its other images.
        is_alone: Fit in this process, whatever others there are: each has a fit of its own to do.
    """

    config: Any  # each trainer knows the type of its settings; a union here would name every method
    backbone: Backbone
    samples: Sequence[Sample]
    images: list[ImageSource]
    hashes: dict[Path, str]
    out: Path
    workspace: Path | None
    resume: bool
    progress: Progress
    start: FitResult | None = None
    dataset: Dataset | None = None
    is_alone: bool = False

    @property
    def here(self) -> Ranks:
        """This process among those that fit together."""
        return Ranks() if self.is_alone else ranks()

    @property
    def folder(self) -> Path:
        """The workspace of a training in epochs."""
        # For trainers with `has_epochs` alone: `train_detector` opens a workspace for no other.
        assert self.workspace is not None, "a method with epochs has a workspace"
        return self.workspace


class Trainer:
    """Fits a method and restores it from its run; every method has a subclass.

    Attributes:
        has_epochs: Whether it is trained in epochs, with checkpoints from which a training can resume.
        keeps_backbone: Whether the backbone's weights belong to the run.
        is_detector: Whether its run scores images.
        takes_processes: Whether it trains in several processes (`training.loop.ranks`): all of them call `fit`, and get
            the same result.
        drawn_on: Normal images that the drawn check draws on; few for a method that takes long for an image.
        drawn_strengths: For each defect that it draws of a kind on such an image, how clear it is, from 0 to 1.
    """

    has_epochs: ClassVar[bool] = False
    keeps_backbone: ClassVar[bool] = True
    is_detector: ClassVar[bool] = True
    takes_processes: ClassVar[bool] = False
    drawn_on: ClassVar[int] = 8
    drawn_strengths: ClassVar[tuple[float, ...]] = (0.3, 0.7)

    def fit(self, request: FitRequest) -> FitResult:
        """Learn from normal images."""
        raise AssertionError(f"{type(self).__name__} has no fit of its own")

    # Not abstract: autoencoders restore nothing here, since they score no images.
    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> Any:
        """Return the torch module that scores images, with the weights of a run.

        Raises:
            RunError: If the weights are of another architecture.
        """
        raise AssertionError(f"{type(self).__name__} restores nothing of its own")

    def scores(
        self, config: Any, module: Any, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] of a detector by torch.

        Here for a module that has both as outputs; the others say how theirs come about.

        Args:
            config: Settings of the method.
            module: What `restore` returned, on any device.
            fit_result: The fit it was restored from.
            images: Prepared images, uint8 [H, W, 3].
        """
        return network_scores(module, images, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the names of the tensors without which a run counts as unfitted."""
        return frozenset()

    def needs_transform(self, config: Any) -> bool:
        """Return whether a fitted run must have a patch transform."""
        return False

    def check(self, path: Path, record: RunRecord, bank: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Raise RunError unless the run in `path` is fitted."""
        if missing := self.needed_tensors(record) - bank.keys():
            raise RunError(
                f"{path}: expected a fitted detector, got a run without {sorted(missing)[0]}. Train it first."
            )

    def other_weights(self, config: Any) -> str:
        """Return the identity of weights other than the backbone's, as `NAME sha256:...`; empty where there are none.

        Raises:
            ArgumentError: If the method needs such weights and the settings name none.
        """
        return ""

    def check_start(self, config: Any) -> None:
        """Raise ArgumentError unless the method can start from the fit result of an earlier run."""
        raise ArgumentError(
            "extractor: expected ddad with an extractor to train on the denoiser of a run, got none. Set extractor."
        )

    def start_settings(self) -> frozenset[str]:
        """Return the settings in which the earlier run (`FitRequest.start`) may differ."""
        return frozenset()

    def describe(self, config: Any) -> str:
        """Return a phrase for the summary of a run, or an empty string."""
        return ""


class EpochTrainer(Trainer):
    """A trainer of a method in epochs that starts from nothing else.

    Attributes:
        train: `(config, backbone, samples, hashes, workspace, resume, progress) -> FitResult`.
    """

    has_epochs = True
    takes_processes = True
    train: ClassVar[Callable[..., FitResult]]

    def fit(self, request: FitRequest) -> FitResult:
        """Train in the workspace."""
        return type(self).train(
            request.config,
            request.backbone,
            request.samples,
            request.hashes,
            request.folder,
            request.resume,
            request.progress,
        )


def check_rule(path: Path, is_there: bool) -> None:
    """Raise RunError if a run of a reconstructing method lacks its map rule, which only a finished training writes."""
    if not is_there:
        raise RunError(f"{path}: expected a trained detector, got a run without its map rule. Train it first.")


def trainer_of(config: MethodConfig) -> Trainer:
    """Return the trainer of a detector or an autoencoder.

    Raises:
        ArgumentError: If these settings are for something else.
    """
    row = methods.METHODS.get(tag_of(type(config)))
    # Rows name their trainer as text: importing one here would be a circle, and pull in every method's packages.
    trainer = None if row is None or row.trainer is None else methods.load(row.trainer)
    # Guards the table: a row of a generator names a trainer of another kind.
    if not isinstance(trainer, Trainer):
        raise ArgumentError(f"config: expected settings of a detector, got {type(config).__name__}.")
    return trainer
