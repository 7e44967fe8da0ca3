"""Few-step samplings of a reconstruction bundle: accuracy and time of each, and a bundle that uses another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np

from flawscope.bundle import Golden, Manifest, ReconstructionHead, SamplingChange, open_bundle, write_bundle
from flawscope.calibration.evaluation.measurements import measure_images
from flawscope.calibration.evaluation.metrics import auroc, pixel_auroc, rank_pixels
from flawscope.datasets import Dataset, fingerprint, hash_contents
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable
from flawscope.imaging.images import decode_image, prepare
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector


@dataclass(frozen=True)
class SamplingFigures:
    """Figures of one sampling.

    Attributes:
        sampling: The sampling.
        image_auroc: Over all labelled images.
        pixel_auroc: Over the normal images and those with masks, or None.
        milliseconds: Median time of an image, from its file to the decision.
    """

    sampling: Sampling
    image_auroc: float
    pixel_auroc: float | None
    milliseconds: float


def reconstruction_head(manifest: Manifest) -> ReconstructionHead:
    """Return the head of a bundle that reconstructs images.

    Raises:
        ArgumentError: If the bundle does not reconstruct.
    """
    if not isinstance(manifest.head, ReconstructionHead):  # a type check, because callers read and replace its sampling
        raise ArgumentError(
            f"{manifest.name}: expected a bundle that reconstructs images (ddad, dsad), got one of {manifest.method}."
        )
    return manifest.head


def compare_samplings(
    path: Path,
    samplings: Sequence[Sampling],
    dataset: Dataset,
    backend: str = "auto",
    progress: Progress = no_progress,
) -> tuple[str, list[SamplingFigures]]:
    """Measure several samplings of one bundle on the same labelled images.

    Args:
        path: The bundle.
        samplings: The samplings.
        dataset: Its test images are used.
        backend: Name of a backend.
        progress: Told how many images are scored.

    Returns:
        The backend that was taken, and the figures in the order of the samplings.

    Raises:
        ArgumentError: If the bundle does not reconstruct, or has too little noise for a sampling.
        DataError: If there are not both normal and anomalous test images, or one cannot be scored.
    """
    anomalous = sum(sample.is_anomalous for sample in dataset.test)
    if not 0 < anomalous < len(dataset.test):
        raise DataError(
            f"{dataset.root}: expected normal and anomalous test images, got {len(dataset.test) - anomalous} normal "
            f"and {anomalous} anomalous."
        )
    rows = []
    # Ranks are compared, not decisions: no thresholds are needed.
    with Inspector.load(path, backend, use_overlay=False) as inspector:
        reconstruction_head(inspector.manifest)
        # All are tried first: one that the bundle refuses is reported before minutes go into the others.
        for sampling in samplings:
            inspector.resample(sampling)
        for sampling in samplings:
            inspector.resample(sampling)
            rows.append(_figures(inspector, sampling, dataset, progress))
        return inspector.backend, rows


def _figures(inspector: Inspector, sampling: Sampling, dataset: Dataset, progress: Progress) -> SamplingFigures:
    title = f"{sampling.steps} steps from {sampling.start}"
    measured = measure_images(inspector, dataset.test, lambda _, done, total: progress(title, done, total))
    # A fault would leave its image out of one row of the comparison and not of the others.
    if not measured.usable.all():
        lost = measured.samples[int(np.flatnonzero(~measured.usable)[0])]
        raise DataError(f"sampling: expected every test image to be scored, got a fault on {lost.path}. Repair it.")
    image = auroc(measured.scores, measured.labels)
    assert image is not None, "there are normal and anomalous images"
    ranking = rank_pixels(measured.maps, measured.masks, measured.has_truth, measured.inside)
    return SamplingFigures(
        sampling=sampling,
        image_auroc=image,
        pixel_auroc=None if ranking is None else pixel_auroc(ranking),
        milliseconds=float(np.median([outcome.total_ms for outcome in measured.outcomes])),
    )


def resample_bundle(
    path: Path,
    out: Path,
    sampling: Sampling,
    dataset: Dataset | None = None,
    *,
    backend: str = "auto",
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle with another sampling, and record how that changes its figures.

    Thresholds and earlier accuracy figures are dropped, because they belong to the scores of the old sampling.

    Args:
        path: The bundle.
        out: Bundle folder to write.
        sampling: The sampling of the new bundle.
        dataset: Labelled images on which both samplings are measured; None skips the measurement.
        backend: Name of a backend, for the figures.
        command: Command line for the record.
        progress: Told how many images are scored.
        overwrite: Whether an earlier bundle there may be replaced.

    Raises:
        ArgumentError: If the bundle does not reconstruct, or has too little noise, or `out` is taken.
        DataError: If there are not both normal and anomalous test images, or one cannot be scored.
        StorageError: If the bundle cannot be written.
    """
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        before = reconstruction_head(manifest).sampling
        changes: tuple[SamplingChange, ...] = ()
        if dataset is not None:
            measured_on, (old, new) = compare_samplings(path, (before, sampling), dataset, backend, progress)
            changes = (_change(old, new, dataset, measured_on, command),)
        evidence = msgspec.structs.replace(manifest.evidence, accuracy=(), sampling=changes)
        changed = msgspec.structs.replace(
            manifest,
            name=out.name.removesuffix(".flaw"),
            head=msgspec.structs.replace(reconstruction_head(manifest), sampling=sampling),
            thresholds=None,
            threshold_changes=(),
            golden=_golden(path, manifest, sampling),
            evidence=evidence,
        )
        return write_bundle(out, changed, {name: bundle.read(name) for name in manifest.files}, overwrite=overwrite)


def _golden(path: Path, manifest: Manifest, sampling: Sampling) -> tuple[Golden, ...]:
    """Return the golden images with the scores of another sampling, computed on the CPU as at export."""
    # Every backend is held against these when a bundle is loaded, so they must not come from the one that measured.
    golden = []
    with Inspector.load(path, "cpu", use_overlay=False) as inspector:
        inspector.resample(sampling)
        for entry in manifest.golden:
            image = prepare(decode_image(inspector.bundle.read(entry.file), entry.file), manifest.input)
            maps, scores = inspector.infer(image[None])
            golden.append(Golden(entry.file, float(scores[0]), float(maps[0].max())))
    return tuple(golden)


def _change(old: SamplingFigures, new: SamplingFigures, dataset: Dataset, backend: str, command: str) -> SamplingChange:
    contents = hash_contents([sample.path for sample in dataset.samples], lambda done, total: None)
    has_pixels = old.pixel_auroc is not None and new.pixel_auroc is not None
    return SamplingChange(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        dataset=fingerprint(dataset, contents),
        backend=backend,
        before=old.sampling,
        after=new.sampling,
        images=len(dataset.test),
        anomalous=sum(sample.is_anomalous for sample in dataset.test),
        image_auroc=old.image_auroc,
        image_auroc_change=new.image_auroc - old.image_auroc,
        pixel_auroc=old.pixel_auroc,
        pixel_auroc_change=(new.pixel_auroc or 0.0) - (old.pixel_auroc or 0.0) if has_pixels else None,
        milliseconds=old.milliseconds,
        milliseconds_after=new.milliseconds,
    )
