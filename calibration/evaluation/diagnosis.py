"""The diagnosis of an evaluation: what is wrong with a detector or its threshold, why, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flawscope.bundle import Manifest, Threshold
from flawscope.calibration.evaluation.figures import Confusion, SizeFigures
from flawscope.calibration.evaluation.intervals import Interval, images_needed, in_parts, upper_bound
from flawscope.datasets import Dataset
from flawscope.datasets.folders import images_to_add

CHANCE = 0.5
_NEAR_CHANCE = 0.7
_CONFIDENCE = 0.95
_HARDLY_SEEN_PX = 4.0
"""Defects that are smaller across at the input are a few patches at most, and often less than one."""

# How sentences begin that the verdict looks for.
BOUND = "The false rejects contradict the bound of the threshold"
EDGE = "The threshold lies at the edge"
SMALL = "Small defects are missed"


def diagnose(
    manifest: Manifest,
    image_auroc: float | None,
    interval: Interval | None,
    confusion: Confusion | None,
    sizes: Sequence[SizeFigures],
    dataset: Dataset | None = None,
) -> tuple[str, ...]:
    """Return a sentence or two for everything that is wrong; empty where nothing is.

    Args:
        manifest: That of the bundle.
        image_auroc: Image AUROC, or None where it is undefined.
        interval: Its interval.
        confusion: Decisions at the thresholds in force, or None without thresholds.
        sizes: Recall by size of defect, smallest first.
        dataset: Where images would be added; None where that is not known.
    """
    found = [_near_chance(manifest, image_auroc, interval)]
    if confusion is not None:
        zones = 1 if manifest.drawn_zones is None else len(manifest.drawn_zones.names)
        found += [broken_bound(confusion), _at_the_edge(confusion.image_threshold, zones, dataset)]
    found.append(_small_defects(manifest, sizes))
    return tuple(text for text in found if text is not None)


def is_near_chance(image_auroc: float | None, interval: Interval | None) -> bool:
    """Return whether scores hardly tell defective parts from good ones, or do it the wrong way round."""
    if image_auroc is None or interval is None:
        return False
    return image_auroc < _NEAR_CHANCE or interval.low <= CHANCE


def _near_chance(manifest: Manifest, image_auroc: float | None, interval: Interval | None) -> str | None:
    if image_auroc is None or interval is None or not is_near_chance(image_auroc, interval):
        return None
    figures = f"image AUROC {image_auroc:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    if interval.high < CHANCE:
        return (
            f"Worse than chance: {figures}. Good parts have higher scores than defective ones: look whether their "
            "folders are exchanged, and whether both kinds are of the same camera and light."
        )
    chance = ", which includes chance (0.5)" if interval.low <= CHANCE else ""
    text = (
        f"Near chance: {figures}{chance}. Scores hardly tell defective parts from good ones. Look at the weights and "
        f"the mean, std and padding they were trained with; the size of the input (now {_size(manifest)}); the stages; "
        f"and the method (now {manifest.method}; patchcore is for parts in any position)."
    )
    drawn = manifest.evidence.drawn
    # On images that it learned from, a detector says nothing of new ones.
    if drawn is None or drawn.verdict == "not judged":
        return text
    seen = f"{drawn.verdict}, image AUROC {drawn.image_auroc:.3f}"
    if drawn.verdict == "near chance":
        return f"{text} Drawn defects were not told apart after the fit either ({seen}): begin with the weights."
    return (
        f"{text} Drawn defects were seen after the fit ({seen}): rather the real ones are smaller or of another "
        "kind, or the test images are unlike those learned from."
    )


def broken_bound(confusion: Confusion) -> str | None:
    """Return that the false rejects contradict the bound of the threshold: an exact binomial test at 95 %."""
    threshold, good = confusion.image_threshold, confusion.good
    bound = threshold.upper_bound
    # A fault stops a part as well, but no threshold promises anything about it.
    decided = good.n - good.fault
    if bound is None or decided == 0 or not contradicts(good.reject, decided, bound):
        return None
    kind = "an estimated " if threshold.guarantee == "estimated" else ""
    stated = "" if threshold.confidence is None else f" with {threshold.confidence:.0%} confidence"
    return (
        f"{BOUND}: {good.reject} of {decided} good parts "
        f"({good.reject / decided:.1%}) were rejected, where {kind}{bound:.1%} at most was stated{stated}. At that "
        "rate fewer than 1 in 20 such sets would have so many. These good parts are unlike those that it was "
        "set on (light, camera, batch, another split): set it with flawscope calibrate on good parts as they come now."
    )


def contradicts(rejects: int, n: int, bound: float) -> bool:
    """Return whether `rejects` of `n` or more would be seen with a probability below 5 % at a rate of `bound`.

    That is where the exact one-sided lower bound of the rate (Clopper and Pearson) lies above `bound`.
    """
    # The lower bound of k of n is 1 minus the upper bound of n - k of n.
    return 1 - upper_bound(n - rejects, n, _CONFIDENCE) > bound


def until_added(missing: int, dataset: Dataset | None, *, is_estimated: bool) -> str:
    """Return how a sentence ends that says until when a threshold rejects more than it was asked to.

    Args:
        missing: Normal images that the threshold lacks.
        dataset: Where images would be added: its split may keep a share of them for the test. None: not known.
        is_estimated: Whether the scores are cross-fitted: new images count only when they are trained on.
    """
    added = missing if dataset is None else images_to_add(dataset, missing)
    kept = f" (of them {added - missing} are kept for the test)" if added > missing else ""
    again = "train" if is_estimated else "calibrate"
    return f"until you add {added} image{'' if added == 1 else 's'}{kept} and {again} again."


def _at_the_edge(threshold: Threshold, zones: int, dataset: Dataset | None) -> str | None:
    """Return that a threshold was set on too few images for the rate that was asked for."""
    bound, asked, confidence = threshold.upper_bound, threshold.false_reject_rate, threshold.confidence
    if bound is None or asked is None or bound <= asked:
        return None
    kind = "an estimated " if threshold.guarantee == "estimated" else ""
    text = (
        f"{EDGE}: it was set on {threshold.images} normal images, too few for the rate that "
        f"was asked for ({asked:.2%}); they support {kind}{bound:.2%}."
    )
    if confidence is None or not 0 < asked < 1 or not 0 < confidence < 1:
        return text
    missing = images_needed(asked, confidence, zones) - threshold.images
    # Not where enough images gave a looser bound for another reason, such as copies among them.
    if missing <= 0:
        return text
    until = until_added(missing, dataset, is_estimated=threshold.guarantee == "estimated")
    return f"{text} Expect up to {kind}{in_parts(bound)} good parts rejected {until}"


def _small_defects(manifest: Manifest, sizes: Sequence[SizeFigures]) -> str | None:
    """Return that the smallest defects are missed much more often than the others."""
    if len(sizes) < 2:
        return None
    smallest, others = sizes[0], sizes[1:]
    found, n = sum(size.detection.count for size in others), sum(size.detection.n for size in others)
    high = smallest.detection.high
    # Beyond chance: what the rest reaches lies above the whole interval of the smallest.
    if high is None or n == 0 or found / n <= high:
        return None
    across = f"{smallest.smallest_px:.1f} to {smallest.largest_px:.1f} px"
    text = (
        f"{SMALL}: of the {smallest.detection.n} smallest ({across} across at the input) "
        f"{smallest.detection.count} were found, of the others {found} of {n}."
    )
    if math.sqrt(smallest.smallest_px * smallest.largest_px) < _HARDLY_SEEN_PX:
        tiles = "smaller tiles (tile)" if manifest.tiling else "tiles (tile), which keep the size of the image"
        return (
            f"{text} The resolution is too low for them: at {_size(manifest)} they are only a few pixels. Train with a "
            f"larger input (resize, --image-size) or with {tiles}."
        )
    return f"{text} A larger input (resize, --image-size) or finer stages may find them."


def _size(manifest: Manifest) -> str:
    height, width = manifest.input.size
    tile = "" if manifest.tiling is None else f" for tiles of {manifest.tiling.size[1]}x{manifest.tiling.size[0]} px"
    return f"{width}x{height} px{tile}"
