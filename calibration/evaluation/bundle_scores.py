"""Scores of a dataset's images by a bundle, and which results are faults when the bundle has no thresholds yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawscope.bundle import Manifest
from flawscope.datasets import Sample
from flawscope.imaging.learned_images import summarize_differences
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.runtime import Inspector, Result


def load_inspector(
    bundle: Path,
    backend: str,
    path: str = "auto",
    precision: str = "fp32",
    *,
    threshold_overlay: Path | None = None,
    use_overlay: bool = True,
    product: str | None = None,
    threads: int | None = None,
) -> Inspector:
    """Load a bundle for scoring; see `Inspector.load`."""
    # Lazy: it loads ONNX Runtime, which --help and thresholds set by hand do without.
    from flawscope.runtime import Inspector

    return Inspector.load(
        bundle,
        backend,
        path,
        precision,
        threshold_overlay=threshold_overlay,
        use_overlay=use_overlay,
        product=product,
        threads=threads,
    )


def score_samples(
    inspector: Inspector, samples: Sequence[Sample], title: str, progress: Progress, *, by_product: bool = False
) -> Iterator[tuple[Sample, Result]]:
    """Yield every sample with its result.

    Args:
        inspector: A bundle made ready.
        samples: The images.
        title: That of the progress bar.
        progress: Called after each image.
        by_product: Whether each is judged by the thresholds of its category.
    """
    # Batches of one, as on the line: larger ones would be faster, and would report a latency that no part has.
    results: Iterable[Result]
    if by_product:
        results = (inspector(sample.path, product=sample.category) for sample in samples)
    else:
        results = inspector.stream([sample.path for sample in samples], batch=1)
    for done, (sample, result) in enumerate(zip(samples, results, strict=True), 1):
        yield sample, result
        progress(title, done, len(samples))


def unlike_notes(manifest: Manifest, category: str, notes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return in what a dataset is unlike the images that a bundle learned from.

    Args:
        manifest: The bundle's manifest.
        category: The dataset's category; empty where it has none.
        notes: Those of the result of each image.
    """
    learned = manifest.provenance.category
    lines = [f"Unlike the images that the bundle learned from: {line}." for line in summarize_differences(notes)]
    if category and learned and category != learned:
        lines.insert(0, f"The dataset is of the category {category}; the bundle learned from {learned}.")
    return tuple(lines)


def fault_of(result: Result, *, is_calibrated: bool) -> str | None:
    """Return why an image has no usable score, or None.

    A bundle without thresholds decides `fault` for every image; where score and map are there, that is none here.
    """
    # The map is checked as well as the score: NaN in it would spoil the ranking of all pixels of the dataset.
    has_numbers = (
        result.score is not None
        and result.anomaly_map is not None
        and bool(np.isfinite(result.score))
        and bool(np.isfinite(result.anomaly_map).all())
    )
    if has_numbers and not (is_calibrated and result.decision == "fault"):
        return None
    return result.reason or "no score was given"
