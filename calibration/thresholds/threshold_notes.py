"""Notes on thresholds: what limits their claim, and which images deserve a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flawscope.arrays import Float64Array
from flawscope.bundle import Manifest, Thresholds
from flawscope.calibration.evaluation.intervals import images_needed
from flawscope.calibration.thresholds.normal_quantile import OrderStatistic
from flawscope.calibration.thresholds.outlying_scores import count_outlying
from flawscope.calibration.thresholds.threshold_images import Objective
from flawscope.cross_scores import CrossScores

_RAISED = 2.0
"""Factor of an image threshold above which other images, and not chance, raised it."""


def highest_first(names: Sequence[Path], values: Float64Array) -> tuple[tuple[Path, float], ...]:
    """Return images and their values, float64 [N], the highest first."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    return tuple((names[index], float(values[index])) for index in order)


def outlying_notes(names: Sequence[Path], scores: Float64Array, map_max: Float64Array) -> tuple[str, ...]:
    """Return a warning where one normal image, or a few, stand far above the rest; empty otherwise.

    Args:
        names: The normal images.
        scores: Their scores, float64 [N].
        map_max: The largest values of their maps, float64 [N].
    """
    for name, values in (("score", scores), ("largest value of the anomaly map", map_max)):
        if count := count_outlying(values):
            highest = highest_first(names, values)
            images = ", ".join(f"{path} ({value:.6g})" for path, value in highest[:count])
            return (
                f"The {name} of {images} stands far above the rest, whose highest is {highest[count][1]:.6g}: is it a "
                "defect that is labelled as normal, or a damaged image? One such image among the normal ones raises "
                "thresholds until defects pass. Look at it; if it is one, remove it and calibrate again.",
            )
    return ()


def raised_notes(old: Thresholds | None, new: Thresholds) -> tuple[str, ...]:
    """Return a warning where the image threshold rose by more than a factor of 2; empty otherwise.

    The bound on false rejects holds then all the same, but says nothing of defects, which may pass.
    """
    if old is None or old.image.value <= 0 or new.image.value <= _RAISED * old.image.value:
        return ()
    return (
        f"The image threshold rose from {old.image.value:.6g} to {new.image.value:.6g}, to the "
        f"{new.image.value / old.image.value:.1f}-fold: these normal images are unlike those that set the old one "
        "(light, camera, position, another part), and defects between the two now pass. Look at the highest scores; "
        "if the images are as they should be, train again with them, and evaluate before the bundle decides.",
    )


def claim_notes(
    image: OrderStatistic, objective: Objective, *, is_crossed: bool = False, has_zones: bool = False
) -> tuple[str, ...]:
    """Return what limits the claim of an image threshold; empty when nothing does."""
    notes = []
    where = " in each zone" if has_zones else ""
    if objective == "f1":
        notes.append(
            "The image threshold was chosen on labelled test images: figures at this threshold on the same images "
            "are optimistic. Judge it on images that were not used here."
        )
    if not image.holds:
        notes.append(
            f"Too few normal images for the claim: {image.images} support a false-reject rate of at most "
            f"{image.upper_bound:.2%} at {image.confidence:.0%} confidence, not {image.false_reject_rate:.2%}, which "
            f"needs {image.images_needed}. The largest score of a normal image was taken{where}. Add normal images and "
            f"{'train again, with --set cross_fit=20 from 100 on.' if is_crossed else 'calibrate again.'}"
        )
    return tuple(notes)


def zone_notes(image: OrderStatistic, thresholds: Thresholds) -> tuple[str, ...]:
    """Return what the bound of zones is; empty without zones."""
    if not (count := len(thresholds.of_zones)):
        return ()
    alone = images_needed(image.false_reject_rate, image.confidence)
    return (
        f"The bound is of the image as a whole: its {count} zones share the rate, so that "
        f"{image.false_reject_rate:.2%} at {image.confidence:.0%} confidence needs {image.images_needed} normal "
        f"images, where an image without zones needs {alone}.",
    )


def cross_note(cross: CrossScores, manifest: Manifest) -> str:
    """Return what cross-fitted scores are, for the notes."""
    parity = manifest.evidence.parity
    agree = f"; the graphs agree with it to {parity[0].score_max_relative:.1e} of a score (parity)" if parity else ""
    return (
        f"The rate is estimated and no bound: scores are of {cross.folds} fits, each of images that it has not seen, "
        f"while the detector has learned from all {len(cross.images)}. They were computed by torch in FP32{agree}."
    )


def gate_notes(manifest: Manifest, precision: str, backend: str) -> tuple[str, ...]:
    """Return a sentence if a precision has passed its gate on other backends than the one it was scored on.

    Raises:
        ArgumentError: If the bundle lacks the precision.
    """
    if precision == "fp32":
        return ()
    manifest.graphs_of(precision)  # raises where the bundle lacks it
    passed = tuple(gate.backend for gate in manifest.precisions[precision].all_gates)
    if not passed or backend in passed:
        return ()
    return (
        f"{precision.upper()} has passed its gate on {' and '.join(passed)}, not on {backend}: how far its scores "
        "there are from those of FP32 was not measured.",
    )
