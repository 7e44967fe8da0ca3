"""Paired differences of two detectors on the same images, with intervals over seeds and over images.

Both are trained with the same seeds and tested on the same images, so what they share cancels out of the difference.
Two sources of chance are left, and each gets an interval of its own:

    seeds    Student's t over the differences of the single seeds: another training gives another difference;
    images   percentile bootstrap: whole images are drawn with replacement, the same for both detectors and all
             seeds, and the difference is averaged over the seeds in each resample: other images give another one.

The wider one is the interval. With one seed there is only that of the images, which does not cover chance in
training. Images are drawn separately by kind (normal, anomalous, anomalous without pixel truth), and are taken to show
different parts.

Pixel figures of a resample come from a histogram of every image over at most 2049 bins, whose edges lie on both sides
of 1024 quantiles of the defect pixels' scores: exact where there are no more of them. |figure from the bins - exact
figure| is measured and added on both sides of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array, check_array
from flawscope.calibration.evaluation.intervals import (
    RESAMPLES,
    Interval,
    check_fraction,
    draw_counts,
    from_zero,
    percentile_interval,
)
from flawscope.calibration.evaluation.metrics import (
    area_under,
    auroc,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
)
from flawscope.calibration.extras import require
from flawscope.errors import ArgumentError

PIXEL_AP, PIXEL_AUROC, IMAGE_AUROC, IOU, IOU_F1 = "pixel_ap", "pixel_auroc", "image_auroc", "iou", "iou_f1"
FIGURES = {
    PIXEL_AP: "pixel AP",
    IOU: "IoU at 0.5",
    IOU_F1: "IoU at best F1",
    PIXEL_AUROC: "pixel AUROC",
    IMAGE_AUROC: "image AUROC",
}
"""Figure of a segmenter -> its title. The names of overlaps come with their thresholds, from the caller of `tally`."""
_QUANTILES = 1024


@dataclass(frozen=True)
class Truth:
    """What test images show.

    Attributes:
        labels: Bool [N], true for anomalous.
        masks: Bool [N, H, W], true at defects; empty for normal images and where there is no pixel truth.
    """

    labels: BoolArray
    masks: BoolArray

    def __post_init__(self) -> None:
        check_array(self.labels, "labels", ("N",), np.bool_)
        check_array(self.masks, "masks", (len(self.labels), "H", "W"), np.bool_)
        if self.masks[~self.labels].any():
            raise ArgumentError("masks: expected empty ones of normal images, got one with a defect.")

    @property
    def use(self) -> BoolArray:
        """Images whose pixels count, bool [N]: normal ones, and anomalous ones with pixel truth."""
        return ~self.labels | self.masks.any(axis=(1, 2))

    def select(self, rows: BoolArray) -> Truth:
        """Return the truth of the images marked in `rows`, bool [N]."""
        return Truth(self.labels[rows], self.masks[rows])


@dataclass(frozen=True)
class Tally:
    """Results of one detector on test images, a row each: all that its figures on any resample need.

    Attributes:
        figures: Exact figures; one that is undefined is not there.
        errors: Figure -> |figure from the bins - exact figure|, of the pixel figures that come from bins.
        scores: float64 [N], of the images.
        false: float64 [P, B], defect-free pixels of each image in `Truth.use` per bin, highest first.
        true: float64 [P, B], its defect pixels.
        overlaps: Name of a threshold -> float64 [P, 2], pixels both marked and anomalous, pixels of either kind.
    """

    figures: dict[str, float]
    errors: dict[str, float]
    scores: Float64Array
    false: Float64Array
    true: Float64Array
    overlaps: dict[str, Float64Array]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How a figure of the second detector differs from that of the first; above zero the second is higher.

    Attributes:
        first: The figure of the first detector, one value a seed.
        second: The figure of the second, in the same order.
        differences: Second minus first, one a seed.
        mean: Mean of the differences.
        by_seeds: Interval over seeds; None with one seed.
        by_pictures: Interval over images.
        interval: The wider of the two.
        wider: Which of the two is wider.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]
    differences: tuple[float, ...]
    mean: float
    by_seeds: Interval | None
    by_pictures: Interval
    interval: Interval
    wider: Literal["seeds", "pictures"]

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.interval.low > 0.0


def tally(maps: Float32Array, scores: Float64Array, truth: Truth, thresholds: Mapping[str, float]) -> Tally:
    """Return the results of a detector on images.

    Figures are `pixel_ap`, `pixel_auroc`, `image_auroc`, and for every threshold the overlap of marked and anomalous
    pixels: pixels that are both / pixels that are either, over all images together, normal ones included (IoU).

    Args:
        maps: float32 [N, H, W], higher is more anomalous.
        scores: float64 [N], of the images.
        truth: What the images show.
        thresholds: Name of an overlap -> pixels strictly above it are marked.

    Raises:
        ArgumentError: If shapes differ or a number is not finite.
    """
    check_array(maps, "maps", truth.masks.shape, np.float32)
    use = truth.use
    figures: dict[str, float] = {}
    if (value := auroc(scores, truth.labels)) is not None:
        figures[IMAGE_AUROC] = value
    false = true = np.zeros((int(use.sum()), 0))
    overlaps: dict[str, Float64Array] = {}
    errors: dict[str, float] = {}
    if (ranking := rank_pixels(maps, truth.masks, use)) is not None:
        figures |= {PIXEL_AP: pixel_average_precision(ranking), PIXEL_AUROC: pixel_auroc(ranking)}
        shares = ranking.true_at / ranking.true_at[-1]
        # 1e-12 is for quotients that rounding has put just below their target.
        chosen = np.unique(np.searchsorted(shares, np.arange(1, _QUANTILES + 1) / _QUANTILES - 1e-12))
        ends = ranking.values[chosen[chosen < len(ranking.values)]]
        # With an edge on both sides of a score, the score has a bin of its own, and so has the gap to the next one:
        # with at most _QUANTILES defect pixels each of their scores is an edge, and the bins are exact.
        edges = np.unique(np.concatenate((ends, np.nextafter(ends, np.float32(np.inf)))))
        false, true = _histograms(maps[use], truth.masks[use], edges)
        binned = _pixel_figures(false.sum(axis=0)[None], true.sum(axis=0)[None])
        errors = {name: abs(float(values[0]) - figures[name]) for name, values in binned.items()}
        for name, threshold in thresholds.items():
            marked = maps[use] > threshold  # strictly, as decisions are made
            both = (marked & truth.masks[use]).sum(axis=(1, 2))
            either = (marked | truth.masks[use]).sum(axis=(1, 2))
            # Per image, as counts: a resample adds numerators and denominators up before it divides.
            overlaps[name] = np.column_stack((both, either)).astype(np.float64)
            figures[name] = float(both.sum() / either.sum())
    return Tally(figures, errors, scores, false, true, overlaps)


def compare_tallies(
    first: Sequence[Tally],
    second: Sequence[Tally],
    truth: Truth,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the differences between the figures of two detectors that were tested on the same images.

    Args:
        first: Tallies of the first detector, one a seed.
        second: Tallies of the second, of the same seeds in the same order.
        truth: What the images show.
        confidence: Two-sided, a fraction.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        Name of a figure that all tallies have -> its difference, in the order of `FIGURES`.

    Raises:
        ArgumentError: If the numbers of tallies differ, there is none, or `confidence` is no fraction.
    """
    check_fraction(confidence, "confidence")
    if not first or len(first) != len(second):
        raise ArgumentError(f"tallies: expected as many of both detectors, got {len(first)} and {len(second)}.")
    parts: dict[str, list[Float64Array]] = {}
    kinds = (~truth.labels, truth.labels & truth.use, ~truth.use)
    for counts in draw_counts(kinds, resamples, seed):
        drawn: dict[str, Float64Array] = {}
        for sign, tallies in ((-1.0, first), (1.0, second)):
            for seed_tally in tallies:
                # The same counts for every tally: paired resamples, in which what the detectors share cancels out.
                for name, values in _figures(seed_tally, truth, counts).items():
                    drawn[name] = drawn.get(name, 0.0) + sign / len(first) * values
        for name, values in drawn.items():
            parts.setdefault(name, []).append(values)
    tallies_of_both = (*first, *second)
    common = [name for name in first[0].figures if all(name in each.figures for each in tallies_of_both)]
    names = [*(name for name in FIGURES if name in common), *(name for name in common if name not in FIGURES)]
    results = {}
    for name in names:
        # The worst case: errors of the bins do not cancel, neither between detectors nor between seeds.
        error = math.fsum(each.errors.get(name, 0.0) for each in tallies_of_both) / len(first)
        by_images = percentile_interval(np.concatenate(parts[name]), confidence, error)
        pairs = [(before.figures[name], after.figures[name]) for before, after in zip(first, second, strict=True)]
        results[name] = _difference(pairs, by_images, confidence)
    return results


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return the two-sided interval of the mean of independent normal values, or None for fewer than two.

    mean ± t(n - 1) · s / √n with the sample deviation s (Student, Biometrika 6 (1908) 1-25).
    """
    check_fraction(confidence, "confidence")
    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))  # ddof=1: the sample deviation, with n - 1
    t = require("scipy.stats", "scipy", "computing intervals of differences").t
    reach = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * spread
    mean = float(np.mean(values))
    return Interval(mean - reach, mean + reach, confidence)


def _difference(pairs: Sequence[tuple[float, float]], by_images: Interval, confidence: float) -> Difference:
    differences = tuple(after - before for before, after in pairs)
    by_seeds = student_interval(differences, confidence)
    is_seeds = by_seeds is not None and by_seeds.high - by_seeds.low > by_images.high - by_images.low
    return Difference(
        first=tuple(before for before, _ in pairs),
        second=tuple(after for _, after in pairs),
        differences=differences,
        mean=math.fsum(differences) / len(differences),
        by_seeds=by_seeds,
        by_pictures=by_images,
        interval=by_seeds if is_seeds and by_seeds is not None else by_images,
        wider="seeds" if is_seeds else "pictures",
    )


def _histograms(maps: Float32Array, masks: BoolArray, edges: Float32Array) -> tuple[Float64Array, Float64Array]:
    """Count the pixels of every image per bin, highest first: defect-free and anomalous ones."""
    bins = len(edges) + 1
    false, true = np.zeros((2, len(maps), bins))
    for row, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        place = len(edges) - np.searchsorted(edges, anomaly_map, side="right")  # bin 0 is the highest
        false[row] = np.bincount(place[~mask], minlength=bins)
        true[row] = np.bincount(place[mask], minlength=bins)
    return false, true


def _figures(results: Tally, truth: Truth, counts: Float64Array) -> dict[str, Float64Array]:
    """Return the figures of weighted images: counts float64 [R, N] -> name -> float64 [R]."""
    figures: dict[str, Float64Array] = {}
    if IMAGE_AUROC in results.figures:
        # The bins are the distinct scores, highest first: nothing is approximated.
        values, place = np.unique(-results.scores, return_inverse=True)
        items = np.zeros((len(results.scores), len(values)))
        items[np.arange(len(results.scores)), place] = 1.0
        false, true = (counts @ (items * kind[:, None]) for kind in (~truth.labels, truth.labels))
        figures[IMAGE_AUROC] = _areas(false.cumsum(axis=1), true.cumsum(axis=1))
    if PIXEL_AP in results.figures:
        of_pixels = counts[:, truth.use]
        figures |= _pixel_figures(of_pixels @ results.false, of_pixels @ results.true)
        for name, pixels in results.overlaps.items():
            both, either = (of_pixels @ pixels).T
            figures[name] = both / either  # `either` is above 0: each resample draws as many images with masks
    return figures


def _pixel_figures(false: Float64Array, true: Float64Array) -> dict[str, Float64Array]:
    """Return average precision and area under the ROC curve of histograms, float64 [R, B] each, highest bin first."""
    false_at, true_at = false.cumsum(axis=1), true.cumsum(axis=1)
    called = false_at + true_at
    precision = np.divide(true_at, called, out=np.zeros_like(called), where=called > 0)
    steps = true / true_at[:, -1:]
    return {PIXEL_AP: np.sum(steps * precision, axis=1), PIXEL_AUROC: _areas(false_at, true_at)}


def _areas(false_at: Float64Array, true_at: Float64Array) -> Float64Array:
    return area_under(from_zero(false_at / false_at[:, -1:]), from_zero(true_at / true_at[:, -1:]), 1.0)
