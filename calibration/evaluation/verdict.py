"""The verdict of an evaluation: whether a bundle is fit for a trial, why, and the next step.

The first rule that applies gives the verdict; they stand in the order in which problems are worth solving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flawscope.calibration.evaluation.diagnosis import BOUND, CHANCE, EDGE, SMALL, is_near_chance
from flawscope.calibration.evaluation.evaluation_notes import SEEN_BEFORE
from flawscope.calibration.evaluation.figures import Figures
from flawscope.calibration.evaluation.intervals import images_needed
from flawscope.calibration.evaluation.rounding import figure, number, percent, share

_FEW_MISSES = 0.05
"""No standard: up to here the verdict leaves it to the reader whether a line can live with the misses."""
_WEAK_EVIDENCE = 0.1
"""Where the bound on misses is above, too few defects were tested to say anything of the line."""


@dataclass(frozen=True)
class Verdict:
    """What an evaluation comes to.

    Attributes:
        level: `good`, `care` where something is to be done first, `bad` where the detector does not work.
        title: The verdict in a few words.
        text: Why, in a sentence or two.
        step: What to do next.
    """

    level: Literal["good", "care", "bad"]
    title: str
    text: str
    step: str


def verdict_of(figures: Figures) -> Verdict:
    """Return the verdict on a bundle."""
    for rule in (_blind, _undecided, _faulty, _over_bound, _one_kind, _misses, _at_the_edge, _seen, _few_defects):
        if (verdict := rule(figures)) is not None:
            return verdict
    return Verdict(
        "good",
        "Ready for a trial",
        f"{_found(figures)} {_bound(figures)}".strip(),
        "Measure the speed on the device (flawscope bench BUNDLE), then let it run beside today's inspection "
        "(flawscope line) before it decides alone.",
    )


def _blind(figures: Figures) -> Verdict | None:
    """Apply where no score is worth anything."""
    if figures.latency_ms is None:
        return Verdict(
            "bad",
            "Does not work",
            f"None of the {figures.images} images could be scored.",
            "Read the reasons under Faults; flawscope doctor BUNDLE checks the installation and the bundle.",
        )
    interval = figures.intervals.get("image_auroc")
    if not is_near_chance(figures.image_auroc, interval):
        return None
    return Verdict(
        "bad",
        "Does not work",
        f"Its scores hardly tell defective parts from good ones: image AUROC {figure(figures.image_auroc)}, where 0.5 "
        "is chance.",
        "Look whether the folders of good and defective images are exchanged."
        if interval is not None and interval.high < CHANCE
        else "Look at the weights with their mean, std and padding, then at the size of the input, then at the method.",
    )


def _one_kind(figures: Figures) -> Verdict | None:
    if (only := only_kind(figures)) is None:
        return None
    seen = next((f" {note}" for note in figures.notes if SEEN_BEFORE in note), "")
    if only == "defective":
        return Verdict(
            "care",
            "Half of it is measured",
            f"{_found(figures)} How good parts are judged is not known.{seen}",
            "Put images of good parts that it has not learned from into test/good of the dataset, and evaluate again.",
        )
    needed = images_needed(_WEAK_EVIDENCE, 0.95)
    rejects = None if figures.confusion is None else figures.confusion.false_reject
    sure = "" if rejects is None or rejects.upper is None else f"; at most {percent(rejects.upper)} with 95% confidence"
    return Verdict(
        "care",
        "Half of it is measured",
        f"{_found(figures).removesuffix('.')}{sure}. How defective parts are judged is not known.{seen}",
        "Put images of defective parts into a folder for each kind of defect (test/DEFECT, or DEFECT beside good), and "
        f"evaluate again: {needed} without a miss show that at most {percent(_WEAK_EVIDENCE)} are missed.",
    )


def only_kind(figures: Figures) -> Literal["good", "defective"] | None:
    """Return what all test images show; None where they show both kinds."""
    if figures.anomalous == 0:
        return "good"
    return "defective" if figures.anomalous == figures.images else None


def _undecided(figures: Figures) -> Verdict | None:
    if figures.confusion is not None:
        return None
    return Verdict(
        "care",
        "It decides nothing yet",
        "The bundle has no thresholds. "
        + (
            f"Its scores tell defective parts from good ones with image AUROC {figure(figures.image_auroc)}."
            if (only := only_kind(figures)) is None
            else f"All {figures.images} test images show {only} parts: whether scores tell them apart is not known."
        ),
        "Set them on good parts: flawscope calibrate BUNDLE --data DIR.",
    )


def _faulty(figures: Figures) -> Verdict | None:
    if not figures.faults:
        return None
    count = len(figures.faults)
    return Verdict(
        "care",
        "Not every image could be judged",
        f"{count} of {figures.images} images could not be scored; on a line such a part is stopped. {_found(figures)}",
        "Read the reasons under Faults, and put right what caused them.",
    )


def _over_bound(figures: Figures) -> Verdict | None:
    if (text := _said(figures, BOUND)) is None:
        return None
    return Verdict(
        "care",
        "It rejects more than it promises",
        text,
        "Set the thresholds again on good parts as they come now: flawscope calibrate BUNDLE --data DIR.",
    )


def _misses(figures: Figures) -> Verdict | None:
    miss = None if figures.confusion is None else figures.confusion.miss
    if miss is None or miss.value is None or miss.value <= _FEW_MISSES:
        return None
    return Verdict("care", "It misses defects", _found(figures), _against_misses(figures, miss.count))


def _against_misses(figures: Figures, now: int) -> str:
    """Return what would lower the misses most: another threshold where the scores allow it, else another detector."""
    other = figures.f1_threshold
    if other is not None:
        missed = sum(row.is_anomalous and row.score is not None and row.score <= other for row in figures.per_image)
        alarms = sum(not row.is_anomalous and (row.score is None or row.score > other) for row in figures.per_image)
        good = figures.images - figures.anomalous
        if 2 * missed <= now and alarms <= 0.1 * good:
            # Scores minus their thresholds: all of these would move alike.
            place = f"{number(-other)} lower" if figures.has_relative_scores else f"At {number(other)}"
            return (
                f"Lower the threshold. {place}, it would miss {missed} and reject {alarms} of {good} good parts of "
                "these images. flawscope calibrate BUNDLE --data DIR --false-reject-rate RATE sets one with a bound."
            )
    if (small := _said(figures, SMALL)) is not None:
        return small
    return (
        "No threshold does it alone: the scores of good and defective parts overlap. Try a larger input or tiles "
        "(--image-size, tile), another method, or learn from images of defects."
    )


def _at_the_edge(figures: Figures) -> Verdict | None:
    if (text := _said(figures, EDGE)) is None:
        return None
    threshold = None if figures.confusion is None else figures.confusion.image_threshold
    # Calibration leaves out what was learned: those images count again only in another cross-fitted training.
    is_crossed = threshold is not None and threshold.guarantee == "estimated"
    again = (
        "train again on all of them with --set cross_fit=20"
        if is_crossed
        else "run flawscope calibrate BUNDLE --data DIR"
    )
    return Verdict(
        "care",
        "The threshold needs more images",
        f"{_found(figures)} {text}",
        f"Collect more images of good parts, and {again}.",
    )


def _seen(figures: Figures) -> Verdict | None:
    if (note := next((note for note in figures.notes if SEEN_BEFORE in note), None)) is None:
        return None
    return Verdict(
        "care",
        "Tested on what it knows",
        note,
        "Evaluate on images that were neither trained nor calibrated on.",
    )


def _few_defects(figures: Figures) -> Verdict | None:
    miss = None if figures.confusion is None else figures.confusion.miss
    if miss is None or miss.upper is None or miss.upper <= _WEAK_EVIDENCE:
        return None
    needed = images_needed(_WEAK_EVIDENCE, miss.confidence)
    return Verdict(
        "care",
        "Promising, but little evidence",
        f"{_found(figures)} So few defective parts show only that at most {percent(miss.upper)} are missed.",
        f"Test more defective parts: {needed} without a miss show that at most {percent(_WEAK_EVIDENCE)} are missed.",
    )


def _found(figures: Figures) -> str:
    confusion = figures.confusion
    if confusion is None:
        return ""
    missed, rejected = share(confusion.miss), share(confusion.false_reject)
    # Of what was not tested nothing is said.
    if not confusion.miss.n:
        return f"It rejected {rejected} good parts."
    if not confusion.false_reject.n:
        return f"It missed {missed} defective parts."
    return f"It missed {missed} defective parts and rejected {rejected} good ones."


def _bound(figures: Figures) -> str:
    threshold = None if figures.confusion is None else figures.confusion.image_threshold
    if threshold is None or threshold.upper_bound is None:
        return ""
    kind = "an estimated " if threshold.guarantee == "estimated" else ""
    return f"In the long run it rejects at most {kind}{percent(threshold.upper_bound)} of the good parts."


def _said(figures: Figures, part: str) -> str | None:
    """Return the sentence of the diagnosis that has `part` in it; that of a product has its name before."""
    return next((text for text in figures.diagnosis if part in text), None)
