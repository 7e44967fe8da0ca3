"""Calibration: sets the thresholds of a bundle and records how, in its manifest alone; nothing is exported again.

Thresholds come from normal images that the detector has not learned from, or from cross-fitted scores of those that it
has (`flawscope.cross_scores`). Test images are used only for the
objective `f1`, which has to be asked for, and the manifest then says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float64Array
from flawscope.bundle import Manifest, Threshold, Thresholds, check_changeable, open_bundle, read_image_hashes
from flawscope.calibration.evaluation.bundle_scores import fault_of, load_inspector, score_samples, unlike_notes
from flawscope.calibration.evaluation.intervals import check_fraction
from flawscope.calibration.extras import require
from flawscope.calibration.thresholds.expectation import expectation
from flawscope.calibration.thresholds.normal_quantile import f1_threshold
from flawscope.calibration.thresholds.product_thresholds import check_product_request, product_notes, with_products
from flawscope.calibration.thresholds.threshold_images import ChosenImages, Objective, check_images, choose_images
from flawscope.calibration.thresholds.threshold_limits import Range, limits_by_hand
from flawscope.calibration.thresholds.threshold_notes import (
    claim_notes,
    cross_note,
    gate_notes,
    highest_first,
    outlying_notes,
    raised_notes,
    zone_notes,
)
from flawscope.calibration.thresholds.threshold_record import write_changed
from flawscope.calibration.thresholds.thresholds_from_scores import (
    thresholds_from_scores,
    with_limits,
    with_normal,
    zone_thresholds_from_scores,
)
from flawscope.calibration.thresholds.zones_by_hand import check_zone_request, zone_by_hand
from flawscope.cross_scores import CrossScores
from flawscope.datasets import Dataset, Sample
from flawscope.errors import ArgumentError, DataError
from flawscope.progress import Progress, no_progress

if TYPE_CHECKING:
    from flawscope.datasets.defects.support_set import SupportRecord
    from flawscope.runtime import Inspector

TORCH = "torch"
"""Backend of thresholds on cross-fitted scores: what computed them, in training."""
FALSE_REJECT_RATE = 0.01
CONFIDENCE = 0.95
_LISTED = 5


@dataclass(frozen=True)
class Calibration:
    """What a calibration did.

    Attributes:
        old: The thresholds before, or None.
        new: The thresholds now in the manifest.
        min_area_px: The smallest region that gets a box, in pixels of the map.
        images_needed: Normal images that the requested claim needs; None for thresholds set by hand.
        left_out: Reasons why images were not used, each with the number of them.
        notes: Limits of these thresholds, a sentence each.
        backend: The backend that made the scores; None for thresholds set by hand.
        highest: The normal images with the highest scores, the highest first, each with its score.
        expectation: What to expect of the image threshold, in one plain sentence; empty for thresholds set by hand.
    """

    old: Thresholds | None
    new: Thresholds
    min_area_px: int
    images_needed: int | None = None
    left_out: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    backend: str | None = None
    highest: tuple[tuple[Path, float], ...] = ()
    expectation: str = ""


@dataclass(frozen=True)
class Proposal:
    """Thresholds that were computed and are not yet in the bundle.

    Attributes:
        path: The bundle.
        read: Its manifest when the images were scored.
        precision: The precision whose thresholds they are.
        min_area_px: The smallest region that was asked for; None leaves it as it is.
        calibration: What the calibration does if nothing else changes the bundle meanwhile.
    """

    path: Path
    read: Manifest
    precision: str
    min_area_px: int | None
    calibration: Calibration


@dataclass(frozen=True)
class _Claim:
    """What was asked for; see `calibrate_bundle`. The limits are those of image and pixel threshold."""

    false_reject_rate: float
    confidence: float
    min_area_px: int | None
    limits: tuple[Range | None, Range | None]
    by_product: bool


@dataclass(frozen=True)
class _Scores:
    """What was measured on each image.

    Attributes:
        image: Scores, float64 [N].
        map_max: Largest values of the maps, float64 [N].
        labels: Which images are anomalous, bool [N].
        notes: Notes on each.
        zones: Scores in each of K zones, float64 [N, K]; K is 0 without zones.
    """

    image: Float64Array
    map_max: Float64Array
    labels: BoolArray
    notes: tuple[tuple[str, ...], ...]
    zones: Float64Array


def precisions_of(path: Path) -> tuple[str, ...]:
    """Return the precisions of a bundle. Each needs thresholds of its own: a bound of FP32 says nothing of INT8."""
    with open_bundle(path) as bundle:
        return ("fp32", *sorted(bundle.manifest.precisions))


def calibrate_bundle(
    path: Path,
    dataset: Dataset | None,
    *,
    false_reject_rate: float = FALSE_REJECT_RATE,
    confidence: float = CONFIDENCE,
    objective: Objective = "good",
    min_area_px: int | None = None,
    image_limits: Range | None = None,
    pixel_limits: Range | None = None,
    backend: str = "auto",
    precision: str = "fp32",
    support: SupportRecord | None = None,
    by_product: bool = False,
    command: str,
    progress: Progress = no_progress,
) -> Calibration:
    """Set both thresholds of one precision of a bundle from a dataset's images and record the change.

    Args:
        path: The bundle, folder or packed file; its manifest is rewritten.
        dataset: Its train/good gives the normal images, without those that the detector has learned from. Where these
            are fewer than the images that the bundle has cross-fitted scores of, those scores are taken instead. None:
            those scores, and no image is opened.
        false_reject_rate: Share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        objective: `good` uses normal images alone; `f1` sets the image threshold on the labelled test images.
        min_area_px: Smallest region that is drawn as a box, in pixels of the map; None leaves it as it is.
        image_limits: Lowest and highest value that a threshold overlay may give the image threshold; None for half of
            its distance to the median of the normal images, to either side.
        pixel_limits: The same for the pixel threshold.
        backend: The backend that will decide on the line: thresholds belong to it. `auto` takes one on which the
            precision has passed its gate.
        precision: The precision whose thresholds are set: each has its own, because its scores differ.
        support: The support set whose images and near duplicates are left out of the test images; for the objective
            `f1` alone.
        by_product: Whether each category of a dataset of all gets thresholds of its own beside the common ones.
        command: The command line, for the record.
        progress: Called after each image.

    Raises:
        DataError: If no image remains, or one of them cannot be scored.
        ArgumentError: If a fraction or the area is out of range, a support set comes with the objective `good`, a
            threshold lies outside of the limits that were given, or the bundle lacks the precision.
        BundleError: If another model was written to `path` meanwhile.
        StorageError: If the bundle cannot be changed.
    """
    proposal = propose_thresholds(
        path,
        dataset,
        false_reject_rate=false_reject_rate,
        confidence=confidence,
        objective=objective,
        min_area_px=min_area_px,
        image_limits=image_limits,
        pixel_limits=pixel_limits,
        backend=backend,
        precision=precision,
        support=support,
        by_product=by_product,
        progress=progress,
    )
    return write_thresholds(proposal, command=command)


def propose_thresholds(
    path: Path,
    dataset: Dataset | None,
    *,
    false_reject_rate: float = FALSE_REJECT_RATE,
    confidence: float = CONFIDENCE,
    objective: Objective = "good",
    min_area_px: int | None = None,
    image_limits: Range | None = None,
    pixel_limits: Range | None = None,
    backend: str = "auto",
    precision: str = "fp32",
    support: SupportRecord | None = None,
    by_product: bool = False,
    progress: Progress = no_progress,
) -> Proposal:
    """Compute both thresholds as `calibrate_bundle` does, and leave the bundle as it is.

    That the bundle can be changed is checked first: images are not scored in vain.
    """
    if support is not None and objective != "f1":
        raise ArgumentError(
            "support set: expected none with the objective good, which uses normal training images alone, got one. "
            "Leave --support out, or take --objective f1."
        )
    check_fraction(false_reject_rate, "false-reject rate")
    check_fraction(confidence, "confidence")
    _check_area(min_area_px)
    require("scipy.stats", "scipy", "setting thresholds")  # before the images are scored, not after
    check_changeable(path)
    claim = _Claim(false_reject_rate, confidence, min_area_px, (image_limits, pixel_limits), by_product)
    cross = _cross_scores(path, objective, precision)
    if dataset is None:
        if cross is None:
            raise DataError(
                f"{path}: expected scores of cross-fitting, since no dataset was named, got a bundle without them in "
                f"{precision}, or with a region of interest or zones, where they are others. Name the normal images "
                "with --data."
            )
        if backend != "auto":
            raise ArgumentError(
                f"backend: expected auto with cross-fitted scores, which torch computed in training, got {backend!r}. "
                "Leave it out, or name images that the detector has not learned from with --data."
            )
        return _propose_from_cross(path, cross, None, dataset, claim)
    # Without an overlay: thresholds do not matter here, and one that is broken must not keep new ones from being set.
    with load_inspector(path, backend, precision=precision, use_overlay=False) as inspector:
        manifest = inspector.manifest
        check_zone_request(path, manifest, objective, claim.limits)
        if by_product:
            check_product_request(path, manifest, dataset, objective)
        hashes = read_image_hashes(inspector.bundle)
        chosen = choose_images(dataset, hashes, objective, support, progress)
        # By their number alone, never by the scores: a choice that looked at them would void the bound.
        if cross is not None and len(chosen.samples) < len(cross.images):
            return _propose_from_cross(path, cross, chosen, dataset, claim)
        check_images(dataset, chosen, objective, "" if hashes.cross is None or precision == "fp32" else precision)
        scores = _score(inspector, chosen.samples, progress)
        scored_on = inspector.backend
    good = ~scores.labels
    if manifest.drawn_zones is not None:
        new, image = zone_thresholds_from_scores(
            manifest.drawn_zones.names, scores.zones[good], false_reject_rate, confidence, scored_on
        )
    else:
        new, image = thresholds_from_scores(
            scores.image[good], scores.map_max[good], false_reject_rate, confidence, scored_on
        )
        if objective == "f1":
            value = f1_threshold(scores.image, scores.labels)
            new = msgspec.structs.replace(
                new, image=Threshold(value, "f1", images=len(scores.image), backend=scored_on)
            )
        new = with_limits(new, scores.image[good], scores.map_max[good], claim.limits)
        if by_product:
            products = [sample.category for sample in itertools.compress(chosen.samples, good)]
            new = with_products(
                new, products, scores.image[good], scores.map_max[good], false_reject_rate, confidence, scored_on
            )
        else:
            new = with_normal(new, scores.image[good])
    names = [sample.path for sample in itertools.compress(chosen.samples, good)]
    calibration = Calibration(
        old=manifest.thresholds_of(precision),
        new=new,
        min_area_px=manifest.min_area_px if min_area_px is None else min_area_px,
        images_needed=image.images_needed,
        left_out=chosen.left_out,
        notes=(
            *unlike_notes(manifest, dataset.category, scores.notes),
            *raised_notes(manifest.thresholds_of(precision), new),
            *outlying_notes(names, scores.image[good], scores.map_max[good]),
            *zone_notes(image, new),
            *gate_notes(manifest, precision, scored_on),
            *product_notes(manifest.thresholds_of(precision), new),
            *claim_notes(image, objective, has_zones=bool(new.of_zones)),
        ),
        backend=scored_on,
        highest=highest_first(names, scores.image[good])[:_LISTED],
        expectation=expectation(image, dataset),
    )
    return Proposal(path, manifest, precision, min_area_px, calibration)


def _cross_scores(path: Path, objective: Objective, precision: str) -> CrossScores | None:
    """Return the cross-fitted scores of a bundle, or None where it has none that these thresholds can be set on."""
    # They are of FP32: those of another precision are other numbers. And f1 is about labelled images.
    if objective != "good" or precision != "fp32":
        return None
    with open_bundle(path) as bundle:
        # They are of the whole image: with a region of interest or zones every score is another number.
        manifest = bundle.manifest
        if manifest.kind != "score" or manifest.region is not None or manifest.drawn_zones is not None:
            return None
        return read_image_hashes(bundle).cross


def _propose_from_cross(
    path: Path, cross: CrossScores, chosen: ChosenImages | None, dataset: Dataset | None, claim: _Claim
) -> Proposal:
    """Return thresholds on the cross-fitted scores of a bundle; no image is scored."""
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    if claim.by_product:
        check_product_request(path, manifest, dataset, "good")
    rate, confidence = claim.false_reject_rate, claim.confidence
    scores, map_max = np.array(cross.scores), np.array(cross.map_max)
    new, image = thresholds_from_scores(scores, map_max, rate, confidence, TORCH, "estimated")
    new = with_limits(new, scores, map_max, claim.limits)
    files = {} if chosen is None else {content: path for path, content in chosen.contents.items()}
    names = [files.get(content, Path(f"image {content[:19]}")) for content in cross.images]
    if claim.by_product and dataset is not None:
        categories = {sample.path: sample.category for sample in dataset.samples}
        products = [categories.get(name, "") for name in names]
        new = with_products(new, products, scores, map_max, rate, confidence, TORCH, "estimated")
    left_out: tuple[tuple[str, int], ...] = ()
    if chosen is not None and chosen.samples:
        reason = f"that are new, since the detector has cross-fitted scores of {len(cross.images)} that it learned"
        left_out = ((reason, len(chosen.samples)),)
    calibration = Calibration(
        old=manifest.thresholds,
        new=new,
        min_area_px=manifest.min_area_px if claim.min_area_px is None else claim.min_area_px,
        images_needed=image.images_needed,
        left_out=left_out,
        notes=(
            *outlying_notes(names, scores, map_max),
            cross_note(cross, manifest),
            *product_notes(manifest.thresholds, new),
            *claim_notes(image, "good", is_crossed=True),
        ),
        backend=TORCH,
        highest=highest_first(names, scores)[:_LISTED],
        expectation=expectation(image, dataset, is_estimated=True),
    )
    return Proposal(path, manifest, "fp32", claim.min_area_px, calibration)


def write_thresholds(proposal: Proposal, *, command: str) -> Calibration:
    """Put computed thresholds into their bundle and record the change.

    Returns:
        What was done: `old` are the thresholds that were in force until now, whoever set them.

    Raises:
        BundleError: If another model was written there meanwhile.
        StorageError: If the bundle cannot be changed.
    """
    wanted = proposal.calibration.new
    old, written = write_changed(
        proposal.path, proposal.read, proposal.precision, lambda _: wanted, proposal.min_area_px, command
    )
    return replace(proposal.calibration, old=old, min_area_px=written.min_area_px)


def set_thresholds(
    path: Path,
    image: float | None,
    pixel: float | None,
    min_area_px: int | None,
    *,
    image_limits: Range | None = None,
    pixel_limits: Range | None = None,
    zone: str | None = None,
    precision: str = "fp32",
    command: str,
) -> Calibration:
    """Set thresholds of one precision by hand; None keeps a threshold. With zones they are those of one of them.

    Limits of threshold overlays are kept too where the new thresholds lie within them; otherwise there are none any
    more, unless they are given. Where only those of one threshold are given, an overlay may not move the other.

    Raises:
        ArgumentError: If a number is not finite, a threshold lies outside of the limits that were given, the bundle
            does not score or lacks the precision or zone, or it has no thresholds yet and gets only one.
    """
    _check_area(min_area_px)
    for name, value in (("image threshold", image), ("pixel threshold", pixel)):
        if value is not None and not math.isfinite(value):
            raise ArgumentError(f"{name}: expected a finite number, got {value}.")
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    if manifest.kind != "score":
        raise ArgumentError(f"{path}: expected a bundle that scores, got one that draws defects. It has no thresholds.")
    check_zone_request(path, manifest, "good", (image_limits, pixel_limits))
    if manifest.drawn_zones is None and zone is not None:
        raise ArgumentError(f"{path}: expected no zone, since the bundle has none, got {zone!r}. Leave --zone out.")

    def by_hand(old: Thresholds | None) -> Thresholds:
        if manifest.drawn_zones is not None:
            return zone_by_hand(path, manifest, old, zone, image, pixel)
        new_image = Threshold(image, "manual") if image is not None else old.image if old else None
        new_pixel = Threshold(pixel, "manual") if pixel is not None else old.pixel if old else None
        if new_image is None or new_pixel is None:
            raise ArgumentError(
                f"{path}: expected both --image-threshold and --pixel-threshold, because the bundle has none yet. "
                "Give both, or calibrate with --data."
            )
        new = Thresholds(new_image, new_pixel)
        if old is not None:
            # The scores of the images are what they were.
            new = msgspec.structs.replace(old, image=new_image, pixel=new_pixel)
        return msgspec.structs.replace(new, limits=limits_by_hand(new, image_limits, pixel_limits))

    old, written = write_changed(path, manifest, precision, by_hand, min_area_px, command)
    new = by_hand(old)
    no_bound = "Thresholds set by hand have no bound on false rejects. Measure them with flawscope evaluate."
    of_zones = [threshold.method for own in new.of_zones for threshold in (own.image, own.pixel)]
    notes = [no_bound] if "manual" in (new.image.method, new.pixel.method, *of_zones) else []
    if new.by_product and (image, pixel) != (None, None):
        notes.append("The thresholds by product are as they were: these are the common ones.")
    if old is not None and old.limits is not None and new.limits is None:
        notes.append(
            "The new thresholds lie outside of the limits of threshold overlays, which were removed: no overlay is "
            "allowed until --image-limits and --pixel-limits set new ones."
        )
    return Calibration(old, new, written.min_area_px, notes=tuple(notes))


def _check_area(min_area_px: int | None) -> None:
    if min_area_px is not None and min_area_px < 1:
        raise ArgumentError(f"smallest area: expected at least 1 pixel, got {min_area_px}.")


def _score(inspector: Inspector, samples: Sequence[Sample], progress: Progress) -> _Scores:
    """Score all images; raises when one cannot be scored, because the rest would be a selected sample."""
    image, map_max, zones, faults, notes = [], [], [], [], []
    for sample, result in score_samples(inspector, samples, "Scoring", progress):
        fault = fault_of(result, is_calibrated=False)
        if fault is not None or result.score is None or result.anomaly_map is None:
            faults.append(f"{sample.path} ({fault})")
        else:
            # float: Python's is 64 bits, and a float32 score becomes the threshold without rounding.
            zones.append([zone.score for zone in result.zones])
            # With zones the score of the result is that of the zone that decides, by thresholds that are to go.
            image.append(max(zones[-1], default=float(result.score)))
            map_max.append(float(result.anomaly_map.max()))
            notes.append(result.notes)
    if faults:
        unlisted = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise DataError(
            f"expected every image to be scored, got {len(faults)} of {len(samples)} that could not be: "
            f"{'; '.join(faults[:_LISTED])}{unlisted}. Thresholds are unchanged. Repair or remove these images."
        )
    labels = np.array([sample.is_anomalous for sample in samples], np.bool_)
    return _Scores(np.array(image), np.array(map_max), labels, tuple(notes), np.array(zones, np.float64))
