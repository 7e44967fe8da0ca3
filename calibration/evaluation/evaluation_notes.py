"""Notes on an evaluation: what limits its figures, a sentence each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

from flawscope.bundle import ImageHashes, Manifest, Thresholds
from flawscope.calibration.evaluation.contamination import Contamination
from flawscope.calibration.evaluation.measurements import Measured
from flawscope.datasets import Inspection

_SAID_OTHERWISE = frozenset(
    {
        *("chosen_split", "duplicate_image", "flat_folder", "ignored", "mask_beside_image", "too_few_of_category"),
        *("too_few_training_images", "train_test_duplicate", "unreadable_image", "unused_training_image"),
    }
)
"""Kinds of problems that have another note here (faults, copies), or say nothing of the figures."""

SEEN_BEFORE = "test images were also used to train or calibrate this bundle"
"""In the note on images that the bundle has seen; the verdict looks for it."""


def contamination_notes(
    contamination: Contamination | None, everything: Measured, measured: Measured
) -> tuple[str, ...]:
    """Return what to know about the images that a support set contaminates; empty without a support set.

    Args:
        contamination: Which images they are.
        everything: The measurements of all test images.
        measured: Those of the images that were not left out.
    """
    if contamination is None:
        return ()
    faults = int((~everything.usable).sum()) - int((~measured.usable).sum())
    of_faults = f"{faults} of the images that are left out could not be scored; with leak they count as not accepted."
    return (*contamination.notes, of_faults) if faults else contamination.notes


def figure_notes(
    measured: Measured, thresholds: Thresholds | None, backend: str, hashes: ImageHashes, contents: Sequence[str]
) -> tuple[str, ...]:
    """Return what limits the figures; empty when nothing does.

    Args:
        measured: The measurements behind the figures.
        thresholds: The thresholds in force, or None.
        backend: The backend that was measured.
        hashes: The images that the bundle was made with.
        contents: The content hash of every measured image, copies included.
    """
    notes = []
    if faults := int((~measured.usable).sum()):
        notes.append(
            f"{faults} of {len(measured.samples)} images could not be scored. They count as not accepted, and are "
            "left out of AUROC, AP, F1 and the pixel figures."
        )
    # By content, not by path: a training image that was copied into the test folder is found as well.
    if seen := len(set(contents) & {*hashes.training, *hashes.held_out}):
        notes.append(f"{seen} {SEEN_BEFORE}: these figures are optimistic.")
    if repeated := len(contents) - len(set(contents)):
        notes.append(f"{repeated} test images are copies of others: the intervals are narrower than they should be.")
    if not measured.labels.any() or measured.labels.all():
        notes.append("Only one kind of image was there, normal or anomalous: AUROC, AP and F1 are undefined.")
    if without := int((measured.usable & ~measured.has_truth).sum()):
        lost = int(measured.mask_lost.sum())
        reason = f", {lost} of them too small at the model's resolution" if lost else ""
        notes.append(f"{without} anomalous images have no usable mask{reason}; they are left out of the pixel figures.")
    return (*notes, *_threshold_notes(thresholds, backend))


def region_notes(manifest: Manifest, everything: Measured) -> tuple[str, ...]:
    """Return what a region of interest does to the figures; empty without one.

    Args:
        manifest: That of the bundle.
        everything: The measurements of all test images.
    """
    if manifest.region is None:
        return ()
    notes = [f"The bundle has a region of interest, {manifest.region.share:.1%} of the image: pixel figures are of it."]
    if outside := int(everything.outside.sum()):
        notes.append(
            f"{outside} anomalous images have their defect outside of the region of interest alone; they are left out "
            "of all figures."
        )
    return tuple(notes)


def zone_notes(manifest: Manifest, thresholds: Thresholds | None) -> tuple[str, ...]:
    """Return what zones do to the figures; empty without any.

    Args:
        manifest: That of the bundle.
        thresholds: Those in force.
    """
    if manifest.drawn_zones is None:
        return ()
    if thresholds is None:
        ranked = "without thresholds images are ranked by their highest score"
    else:
        ranked = (
            "images are ranked (AUROC, AP, F1) by the largest score minus threshold of their zones, which is above 0"
        )
        ranked += " where an image is rejected"
    return (
        f"The bundle has the zones {', '.join(manifest.drawn_zones.names)}: {ranked}. AUROC, AP and AU-PRO of pixels "
        "are of the map itself.",
    )


def product_notes(products: Sequence[str], product: str | None, shown: Sequence[str]) -> tuple[str, ...]:
    """Return what thresholds by product do to the figures; empty with the common ones.

    Args:
        products: The products whose images were judged by their own thresholds.
        product: The one product whose thresholds were taken for all images.
        shown: The product that each image shows, by its category; empty where it has none.
    """
    if product is not None:
        others = [name for name in shown if name not in ("", product)]
        if not others:
            return (f"The thresholds are those of the product {product}.",)
        return (
            f"The thresholds are those of the product {product}, but {len(others)} of {len(shown)} images show another "
            f"({', '.join(sorted(set(others)))}): the figures say nothing of these. Take --by-product, or images of "
            f"{product} alone.",
        )
    if not products:
        return ()
    return (
        f"Images are judged by the thresholds of their product ({', '.join(products)}) and ranked (AUROC, AP, F1) by "
        "their score minus its threshold. Each bound is of its product; AUROC, AP and AU-PRO of pixels are of the map "
        "itself.",
    )


def inspection_notes(inspection: Inspection, manifest: Manifest, left_out: Collection[Path] = ()) -> tuple[str, ...]:
    """Return what `data inspect` finds in the dataset that bears on its figures, a sentence for each kind.

    Args:
        inspection: What it finds.
        manifest: That of the bundle, whose preprocessing may have settled a problem.
        left_out: Images and masks that the figures leave out.
    """
    settled = set(_SAID_OTHERWISE)
    if manifest.input.bits is not None:
        settled.add("few_levels")
    if manifest.tiling is not None or manifest.input.mode == "letterbox":
        settled |= {"aspect_ratio", "mixed_aspect_ratios"}
    concerning = [p for p in inspection.problems if p.kind not in settled and p.path not in left_out]
    notes = []
    for _, group in groupby(sorted(concerning, key=lambda problem: problem.kind), key=lambda problem: problem.kind):
        first, *more = group
        is_below = first.path != inspection.root and first.path.is_relative_to(inspection.root)
        # Never the whole path of the dataset: reports are passed on.
        name = first.path.relative_to(inspection.root) if is_below else first.path.name
        rest = f" (and {len(more)} more like this, see flawscope data inspect)" if more else ""
        notes.append(f"Dataset: {name} {first.message}{rest}.")
    return tuple(notes)


def _threshold_notes(thresholds: Thresholds | None, backend: str) -> tuple[str, ...]:
    if thresholds is None:
        return ("The bundle has no thresholds, so nothing was decided. Set them with flawscope calibrate.",)
    threshold = thresholds.image
    notes = []
    if threshold.method == "f1":
        notes.append("The threshold was chosen on labelled images: on the same images its rates are optimistic.")
    if threshold.guarantee == "estimated":
        notes.append(
            f"The threshold was set on cross-fitted scores of {threshold.images} normal images, computed by torch: its "
            "bound on false rejects is an estimate."
        )
    # None is a threshold set by hand, which belongs to no backend; torch is the reference of all, see `parity`.
    elif threshold.backend not in (None, backend):
        notes.append(
            f"The threshold was set with the backend {threshold.backend}, and these scores come from {backend}."
        )
    return tuple(notes)
