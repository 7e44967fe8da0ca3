"""Structs of an evaluation: what `evaluate --json` writes, and what the report shows."""

# Field names are the keys of that JSON file, which users' scripts read: they stay, also where the words have changed.

from __future__ import annotations

import re
from typing import Literal

import msgspec

from flawscope.bundle import Threshold
from flawscope.calibration.evaluation.intervals import Interval, Rate


class _Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the structs: immutable, with keyword arguments alone."""


class Latency(_Struct, frozen=True):
    """Quantiles of the time from file to decision of one image, in milliseconds."""

    p50: float
    p90: float
    p99: float


class Decisions(_Struct, frozen=True):
    """How many images of one kind were accepted, rejected, or could not be decided."""

    n: int
    accept: int
    reject: int
    fault: int


class Confusion(_Struct, frozen=True):
    """Decisions at the bundle's thresholds. A fault is never an accept.

    Attributes:
        image_threshold: The threshold in force on the image score.
        pixel_threshold: The threshold in force on the map.
        good: Decisions on normal images.
        anomalous: Decisions on anomalous images.
        false_reject: Share of normal images that were not accepted.
        miss: Share of anomalous images that were accepted.
    """

    image_threshold: Threshold
    pixel_threshold: Threshold
    good: Decisions
    anomalous: Decisions
    false_reject: Rate
    miss: Rate


class DefectFigures(_Struct, frozen=True):
    """Figures of one defect type against all normal images.

    Attributes:
        defect: Name of the type.
        images: Number of images.
        without_mask: Images without pixel truth.
        faults: Images that could not be scored.
        image_auroc: Against all normal images.
        detection: Share that was not accepted; None without thresholds.
        pixel_auroc: Over its images with masks and all normal ones; None without masks.
    """

    defect: str
    images: int
    without_mask: int
    faults: int
    image_auroc: float | None
    detection: Rate | None
    pixel_auroc: float | None


class SizeFigures(_Struct, frozen=True):
    """Anomalous images whose largest defect has about the same size.

    Attributes:
        smallest_px: Diameter of a circle of the area of the smallest of them, in pixels of the model's input.
        largest_px: The same of the largest of them.
        detection: Share that was not accepted at the thresholds in force.
    """

    smallest_px: float
    largest_px: float
    detection: Rate


class ZoneFigures(_Struct, frozen=True):
    """What one zone rejected, of the images that could be scored.

    Attributes:
        zone: Name of the zone.
        image_threshold: Threshold on its score.
        false_reject: Share of normal images that it rejected.
        detection: Share of anomalous images that it rejected, wherever their defect lies.
    """

    zone: str
    image_threshold: float
    false_reject: Rate
    detection: Rate


class ProductFigures(_Struct, frozen=True):
    """Decisions on the images of one product, at its own thresholds."""

    product: str
    confusion: Confusion


class Fault(_Struct, frozen=True):
    """An image that could not be decided, and why."""

    image: str
    reason: str


class BundleIdentity(_Struct, frozen=True):
    """Which bundle was measured; the digest is that of before these figures were recorded as evidence.

    Attributes:
        model: As `model_identity`: the same after figures, thresholds or reduced precisions were added to the bundle.
    """

    name: str
    method: str
    digest: str
    model: str


class DatasetIdentity(_Struct, frozen=True):
    """Which images were used."""

    category: str
    fingerprint: str


class ImageResult(_Struct, frozen=True):
    """What the runtime gave for one image that counts in the figures.

    Attributes:
        image: Where it lies below the dataset's folder, with slashes.
        content: Hash of its pixels, or of its file where it could not be decoded.
        defect: Its true type.
        is_anomalous: Whether it shows a defect.
        mask: Hash of its mask at the size of the model's input; None where it has no pixel truth.
        score: Its score; None where it could not be scored.
        decision: At the thresholds in force; None without thresholds.
    """

    image: str
    content: str
    defect: str
    is_anomalous: bool
    mask: str | None
    score: float | None
    decision: Literal["accept", "reject", "fault"] | None


class Change(_Struct, frozen=True):
    """A figure of another measurement and of this one.

    Attributes:
        before: The figure there.
        after: The figure here.
        change: After minus before.
        interval: Bootstrap interval of the change, over images that were drawn for both sides alike; None where the
            scores of the other side are not known, and of figures of pixels.
    """

    before: float
    after: float
    change: float
    interval: Interval | None


class PairedScores(_Struct, frozen=True):
    """How single scores and decisions differ, over the images of both sides.

    Attributes:
        images: Images of both sides.
        only_before: Images of the other side alone, left out.
        only_after: Images of this side alone, left out.
        faults_before: Images of both that could not be scored there.
        faults_after: Images of both that could not be scored here.
        changed: Share of images with another decision; None without thresholds on either side.
        decisions: Such as `accept to reject` -> number of images.
        moved: Image, as it is called here -> such as `accept to reject`, of images with another decision.
        largest_relative: Largest |after - before| / |before| of the scores; None without any.
        median_relative: Its median.
        median_interval: Bootstrap interval of the median.
        rank_correlation: Spearman's, of the scores; None with fewer than three distinct ones.
        rank_correlation_interval: Its bootstrap interval.
    """

    images: int
    only_before: int
    only_after: int
    faults_before: int
    faults_after: int
    changed: Rate | None
    decisions: dict[str, int]
    moved: dict[str, str]
    largest_relative: float | None
    median_relative: float | None
    median_interval: Interval | None
    rank_correlation: float | None
    rank_correlation_interval: Interval | None


class Drift(_Struct, frozen=True):
    """How figures differ from those that the same model had elsewhere.

    Attributes:
        against: Backend of the other measurement, with path and precision in brackets.
        when: UTC time of the other measurement.
        goal: Largest difference of image AUROC, either way, that the precisions are meant to keep to.
        figures: Figure -> its change. `recall` and `false_rejects` are at the thresholds in force on either side.
        paired: What single scores and decisions show; None where only the figures of the other side are known.
        notes: What limits the comparison, and what exceeds the goal, a sentence each.
    """

    against: str
    when: str
    goal: float
    figures: dict[str, Change]
    paired: PairedScores | None
    notes: tuple[str, ...]


class OverallFigures(_Struct, frozen=True):
    """Figures over all images that count; None where they are undefined.

    Attributes:
        aupro: AU-PRO up to 30 % false pixels.
        aupro_05: AU-PRO up to 5 % false pixels.
        pixel_f1: F1 of the pixels above the pixel threshold in force; None without thresholds or masks.
        pixel_recall: Share of the defect pixels above it, as `pixel_f1`.
        images: Test images, those that could not be scored included.
        anomalous: Anomalous ones among them.
    """

    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    aupro_05: float | None
    pixel_f1: float | None
    pixel_recall: float | None
    images: int
    anomalous: int


class LeakFigures(OverallFigures, frozen=True):
    """The overall figures on all test images, those of a support set included: optimistic, for comparison.

    Attributes:
        intervals: Figure -> bootstrap interval.
        false_reject: Share of normal images that were not accepted; None without thresholds.
        miss: Share of anomalous images that were accepted; None without thresholds.
        faults: Images that could not be decided, also those that are left out.
    """

    intervals: dict[str, Interval]
    false_reject: Rate | None
    miss: Rate | None
    faults: tuple[Fault, ...]


class SupportFigures(_Struct, frozen=True):
    """Which support set was left out of the test images, and the figures without leaving it out.

    Attributes:
        digest: SHA-256 over the content of the support images and their masks.
        category: Category of the dataset it was taken from, or "all".
        shots: Images of each defect type.
        seed: Seed of the choice.
        pictures: Number of support images.
        missing: Support images of the dataset's categories whose content is nowhere in it.
        of_set: Test images that were left out because they are support images.
        alike: Test images that were left out as near duplicates of support images.
        left_out: Test image below the dataset's root -> why it was left out.
        with_leak: The figures on all test images.
    """

    digest: str
    category: str
    shots: int
    seed: int
    pictures: int
    missing: int
    of_set: int
    alike: int
    left_out: dict[str, str]
    with_leak: LeakFigures


class Figures(OverallFigures, frozen=True):
    """Everything one evaluation measured; figures are None where they are undefined.

    Attributes:
        without_mask: Anomalous images without pixel truth, left out of the pixel figures.
        masks_lost: Images whose mask vanished at the resolution of the model; they count as `without_mask`.
        f1_threshold: Threshold of `image_f1_max`, for information: it was chosen on these images.
        recall_by_size: Recall at the thresholds in force by size of the largest defect of an image, smallest first;
            empty without thresholds and with fewer than 10 masks.
        diagnosis: What is wrong, why, and what to do next, a sentence or two each; empty where nothing was found.
        precision: Number format of the graph.
        path: `graph`, or `kernel` for features and native kernel.
        latency_ms: Time from file to decision of one image; None when no image could be scored.
        intervals: Figure -> bootstrap interval.
        notes: What limits these figures, a sentence each.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.
        support: The support set whose images are in none of these figures; None where none was named.
        per_image: The images that count, in the order of the dataset.
        drift: Differences from the same model with another backend, precision or machine, on the same images.
        zones: What each zone rejected; not written where the bundle has none.
        product: The product whose thresholds were taken; not written where they are the common ones.
        products: Decisions by product at the thresholds of each; not written where they were not asked for.
    """

    without_mask: int
    masks_lost: int
    f1_threshold: float | None
    recall_by_size: tuple[SizeFigures, ...]
    diagnosis: tuple[str, ...]
    backend: str
    backend_reason: str
    path: str
    precision: str
    latency_ms: Latency | None
    intervals: dict[str, Interval]
    confusion: Confusion | None
    defects: tuple[DefectFigures, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    bundle: BundleIdentity
    dataset: DatasetIdentity
    versions: dict[str, str]
    command: str
    when: str
    seed: int
    resamples: int
    support: SupportFigures | None
    per_image: tuple[ImageResult, ...]
    drift: tuple[Drift, ...]
    # UNSET: what scripts read of bundles without zones stays as it was.
    zones: tuple[ZoneFigures, ...] | msgspec.UnsetType = msgspec.UNSET
    products: tuple[ProductFigures, ...] | msgspec.UnsetType = msgspec.UNSET
    product: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def judged(self) -> str:
        """By whose thresholds images were judged; empty for the common ones."""
        product = None if self.product is msgspec.UNSET else self.product
        return judged_by(product, by_product=self.products is not msgspec.UNSET)

    @property
    def has_relative_scores(self) -> bool:
        """Whether scores of images are those minus a threshold."""
        return self.products is not msgspec.UNSET or self.zones is not msgspec.UNSET


def judged_by(product: str | None, *, by_product: bool) -> str:
    """Return by whose thresholds images are judged, a phrase; empty for the common ones."""
    if by_product:
        return "by product"
    return "" if product is None else f"product {product}"


def measured_on(backend: str, path: str, precision: str, judged: str = "") -> str:
    """Return the backend, with path, precision and product in brackets unless they are `graph`, `fp32` and none."""
    # Bundles on disk carry this text, and record_accuracy replaces by it: another form would add a second entry.
    details = [path] if path != "graph" else []
    details += [precision] if precision != "fp32" else []
    # Other thresholds give other decisions: neither takes the place of the other.
    details += [judged] if judged else []
    return f"{backend} ({', '.join(details)})" if details else backend


def judged_of(measured: str) -> str:
    """Return by whose thresholds figures were made, from what `measured_on` said."""
    found = re.search(r"[(,] ?(by product|product .*)\)$", measured)
    return "" if found is None else found.group(1)
