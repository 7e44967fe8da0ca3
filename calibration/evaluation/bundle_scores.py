"""Running a bundle over a dataset's images, and telling a real fault from a missing threshold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawscope.datasets import Sample
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.runtime import Inspector, Result


def load_inspector(bundle: Path, backend: str, path: str = "auto", precision: str = "fp32") -> Inspector:
    """Load a bundle for scoring; see `Inspector.load`."""
    from flawscope.runtime import Inspector  # brings ONNX Runtime, which --help and thresholds set by hand do without

    return Inspector.load(bundle, backend=backend, path=path, precision=precision)


def score_samples(
    inspector: Inspector, samples: Sequence[Sample], what: str, progress: Progress
) -> Iterator[tuple[Sample, Result]]:
    """Yield every sample with its result, one image a batch, so that timings are those of the line."""
    results: Iterable[Result] = inspector.stream([sample.path for sample in samples], batch=1)
    for done, (sample, result) in enumerate(zip(samples, results, strict=True), 1):
        yield sample, result
        progress(what, done, len(samples))


def fault_of(result: Result, *, is_calibrated: bool) -> str | None:
    """Return why an image has no usable score, or None.

    Without thresholds every decision is a fault although score and map are there: that alone is no fault here.
    """
    has_numbers = (
        result.score is not None
        and result.anomaly_map is not None
        and bool(np.isfinite(result.score))
        and bool(np.isfinite(result.anomaly_map).all())
    )
    if has_numbers and not (is_calibrated and result.decision == "fault"):
        return None
    return result.reason or "no score was given"
