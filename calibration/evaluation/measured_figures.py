"""Figures from measurements: overall, per defect type, decisions, latency, and those with leak."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.arrays import BoolArray
from flawscope.bundle import Thresholds
from flawscope.calibration.evaluation.contamination import Contamination
from flawscope.calibration.evaluation.figures import (
    Confusion,
    Decisions,
    DefectFigures,
    Fault,
    ImageResult,
    Latency,
    LeakFigures,
    SupportFigures,
)
from flawscope.calibration.evaluation.intervals import Interval, image_intervals, pixel_intervals, rate
from flawscope.calibration.evaluation.measurements import Measured
from flawscope.calibration.evaluation.metrics import (
    STRICT_PRO_LIMIT,
    aupro,
    auroc,
    average_precision,
    f1_max,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
)
from flawscope.calibration.evaluation.threshold_figures import pixel_figures_at_threshold


@dataclass(frozen=True)
class Overall:
    """The figures over all images.

    Attributes:
        values: Figure -> value; None where it is undefined.
        intervals: Figure -> bootstrap interval; only of figures that are defined.
        f1_threshold: Threshold of the largest F1; None with one kind of image.
    """

    values: dict[str, Any]
    intervals: dict[str, Interval]
    f1_threshold: float | None


def overall_figures(measured: Measured, thresholds: Thresholds | None, seed: int, resamples: int) -> Overall:
    """Return the figures over all images, with bootstrap intervals; those at the thresholds are None without any."""
    # Faults have score 0 and an empty map in `measured`: they must be left out, or they would rank as normal.
    scores, labels = measured.scores[measured.usable], measured.labels[measured.usable]
    # Every figure has its key from the start, because the struct asks for all of them, defined or not.
    values: dict[str, Any] = dict.fromkeys(
        ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_05")
    )
    intervals: dict[str, Interval] = {}
    best = f1_max(scores, labels) if scores.size else None
    if best is not None:
        values |= {"image_auroc": auroc(scores, labels), "image_ap": average_precision(scores, labels)}
        values["image_f1_max"] = best.value
        intervals |= image_intervals(scores, labels, seed=seed, resamples=resamples)
    ranking = rank_pixels(measured.maps, measured.masks, measured.has_truth, measured.inside)
    if ranking is not None:
        values |= {"pixel_auroc": pixel_auroc(ranking), "pixel_ap": pixel_average_precision(ranking)}
        values |= {"aupro": aupro(ranking), "aupro_05": aupro(ranking, STRICT_PRO_LIMIT)}
        intervals |= pixel_intervals(
            measured.maps,
            measured.masks,
            measured.has_truth,
            ranking,
            inside=measured.inside,
            seed=seed,
            resamples=resamples,
        )
    at_threshold, threshold_intervals = pixel_figures_at_threshold(measured, thresholds, seed, resamples)
    values |= at_threshold
    intervals |= threshold_intervals
    return Overall(values, intervals, best.threshold if best else None)


def leak_figures(everything: Measured, overall: Overall, thresholds: Thresholds | None) -> LeakFigures:
    """Return the figures on all test images, contaminated ones included.

    Args:
        everything: The measurements of all test images.
        overall: Their overall figures.
        thresholds: The thresholds in force, or None.
    """
    confusion = confusion_of(everything, thresholds)
    return LeakFigures(
        **overall.values,
        images=len(everything.samples),
        anomalous=int(everything.labels.sum()),
        intervals=overall.intervals,
        false_reject=None if confusion is None else confusion.false_reject,
        miss=None if confusion is None else confusion.miss,
        faults=faults_of(everything),
    )


def support_figures(contamination: Contamination, with_leak: LeakFigures) -> SupportFigures:
    """Return what is reported of a support set: its identity, what was left out, and the figures with leak."""
    record = contamination.record
    return SupportFigures(
        digest=record.digest,
        category=record.category,
        shots=record.shots,
        seed=record.seed,
        pictures=len(record.pictures),
        missing=contamination.missing,
        of_set=int(contamination.of_set.sum()),
        alike=int(contamination.alike.sum()),
        left_out=contamination.left_out,
        with_leak=with_leak,
    )


def figures_by_defect(measured: Measured, *, is_calibrated: bool) -> tuple[DefectFigures, ...]:
    """Return the figures of each defect type, sorted by name; each type is measured against all normal images."""
    types = np.array([sample.defect for sample in measured.samples])
    good = ~measured.labels
    rows = []
    for defect in sorted(set(types[~good])):
        of_type = types == defect
        # With all normal images each time, so types are comparable; their figures do not average to the overall ones.
        pair = (of_type | good) & measured.usable
        ranking = rank_pixels(measured.maps, measured.masks, (of_type | good) & measured.has_truth, measured.inside)
        n = int(of_type.sum())
        rows.append(
            DefectFigures(
                defect=str(defect),
                images=n,
                without_mask=int((of_type & measured.usable & ~measured.has_truth).sum()),
                faults=int((of_type & ~measured.usable).sum()),
                image_auroc=auroc(measured.scores[pair], measured.labels[pair]) if pair.any() else None,
                # Not "rejected": a fault stops a part on the line as well.
                detection=rate(n - _decisions(measured, of_type).accept, n) if is_calibrated else None,
                pixel_auroc=pixel_auroc(ranking) if ranking else None,
            )
        )
    return tuple(rows)


def confusion_of(measured: Measured, thresholds: Thresholds | None) -> Confusion | None:
    """Return the decisions at the thresholds, or None without thresholds."""
    if thresholds is None:
        return None
    good, anomalous = _decisions(measured, ~measured.labels), _decisions(measured, measured.labels)
    return Confusion(
        image_threshold=thresholds.image,
        pixel_threshold=thresholds.pixel,
        good=good,
        anomalous=anomalous,
        # A fault stops the part: on a normal image it counts as a false reject, on an anomalous one it is no miss.
        false_reject=rate(good.n - good.accept, good.n),
        miss=rate(anomalous.accept, anomalous.n),
    )


def _decisions(measured: Measured, rows: BoolArray) -> Decisions:
    decisions = [measured.outcomes[index].decision for index in np.flatnonzero(rows)]
    accept, reject = decisions.count("accept"), decisions.count("reject")
    return Decisions(n=len(decisions), accept=accept, reject=reject, fault=len(decisions) - accept - reject)


def faults_of(measured: Measured) -> tuple[Fault, ...]:
    """Return the images that could not be scored, or not decided on, with the reason."""
    return tuple(
        Fault(image=str(sample.path), reason=outcome.fault)
        for sample, outcome in zip(measured.samples, measured.outcomes, strict=True)
        if outcome.fault is not None
    )


def latency_of(measured: Measured) -> Latency | None:
    """Return quantiles of the time an image takes, over those that were scored; None when there is none."""
    # A fault can end early, such as a file that does not decode: its time would make the bundle look faster.
    times = [outcome.total_ms for outcome in measured.outcomes if outcome.fault is None]
    if not times:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return Latency(p50=p50, p90=p90, p99=p99)


def results_of(
    measured: Measured, contents: Mapping[Path, str], root: Path, *, is_calibrated: bool
) -> tuple[ImageResult, ...]:
    """Return what the runtime gave for each image.

    Args:
        measured: The measurements.
        contents: Image -> hash of its pixels.
        root: The dataset's folder.
        is_calibrated: Whether there were thresholds to decide by.
    """
    rows = zip(measured.samples, measured.outcomes, measured.scores, measured.usable, measured.masks, strict=True)
    return tuple(
        ImageResult(
            # Not the whole path: these files are passed on to other machines.
            image=sample.path.relative_to(root).as_posix() if sample.path.is_relative_to(root) else sample.path.name,
            content=contents[sample.path],
            defect=sample.defect,
            is_anomalous=sample.is_anomalous,
            mask=hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() if mask.any() else None,
            score=float(score) if is_usable else None,
            decision=outcome.decision if is_calibrated else None,
        )
        for sample, outcome, score, is_usable, mask in rows
    )
