"""Base class of generator trainers, and the start of a few-shot adaptation: base model and support set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from flawscope import methods
from flawscope.config import AdaptationSettings, MethodConfig
from flawscope.config.setting_parts import part_of, tag_of
from flawscope.datasets import Dataset
from flawscope.datasets.defects import SUPPORT_RECORD, support_record
from flawscope.errors import ArgumentError
from flawscope.progress import Progress
from flawscope.text import encode_json
from flawscope.training.synthesis.base_model import SynthesisBase, open_base
from flawscope.training.synthesis.drawn_examples import drawn_identity, with_drawn
from flawscope.training.synthesis.generator_run import SUPPORT, GeneratorFitResult
from flawscope.training.synthesis.support_examples import Described, SupportExamples, read_support_examples


@dataclass(frozen=True)
class AdaptationStart:
    """A base model and the support set that it is adapted to.

    Attributes:
        base: The base model.
        support: The support set.
        described: Box and sentences of each example; empty where a method uses prompt templates.
        drawn: Hash of the drawings that are learned from beside it, for `identity`; empty without any.
    """

    base: SynthesisBase
    support: SupportExamples
    described: tuple[Described, ...] = ()
    drawn: str = ""

    @property
    def descriptions(self) -> str:
        """Hash of boxes and sentences, part of the identity of a training; empty where there are none."""
        if not self.described:
            return ""
        digest = hashlib.sha256()
        for description in self.described:
            # With the shape: tobytes() alone is the same for boxes of 2 x 8 and 4 x 4 pixels.
            digest.update(encode_json((description.texts, description.box.shape)))
            digest.update(description.box.tobytes())
        return f"sha256:{digest.hexdigest()}"

    @property
    def identity(self) -> str:
        """Hashes of base and support set: a training is resumed only with the same."""
        record = hashlib.sha256(support_record(self.support.path)).hexdigest()
        return f"base sha256:{self.base.identity}; support sha256:{record}{self.drawn}"


@dataclass(frozen=True)
class GeneratorRequest:
    """Inputs of a generator's training.

    Attributes:
        config: Settings of the method.
        dataset: The dataset; a base model learns its normal training images.
        start: Base model and support set, or None for the training of a base model.
        hashes: Content hash of every file of the dataset.
        workspace: Folder of the running training.
        resume: Whether to resume from the checkpoints in that folder.
        progress: Told what is being done.
    """

    config: Any
    dataset: Dataset
    start: AdaptationStart | None
    hashes: dict[Path, str]
    workspace: Path
    resume: bool
    progress: Progress


class GeneratorTrainer:
    """Trains a generator. The defaults are those of methods that adapt a base model; subclasses override the rest.

    Attributes:
        inpaints: Whether its network is an inpainting network.
        learns: What it learns from, for people; `{defects}` is the number of defect types.
        takes_processes: Whether it trains in several processes; see `training.trainer.Trainer`.
    """

    inpaints: ClassVar[bool] = False
    learns: ClassVar[str] = "images of {defects} defect types"
    takes_processes: ClassVar[bool] = True

    def start(self, config: Any) -> AdaptationStart | None:
        """Return base model and support set, after checks that everything fits before the training.

        Raises:
            ArgumentError: If settings name no base or support set, or do not fit them.
            RunError: If the base cannot be used.
        """
        adaptation = part_of(config, AdaptationSettings)
        if adaptation.base is None:
            raise ArgumentError(
                "base: expected a run of train base, or a folder of Stable Diffusion or LDM text-to-image, got none. "
                "Make one with flawscope train base, then name it with --set base=RUN."
            )
        if adaptation.support is None:
            raise ArgumentError(
                "support: expected a folder of synth support, got none. Make one with flawscope synth support, then "
                "name it with --set support=FOLDER."
            )
        support = read_support_examples(Path(adaptation.support), adaptation.defects, config.preprocessing.bits)
        folders = [Path(folder) for folder in adaptation.drawn]
        if folders:
            support = with_drawn(support, folders, adaptation.drawn_number, config.preprocessing.bits)
        start = self.adapt(config, open_base(Path(adaptation.base), self.placeholder(config)), support)
        return replace(start, drawn=drawn_identity(folders))

    def adapt(self, config: Any, base: SynthesisBase, support: SupportExamples) -> AdaptationStart:
        """Return base and support set as the method needs them, checked against its settings."""
        raise AssertionError(f"{type(self).__name__} adapts no base")

    def placeholder(self, config: Any) -> str:
        """Return the placeholder that stands for the learned embedding in prompts."""
        return "*"

    def weights(self, config: Any, start: AdaptationStart | None) -> str:
        """Return the hashes of what the training starts from; a training is resumed only if they are the same."""
        assert start is not None
        return start.identity

    def licence(self, config: Any, start: AdaptationStart | None) -> str:
        """Return the licence of the weights."""
        assert start is not None
        return start.base.licence

    def fit(self, request: GeneratorRequest) -> GeneratorFitResult:
        """Train."""
        raise AssertionError(f"{type(self).__name__} has no fit of its own")


def files_of(start: AdaptationStart | None) -> dict[str, Path | bytes]:
    """Return path in the run -> file to copy there, or its content: the support set, which the run needs no more."""
    if start is None:
        return {}
    files: dict[str, Path | bytes] = {SUPPORT_RECORD: support_record(start.support.path)}
    for example in start.support.real:
        folder = f"{SUPPORT}/{example.category}/{example.defect}"
        files[f"{folder}/{example.name}.png"] = example.image_file
        files[f"{folder}_mask/{example.name}_mask.png"] = example.mask_file
    return files


def generator_trainer_of(config: MethodConfig) -> GeneratorTrainer:
    """Return the trainer of a generator.

    Raises:
        ArgumentError: If these are not the settings of a generator.
    """
    row = methods.METHODS.get(tag_of(type(config)))
    trainer = None if row is None or row.trainer is None else methods.load(row.trainer)
    # Guards the table: a row of a detector names a trainer of another kind.
    if not isinstance(trainer, GeneratorTrainer):
        raise ArgumentError(f"config: expected settings of a generator, got {type(config).__name__}.")
    return trainer
