"""Confidence intervals: exact binomial limits of rates, and bootstrap intervals of areas under curves.

Counts get exact binomial (Clopper-Pearson) limits. Areas under curves get percentile bootstrap intervals (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): whole images are drawn with replacement, because the
pixels of one image are not independent, and normal and anomalous images separately, so that every resample has both.

Both assume that the images show different parts. A bootstrap cannot see beyond its sample: a perfect figure stays
perfect in every resample, so its interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from flawscope.calibration.evaluation.metrics import (
    PRO_LIMIT,
    STRICT_PRO_LIMIT,
    PixelRanking,
    area_under,
    aupro,
    pixel_auroc,
    pixel_average_precision,
    region_shares,
)
from flawscope.calibration.extras import require
from flawscope.errors import ArgumentError

RESAMPLES = 1000
_BINS = 1024  # quantiles for the edges, taken twice: by pixel and by region
_IMAGE_FIGURES = {"auroc": "image_auroc", "ap": "image_ap", "f1_max": "image_f1_max"}
_CHUNK = 200  # resamples computed together: [200, 2048] float64 is 3 MB an array


class Interval(msgspec.Struct, frozen=True):
    """A two-sided interval and the confidence it was made for."""

    low: float
    high: float
    confidence: float


class Rate(msgspec.Struct, frozen=True):
    """A share of images with its exact binomial limits.

    Attributes:
        count: Images that are counted, such as false rejects.
        n: All images.
        value: count / n, or None without images.
        low: Lower end of the two-sided interval.
        high: Upper end of the two-sided interval.
        upper: One-sided upper bound: the true rate is at most this.
        confidence: Confidence of the interval and, separately, of the bound.
    """

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None
    upper: float | None
    confidence: float


def check_fraction(value: object, name: str) -> None:
    """Raise ArgumentError unless 0 < value < 1."""
    if not isinstance(value, int | float | np.floating) or not 0 < value < 1:
        raise ArgumentError(f"{name}: expected a fraction above 0 and below 1, got {value!r}. Write 1 % as 0.01.")


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided binomial interval of a rate seen `count` times in `n`.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404-413, by quantiles of the beta distribution.

    Raises:
        ArgumentError: If 0 <= count <= n, 1 <= n or 0 < confidence < 1 does not hold.
    """
    check_fraction(confidence, "confidence")
    tail = (1 - confidence) / 2
    # lower(k, n) = 1 - upper(n - k, n): successes and failures change places, so one bound serves both ends.
    return 1 - upper_bound(n - count, n, 1 - tail), upper_bound(count, n, 1 - tail)


def upper_bound(count: int, n: int, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper bound of a rate seen `count` times in `n`; raises as `clopper_pearson`.

    It is the p with P(X <= k | n, p) = 1 - confidence, that is, the `confidence` quantile of Beta(k + 1, n - k).
    """
    check_fraction(confidence, "confidence")
    if n < 1 or not 0 <= count <= n:
        raise ArgumentError(f"count: expected 0 to n images of n >= 1, got {count} of {n}.")
    if count == n:
        return 1.0  # Beta(n + 1, 0) does not exist: SciPy would give NaN
    if count == 0:
        # P(X = 0) = (1 - p)^n gives p = 1 - (1 - c)^(1/n); log1p and expm1 keep the digits that the beta quantile and
        # the plain power lose for large n. `images_needed` compares this value with the requested rate.
        return -math.expm1(math.log1p(-confidence) / n)
    beta = require("scipy.stats", "scipy", "computing confidence bounds").beta
    return float(beta.ppf(confidence, count + 1, n - count))


def rate(count: int, n: int, confidence: float = 0.95) -> Rate:
    """Return a rate with all its limits; all None without images."""
    if n == 0:
        return Rate(0, 0, None, None, None, None, confidence)
    low, high = clopper_pearson(count, n, confidence)
    return Rate(count, n, count / n, low, high, upper_bound(count, n, confidence), confidence)


def draw_counts(strata: Sequence[BoolArray], resamples: int, seed: int) -> Iterator[Float64Array]:
    """Yield how often each image is drawn with replacement, float64 [R, N], a few resamples at a time.

    Args:
        strata: bool [N] each, disjoint: from each, as many images are drawn as it has.
        resamples: Number of all resamples.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    # One generator serves chunk after chunk and stratum after stratum: another _CHUNK or order of strata would draw
    # other resamples from the same seed, and change every interval that was reported.
    for start in range(0, resamples, _CHUNK):
        counts = np.zeros((min(_CHUNK, resamples - start), len(strata[0])))
        for rows in strata:
            if number := int(rows.sum()):
                # How often each of m images is drawn in m draws is multinomial: no list of indices is needed.
                counts[:, rows] = generator.multinomial(number, np.full(number, 1 / number), size=len(counts))
        yield counts


def percentile_interval(drawn: Float64Array, confidence: float, error: float = 0.0) -> Interval:
    """Return the middle `confidence` of float64 [R] resampled figures, wider by `error` on both sides."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low) - error, float(high) + error, confidence)


def from_zero(values: Float64Array) -> Float64Array:
    """Return curves with the point 0 before the first: float64 [R, B] -> float64 [R, B + 1]."""
    return np.concatenate((np.zeros((len(values), 1)), values), axis=1)


@dataclass(frozen=True)
class _Histograms:
    """Histograms of each image over the score bins, highest bin first, so that a cumulative sum counts what is called.

    Attributes:
        false: float64 [N, B], defect-free items (images or pixels).
        true: float64 [N, B], anomalous items.
        overlap: float64 [N, B], shares of regions.
        regions: float64 [N], regions of each image.
        anomalous: bool [N], the stratum of each image.
    """

    false: Float64Array
    true: Float64Array
    overlap: Float64Array
    regions: Float64Array
    anomalous: BoolArray

    def weighted(self, counts: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return defect-free and anomalous items, float64 [R, B] each, of images weighted by float64 [R, N]."""
        return counts @ self.false, counts @ self.true


@dataclass(frozen=True)
class _ImageHistograms:
    """Histograms of images that are one item each, without the N x B numbers that are nearly all 0.

    Attributes:
        order: int64 [N], the images by score, highest first.
        starts: int64 [B], where each bin begins in that order.
        anomalous: bool [N], the stratum of each image.
    """

    order: Int64Array
    starts: Int64Array
    anomalous: BoolArray

    def weighted(self, counts: Float64Array) -> tuple[Float64Array, Float64Array]:
        """As `_Histograms.weighted`; counts are whole numbers, so that any order of summing gives the same bits."""
        ranked, labels = counts[:, self.order], self.anomalous[self.order]
        false, true = (np.add.reduceat(ranked * rows, self.starts, axis=1) for rows in (~labels, labels))
        return np.asarray(false, np.float64), np.asarray(true, np.float64)


def image_intervals(
    scores: Float64Array, labels: BoolArray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return bootstrap intervals of `image_auroc`, `image_ap` and `image_f1_max`; empty when a class is missing.

    The bins are the distinct scores, so nothing is approximated.

    Args:
        scores: float64 [N].
        labels: bool [N], true for anomalous.
        confidence: Confidence of the intervals, a fraction.
        resamples: Number of bootstrap samples.
        seed: Seed of the random draws.
    """
    check_fraction(confidence, "confidence")
    if not (labels.any() and not labels.all()):
        return {}
    drawn = _bootstrap(_image_histograms(scores, labels), resamples, seed)
    return {title: _within_unit(drawn[name], confidence, 0.0) for name, title in _IMAGE_FIGURES.items()}


def paired_image_intervals(
    first: Float64Array,
    second: Float64Array,
    labels: BoolArray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return bootstrap intervals of the change, second minus first, of the figures of `image_intervals`.

    Args:
        first: float64 [N], scores.
        second: float64 [N], other scores of the same images.
        labels: bool [N], true for anomalous.
        confidence: Confidence of the intervals, a fraction.
        resamples: Number of bootstrap samples.
        seed: Seed of the random draws.
    """
    check_fraction(confidence, "confidence")
    if not (labels.any() and not labels.all()):
        return {}
    # The same seed draws the same images for both: what the two share cancels out of the difference.
    before, after = (_bootstrap(_image_histograms(scores, labels), resamples, seed) for scores in (first, second))
    return {
        title: percentile_interval(after[name] - before[name], confidence) for name, title in _IMAGE_FIGURES.items()
    }


def _image_histograms(scores: Float64Array, labels: BoolArray) -> _ImageHistograms:
    """Return a histogram of each image over the distinct scores, with the one item that an image is."""
    order = np.argsort(-scores, kind="stable")  # negative: bin 0 is the highest score
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    return _ImageHistograms(order, starts, labels)


def pixel_intervals(
    maps: Float32Array,
    masks: BoolArray,
    use: BoolArray,
    ranking: PixelRanking,
    *,
    inside: BoolArray | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return bootstrap intervals of `pixel_auroc`, `pixel_ap`, `aupro` and `aupro_05` over whole images.

    Each map becomes a histogram over at most 2048 score bins, whose edges are quantiles of the defect pixels (half of
    them weighted by region), so that a resample is a sum of histograms and not a new sort of all pixels. The error of
    the bins is measured, |figure from the bins - exact figure|, and added on both sides of the interval.

    Args:
        maps: float32 [N, H, W].
        masks: bool [N, H, W].
        use: bool [N], the images that were ranked.
        ranking: What `rank_pixels` gave for these images.
        inside: bool [H, W] or [N, H, W], the pixels that were ranked; all by default.
        confidence: Confidence of the intervals, a fraction.
        resamples: Number of bootstrap samples.
        seed: Seed of the random draws.
    """
    check_fraction(confidence, "confidence")
    histograms = _pixel_histograms(maps, masks, use, inside, _edges(ranking))
    drawn = _bootstrap(histograms, resamples, seed)
    # Every image once is the sample itself: what the bins make of it, against the exact figure, is their error.
    binned = _figures(histograms, np.ones((1, len(histograms.anomalous))))
    exact = {"auroc": pixel_auroc(ranking), "ap": pixel_average_precision(ranking), "aupro": aupro(ranking)}
    exact["aupro_05"] = aupro(ranking, STRICT_PRO_LIMIT)
    names = {"auroc": "pixel_auroc", "ap": "pixel_ap", "aupro": "aupro", "aupro_05": "aupro_05"}
    return {
        title: _within_unit(drawn[name], confidence, abs(float(binned[name][0]) - exact[name]))
        for name, title in names.items()
    }


def _edges(ranking: PixelRanking) -> Float32Array:
    """Return ascending bin edges from the scores of the defect pixels."""
    # By region as well, for AU-PRO: large defects have most of the pixels, and edges by pixel alone would be too coarse
    # for the small ones. 1e-12 is for quotients that rounding has put just below their target.
    targets = np.arange(1, _BINS + 1) / _BINS
    by_pixel = np.searchsorted(ranking.true_at / ranking.true_at[-1], targets - 1e-12)
    by_region = np.searchsorted(ranking.overlap_at / ranking.overlap_at[-1], targets - 1e-12)
    chosen = np.unique(np.concatenate((by_pixel, by_region)))
    return np.ascontiguousarray(ranking.values[chosen[chosen < len(ranking.values)]][::-1])


def _pixel_histograms(
    maps: Float32Array, masks: BoolArray, use: BoolArray, inside: BoolArray | None, edges: Float32Array
) -> _Histograms:
    chosen = np.flatnonzero(use)
    bins = len(edges) + 1
    false, true, overlap = (np.zeros((len(chosen), bins)) for _ in range(3))
    regions = np.zeros(len(chosen))
    counts = None if inside is None else np.broadcast_to(inside, maps.shape)
    for row, index in enumerate(chosen):
        mask = masks[index]
        place = len(edges) - np.searchsorted(edges, maps[index], side="right")  # 0 is the highest bin
        false[row] = np.bincount(place[~mask if counts is None else counts[index] & ~mask], minlength=bins)
        if mask.any():
            share, regions[row] = region_shares(mask)
            true[row] = np.bincount(place[mask], minlength=bins)
            overlap[row] = np.bincount(place[mask], share, minlength=bins)
    return _Histograms(false, true, overlap, regions, regions > 0)


def _bootstrap(histograms: _Histograms | _ImageHistograms, resamples: int, seed: int) -> dict[str, Float64Array]:
    """Return every figure for every resample: name -> float64 [resamples]."""
    strata = (histograms.anomalous, ~histograms.anomalous)
    parts = [_figures(histograms, counts) for counts in draw_counts(strata, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _figures(histograms: _Histograms | _ImageHistograms, counts: Float64Array) -> dict[str, Float64Array]:
    """Return the figures of weighted images: counts float64 [R, N] -> name -> float64 [R]."""
    false, true = (part.cumsum(axis=1) for part in histograms.weighted(counts))
    positives = true[:, -1:]
    # A curve has its points at bin ends. Within a bin the ROC rises on a straight line, as with tied scores
    # (trapezoids); average precision is a step function, sum of (R_n - R_(n-1)) P_n, and F1 = 2 TP / (called + P).
    x = from_zero(false / false[:, -1:])
    recall = true / positives
    called = true + false
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    figures = {
        "auroc": area_under(x, from_zero(recall), 1.0),
        "ap": np.sum(np.diff(recall, axis=1, prepend=0.0) * precision, axis=1),
        "f1_max": np.max(2 * true / (called + positives), axis=1),
    }
    if isinstance(histograms, _Histograms):
        # An image drawn twice brings its regions twice, into the overlap and into the number of regions.
        covered = (counts @ histograms.overlap).cumsum(axis=1) / (counts @ histograms.regions)[:, None]
        curve = from_zero(covered)
        figures["aupro"] = area_under(x, curve, PRO_LIMIT) / PRO_LIMIT
        figures["aupro_05"] = area_under(x, curve, STRICT_PRO_LIMIT) / STRICT_PRO_LIMIT
    return figures


def _within_unit(drawn: Float64Array, confidence: float, error: float) -> Interval:
    """Return the interval of a figure from 0 to 1, cut to that range: `error` may widen it beyond."""
    interval = percentile_interval(drawn, confidence, error)
    return Interval(max(interval.low, 0.0), min(interval.high, 1.0), confidence)


def rank_bound(n: int, rank: int, confidence: float) -> float:
    """Return the upper bound of P(score > k-th smallest of n), k = `rank`, at one-sided `confidence`.

    The quantile of Beta(n - k + 1, k) is the Clopper-Pearson bound of n - k rejects among n images.

    Source: Wilks, "Determination of sample sizes for setting tolerance limits", Ann. Math. Stat. 12 (1941) 91-96.
    """
    if not 1 <= rank <= n:
        raise ArgumentError(f"rank: expected 1 to {n}, got {rank}.")
    return upper_bound(n - rank, n, confidence)


def images_needed(false_reject_rate: float, confidence: float, zones: int = 1) -> int:
    """Return the least number of normal images that supports a claim: ln(1 - confidence) / ln(1 - rate), rounded up.

    With several zones it is the least n whose bound of one cut in each zone is within the rate; see
    `flawscope.calibration.thresholds.joint_thresholds`.

    Args:
        false_reject_rate: Share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence of the claim, a fraction.
        zones: Number of zones that share the rate; 1 for a bundle without zones.

    Raises:
        ArgumentError: If a fraction is not between 0 and 1.
    """
    check_fraction(false_reject_rate, "false-reject rate")
    check_fraction(confidence, "confidence")
    if zones > 1:
        return _least(lambda n: upper_bound(zones - 1, n, confidence) <= false_reject_rate, zones)
    # With the largest score as threshold (k = n), P is at most r with confidence c when 1 - (1 - r)^n >= c.
    needed = math.ceil(math.log1p(-confidence) / math.log1p(-false_reject_rate))
    # The quotient may land on the wrong side of an integer by one rounding. The bound itself decides, so that this
    # number and `OrderStatistic.holds` never contradict each other.
    while needed > 1 and rank_bound(needed - 1, needed - 1, confidence) <= false_reject_rate:
        needed -= 1
    while rank_bound(needed, needed, confidence) > false_reject_rate:
        needed += 1
    return max(needed, 1)


def _least(holds: Callable[[int], bool], first: int) -> int:
    """Return the least number from `first` on for which something holds that goes on to hold."""
    low, high = first - 1, first
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def in_parts(rate: float) -> str:
    """Return a rate as whole parts of 100, or of 1,000 and more where it is below 1 in 200; rounded up."""
    of = 100
    while rate * of < 0.5 and of < 1_000_000:
        of *= 10
    # Rates of exactly 1 % come out of floating point as 1.0000000000000002 %.
    return f"{max(1, math.ceil(rate * of - 1e-9))} in {of:,}"
