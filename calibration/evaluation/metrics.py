"""Accuracy of scores and anomaly maps: AUROC, average precision, F1 and AU-PRO, exact, with ties handled.

Image figures take one score an image. Pixel figures come from one ranking of all pixels, `rank_pixels`: counting the
defect-free pixels above the scores of the few defect pixels gives the exact ROC, precision-recall and
per-region-overlap curves at every distinct threshold, in the memory of the defect pixels and of 16 million others.

A figure that is undefined (one class only) is None, never a substitute such as 0 or 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, Float64Array, Int64Array, check_array
from flawscope.calibration.extras import require
from flawscope.errors import ArgumentError

PRO_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as in the MVTec AD paper."""
STRICT_PRO_LIMIT = 0.05
"""A stricter limit: maps with fewer false pixels than a line could live with."""
_PART_PX = 1 << 24
"""Defect-free pixels that are sorted at once: 64 MiB."""


def auroc(scores: Float64Array, labels: BoolArray) -> float | None:
    """Return the area under the ROC curve, or None when a class is missing.

    Args:
        scores: float64 [N], higher is more anomalous.
        labels: bool [N], true for anomalous.

    Raises:
        ArgumentError: If shapes differ or a score is not finite.
        MissingExtra: If scikit-learn is not installed.
    """
    if not _both_classes(scores, labels):
        return None
    return float(require("sklearn.metrics", "scikit-learn", "measuring accuracy").roc_auc_score(labels, scores))


def average_precision(scores: Float64Array, labels: BoolArray) -> float | None:
    """Return the average precision (area under the stepwise precision-recall curve); arguments as `auroc`."""
    if not _both_classes(scores, labels):
        return None
    metrics = require("sklearn.metrics", "scikit-learn", "measuring accuracy")
    return float(metrics.average_precision_score(labels, scores))


@dataclass(frozen=True)
class F1:
    """The largest F1 over all thresholds, and a threshold that reaches it.

    Attributes:
        value: F1, from 0 to 1.
        threshold: Scores strictly above it are called anomalous; halfway between the scores on its two sides.
    """

    value: float
    threshold: float


def f1_max(scores: Float64Array, labels: BoolArray) -> F1 | None:
    """Return the largest F1; of equal ones, the one with the lowest threshold. Arguments as `auroc`."""
    if not _both_classes(scores, labels):
        return None
    # One candidate a distinct score, highest first: equal scores are called together, as a threshold would.
    values, inverse = np.unique(scores, return_inverse=True)
    true_at = np.bincount(inverse, labels)[::-1].cumsum()
    false_at = np.bincount(inverse, ~labels)[::-1].cumsum()
    # F1 = 2 TP / (2 TP + FP + FN), with TP + FN = all anomalous: one division, and no 0/0 where TP is 0.
    f1 = 2 * true_at / (true_at + false_at + labels.sum())
    # argmax takes the first of equal values; reversed, that is the lowest threshold, which misses the fewest defects.
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    index = len(values) - 1 - best  # the lowest score that is called anomalous
    return F1(float(f1[best]), _below(values, index))


def _below(values: Float64Array, index: int) -> float:
    """Return a number below `values[index]` and not below the next smaller value."""
    if index == 0:
        return float(np.nextafter(values[0], -np.inf))
    low, high = float(values[index - 1]), float(values[index])
    middle = low / 2 + high / 2  # halves first: the sum could overflow
    return middle if low <= middle < high else low  # neighbouring floats have no middle


def _both_classes(scores: object, labels: object) -> bool:
    checked = check_array(labels, "labels", ("N",), np.bool_)
    check_array(scores, "scores", (len(checked),), np.float64, finite=True)
    return bool(checked.any() and not checked.all())


@dataclass(frozen=True)
class PixelRanking:
    """How the pixels of all images rank: enough for every exact pixel figure.

    All arrays have one entry for each distinct score found on a defect pixel, highest first; "at" counts pixels with
    this score or a higher one, "above" only higher ones.

    Attributes:
        values: float32 [U], the distinct scores.
        true_at: int64 [U], defect pixels at it.
        overlap_at: float64 [U], share of a region's pixels at it, averaged over all regions.
        false_above: int64 [U], defect-free pixels above it.
        false_at: int64 [U], defect-free pixels at it.
        negatives: Number of defect-free pixels.
        regions: Number of defect regions.
    """

    values: Float32Array
    true_at: Int64Array
    overlap_at: Float64Array
    false_above: Int64Array
    false_at: Int64Array
    negatives: int
    regions: int


def rank_pixels(
    maps: Float32Array, masks: BoolArray, use: BoolArray | None = None, inside: BoolArray | None = None
) -> PixelRanking | None:
    """Rank the pixels of all images, or return None when no defect pixel or no defect-free pixel is there.

    Regions are 8-connected, as in MVTec's own evaluation (a 3×3 structuring element of ones) and anomalib: two pixels
    that touch at a corner belong to one defect. The defect-free pixels are those of all images, normal ones included.

    Args:
        maps: float32 [N, H, W], higher is more anomalous.
        masks: bool [N, H, W], true on defects.
        use: bool [N], the images to take; all by default. An anomalous image without pixel truth must be left out,
            because its empty mask would call every defect pixel good.
        inside: bool [H, W] or [N, H, W], the pixels that count; all by default. Masks have to be empty outside.

    Raises:
        ArgumentError: If shapes differ or a map is not finite.
    """
    check_array(maps, "maps", ("N", "H", "W"), np.float32)
    counts = np.broadcast_to(
        np.ones(maps.shape[1:], np.bool_)
        if inside is None
        else check_array(inside, "inside", maps.shape[-inside.ndim :], np.bool_),
        maps.shape,
    )
    check_array(masks, "masks", maps.shape, np.bool_)
    chosen = np.flatnonzero(
        np.ones(len(maps), np.bool_) if use is None else check_array(use, "use", (len(maps),), bool)
    )
    negatives, regions = 0, 0
    scores: list[Float32Array] = []
    shares: list[Float64Array] = []
    for i in chosen:
        if not np.isfinite(maps[i]).all():
            raise ArgumentError(f"maps: expected finite numbers, got NaN or infinity in map {i}.")
        negatives += int(np.count_nonzero(counts[i] & ~masks[i]))
        if masks[i].any():
            share, count = region_shares(masks[i])
            scores.append(maps[i][masks[i]])
            shares.append(share)
            regions += count
    if not scores or not negatives:
        return None
    values, inverse = np.unique(np.concatenate(scores), return_inverse=True)
    false_above, false_at = (np.zeros(len(values), np.int64) for _ in range(2))
    for free in _parts_of_free(maps, masks, counts, chosen):
        false_above += free.size - np.searchsorted(free, values, side="right")
        false_at += free.size - np.searchsorted(free, values, side="left")
    overlap = np.bincount(inverse, np.concatenate(shares))[::-1].cumsum() / regions
    return PixelRanking(
        values=values[::-1],
        true_at=np.bincount(inverse)[::-1].cumsum(),
        overlap_at=np.minimum(overlap, 1.0),  # a sum of many 1/n may end a rounding above 1
        false_above=false_above[::-1],
        false_at=false_at[::-1],
        negatives=negatives,
        regions=regions,
    )


def _parts_of_free(
    maps: Float32Array, masks: BoolArray, counts: BoolArray, chosen: Int64Array
) -> Iterator[Float32Array]:
    """Yield the defect-free pixels of the chosen images in sorted parts, float32 [P].

    Not in one array: they are nearly all pixels, and maps may lie in a file that is larger than the memory.
    """
    waiting: list[Float32Array] = []
    pixels = 0
    for i in chosen:
        waiting.append(maps[i][counts[i] & ~masks[i]])
        pixels += waiting[-1].size
        if pixels >= _PART_PX or i == chosen[-1]:
            part = np.concatenate(waiting)
            waiting, pixels = [], 0
            part.sort()
            yield part


def region_shares(mask: BoolArray) -> tuple[Float64Array, int]:
    """Return, for each defect pixel in row order, 1 / (pixels of its 8-connected region), and the number of regions."""
    # 4-connected regions would be more and smaller ones, and AU-PRO not comparable with published figures.
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside = labels[mask]
    # OpenCV counts the background as region 0; no defect pixel has it.
    return 1.0 / np.bincount(inside, minlength=count)[inside], count - 1


def pixel_auroc(ranking: PixelRanking) -> float:
    """Return the exact area under the pixel ROC curve; ties between the classes count half."""
    return _area(ranking, ranking.true_at / ranking.true_at[-1], 1.0)


def pixel_average_precision(ranking: PixelRanking) -> float:
    """Return the exact average precision over pixels: Σ (recall step) × precision, over all distinct scores."""
    steps = np.diff(ranking.true_at, prepend=0) / ranking.true_at[-1]
    return float(np.sum(steps * ranking.true_at / (ranking.true_at + ranking.false_at)))


def aupro(ranking: PixelRanking, limit: float = PRO_LIMIT) -> float:
    """Return the normalised area under the per-region-overlap curve, exact at every distinct threshold.

    For each threshold the overlap is the covered share of a region, averaged over all regions; it is integrated over
    the false-positive rate in [0, limit], linearly between thresholds and at the limit, and divided by `limit`.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.3. No departure: thresholds are
    all distinct scores, where other evaluations sample them.

    Raises:
        ArgumentError: If `limit` is outside (0, 1].
    """
    if not 0 < limit <= 1:
        raise ArgumentError(f"limit: expected a false-positive rate above 0 and up to 1, got {limit}.")
    return _area(ranking, ranking.overlap_at, limit) / limit


def _area(ranking: PixelRanking, heights: Float64Array, limit: float) -> float:
    """Integrate a curve over the false-positive rate; scores shared by both kinds of pixel give a sloped step."""
    # Two points a score: before it (defect-free pixels above, height of the score before) and after it. Between them,
    # defect-free scores move x alone, so defect pixels' scores are all the points that the exact curve needs.
    before = np.concatenate(([0.0], heights[:-1]))
    x = np.column_stack((ranking.false_above, ranking.false_at)).ravel() / ranking.negatives
    y = np.column_stack((before, heights)).ravel()
    return float(area_under(np.concatenate(([0.0], x, [1.0])), np.concatenate(([0.0], y, y[-1:])), limit))


def area_under(x: Float64Array, y: Float64Array, limit: float) -> Float64Array:
    """Integrate piecewise linear curves over [0, limit].

    Args:
        x: float64 [..., P], not falling along the last axis, from 0 to at least `limit`.
        y: float64 [..., P].
        limit: Upper end; the segment that crosses it is cut there.
    """
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    width = np.clip(limit - x0, 0.0, x1 - x0)
    # A vertical segment has no area; np.divide with `where` leaves its slope at 0 instead of warning of 0/0.
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(width), where=x1 > x0)
    area: Float64Array = np.sum(width * (y0 + slope * width / 2), axis=-1)
    return area


def stack_masks(masks: Sequence[BoolArray | None], size: tuple[int, int]) -> BoolArray:
    """Return the masks as bool [N, H, W], all false where there is none."""
    stacked = np.zeros((len(masks), *size), np.bool_)
    for index, mask in enumerate(masks):
        if mask is not None:
            stacked[index] = check_array(mask, f"mask {index}", size, np.bool_)
    return stacked


def spearman(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], feature: str) -> float | None:
    """Return Spearman's rank correlation of two lists of scores, [N] each; None where too few differ to have ranks.

    Args:
        first: Scores that are the reference.
        second: Scores of the same images by another way.
        feature: What needs it, a noun phrase, for the message where SciPy is missing.

    Raises:
        MissingExtra: If scipy is not installed.
    """
    # Equal scores have no ranks: scipy would warn and give NaN. Two distinct ones are nearly all ties, whose order says
    # nothing of how well two ways of scoring agree.
    if len(np.unique(first)) < 3 or len(np.unique(second)) < 2:
        return None
    return float(require("scipy.stats", "scipy", feature).spearmanr(first, second).statistic)
