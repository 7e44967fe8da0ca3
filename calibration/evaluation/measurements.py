"""Measurements of a bundle on labelled images: score, map, mask and decision of each, made by the runtime."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array
from flawscope.bundle import Manifest, PartShift, Thresholds, mask_on_map, move_mask, region_mask
from flawscope.calibration.evaluation.bundle_scores import fault_of, score_samples
from flawscope.calibration.evaluation.metrics import stack_masks
from flawscope.datasets import Sample
from flawscope.errors import GateError
from flawscope.imaging.images import prepare_mask, resize
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.runtime import Box, Inspector, Result
    from flawscope.runtime.results import ZoneScore


@dataclass(frozen=True)
class Outcome:
    """Result of the runtime for one image.

    Attributes:
        decision: What was decided.
        fault: Why there is no usable score; None when there is one.
        boxes: Regions above the pixel threshold.
        total_ms: Time from file to decision, in milliseconds.
        notes: In what the image is unlike those that the bundle learned from.
        zones: Score and threshold of each zone; empty without zones.
        pixel_threshold: That of the image's product; None where all images have the same.
    """

    decision: Literal["accept", "reject", "fault"]
    fault: str | None
    boxes: tuple[Box, ...]
    total_ms: float
    notes: tuple[str, ...] = ()
    zones: tuple[ZoneScore, ...] = ()
    pixel_threshold: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured on each test image, one row an image.

    Attributes:
        samples: The images.
        outcomes: Their decisions.
        scores: float64 [N]; 0 where an image could not be scored. With zones and thresholds, the largest score minus
            threshold of an image's zones, and by product the score minus the threshold of its product: where thresholds
            differ, scores alone have no common rank.
        maps: float32 [N, H, W] at the size of the model's input; 0 where an image could not be scored. They may lie in
            a file (`numpy.memmap`), of which parts are read as they are needed.
        masks: bool [N, H, W]; all false where there is no pixel truth.
        usable: bool [N], images that were scored.
        has_truth: bool [N], images that were scored and are normal or have a mask with a pixel in it.
        mask_lost: bool [N], images whose mask has pixels as stored, and none at this size.
        diameters: float64 [N], diameter of a circle of the area of the largest defect of an image, in pixels of the
            model's input (of a tile, where images are cut); NaN where no mask has a pixel.
        outside: bool [N], anomalous images whose mask has pixels, all of them outside of the region of interest.
        inside: The pixels of maps and masks in the region of interest, bool [H, W], or [N, H, W] where it follows the
            part; None without one.
        pixel_thresholds: float32 [H, W], the threshold of each pixel of the maps; None without zones, where all have
            one, and without thresholds.
    """

    samples: tuple[Sample, ...]
    outcomes: tuple[Outcome, ...]
    scores: Float64Array
    maps: Float32Array
    masks: BoolArray
    usable: BoolArray
    has_truth: BoolArray
    mask_lost: BoolArray
    diameters: Float64Array
    outside: BoolArray
    inside: BoolArray | None = None
    pixel_thresholds: Float32Array | None = None

    @property
    def labels(self) -> BoolArray:
        """Which images are anomalous, bool [N]."""
        return np.array([sample.is_anomalous for sample in self.samples], np.bool_)

    @property
    def has_masks(self) -> bool:
        """Whether an anomalous image has pixel truth: without any there are no figures of pixels."""
        return bool((self.has_truth & self.labels).any())

    def select(self, rows: BoolArray) -> Measured:
        """Return the measurements of the images marked in `rows`, bool [N]."""
        return Measured(
            samples=tuple(itertools.compress(self.samples, rows)),
            outcomes=tuple(itertools.compress(self.outcomes, rows)),
            scores=self.scores[rows],
            maps=self.maps[rows],
            masks=self.masks[rows],
            usable=self.usable[rows],
            has_truth=self.has_truth[rows],
            mask_lost=self.mask_lost[rows],
            diameters=self.diameters[rows],
            outside=self.outside[rows],
            inside=self.inside if self.inside is None or self.inside.ndim == 2 else self.inside[rows],
            pixel_thresholds=self.pixel_thresholds,
        )

    def pixel_threshold(self, row: int, common: float) -> float | Float32Array:
        """Return the threshold on the pixels of the image in a row, or one for each, float32 [H, W].

        Args:
            row: Row of the image.
            common: The threshold where neither product nor zones have another.
        """
        own = self.outcomes[row].pixel_threshold
        if own is not None:
            return own
        return common if self.pixel_thresholds is None else self.pixel_thresholds


class ShardsMissing(GateError):
    """Shards of other jobs are not there yet: there are no figures so far."""


def measure_images(
    inspector: Inspector,
    samples: Sequence[Sample],
    progress: Progress,
    products: Mapping[str, Thresholds] | None = None,
) -> Measured:
    """Score images through the runtime, one at a time, and read their masks.

    Args:
        inspector: A bundle made ready.
        samples: The images.
        progress: Called after each image.
        products: The thresholds of each category, where images are judged by those of theirs; None for the common ones.
    """
    truth = read_masks(samples, inspector.manifest)
    maps = np.zeros((len(samples), *map_size(inspector.manifest)), np.float32)
    rows = []
    by_product = products is not None
    for index, (_, result) in enumerate(score_samples(inspector, samples, "Scoring", progress, by_product=by_product)):
        row, anomaly_map = row_of(inspector, result, by_product=by_product)
        rows.append(row)
        if anomaly_map is not None:
            maps[index] = anomaly_map
    return assemble(inspector, samples, truth, rows, maps, products)


@dataclass(frozen=True)
class Row:
    """What the runtime gave for one image, without its map.

    Attributes:
        outcome: Its decision.
        rank: The number by which it is ranked; 0 where it could not be scored.
        shift: How far its part lies off, where that is followed.
    """

    outcome: Outcome
    rank: float
    shift: PartShift | None


@dataclass(frozen=True)
class MaskTruth:
    """What the masks of some images show at the size of the maps; fields as those of `Measured`."""

    masks: list[BoolArray | None]
    mask_lost: list[bool]
    diameters: list[float]


def map_size(manifest: Manifest) -> tuple[int, int]:
    """Return height and width of all maps of a measurement."""
    # Maps with letterbox show the image alone; all come to one size, and so do their masks.
    return manifest.input.stretched.size


def read_masks(samples: Sequence[Sample], manifest: Manifest) -> MaskTruth:
    """Read the masks of images: before these are scored, so that a broken one stops the evaluation before that."""
    spec = manifest.input.stretched
    masks, mask_lost, diameters = [], [], []
    for sample in samples:
        mask = sample.read_mask() if sample.is_anomalous else None
        small = None if mask is None else prepare_mask(mask, spec)
        masks.append(small)
        diameters.append(math.nan if mask is None else _diameter(mask, manifest))
        # A defect of a few pixels can vanish when its mask is resized or cropped; the notes say how many did.
        mask_lost.append(mask is not None and small is not None and bool(mask.any()) and not bool(small.any()))
    return MaskTruth(masks, mask_lost, diameters)


def row_of(inspector: Inspector, result: Result, *, by_product: bool) -> tuple[Row, Float32Array | None]:
    """Return what a result says, and its map at the size of all maps; None where the image could not be scored.

    Args:
        inspector: The bundle.
        result: The result.
        by_product: Whether images are judged by the thresholds of their category.
    """
    fault = fault_of(result, is_calibrated=inspector.thresholds is not None)
    total_ms = result.timings_ms.get("total", 0.0)
    outcome = Outcome(result.decision, fault, tuple(result.boxes), total_ms, result.notes, result.zones)
    if fault is not None or result.score is None or result.anomaly_map is None:
        return Row(outcome, 0.0, result.part_shift), None
    anomaly_map = _resized(result.anomaly_map, map_size(inspector.manifest))
    return Row(outcome, _rank(result, by_product), result.part_shift), anomaly_map


def assemble(
    inspector: Inspector,
    samples: Sequence[Sample],
    truth: MaskTruth,
    rows: Sequence[Row],
    maps: Float32Array,
    products: Mapping[str, Thresholds] | None,
) -> Measured:
    """Return the measurements of images.

    Args:
        inspector: The bundle.
        samples: The images.
        truth: What their masks show.
        rows: What the runtime gave for each.
        maps: float32 [N, H, W], 0 where an image could not be scored.
        products: As in `measure_images`.
    """
    usable = np.array([row.outcome.fault is None for row in rows], np.bool_)
    outcomes = [row.outcome for row in rows]
    if products is not None:
        outcomes = [
            replace(outcome, pixel_threshold=products[sample.category].pixel.value)
            for outcome, sample in zip(outcomes, samples, strict=True)
        ]
    inside = _inside(inspector, [row.shift for row in rows])
    stacked = stack_masks(truth.masks, map_size(inspector.manifest))
    has_pixels = np.array([mask is not None and bool(mask.any()) for mask in truth.masks], np.bool_)
    outside = np.zeros(len(stacked), np.bool_)
    if inside is not None:
        # What lies outside of the region is neither a defect that was missed nor a normal pixel.
        stacked &= inside
        outside[has_pixels & ~stacked.any(axis=(1, 2))] = True
    good = np.array([not sample.is_anomalous for sample in samples], np.bool_)
    # An anomalous image without a mask must not count here: its empty mask would call all its defect pixels normal.
    has_truth = usable & (good | stacked.any(axis=(1, 2)))
    return Measured(
        samples=tuple(samples),
        outcomes=tuple(outcomes),
        # float64, which all figures are computed in; float32 scores convert without loss, so ties stay ties.
        scores=np.array([row.rank for row in rows], np.float64),
        maps=maps,
        masks=stacked,
        usable=usable,
        has_truth=has_truth,
        mask_lost=np.array(truth.mask_lost, np.bool_),
        diameters=np.array(truth.diameters, np.float64),
        outside=outside,
        inside=inside,
        pixel_thresholds=_pixel_thresholds(inspector),
    )


def _rank(result: Result, by_product: bool) -> float:
    """Return the number by which an image is ranked among others."""
    score = 0.0 if result.score is None else result.score
    is_relative = by_product or bool(result.zones)
    return score if not is_relative or result.threshold is None else score - result.threshold


def _pixel_thresholds(inspector: Inspector) -> Float32Array | None:
    """Return the threshold of each pixel at the size of the maps; None where all have one, or there are none."""
    if inspector.thresholds is None or not inspector.thresholds.of_zones:
        return None
    found = inspector.pixel_thresholds(np.zeros(inspector.manifest.input.stretched.size, np.float32))
    return found if isinstance(found, np.ndarray) else None


def _inside(inspector: Inspector, shifts: Sequence[PartShift | None]) -> BoolArray | None:
    """Return which pixels lie in the bundle's region of interest, at the size of the maps; None without one.

    Args:
        inspector: The bundle.
        shifts: How far the part of each image lies off, as the results say.
    """
    manifest, spec = inspector.manifest, inspector.manifest.input.stretched
    if manifest.region is None:
        return None
    mask = region_mask(manifest.region, str(inspector.bundle.path))
    geometry = spec if manifest.map_spec is not None else None
    if manifest.region.followed is None:
        return mask_on_map(mask, geometry, spec.size)
    # Of a fault nobody knows where the region lies: all counts, so that its image is not left out as one outside.
    inside = np.ones((len(shifts), *spec.size), np.bool_)
    for row, shift in enumerate(shifts):
        if shift is not None:
            inside[row] = mask_on_map(move_mask(mask, *shift.on(mask)), geometry, spec.size)
    return inside


def _diameter(mask: BoolArray, manifest: Manifest) -> float:
    """Return the diameter of a circle of the area of the largest region of a stored mask, in pixels of the input."""
    # On the mask as it is stored: at the size of the input a small defect may have vanished, and still has a size.
    count, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return math.nan
    spec = manifest.input
    shape = mask.shape if manifest.tiling is None else manifest.tiling.size
    down, across = (new / old for new, old in zip(spec.resize, shape, strict=True))
    scale = min(down, across) if spec.mode == "letterbox" else math.sqrt(down * across)
    # Row 0 is the background.
    return scale * 2 * math.sqrt(float(statistics[1:, cv2.CC_STAT_AREA].max()) / math.pi)


def _resized(anomaly_map: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Return a map at the size of the model's input; of an image in tiles it is larger, with letterbox smaller."""
    if anomaly_map.shape == size:
        return anomaly_map
    # By area where it shrinks: bilinear sampling would skip pixels, and could skip the peak of a small defect.
    return np.asarray(resize(anomaly_map, size), np.float32)
