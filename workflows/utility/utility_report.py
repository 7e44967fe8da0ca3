"""Records of the downstream benchmark: `result.json` of every training, and `judge.json`, the report of all of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flawscope.calibration.evaluation.paired_differences import Difference
from flawscope.runs import BackboneSource
from flawscope.workflows.utility.utility_variety import Variety


class Misses(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many defects a trained detector misses at a threshold from normal images alone.

    The threshold is the highest score of the normal images that were held out. Real defects are what counts; drawn
    ones are what there is before a defect has been seen, and their figure is an estimate, whatever it is worth.

    Attributes:
        threshold: The threshold; a score strictly above it is a reject.
        normal: Normal images that it is from.
        false_rejects: Normal clean test images above it.
        normal_tested: Normal clean test images.
        missed: Real clean test images of the taught defect types that are not above it.
        real: Real clean test images of the taught defect types.
        missed_drawn: Drawn images that are not above it, of those on normal images that were held out.
        drawn: Drawn images on normal images that were held out: no arm has learned from them.
    """

    threshold: float
    normal: int
    false_rejects: int
    normal_tested: int
    missed: int
    real: int
    missed_drawn: int
    drawn: int

    @property
    def rate(self) -> float | None:
        """Share of the real defects that are missed, or None without any."""
        return self.missed / self.real if self.real else None

    @property
    def estimate(self) -> float | None:
        """Share of the drawn defects that are missed, or None without any."""
        return self.missed_drawn / self.drawn if self.drawn else None


class ArmResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Record of a finished training, `result.json` beside its bundle.

    Attributes:
        seed: Seed of the training.
        arm: Name of the arm.
        made_from: Everything its numbers depend on; a result is used again only if all of it is the same.
        threshold: Map value of the best F1 of pixels on held-out normal images and on the support images.
        learned: Source -> images of it that were learned from.
        loss: Mean loss of the last epoch.
        validation_error: Least error of the validation.
        misses: Misses at the threshold from normal images.
        seconds: Wall-clock seconds of training, export and testing.
        versions: Package versions.
    """

    seed: int
    arm: str
    made_from: dict[str, Any]
    threshold: float
    learned: dict[str, int]
    loss: float
    validation_error: float
    misses: Misses
    seconds: float
    versions: dict[str, str]


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one training on the clean test images, and its result."""

    figures: dict[str, float]
    result: ArmResult


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """One arm against the arm `real`.

    Attributes:
        name: Its name.
        folders: Folders of drawn defects.
        number: Most drawn images that were taken; None for all.
        synthetic: SHA-256 over the lines of the folders.
        is_recommended: Whether the whole interval of the deciding figure lies above zero.
        verdict: The same in words.
        differences: Figure -> this arm minus `real`, on clean test images of all defect types.
        taught: The same on clean test images of the defect types that the support set or a drawn set has.
        with_leak: The same on all test images, those that have been seen included; None if not asked for. Nothing is
            decided by it.
        defects: Defect type -> the same on its clean test images and all clean normal ones; None if not asked for.
    """

    name: str
    folders: tuple[str, ...]
    number: int | None
    synthetic: str
    is_recommended: bool
    verdict: str
    differences: dict[str, Difference]
    taught: dict[str, Difference]
    with_leak: dict[str, Difference] | None
    defects: dict[str, dict[str, Difference]] | None


class UtilityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the downstream benchmark; the content of `judge.json`.

    Attributes:
        is_recommended: Whether an arm is recommended.
        verdict: That of the best arm by the mean of the deciding figure.
        figure: The figure that decides.
        method: Method of the detector.
        compared: Every arm but `real`.
        arms: Every training, seed after seed in the order of the arms.
        counts: Numbers of images that were tested on or left out.
        types: Taught defect types, as the dataset names them.
        left_out: Path of a test image relative to the dataset's root -> why it was left out.
        notes: Limits of the result, a sentence each.
        config: Settings of the detector by their flat names, without its sources.
        backbone: Backbone of the detector, and where its weights are from.
        category: Category of the dataset.
        dataset: Fingerprint of the dataset.
        support: SHA-256 over the support images and their masks.
        confidence: Confidence of the intervals, a fraction.
        versions: Package versions.
        created: UTC time, ISO 8601.
        command: The command line.
        flawscope: Version that wrote it.
        variety: Diversity of the synthetic images; None if no weights for it were given. Nothing is decided by it.
        schema: Version of this record; 1 had one arm beside `real`, and a segmenter that did not ship.
    """

    is_recommended: bool
    verdict: str
    figure: str
    method: str
    compared: tuple[ArmReport, ...]
    arms: tuple[ArmFigures, ...]
    counts: dict[str, int]
    types: tuple[str, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    config: dict[str, Any]
    backbone: BackboneSource
    category: str
    dataset: str
    support: str
    confidence: float
    versions: dict[str, str]
    created: str
    command: str
    flawscope: str
    variety: Variety | None = None
    schema: Literal[2] = 2
