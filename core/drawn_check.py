"""The drawn check: how well a fitted detector tells normal images with a drawn defect from those without.

It compares a detector with images and not with itself, so it notices what all gates let pass: weights that were made
for another normalisation, a resolution at which nothing can be seen, features that fit nothing. It says whether a
detector works at all. It does not rank detectors: on real defects the order of two may be the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float64Array
from flawscope.ranges import NotNegative, PositiveCount, Share

_CHANCE = 0.5
_NEAR_CHANCE = (0.7, 0.75)
"""Image and pixel AUROC on drawn defects below which a detector counts as near chance; see `verdict_of`."""
_TOLD_APART = (0.85, 0.9)
"""Image and pixel AUROC from which it counts as one that tells them apart."""
_CONFIDENCE = 0.95
_RESAMPLES = 1000

Verdict = Literal["told apart", "weak", "near chance", "not judged"]

_LOOK_AT = (
    "the weights and the mean, std and padding they were trained with; the size of the input (resize, tile); the "
    "stages; and the method (patchcore for parts in any position)"
)


class DrawnKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of drawn defect.

    Attributes:
        kind: Its name, one of `flawscope.datasets.drawn_defects.KINDS`.
        images: Images with such a defect.
        score: Their middle score.
        image_auroc: Share of the pairs of such an image and a normal one in which this one has the higher score.
        pixel_auroc: The same of drawn pixels and all others of these images, by the map.
    """

    kind: str
    images: PositiveCount
    score: float
    image_auroc: Share
    pixel_auroc: Share


class DrawnCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well drawn defects are told from normal images.

    Attributes:
        held_out: Whether the images were held out; if not, the detector has learned from them, which flatters it.
        normal: Normal images that were scored.
        base: How many of them were drawn on.
        score: Middle score of the normal ones.
        kinds: The kinds of defects.
        image_auroc: Of all drawn images against all normal ones.
        low: Lower end of its 95 % interval, by resampling whole normal images with all that was drawn on them.
        high: Upper end of it.
        pixel_auroc: Of all drawn pixels against all others of the same images.
        verdict: `told apart`, `weak` or `near chance`, see `verdict_of`; `not judged` in place of the first two where
            the detector has learned from the images.
        seconds: What the check took.
    """

    held_out: bool
    normal: PositiveCount
    base: PositiveCount
    score: float
    kinds: tuple[DrawnKind, ...]
    image_auroc: Share
    low: Share
    high: Share
    pixel_auroc: Share
    verdict: Verdict
    seconds: NotNegative

    @property
    def images(self) -> int:
        """Number of images with a drawn defect."""
        return sum(kind.images for kind in self.kinds)


@dataclass(frozen=True)
class DrawnScores:
    """Scores of images with one kind of drawn defect.

    Attributes:
        kind: Name of the kind.
        bases: For each image the number of the normal image that it was drawn on, an index into the normal scores.
        scores: Score of each image.
        pixel_aurocs: Pixel AUROC of each image, of its drawn pixels against its others.
    """

    kind: str
    bases: Sequence[int]
    scores: Sequence[float]
    pixel_aurocs: Sequence[float]


def summarize_check(
    normal: Sequence[float], drawn: Sequence[DrawnScores], *, held_out: bool, seconds: float, seed: int = 0
) -> DrawnCheck | None:
    """Return what scores of normal images and of images with drawn defects say; None without any image of both kinds.

    Args:
        normal: Scores of the normal images.
        drawn: Scores of the drawn ones, one entry for each kind.
        held_out: Whether the detector has not learned from these images.
        seconds: What the check took.
        seed: Seed of the interval.
    """
    drawn = [row for row in drawn if row.scores]
    if not normal or not drawn:
        return None
    reference = np.asarray(normal, np.float64)
    wins = _wins(np.concatenate([np.asarray(row.scores, np.float64) for row in drawn]), reference)
    bases = np.concatenate([np.asarray(row.bases, np.int64) for row in drawn])
    image_auroc = float(wins.mean())
    low, high = _interval(wins, bases, seed)
    pixel_auroc = float(np.mean(np.concatenate([row.pixel_aurocs for row in drawn])))
    return DrawnCheck(
        held_out=held_out,
        normal=len(normal),
        base=len(np.unique(bases)),
        score=float(np.median(reference)),
        kinds=tuple(
            DrawnKind(
                row.kind,
                len(row.scores),
                float(np.median(row.scores)),
                float(_wins(np.asarray(row.scores, np.float64), reference).mean()),
                float(np.mean(row.pixel_aurocs)),
            )
            for row in drawn
        ),
        image_auroc=image_auroc,
        low=low,
        high=high,
        pixel_auroc=pixel_auroc,
        verdict=_verdict(image_auroc, low, pixel_auroc, held_out),
        seconds=seconds,
    )


def verdict_of(image_auroc: float, low: float, pixel_auroc: float) -> Verdict:
    """Return the verdict on an image AUROC, the lower end of its interval, and a pixel AUROC.

    Near chance is an image AUROC below 0.7 or an interval that reaches down to 0.5, or a pixel AUROC below 0.75: scores
    may rise with a defect although the map points elsewhere. Told apart is 0.85 and 0.9 or more.
    """
    if low <= _CHANCE or image_auroc < _NEAR_CHANCE[0] or pixel_auroc < _NEAR_CHANCE[1]:
        return "near chance"
    return "told apart" if image_auroc >= _TOLD_APART[0] and pixel_auroc >= _TOLD_APART[1] else "weak"


def _verdict(image_auroc: float, low: float, pixel_auroc: float, held_out: bool) -> Verdict:
    verdict = verdict_of(image_auroc, low, pixel_auroc)
    # A detector that keeps what it learned gives those images low scores, whatever its features are worth.
    return verdict if held_out or verdict == "near chance" else "not judged"


def pair_auroc(positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]) -> float:
    """Return the share of pairs in which the positive is larger, ties counting half; both [N], not empty."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * len(ordered)))


def describe_check(check: DrawnCheck) -> str:
    """Return the check in one line: verdict and figures, and the weakest kind unless all are told apart."""
    images = f"{check.images} drawn defects on {check.base} normal images"
    where = "held out" if check.held_out else "that it learned from, which flatters it"
    line = (
        f"{check.verdict}: image AUROC {check.image_auroc:.3f} ({check.low:.3f} to {check.high:.3f}), pixel AUROC "
        f"{check.pixel_auroc:.3f} with {images} {where}"
    )
    if check.verdict == "told apart":
        return line
    weakest = min(check.kinds, key=lambda kind: kind.image_auroc)
    return f"{line}; weakest: {weakest.kind} {weakest.image_auroc:.3f}"


def advice_on(check: DrawnCheck) -> str | None:
    """Return a line that says what to look at, which begins with `warning:` or `note:`; None where all is well."""
    if check.verdict == "near chance":
        return (
            "warning: drawn defects are hardly told from normal images (near chance). Before you use this detector, "
            f"look at {_LOOK_AT}."
        )
    if check.verdict == "weak":
        return f"note: drawn defects are told from normal images in part (weak). It may help to look at {_LOOK_AT}."
    return None


def _wins(scores: Float64Array, normal: Float64Array) -> Float64Array:
    """Return 1 where a drawn image [D] scores above a normal one [N], 0.5 where both are equal, else 0: [D, N]."""
    return np.where(scores[:, None] > normal, 1.0, np.where(scores[:, None] == normal, 0.5, 0.0))


def _interval(wins: Float64Array, bases: npt.NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Return the interval of the mean of `wins` [D, N], resampling normal images with all that was drawn on them."""
    count = wins.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    by_drawn = drawn[:, bases].astype(np.float64)
    totals = by_drawn.sum(axis=1)
    usable = totals > 0  # a resample may miss every image that was drawn on
    means = np.einsum("rd,dn,rn->r", by_drawn, wins, drawn.astype(np.float64), optimize=True)[usable]
    means /= totals[usable] * count
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # Of one image every resample is the same: the interval would say that nothing is uncertain.
    return (0.0, 1.0) if count == 1 else (float(max(low, 0.0)), float(min(high, 1.0)))
