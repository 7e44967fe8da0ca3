"""Two bundles on the same images: by how much figures differ, with intervals, and which is better.

Both show the same images, so what they share cancels out: whole images are drawn with replacement, for both alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray
from flawscope.calibration.evaluation.drift import paired_drift
from flawscope.calibration.evaluation.earlier_figures import EarlierFigures
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.figures import Change, Figures
from flawscope.calibration.evaluation.intervals import Rate
from flawscope.calibration.evaluation.measurements import Measured
from flawscope.calibration.evaluation.paired_differences import (
    PIXEL_AP,
    PIXEL_AUROC,
    Tally,
    Truth,
    compare_tallies,
    tally,
)
from flawscope.calibration.evaluation.rounding import number, percent
from flawscope.calibration.evaluation.verdict import Verdict, only_kind
from flawscope.errors import DataError
from flawscope.text import encode_json

NAMES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "recall": "defects found",
    "false_rejects": "false rejects",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AU-PRO",
    "aupro_05": "AU-PRO, 5%",
    "pixel_f1": "pixel F1",
    "pixel_recall": "pixel recall",
}
"""Figure of a comparison -> its title, in the order in which they are shown."""
_DECISIVE = {"image_auroc": 1, "recall": 1, "false_rejects": -1}
"""Figures that say which bundle is better, and which way."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How the figures of a second bundle differ from those of a first, on the images of both.

    Attributes:
        first: Figures of the first bundle, A.
        second: Figures of the second bundle, B.
        images: Number of images of both.
        only_first: Images that count for A alone, left out of the differences.
        only_second: The same of B.
        figures: Figure -> its change from A to B; the interval is None where there is a plain difference alone.
        changed: Share of images with another decision; None where a bundle has no thresholds.
        decisions: Such as `accept to reject` -> number of images, from A to B.
        moved: Image -> such as `accept to reject`, of images with another decision.
        notes: What limits the comparison, a sentence each.
    """

    first: Figures
    second: Figures
    images: int
    only_first: int
    only_second: int
    figures: dict[str, Change]
    changed: Rate | None
    decisions: dict[str, int]
    moved: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Both evaluations, and how they compare."""

    first: Evaluation
    second: Evaluation
    comparison: Comparison


def compare_evaluations(first: Evaluation, second: Evaluation) -> Pair:
    """Return how two bundles compare that were evaluated on the same dataset.

    Args:
        first: That of the first bundle.
        second: That of the second; seed and number of resamples of the intervals are its.

    Raises:
        DataError: If no image counts for both.
    """
    before, after = first.figures, second.figures
    earlier = msgspec.json.decode(encode_json(before), type=EarlierFigures)
    drift = paired_drift(earlier, after)
    paired = drift.paired
    if paired is None or paired.images == 0:
        raise DataError(
            f"{second.root}: expected images that count for both bundles, got none. Compare bundles that were not made "
            "with these test images."
        )
    changes = drift.figures | _pixel_changes(first, second)
    comparison = Comparison(
        first=before,
        second=after,
        images=paired.images,
        only_first=paired.only_before,
        only_second=paired.only_after,
        figures={name: changes[name] for name in NAMES if name in changes},
        changed=paired.changed,
        decisions=paired.decisions,
        moved=paired.moved,
        notes=_notes(before, after, paired.images, paired.only_before, paired.only_after),
    )
    return Pair(first, second, comparison)


def _pixel_changes(first: Evaluation, second: Evaluation) -> dict[str, Change]:
    """Return the changes of pixel figures with intervals; empty where the two do not count the same pixels."""
    one, other = first.measured, second.measured
    if one.inside is not None or other.inside is not None:
        return {}
    at = {sample.path: row for row, sample in enumerate(one.samples)}
    pairs = [(at[sample.path], row) for row, sample in enumerate(other.samples) if sample.path in at]
    pairs = [(a, b) for a, b in pairs if one.usable[a] and other.usable[b]]
    if not pairs:
        return {}
    rows_a, rows_b = (np.array(rows, np.intp) for rows in zip(*pairs, strict=True))
    # Pixels count where both have their truth: at a smaller size of the input a mask may have vanished.
    use = one.has_truth[rows_a] & other.has_truth[rows_b]
    if not (one.labels[rows_a] & use).any():
        return {}
    tally_a, truth = _tally(one, rows_a, use)
    tally_b, _ = _tally(other, rows_b, use)
    differences = compare_tallies(
        [tally_a], [tally_b], truth, resamples=second.figures.resamples, seed=second.figures.seed
    )
    return {
        name: Change(
            before=difference.first[0],
            after=difference.second[0],
            change=difference.mean,
            interval=difference.interval,
        )
        for name, difference in differences.items()
        if name in (PIXEL_AP, PIXEL_AUROC)
    }


def _tally(measured: Measured, rows: npt.NDArray[np.intp], use: BoolArray) -> tuple[Tally, Truth]:
    """Return the pixel results of some rows, of which those in `use` have pixel truth."""
    masks = measured.masks[rows] & use[:, None, None]
    truth = Truth(measured.labels[rows], np.asarray(masks, np.bool_))
    return tally(measured.maps[rows], measured.scores[rows], truth, {}), truth


def _notes(before: Figures, after: Figures, images: int, only_first: int, only_second: int) -> tuple[str, ...]:
    notes = []
    if only_first or only_second:
        notes.append(
            f"{images} images count for both bundles; {only_first} that count for A alone and {only_second} for B "
            "alone are left out of the differences."
        )
    if before.confusion is None or after.confusion is None:
        which = "A" if before.confusion is None else "B"
        notes.append(f"Bundle {which} has no thresholds: decisions are not compared.")
    else:
        rates = [side.confusion.image_threshold.false_reject_rate for side in (before, after) if side.confusion]
        bounds = [side.confusion.image_threshold.upper_bound for side in (before, after) if side.confusion]
        if rates[0] != rates[1] or bounds[0] != bounds[1]:
            notes.append(
                f"The thresholds promise different shares of false rejects in the long run (A {_promise(bounds[0])}, B "
                f"{_promise(bounds[1])}): found defects and false rejects differ for that as well, AUROC and AP do not."
            )
    if before.backend != after.backend or before.precision != after.precision:
        notes.append(
            f"A ran with {before.backend} {before.precision}, B with {after.backend} {after.precision}: their times "
            "differ for that as well."
        )
    return tuple(notes)


def _promise(bound: float | None) -> str:
    return "states no bound" if bound is None else f"at most {percent(bound)}"


def comparison_verdict(comparison: Comparison) -> Verdict:
    """Return which of two bundles is better on these images, as far as the intervals say."""
    if (only := only_kind(comparison.first)) is not None:
        # A bundle that accepts every part has no false reject: better at one alone is not better.
        missing, folder = ("defective", "test/DEFECT") if only == "good" else ("good", "test/good")
        return Verdict(
            "care",
            "Half of it is compared",
            f"All test images show {only} parts: which of the two is better with {missing} ones is not known.",
            f"Put images of {missing} parts into {folder} of the dataset, and compare again.",
        )
    better, worse = [], []
    for name, way in _DECISIVE.items():
        change = comparison.figures.get(name)
        if change is None or change.interval is None:
            continue
        low, high = sorted((way * change.interval.low, way * change.interval.high))
        if low > 0:
            better.append(name)
        elif high < 0:
            worse.append(name)
    if better and worse:
        return Verdict(
            "care",
            "Each is better at something",
            f"B is better in {_named(better)}, A in {_named(worse)}: none of these intervals includes zero.",
            "Decide what costs more, a missed defect or a false reject, and set both thresholds for the same "
            "false-reject rate (flawscope calibrate) before you compare again.",
        )
    if better or worse:
        winner: Literal["A", "B"] = "B" if better else "A"
        return Verdict(
            "good",
            f"{winner} is better",
            f"The intervals say so of {_named(better or worse)}, and of none of image AUROC, defects found and false "
            "rejects the contrary.",
            f"Take {winner}, unless it is too slow: {_times(comparison)}.",
        )
    return Verdict(
        "care",
        "No difference is shown",
        f"On {comparison.images} images every interval of image AUROC, found defects and false rejects includes zero.",
        f"Take the faster one ({_times(comparison)}), or compare on more images.",
    )


def _named(names: list[str]) -> str:
    return " and ".join(NAMES[name] for name in names)


def _times(comparison: Comparison) -> str:
    times = []
    for name, side in (("A", comparison.first), ("B", comparison.second)):
        if side.latency_ms is not None:
            times.append(f"{name} takes {number(side.latency_ms.p50)} ms an image")
    return ", ".join(times) or "see flawscope bench"
