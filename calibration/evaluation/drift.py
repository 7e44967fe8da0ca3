"""Drift: how figures differ from those of the same model with another backend or precision, or on another machine.

The two sides show the same images, so what they share cancels out of the difference: whole images are drawn with
replacement, for both sides alike. Pixel figures have no such interval, because maps are not kept, and differences from
figures in a bundle's evidence have none, because single scores are not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import numpy as np

from flawscope.arrays import BoolArray, Float64Array
from flawscope.bundle import Accuracy
from flawscope.calibration.evaluation.earlier_figures import EarlierFigures, Pairs, pair_images
from flawscope.calibration.evaluation.figures import Change, Drift, Figures, PairedScores, judged_of, measured_on
from flawscope.calibration.evaluation.intervals import (
    Interval,
    draw_counts,
    paired_image_intervals,
    percentile_interval,
    rate,
)
from flawscope.calibration.evaluation.metrics import auroc, average_precision, spearman

GOALS = {"fp32": 0.001, "fp16": 0.001, "bf16": 0.002, "int8": 0.003}
"""Precision -> largest difference of image AUROC between two machines that it is meant to keep to."""

_CONFIDENCE = 0.95
_PIXEL_FIGURES = ("pixel_auroc", "pixel_ap", "aupro", "aupro_05")
_AT_THRESHOLD = ("pixel_f1", "pixel_recall")
_OWN = "image_threshold of "
"""Before the name of a zone or product, in the figures of a bundle's evidence."""


def paired_drift(before: EarlierFigures, after: Figures) -> Drift:
    """Return how figures differ from earlier ones of the same model, over the images of both.

    Args:
        before: The earlier figures, with single images.
        after: The figures of now; resamples and seed of the intervals are theirs.
    """
    pairs = pair_images(before.per_image or (), after.per_image, by_product=bool(before.products))
    scored = [pair for pair in pairs.both if None not in (pair[0].score, pair[1].score)]
    scores = np.array([[side.score for side in pair] for pair in scored], np.float64).reshape(-1, 2)
    labels = np.array([pair[1].is_anomalous for pair in scored], np.bool_)
    pixels = _pixel_changes(before, after)
    notes = [*_image_notes(pairs, len(scored))]
    if pixels and not _is_same_set(pairs):
        pixels = {}
        notes.append("Pixel figures are not compared: the two sides have not the same images, masks or faults.")
    notes += _threshold_notes("image", _threshold(before, "image"), _threshold(after, "image"))
    has_others = before.confusion is not None and own_thresholds(before) != own_thresholds(after)
    notes += _own_threshold_notes(has_others=has_others)
    if pixels:
        notes += _threshold_notes("pixel", _threshold(before, "pixel"), _threshold(after, "pixel"))
    figures = _score_changes(scores, labels, after) | pixels | _decision_changes(pairs, after)
    precisions = {before.precision, after.precision}
    goal = _goal(precisions)
    return Drift(
        against=measured_on(before.backend, before.path, before.precision, before.judged),
        when=before.when,
        goal=goal,
        figures=figures,
        paired=_paired_scores(pairs, scores, labels, after),
        notes=(*notes, *_goal_notes(figures.get("image_auroc"), goal, precisions, after, has_others=has_others)),
    )


def recorded_drift(rows: Iterable[Accuracy], after: Figures) -> tuple[Drift, ...]:
    """Return how figures differ from those in a bundle's evidence with another backend or precision.

    Args:
        rows: The accuracy figures of the evidence; those of other images are passed over.
        after: The figures of now.
    """
    here = measured_on(after.backend, after.path, after.precision, after.judged)
    return tuple(
        _recorded(row, after)
        for row in rows
        if row.dataset == after.dataset.fingerprint
        and row.backend != here
        and row.images == after.images
        # Those at the thresholds of other products are other decisions, and no drift.
        and judged_of(row.backend) == after.judged
    )


def _recorded(row: Accuracy, after: Figures) -> Drift:
    pairs: dict[str, tuple[float | None, float | None]] = {
        name: (row.figures.get(name), getattr(after, name))
        for name in ("image_auroc", "image_ap", *_PIXEL_FIGURES, *_AT_THRESHOLD)
    }
    if after.confusion is not None:
        miss, false_reject = row.figures.get("miss_rate"), row.figures.get("false_reject_rate")
        missed = after.confusion.miss.value
        pairs["recall"] = (None if miss is None else 1 - miss, None if missed is None else 1 - missed)
        pairs["false_rejects"] = (false_reject, after.confusion.false_reject.value)
    figures = {
        name: Change(before=old, after=new, change=new - old, interval=None)
        for name, (old, new) in pairs.items()
        if old is not None and new is not None
    }
    # `cpu (kernel, int8)`: the precision is the last word in the brackets, unless it is fp32.
    details = row.backend.partition("(")[2].removesuffix(f"{after.judged})")
    precision = next((word for word in re.findall(r"\w+", details) if word in GOALS), "fp32")
    precisions = {precision, after.precision}
    goal = _goal(precisions)
    thresholds = row.figures.get("image_threshold"), _threshold(after, "image")
    own = {name: value for name, value in row.figures.items() if name.startswith(_OWN)}
    has_others = None not in thresholds and own != recorded_thresholds(after)
    return Drift(
        against=row.backend,
        when=row.when,
        goal=goal,
        figures=figures,
        paired=None,
        notes=(
            *_threshold_notes("image", *thresholds),
            *_own_threshold_notes(has_others=has_others),
            *_goal_notes(figures.get("image_auroc"), goal, precisions, after, has_others=has_others),
        ),
    )


# ---- Figures ---------------------------------------------------------------------------------------------------------


def _score_changes(scores: Float64Array, labels: BoolArray, after: Figures) -> dict[str, Change]:
    first, second = scores.T
    intervals = paired_image_intervals(first, second, labels, resamples=after.resamples, seed=after.seed)
    changes = {}
    for name, figure in (("image_auroc", auroc), ("image_ap", average_precision)):
        if name in intervals:  # both kinds of images are there
            old, new = figure(first, labels), figure(second, labels)
            if old is not None and new is not None:
                changes[name] = Change(before=old, after=new, change=new - old, interval=intervals[name])
    return changes


def _pixel_changes(before: EarlierFigures, after: Figures) -> dict[str, Change]:
    """Return the plain differences of pixel figures, which are those of all images of each side."""
    changes = {}
    for name in (*_PIXEL_FIGURES, *_AT_THRESHOLD):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None:
            changes[name] = Change(before=old, after=new, change=new - old, interval=None)
    return changes


def _is_same_set(pairs: Pairs) -> bool:
    """Return whether pixel figures of both sides are of the same pixels."""
    return pairs.only_before == pairs.only_after == 0 and all(
        old.mask == new.mask and (old.score is None) == (new.score is None) for old, new in pairs.both
    )


def _decision_changes(pairs: Pairs, after: Figures) -> dict[str, Change]:
    """Return the changes of recall and false rejects; empty where a side has not decided."""
    if not _is_decided(pairs):
        return {}
    labels = np.array([new.is_anomalous for _, new in pairs.both], np.bool_)
    # Not "rejected": a fault stops a part on the line as well.
    stopped = np.array([[side.decision != "accept" for side in pair] for pair in pairs.both], np.float64)
    changes = {}
    for name, rows in (("recall", labels), ("false_rejects", ~labels)):
        if not rows.any():
            continue
        old, new = (float(value) for value in stopped[rows].mean(axis=0))
        moved = stopped[:, 1] - stopped[:, 0]
        drawn = [counts[:, rows] @ moved[rows] / rows.sum() for counts in _draws(labels, after)]
        interval = percentile_interval(np.concatenate(drawn), _CONFIDENCE)
        changes[name] = Change(before=old, after=new, change=new - old, interval=interval)
    return changes


def _is_decided(pairs: Pairs) -> bool:
    return bool(pairs.both) and all(side.decision is not None for pair in pairs.both for side in pair)


def _paired_scores(pairs: Pairs, scores: Float64Array, labels: BoolArray, after: Figures) -> PairedScores:
    is_decided = _is_decided(pairs)
    moved = {
        new.image: f"{old.decision} to {new.decision}"
        for old, new in pairs.both
        if is_decided and old.decision != new.decision
    }
    first, second = scores.T
    # As in the gate of a precision, 1e-12 stands in for zeros.
    relative = np.abs(second - first) / np.maximum(np.abs(first), 1e-12)
    # Scores minus a threshold may be anything near it, and a relative difference of them says nothing.
    has_relative = bool(len(scores)) and not after.has_relative_scores
    correlation = spearman(first, second, "comparing scores") if len(scores) else None
    return PairedScores(
        images=len(pairs.both),
        only_before=pairs.only_before,
        only_after=pairs.only_after,
        faults_before=sum(old.score is None for old, _ in pairs.both),
        faults_after=sum(new.score is None for _, new in pairs.both),
        changed=rate(len(moved), len(pairs.both)) if is_decided else None,
        decisions=dict(sorted(Counter(moved.values()).items())),
        moved=moved,
        largest_relative=float(relative.max()) if has_relative else None,
        median_relative=float(np.median(relative)) if has_relative else None,
        median_interval=_drawn_interval(lambda counts: _medians(relative, counts), labels, after)
        if has_relative
        else None,
        rank_correlation=correlation,
        rank_correlation_interval=None
        if correlation is None
        else _drawn_interval(lambda counts: _rank_correlations(first, second, counts), labels, after),
    )


# ---- Resampling ------------------------------------------------------------------------------------------------------


def _draws(labels: BoolArray, after: Figures) -> Iterable[Float64Array]:
    return draw_counts((labels, ~labels), after.resamples, after.seed)


def _drawn_interval(
    figure: Callable[[Float64Array], Float64Array], labels: BoolArray, after: Figures
) -> Interval | None:
    """Return the interval of a figure of counts float64 [R, N] -> [R]; resamples where it is undefined are left out."""
    if not len(labels):
        return None
    drawn = np.concatenate([figure(counts) for counts in _draws(labels, after)])
    drawn = drawn[np.isfinite(drawn)]
    return percentile_interval(drawn, _CONFIDENCE) if drawn.size else None


def _medians(values: Float64Array, counts: Float64Array) -> Float64Array:
    """Return the median of values [N] that are there as often as counts [R, N] says, [R]; as many in every row."""
    order = np.argsort(values)
    reached = counts[:, order].cumsum(axis=1)
    total = reached[:, -1:]
    # The mean of the two in the middle, which are one where the number is odd.
    low = (reached >= np.floor((total + 1) / 2)).argmax(axis=1)
    high = (reached >= np.floor(total / 2 + 1)).argmax(axis=1)
    middle: Float64Array = (values[order][low] + values[order][high]) / 2
    return middle


def _rank_correlations(first: Float64Array, second: Float64Array, counts: Float64Array) -> Float64Array:
    """Return Spearman's rank correlation of values [N] that are there as often as counts [R, N] says, [R]."""
    total = counts.sum(axis=1, keepdims=True)
    # Ranks from the middle, so that their mean is 0.
    ranks = [_ranks(values, counts) - (total + 1) / 2 for values in (first, second)]
    both, one, other = ((counts * a * b).sum(axis=1) for a, b in (ranks, ranks[:1] * 2, ranks[1:] * 2))
    spread = np.sqrt(one * other)
    correlations: Float64Array = np.divide(both, spread, out=np.full(len(counts), np.nan), where=spread > 0)
    return correlations


def _ranks(values: Float64Array, counts: Float64Array) -> Float64Array:
    """Return the rank of each value [N] in each resample [R, N], float64 [R, N]; equal values share the middle one."""
    _, place = np.unique(values, return_inverse=True)
    held = np.zeros((place.max() + 1, len(counts)))
    np.add.at(held, place, counts.T)
    return np.asarray((held.cumsum(axis=0) - held + (held + 1) / 2)[place].T, np.float64)


# ---- Notes -----------------------------------------------------------------------------------------------------------


def _threshold(figures: EarlierFigures | Figures, name: Literal["image", "pixel"]) -> float | None:
    if figures.confusion is None:
        return None
    threshold: float = getattr(figures.confusion, f"{name}_threshold").value
    return threshold


def own_thresholds(figures: EarlierFigures | Figures) -> dict[str, float]:
    """Return the image threshold of each zone and product; empty with the common ones alone."""
    # Differing forms of nothing: an empty tuple in a file that was read, UNSET in figures of now.
    zones, products = figures.zones or (), figures.products or ()
    return {row.zone: row.image_threshold for row in zones} | {
        row.product: row.confusion.image_threshold.value for row in products
    }


def recorded_thresholds(figures: Figures) -> dict[str, float]:
    """Return the image threshold of each zone and product by the key that it has in a bundle's evidence."""
    return {f"{_OWN}{name}": value for name, value in own_thresholds(figures).items()}


def _own_threshold_notes(*, has_others: bool) -> Sequence[str]:
    if not has_others:
        return ()
    return (
        "The thresholds of zones or products were others there: scores minus them, and decisions, differ for that "
        "as well.",
    )


def _goal(precisions: AbstractSet[str]) -> float:
    """Return the goal of the coarser precision; that of the coarsest for one that a newer version may have."""
    return max(GOALS.get(precision, max(GOALS.values())) for precision in precisions)


def _image_notes(pairs: Pairs, scored: int) -> Sequence[str]:
    notes = []
    if pairs.only_before or pairs.only_after:
        notes.append(
            f"{len(pairs.both)} images are in both; {pairs.only_before} of the other side and {pairs.only_after} of "
            "this one are left out."
        )
    if faults := len(pairs.both) - scored:
        notes.append(
            f"{faults} images could not be scored on one side at least. They are left out of differences of scores and "
            "of AUROC and AP, and count as not accepted."
        )
    return notes


def _threshold_notes(name: Literal["image", "pixel"], before: float | None, after: float | None) -> Sequence[str]:
    if before == after:
        return ()
    if before is None or after is None:
        side = "other" if before is None else "this"
        return (f"Decisions are not compared: the {side} side had no thresholds.",)
    what = {"image": "recall, false rejects and decisions", "pixel": "pixel F1 and pixel recall"}[name]
    return (
        f"The {name} threshold in force was {before:.6g} there and is {after:.6g} here: {what} differ for that as "
        "well.",
    )


def _goal_notes(
    change: Change | None, goal: float, precisions: AbstractSet[str], after: Figures, *, has_others: bool
) -> Sequence[str]:
    """Return a note where the difference of image AUROC exceeds the goal, or may well do so."""
    # Ranks are of scores minus the thresholds of zones or products: with others, AUROC says nothing of the machine.
    if has_others:
        return ()
    if change is None:
        if after.image_auroc is None:  # there is a note on it already
            return ()
        return ("The difference of image AUROC is not known: it takes normal and anomalous images on both sides.",)
    slack = 1e-9  # differences of exactly the goal come out of floating point a little larger
    if abs(change.change) > goal + slack:
        advice = (
            "run flawscope doctor BUNDLE on both machines"
            if precisions == {"fp32"}
            else "take a wider precision there, or export it anew with more and other calibration images"
        )
        return (
            f"Image AUROC differs by {100 * change.change:+.2f} points, more than the goal of {100 * goal:g}. See "
            f"which images moved (drift in --json), and {advice}.",
        )
    if change.interval is not None and max(-change.interval.low, change.interval.high) > goal + slack:
        return (
            f"Image AUROC keeps to the goal of {100 * goal:g} points on these images, but its interval reaches beyond: "
            "more test images would tell.",
        )
    return ()
