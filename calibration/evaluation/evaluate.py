"""`evaluate_bundle`: accuracy of a bundle on labelled images, measured through the runtime, so on what ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flawscope.bundle import (
    Accuracy,
    ImageHashes,
    InForce,
    Manifest,
    RecordedDrift,
    Thresholds,
    change_bundle,
    model_identity,
    read_image_hashes,
)
from flawscope.calibration.evaluation.bundle_scores import load_inspector, unlike_notes
from flawscope.calibration.evaluation.contamination import Contamination, find_contamination
from flawscope.calibration.evaluation.diagnosis import diagnose
from flawscope.calibration.evaluation.drift import paired_drift, recorded_drift, recorded_thresholds
from flawscope.calibration.evaluation.earlier_figures import (
    EarlierFigures,
    check_same_images,
    check_same_judging,
    check_same_model,
    read_earlier_figures,
)
from flawscope.calibration.evaluation.evaluation_notes import (
    contamination_notes,
    figure_notes,
    inspection_notes,
    product_notes,
    region_notes,
    zone_notes,
)
from flawscope.calibration.evaluation.figures import (
    BundleIdentity,
    DatasetIdentity,
    Drift,
    Figures,
    SupportFigures,
    judged_by,
    measured_on,
)
from flawscope.calibration.evaluation.intervals import RESAMPLES
from flawscope.calibration.evaluation.measured_figures import (
    Overall,
    confusion_of,
    faults_of,
    figures_by_defect,
    latency_of,
    leak_figures,
    overall_figures,
    results_of,
    support_figures,
)
from flawscope.calibration.evaluation.measurements import Measured, measure_images
from flawscope.calibration.evaluation.product_figures import (
    product_diagnosis,
    product_figures,
    product_thresholds_of,
    summary_of,
)
from flawscope.calibration.evaluation.seen_images import has_test_images, leave_out_seen, seen_notes, with_test_images
from flawscope.calibration.evaluation.threshold_figures import recall_by_size, zone_figures
from flawscope.calibration.extras import require
from flawscope.datasets import Dataset, Inspection, Sample, as_recorded, fingerprint, hash_contents
from flawscope.datasets.inspection import inspect_and_hash
from flawscope.errors import ArgumentError, DataError
from flawscope.progress import Progress, no_progress
from flawscope.versions import package_versions

if TYPE_CHECKING:
    from flawscope.datasets.defects.support_set import SupportRecord
    from flawscope.runtime import Inspector


Measure = Callable[
    ["Inspector", Sequence[Sample], Progress, Mapping[str, Thresholds] | None],
    Measured,
]
"""Scores images; arguments and result as `measure_images`."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, the measurements behind them, the manifest of the bundle, the dataset's folder, and the thresholds.

    With a support set the measurements are those of the images that were not left out. The thresholds are those in
    force, which a threshold overlay may have changed; those of a product, where one was named; and those of each
    product, where images were judged by theirs, with `thresholds` for figures over all of them.
    """

    figures: Figures
    measured: Measured
    manifest: Manifest
    root: Path
    thresholds: Thresholds | None
    products: dict[str, Thresholds]


@dataclass(frozen=True)
class _BundleRun:
    """A bundle that was run over all test images of a dataset.

    Attributes:
        manifest: The manifest of the bundle, as it was loaded.
        category: Category of the dataset; empty where it has none.
        thresholds: Those of the precision that was measured.
        products: Those of each product, where images were judged by theirs; else empty.
        in_force: Those of all products, with where they come from.
        hashes: The images that the detector or its thresholds were made with.
        backend: The backend that was taken.
        backend_reason: Why.
        path: `graph` or `kernel`.
        contents: Path of every image of the dataset -> hash of its pixels.
        recorded: The same, in the form in which the bundle records them.
        inspection: What `data inspect` finds in the dataset.
        contamination: The test images that the support set contaminates; None without a support set.
        measured: All test images, contaminated ones included.
        seen: What was left out before, because the detector has learned from it.
    """

    manifest: Manifest
    category: str
    thresholds: Thresholds | None
    products: dict[str, Thresholds]
    in_force: InForce
    hashes: ImageHashes
    backend: str
    backend_reason: str
    path: str
    contents: dict[Path, str]
    recorded: dict[Path, str]
    inspection: Inspection
    contamination: Contamination | None
    measured: Measured
    seen: tuple[str, ...]


def evaluate_bundle(
    path: Path,
    dataset: Dataset,
    *,
    backend: str = "auto",
    graph_path: str = "auto",
    precision: str = "fp32",
    support: SupportRecord | None = None,
    threshold_overlay: Path | None = None,
    use_overlay: bool = True,
    product: str | None = None,
    by_product: bool = False,
    against: Path | None = None,
    command: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = no_progress,
    measure: Measure | None = None,
) -> Evaluation:
    """Run a bundle over all test images of a dataset and compute its figures; nothing is written.

    With a support set, its images and their near duplicates are left out of all figures and of the dataset's
    fingerprint; `Figures.support` has the figures with them.

    Args:
        path: The bundle, folder or packed file.
        dataset: Its test images are used, all of them. Where it has none and no folder for them, its normal images
            are, without those that the bundle was made with.
        backend: The backend to measure.
        graph_path: `graph`, `kernel` for features and native kernel, or `auto` for the one the runtime takes.
        precision: Precision of the graphs, one that the bundle has.
        support: The support set that the detector has learned from, directly or by defects that were drawn from it.
        threshold_overlay: As in `Inspector.load`.
        use_overlay: As in `Inspector.load`.
        product: As in `Inspector.load`.
        by_product: Whether each image of a dataset of all categories is judged by the thresholds of its category.
        against: What `evaluate --json` wrote on another machine, or with another backend or precision: the differences
            are in `Figures.drift`, beside those from figures in the bundle's evidence.
        command: The command line, for the record.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.
        progress: Called after each image.
        measure: What scores the images; None for `measure_images`.

    Raises:
        DataError: If there is no test image, or none beside the support set, the support set was taken from another
            dataset, a mask cannot be read, or `against` is not of the same model and images.
        MissingExtra: If scikit-learn or SciPy is not installed.
    """
    # Before hours of scoring, all that can be known before.
    _check_measurable(dataset)
    earlier = _read_earlier(against, product, by_product=by_product)
    with load_inspector(
        path,
        backend,
        graph_path,
        precision,
        threshold_overlay=threshold_overlay,
        use_overlay=use_overlay,
        product=product,
    ) as inspector:
        whole, hashes = dataset, read_image_hashes(inspector.bundle)
        # Before everything else: inspection, fingerprint and figures are of the images that count.
        dataset, made_test = with_test_images(dataset, hashes, progress)
        total = len(dataset.test)
        dataset, seen = leave_out_seen(dataset, hashes.defects, support, progress)
        run = _run_bundle(
            inspector,
            dataset,
            support,
            by_product,
            earlier,
            progress,
            (*made_test, *seen_notes(seen, total)),
            measure or measure_images,
        )
    progress("Computing figures", 0, 1)
    dataset, measured = _that_count(run, dataset)
    figures = _figures(
        run,
        dataset,
        measured,
        whole=whole,
        precision=precision,
        product=product,
        command=command,
        seed=seed,
        resamples=resamples,
    )
    figures = _with_drift(figures, run.manifest, None if earlier is None else earlier[1])
    progress("Computing figures", 1, 1)
    return Evaluation(figures, measured, run.manifest, dataset.root, run.thresholds, run.products)


def _check_measurable(dataset: Dataset) -> None:
    """Raise MissingExtra or DataError unless there is what measures, and test images."""
    require("sklearn.metrics", "scikit-learn", "measuring accuracy")
    require("scipy.stats", "scipy", "measuring accuracy")
    if not has_test_images(dataset):
        raise DataError(
            f"{dataset.root}: expected test images (test/good and test/DEFECT), got none. "
            "Add labelled images, or name another set."
        )


def _read_earlier(against: Path | None, product: str | None, *, by_product: bool) -> tuple[Path, EarlierFigures] | None:
    """Return figures that are compared with, after a check that they were judged as these will be."""
    if by_product and product is not None:
        raise ArgumentError(f"product: expected none with those of all, by product, got {product!r}. Leave one out.")
    if against is None:
        return None
    earlier = read_earlier_figures(against)
    check_same_judging(earlier, against, judged_by(product, by_product=by_product))
    return against, earlier


def _that_count(run: _BundleRun, dataset: Dataset) -> tuple[Dataset, Measured]:
    """Return the images that count, and what was measured on them."""
    measured = run.measured
    if run.contamination is not None and run.contamination.left_out:
        dataset, measured = run.contamination.reduced, measured.select(run.contamination.remaining)
    # A defect where none counts is neither found nor missed; the notes say how many there are.
    return dataset, measured.select(~measured.outside) if measured.outside.any() else measured


def _figures(
    run: _BundleRun,
    dataset: Dataset,
    measured: Measured,
    *,
    whole: Dataset,
    precision: str,
    product: str | None,
    command: str,
    seed: int,
    resamples: int,
) -> Figures:
    """Return the figures of the images that count, without drift; arguments as `evaluate_bundle`.

    `whole` is the dataset with the images that do not count.
    """
    confusion = confusion_of(measured, run.thresholds)
    overall = overall_figures(measured, run.thresholds, seed, resamples)
    sizes = recall_by_size(measured, run.thresholds)
    products = product_figures(measured, run.products)
    return Figures(
        **overall.values,
        images=len(measured.samples),
        anomalous=int(measured.labels.sum()),
        without_mask=int((measured.usable & ~measured.has_truth).sum()),
        masks_lost=int(measured.mask_lost.sum()),
        f1_threshold=overall.f1_threshold,
        backend=run.backend,
        backend_reason=run.backend_reason,
        path=run.path,
        precision=precision,
        latency_ms=latency_of(measured),
        intervals=overall.intervals,
        confusion=confusion,
        defects=figures_by_defect(measured, is_calibrated=confusion is not None),
        recall_by_size=sizes,
        diagnosis=(
            *diagnose(
                run.manifest,
                overall.values["image_auroc"],
                overall.intervals.get("image_auroc"),
                confusion,
                sizes,
                whole,
            ),
            *product_diagnosis(products),
        ),
        faults=faults_of(measured),
        notes=_notes(run, measured, product),
        bundle=BundleIdentity(
            name=run.manifest.name,
            method=run.manifest.method,
            digest=run.manifest.digest,
            model=model_identity(run.manifest),
        ),
        # Of the reduced dataset: figures with and without a support set are not of the same images.
        dataset=DatasetIdentity(category=dataset.category, fingerprint=fingerprint(dataset, run.contents)),
        versions=package_versions(),
        command=command,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        resamples=resamples,
        support=_support_figures(run, measured, overall, seed, resamples),
        per_image=results_of(measured, run.contents, dataset.root, is_calibrated=confusion is not None),
        drift=(),
        zones=zone_figures(measured, run.thresholds) or msgspec.UNSET,
        products=products or msgspec.UNSET,
        product=msgspec.UNSET if product is None else product,
    )


def _run_bundle(
    inspector: Inspector,
    dataset: Dataset,
    support: SupportRecord | None,
    by_product: bool,
    earlier: tuple[Path, EarlierFigures] | None,
    progress: Progress,
    seen: tuple[str, ...],
    measure: Measure,
) -> _BundleRun:
    """Score all test images, contaminated ones included: the figures with leak need them, and one pass is enough."""
    if earlier is not None:
        check_same_model(earlier[1], earlier[0], inspector.manifest, inspector.bundle.path)
    products = product_thresholds_of(inspector, dataset) if by_product else {}
    hashes = read_image_hashes(inspector.bundle)
    # Training images are hashed too: the fingerprint is of the whole dataset, and a support set may lie in train.
    inspection, contents = inspect_and_hash(dataset, lambda done, total: progress("Inspecting images", done, total))
    # Those that cannot be decoded have the hash of their file; scoring makes a fault of each.
    contents |= hash_contents(sample.path for sample in dataset.samples if sample.path not in contents)
    if earlier is not None:
        check_same_images(earlier[1], earlier[0], dataset, contents)
    # Before scoring, because it fails on a support set of another dataset.
    contamination = (
        None if support is None else find_contamination(dataset, support, as_recorded(contents, support.learned))
    )
    return _BundleRun(
        manifest=inspector.manifest,
        category=dataset.category,
        thresholds=summary_of(products) if by_product else inspector.thresholds,
        products=products,
        in_force=inspector.in_force,
        hashes=hashes,
        backend=inspector.backend,
        backend_reason=inspector.backend_reason,
        path=inspector.path,
        contents=contents,
        recorded=as_recorded(contents, {*hashes.training, *hashes.held_out}),
        inspection=inspection,
        contamination=contamination,
        measured=measure(inspector, dataset.test, progress, products if by_product else None),
        seen=seen,
    )


def _notes(run: _BundleRun, measured: Measured, product: str | None) -> tuple[str, ...]:
    contents = [run.recorded[sample.path] for sample in measured.samples]
    gone = set(run.measured.samples) - set(measured.samples)
    left_out = {path for sample in gone for path in (sample.path, *sample.masks)}
    moved = (
        (f"The thresholds are those of {run.in_force.source}: they are not the bundle's own.",)
        if run.in_force.revision
        else ()
    )
    return (
        *unlike_notes(run.manifest, run.category, [outcome.notes for outcome in measured.outcomes]),
        *moved,
        *run.seen,
        *contamination_notes(run.contamination, run.measured, measured),
        *region_notes(run.manifest, run.measured),
        *zone_notes(run.manifest, run.thresholds),
        *product_notes(tuple(run.products), product, [sample.category for sample in measured.samples]),
        *figure_notes(measured, run.thresholds, run.backend, run.hashes, contents),
        *inspection_notes(run.inspection, run.manifest, left_out),
    )


def _with_drift(figures: Figures, manifest: Manifest, earlier: EarlierFigures | None) -> Figures:
    """Return figures with their differences from those in the bundle's evidence and from earlier ones."""
    drift = recorded_drift(manifest.evidence.accuracy, figures)
    if earlier is not None:
        paired = paired_drift(earlier, figures)
        # The same figures in the evidence would say less of the same.
        drift = (paired, *(row for row in drift if (row.against, row.when) != (paired.against, paired.when)))
    notes = (f"Drift from {row.against}: {note}" for row in drift for note in row.notes)
    return msgspec.structs.replace(figures, drift=drift, notes=(*figures.notes, *notes))


def _support_figures(
    run: _BundleRun, measured: Measured, overall: Overall, seed: int, resamples: int
) -> SupportFigures | None:
    if run.contamination is None:
        return None
    # The bootstrap is the slow part: where no image is left out, the figures with leak are those that we have.
    with_leak = overall if measured is run.measured else overall_figures(run.measured, run.thresholds, seed, resamples)
    return support_figures(run.contamination, leak_figures(run.measured, with_leak, run.thresholds))


def record_accuracy(path: Path, evaluation: Evaluation) -> None:
    """Write figures into the evidence of the bundle that they were measured on.

    They take the place of older ones of the same dataset and backend.

    Raises:
        BundleError: If another model lies at `path` by now.
        StorageError: If the bundle cannot be changed.
    """
    figures = evaluation.figures
    # `Accuracy.figures` is one flat table of numbers: each part of a rate gets a key of its own.
    flat: dict[str, float | None] = {
        name: getattr(figures, name)
        for name in (
            *("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_05"),
            *("pixel_f1", "pixel_recall"),
        )
    }
    if figures.support is not None:
        flat["support_left_out"] = float(len(figures.support.left_out))
    flat["latency_p50_ms"] = figures.latency_ms.p50 if figures.latency_ms else None
    if (confusion := figures.confusion) is not None:
        # With zones or by product that is 0, whatever theirs are.
        flat |= {"image_threshold": confusion.image_threshold.value, **recorded_thresholds(figures)}
        for name, rate in (("false_reject", confusion.false_reject), ("miss", confusion.miss)):
            flat |= {f"{name}_rate": rate.value, f"{name}_upper_bound": rate.upper, f"{name}_n": float(rate.n)}
    new = Accuracy(
        when=figures.when,
        command=figures.command,
        dataset=figures.dataset.fingerprint,
        backend=measured_on(figures.backend, figures.path, figures.precision, figures.judged),
        images=figures.images,
        anomalous=figures.anomalous,
        figures=flat,
        drift=tuple(_recorded(row) for row in figures.drift),
    )

    def change(manifest: Manifest) -> Manifest:
        # Figures of another dataset or backend stay: evidence is one entry each, not a history.
        others = [old for old in manifest.evidence.accuracy if (old.dataset, old.backend) != (new.dataset, new.backend)]
        evidence = msgspec.structs.replace(manifest.evidence, accuracy=(*others, new))
        return msgspec.structs.replace(manifest, evidence=evidence)

    change_bundle(path, evaluation.manifest, change)


def _recorded(drift: Drift) -> RecordedDrift:
    paired = drift.paired
    return RecordedDrift(
        against=drift.against,
        when=drift.when,
        changes={name: change.change for name, change in drift.figures.items()},
        images=0 if paired is None else paired.images,
        intervals={
            name: (change.interval.low, change.interval.high)
            for name, change in drift.figures.items()
            if change.interval is not None
        },
        decisions_changed=None if paired is None or paired.changed is None else paired.changed.count,
    )
