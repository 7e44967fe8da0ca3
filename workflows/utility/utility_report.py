"""Records of the downstream benchmark: `result.json` of every training, and `judge.json`, the report of all of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flawscope.calibration.evaluation.paired_differences import Difference
from flawscope.runs import BackboneSource
from flawscope.workflows.utility.utility_variety import Variety

Arm = Literal["real", "both"]
ARMS: tuple[Arm, ...] = ("real", "both")
"""In the order in which they are trained: the comparison takes results of the two in turn."""


class ArmResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Record of a finished training, `result.json` beside its logits.

    Attributes:
        seed: Seed of the training.
        arm: Which arm.
        made_from: Everything its numbers depend on; a result is used again only if all of it is the same.
        threshold: Logit of the best F1 of pixels on held-back normal images and on the support images.
        loss: Mean loss of the training.
        validation_error: Mean loss of held-back normal images after it.
        seconds: Wall-clock seconds of training and testing.
        versions: Package versions.
    """

    seed: int
    arm: Arm
    made_from: dict[str, Any]
    threshold: float
    loss: float
    validation_error: float
    seconds: float
    versions: dict[str, str]


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one training on the clean test images, and its result."""

    figures: dict[str, float]
    result: ArmResult


class UtilityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the downstream benchmark; the content of `judge.json`.

    Attributes:
        is_recommended: Whether the whole interval of the deciding figure lies above zero.
        verdict: The same in words.
        figure: The figure that decides.
        differences: Figure -> arm `both` minus arm `real`, on clean test images.
        with_leak: The same on all test images, those the generator has seen included; None if not asked for. Nothing
            is decided by it.
        defects: Defect type -> the same on its clean test images and all clean normal ones; None if not asked for.
        arms: Every training.
        counts: Numbers of images that were learned from, tested on, left out.
        left_out: Path of a test image relative to the dataset's root -> why it was left out.
        notes: Limits of the result, a sentence each.
        config: Settings of the segmenter by their flat names.
        backbone: Backbone of the segmenter, and where its weights are from.
        category: Category of the dataset.
        dataset: Fingerprint of the dataset.
        support: SHA-256 over the support images and their masks.
        synthetic: SHA-256 over the synthetic images and their labels.
        confidence: Confidence of the intervals, a fraction.
        versions: Package versions.
        created: UTC time, ISO 8601.
        command: The command line.
        flawscope: Version that wrote it.
        variety: Diversity of the synthetic images; None if no weights for it were given. Nothing is decided by it.
        schema: Version of this record.
    """

    is_recommended: bool
    verdict: str
    figure: str
    differences: dict[str, Difference]
    with_leak: dict[str, Difference] | None
    defects: dict[str, dict[str, Difference]] | None
    arms: tuple[ArmFigures, ...]
    counts: dict[str, int]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    config: dict[str, Any]
    backbone: BackboneSource
    category: str
    dataset: str
    support: str
    synthetic: str
    confidence: float
    versions: dict[str, str]
    created: str
    command: str
    flawscope: str
    variety: Variety | None = None
    schema: Literal[1] = 1
