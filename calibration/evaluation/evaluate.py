"""Measuring a bundle on labelled images, through the runtime: what was measured is what ships."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array
from flawscope.bundle import (
    Accuracy,
    ImageHashes,
    Manifest,
    Thresholds,
    open_bundle,
    read_image_hashes,
    rewrite_manifest,
)
from flawscope.calibration.evaluation.bundle_scores import fault_of, load_inspector, score_samples
from flawscope.calibration.evaluation.contamination import Contamination, find_contamination
from flawscope.calibration.evaluation.figures import (
    BundleIdentity,
    Confusion,
    DatasetIdentity,
    Decisions,
    DefectFigures,
    Fault,
    Figures,
    Latency,
    LeakFigures,
    SupportFigures,
)
from flawscope.calibration.evaluation.intervals import RESAMPLES, Interval, image_intervals, pixel_intervals, rate
from flawscope.calibration.evaluation.metrics import (
    aupro,
    auroc,
    average_precision,
    f1_max,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.calibration.extras import require
from flawscope.datasets import Dataset, Sample, fingerprint, hash_contents
from flawscope.errors import DataError
from flawscope.imaging.images import prepare_mask
from flawscope.progress import Progress, no_progress
from flawscope.versions import package_versions

if TYPE_CHECKING:
    from flawscope.datasets.defects.support_set import SupportRecord
    from flawscope.runtime import Box, Inspector


@dataclass(frozen=True)
class Outcome:
    """Result of the runtime for one image; `fault` is None when it has a usable score."""

    decision: Literal["accept", "reject", "fault"]
    fault: str | None
    boxes: tuple[Box, ...]
    total_ms: float


@dataclass(frozen=True)
class Measured:
    """Every test image with what was measured on it, row by row.

    Attributes:
        samples: The images.
        outcomes: Their decisions.
        scores: float64 [N]; 0 where an image could not be scored.
        maps: float32 [N, H, W] at the size of the model's input; 0 where an image could not be scored.
        masks: bool [N, H, W]; false throughout where there is no pixel truth.
        usable: bool [N], scored.
        has_truth: bool [N], scored, and good or with a mask that is not empty.
        mask_lost: bool [N], with a mask that is not empty as stored, and empty at this size.
    """

    samples: tuple[Sample, ...]
    outcomes: tuple[Outcome, ...]
    scores: Float64Array
    maps: Float32Array
    masks: BoolArray
    usable: BoolArray
    has_truth: BoolArray
    mask_lost: BoolArray

    @property
    def labels(self) -> BoolArray:
        """Which images show a defect, bool [N]."""
        return np.array([sample.is_anomalous for sample in self.samples], np.bool_)

    def select(self, rows: BoolArray) -> Measured:
        """Return what was measured on some of the images, bool [N]."""
        return Measured(
            samples=tuple(itertools.compress(self.samples, rows)),
            outcomes=tuple(itertools.compress(self.outcomes, rows)),
            scores=self.scores[rows],
            maps=self.maps[rows],
            masks=self.masks[rows],
            usable=self.usable[rows],
            has_truth=self.has_truth[rows],
            mask_lost=self.mask_lost[rows],
        )


@dataclass(frozen=True)
class Evaluation:
    """The figures, the measurements behind them, the manifest of the bundle, and the dataset's folder.

    With a support set the measurements are those of the images that were not left out.
    """

    figures: Figures
    measured: Measured
    manifest: Manifest
    root: Path


def evaluate_bundle(
    path: Path,
    dataset: Dataset,
    *,
    backend: str = "auto",
    graph_path: str = "auto",
    precision: str = "fp32",
    support: SupportRecord | None = None,
    command: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = no_progress,
) -> Evaluation:
    """Run a bundle over all test images of a dataset and compute its figures; nothing is written.

    With a support set its images and those that probably show the same parts are in none of the figures, nor in the
    fingerprint of the dataset; `Figures.support` has the figures with them.

    Args:
        path: The bundle, folder or packed file.
        dataset: Its test images are used, all of them.
        backend: The backend to measure.
        graph_path: `graph`, `kernel` for features and native kernel, or `auto` for the one the runtime takes.
        precision: Precision of the graphs, one that the bundle has.
        support: The support set that the detector has learned from, directly or by defects that were drawn from it.
        command: The command line, for the record.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.
        progress: Called after each image.

    Raises:
        DataError: If there is no test image, or none beside the support set, the support set was taken from another
            dataset, or a mask cannot be read.
        MissingExtra: If scikit-learn or SciPy is not installed.
    """
    require("sklearn.metrics", "scikit-learn", "measuring accuracy")  # before the long part, not after it
    require("scipy.stats", "scipy", "measuring accuracy")
    samples = dataset.test
    if not samples:
        raise DataError(
            f"{dataset.root}: expected test images (test/good and test/DEFECT), got none. "
            "Add labelled images, or name another set."
        )
    with load_inspector(path, backend, graph_path, precision) as inspector:
        manifest, taken, reason = inspector.manifest, inspector.backend, inspector.backend_reason
        taken_path, thresholds = inspector.path, inspector.thresholds
        hashes = read_image_hashes(inspector.bundle)
        contents = hash_contents(
            [sample.path for sample in dataset.samples], lambda done, total: progress("Hashing images", done, total)
        )
        leak = None if support is None else find_contamination(dataset, support, contents)
        measured = measure_images(inspector, samples, progress)
    progress("Computing figures", 0, 1)
    everything = measured
    if leak is not None and leak.left_out:
        dataset, measured = leak.reduced, everything.select(leak.kept)
    confusion = _confusion(measured, thresholds)
    values, intervals, best = _overall(measured, seed, resamples)
    figures = Figures(
        **values,
        images=len(measured.samples),
        anomalous=int(measured.labels.sum()),
        without_mask=int((measured.usable & ~measured.has_truth).sum()),
        masks_lost=int(measured.mask_lost.sum()),
        f1_threshold=best,
        backend=taken,
        backend_reason=reason,
        path=taken_path,
        precision=precision,
        latency_ms=_latency(measured),
        intervals=intervals,
        confusion=confusion,
        defects=_by_defect(measured, is_calibrated=confusion is not None),
        faults=_faults(measured),
        notes=(
            *_leak_notes(leak, everything, measured),
            *_notes(measured, thresholds, taken, hashes, [contents[sample.path] for sample in measured.samples]),
        ),
        bundle=BundleIdentity(name=manifest.name, method=manifest.method, digest=manifest.digest),
        dataset=DatasetIdentity(category=dataset.category, fingerprint=fingerprint(dataset, contents)),
        versions=package_versions(),
        command=command,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        resamples=resamples,
        support=None,
    )
    if leak is not None:
        if everything is not measured:
            values, intervals, _ = _overall(everything, seed, resamples)
        with_leak = _leak_figures(everything, values, intervals, _confusion(everything, thresholds))
        figures = msgspec.structs.replace(figures, support=_support_figures(leak, with_leak))
    progress("Computing figures", 1, 1)
    return Evaluation(figures, measured, manifest, dataset.root)


def record_accuracy(path: Path, figures: Figures) -> None:
    """Write figures into the bundle's evidence, in place of older ones of the same dataset and backend."""
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    flat: dict[str, float | None] = {
        name: getattr(figures, name)
        for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
    }
    if figures.support is not None:
        flat["support_left_out"] = float(len(figures.support.left_out))
    flat["latency_p50_ms"] = figures.latency_ms.p50 if figures.latency_ms else None
    if (confusion := figures.confusion) is not None:
        flat["image_threshold"] = confusion.image_threshold.value
        for name, seen in (("false_reject", confusion.false_reject), ("miss", confusion.miss)):
            flat |= {f"{name}_rate": seen.value, f"{name}_upper_bound": seen.upper, f"{name}_n": float(seen.n)}
    new = Accuracy(
        when=figures.when,
        command=figures.command,
        dataset=figures.dataset.fingerprint,
        backend=_where(figures),
        images=figures.images,
        anomalous=figures.anomalous,
        figures=flat,
    )
    kept = [old for old in manifest.evidence.accuracy if (old.dataset, old.backend) != (new.dataset, new.backend)]
    evidence = msgspec.structs.replace(manifest.evidence, accuracy=(*kept, new))
    rewrite_manifest(path, msgspec.structs.replace(manifest, evidence=evidence))


def _where(figures: Figures) -> str:
    """Return the backend with path and precision where they are not the plain ones."""
    more = [figures.path] if figures.path != "graph" else []
    more += [figures.precision] if figures.precision != "fp32" else []
    return f"{figures.backend} ({', '.join(more)})" if more else figures.backend


def measure_images(inspector: Inspector, samples: Sequence[Sample], progress: Progress) -> Measured:
    """Score images through the runtime, one after the other, and read their masks."""
    spec = inspector.manifest.input
    is_calibrated = inspector.thresholds is not None
    # Masks are read first: a broken one stops the evaluation before the long part.
    masks, lost = [], []
    for sample in samples:
        mask = sample.read_mask() if sample.is_anomalous else None
        small = None if mask is None else prepare_mask(mask, spec)
        masks.append(small)
        lost.append(mask is not None and small is not None and bool(mask.any()) and not bool(small.any()))
    scores = np.zeros(len(samples))
    maps = np.zeros((len(samples), *spec.size), np.float32)
    usable = np.zeros(len(samples), np.bool_)
    outcomes = []
    for index, (_, result) in enumerate(score_samples(inspector, samples, "Scoring", progress)):
        fault = fault_of(result, is_calibrated=is_calibrated)
        outcomes.append(Outcome(result.decision, fault, tuple(result.boxes), result.timings_ms.get("total", 0.0)))
        if fault is None and result.score is not None and result.anomaly_map is not None:
            scores[index], maps[index], usable[index] = result.score, _at(result.anomaly_map, spec.size), True
    stacked = stack_masks(masks, spec.size)
    good = np.array([not sample.is_anomalous for sample in samples], np.bool_)
    has_truth = usable & (good | stacked.any(axis=(1, 2)))
    return Measured(tuple(samples), tuple(outcomes), scores, maps, stacked, usable, has_truth, np.array(lost, np.bool_))


def _at(anomaly_map: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Return a map at the size of the model's input; that of an image in tiles is larger."""
    if anomaly_map.shape == size:
        return anomaly_map
    smaller = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.float32)


def _overall(measured: Measured, seed: int, resamples: int) -> tuple[dict[str, Any], dict[str, Interval], float | None]:
    """Return the figures over all images by name, their intervals, and the threshold of the largest F1."""
    scores, labels = measured.scores[measured.usable], measured.labels[measured.usable]
    values: dict[str, Any] = dict.fromkeys(
        ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
    )
    intervals: dict[str, Interval] = {}
    best = f1_max(scores, labels) if scores.size else None
    if best is not None:
        values |= {"image_auroc": auroc(scores, labels), "image_ap": average_precision(scores, labels)}
        values["image_f1_max"] = best.value
        intervals |= image_intervals(scores, labels, seed=seed, resamples=resamples)
    ranking = rank_pixels(measured.maps, measured.masks, measured.has_truth)
    if ranking is not None:
        values |= {"pixel_auroc": pixel_auroc(ranking), "pixel_ap": pixel_average_precision(ranking)}
        values["aupro"] = aupro(ranking)
        intervals |= pixel_intervals(
            measured.maps, measured.masks, measured.has_truth, ranking, seed=seed, resamples=resamples
        )
    return values, intervals, best.threshold if best else None


def _leak_figures(
    everything: Measured, values: dict[str, Any], intervals: dict[str, Interval], confusion: Confusion | None
) -> LeakFigures:
    return LeakFigures(
        **values,
        images=len(everything.samples),
        anomalous=int(everything.labels.sum()),
        intervals=intervals,
        false_reject=None if confusion is None else confusion.false_reject,
        miss=None if confusion is None else confusion.miss,
        faults=_faults(everything),
    )


def _support_figures(leak: Contamination, with_leak: LeakFigures) -> SupportFigures:
    record = leak.record
    return SupportFigures(
        digest=record.digest,
        category=record.category,
        shots=record.shots,
        seed=record.seed,
        pictures=len(record.pictures),
        missing=leak.missing,
        of_set=int(leak.of_set.sum()),
        alike=int(leak.alike.sum()),
        left_out=leak.left_out,
        with_leak=with_leak,
    )


def _by_defect(measured: Measured, *, is_calibrated: bool) -> tuple[DefectFigures, ...]:
    types = np.array([sample.defect for sample in measured.samples])
    good = ~measured.labels
    rows = []
    for defect in sorted(set(types[~good])):
        of_type = types == defect
        pair = (of_type | good) & measured.usable
        ranking = rank_pixels(measured.maps, measured.masks, (of_type | good) & measured.has_truth)
        n = int(of_type.sum())
        rows.append(
            DefectFigures(
                defect=str(defect),
                images=n,
                without_mask=int((of_type & measured.usable & ~measured.has_truth).sum()),
                faults=int((of_type & ~measured.usable).sum()),
                image_auroc=auroc(measured.scores[pair], measured.labels[pair]) if pair.any() else None,
                detection=rate(n - _decisions(measured, of_type).accept, n) if is_calibrated else None,
                pixel_auroc=pixel_auroc(ranking) if ranking else None,
            )
        )
    return tuple(rows)


def _confusion(measured: Measured, thresholds: Thresholds | None) -> Confusion | None:
    if thresholds is None:
        return None
    good, anomalous = _decisions(measured, ~measured.labels), _decisions(measured, measured.labels)
    return Confusion(
        image_threshold=thresholds.image,
        pixel_threshold=thresholds.pixel,
        good=good,
        anomalous=anomalous,
        false_reject=rate(good.n - good.accept, good.n),
        miss=rate(anomalous.accept, anomalous.n),
    )


def _decisions(measured: Measured, rows: BoolArray) -> Decisions:
    said = [measured.outcomes[index].decision for index in np.flatnonzero(rows)]
    accept, reject = said.count("accept"), said.count("reject")
    return Decisions(n=len(said), accept=accept, reject=reject, fault=len(said) - accept - reject)


def _faults(measured: Measured) -> tuple[Fault, ...]:
    return tuple(
        Fault(image=str(sample.path), reason=outcome.fault)
        for sample, outcome in zip(measured.samples, measured.outcomes, strict=True)
        if outcome.fault is not None
    )


def _latency(measured: Measured) -> Latency | None:
    times = [outcome.total_ms for outcome in measured.outcomes if outcome.fault is None]
    if not times:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return Latency(p50=p50, p90=p90, p99=p99)


def _leak_notes(leak: Contamination | None, everything: Measured, measured: Measured) -> tuple[str, ...]:
    if leak is None:
        return ()
    faults = int((~everything.usable).sum()) - int((~measured.usable).sum())
    more = f"{faults} of the images that are left out could not be scored; with leak they count as not accepted."
    return (*leak.notes, more) if faults else leak.notes


def _notes(
    measured: Measured, thresholds: Thresholds | None, backend: str, hashes: ImageHashes, contents: Sequence[str]
) -> tuple[str, ...]:
    """Return what limits the figures; an empty tuple when nothing does."""
    notes = []
    if faults := int((~measured.usable).sum()):
        notes.append(
            f"{faults} of {len(measured.samples)} images could not be scored. They count as not accepted, and are "
            "left out of AUROC, AP, F1 and the pixel figures."
        )
    if known := len(set(contents) & {*hashes.training, *hashes.held_out}):
        notes.append(
            f"{known} test images were also used to train or calibrate this bundle: these figures are optimistic."
        )
    if repeated := len(contents) - len(set(contents)):
        notes.append(f"{repeated} test images are copies of others: the intervals are narrower than they should be.")
    if not measured.labels.any() or measured.labels.all():
        notes.append("Only one kind of image was there, normal or anomalous: AUROC, AP and F1 are undefined.")
    if without := int((measured.usable & ~measured.has_truth).sum()):
        few = int(measured.mask_lost.sum())
        lost = f", {few} of them too small at the model's resolution" if few else ""
        notes.append(f"{without} anomalous images have no usable mask{lost}; they are left out of the pixel figures.")
    return (*notes, *_threshold_notes(thresholds, backend))


def _threshold_notes(thresholds: Thresholds | None, backend: str) -> tuple[str, ...]:
    if thresholds is None:
        return ("The bundle has no thresholds, so nothing was decided. Set them with flawscope calibrate.",)
    threshold = thresholds.image
    notes = []
    if threshold.method == "f1":
        notes.append("The threshold was chosen on labelled images: on the same images its rates are optimistic.")
    if threshold.backend not in (None, backend):
        notes.append(
            f"The threshold was set with the backend {threshold.backend}, and these scores come from {backend}."
        )
    if (
        threshold.upper_bound is not None
        and threshold.false_reject_rate is not None
        and threshold.upper_bound > threshold.false_reject_rate
    ):
        notes.append(
            f"The threshold was set on {threshold.images} normal images, too few for the rate that was asked for "
            f"({threshold.false_reject_rate:.2%}); they support {threshold.upper_bound:.2%}."
        )
    return tuple(notes)
