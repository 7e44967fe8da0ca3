"""Acceptance gate of a reduced precision: its figures compared with FP32, measured through the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Gate
from flawscope.calibration.evaluation.measurements import Measured, measure_images
from flawscope.calibration.evaluation.metrics import auroc, pixel_auroc, rank_pixels, spearman
from flawscope.datasets import Sample
from flawscope.errors import DataError
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector

_BLOCKS, _ROUNDS, _SETTLE = 6, 12, 2
"""Timing: alternating blocks of each precision, inferences of a block, and how many of the first are not counted."""


def measure_gate(
    reference: Inspector,
    candidate: Inspector,
    good: Sequence[UInt8Array],
    labelled: Sequence[Sample] = (),
    progress: Progress = no_progress,
) -> Gate:
    """Measure a precision against FP32, on the same backend and path.

    Args:
        reference: The bundle in FP32.
        candidate: The same bundle in the other precision.
        good: Prepared normal images, each uint8 [H, W, 3], that neither training nor value ranges have used.
        labelled: Labelled images, normal and anomalous.
        progress: Called after each image.

    Raises:
        DataError: If there is no normal image, or a labelled one cannot be scored.
    """
    if not good:
        raise DataError("gate: expected normal images that the detector has not learned from, got none.")
    before, maps_before = _scores(reference, good, "Gate, FP32", progress)
    after, maps_after = _scores(candidate, good, f"Gate, {candidate.precision.upper()}", progress)
    # The bundle has no thresholds yet. This is the lowest one without a false reject in FP32, and rejects are strict:
    # exceeding it is a false reject that the precision has caused.
    threshold = float(before.max())
    first = _labelled(reference, labelled, progress)
    second = _labelled(candidate, labelled, progress)
    speeds = _speeds(reference, candidate, good)
    image, image_change = _change(first, second, _image_auroc)
    pixel, pixel_change = _change(first, second, _pixel_auroc)
    # Labelled images where there are some: scores of normal images alone are so close that ranks change by rounding.
    ranked = (before, after) if first is None or second is None else (first.scores, second.scores)
    return Gate(
        backend=candidate.backend,
        images=len(good),
        # 1e-12 and 1.0 stand in for zeros. Maps are relative to their largest value: most pixels are near 0.
        score_max_relative=float((np.abs(after - before) / np.maximum(np.abs(before), 1e-12)).max()),
        map_max_relative=float(np.abs(maps_after - maps_before).max() / (float(np.abs(maps_before).max()) or 1.0)),
        threshold=threshold,
        false_reject_shift=float((after > threshold).mean()),
        labelled=len(labelled),
        anomalous=sum(sample.is_anomalous for sample in labelled),
        image_auroc=image,
        image_auroc_change=image_change,
        pixel_auroc=pixel,
        pixel_auroc_change=pixel_change,
        score_spearman=spearman(*ranked, "the gate of a precision"),
        images_per_second=speeds[1],
        images_per_second_fp32=speeds[0],
        map_place_change=place_change(maps_before, maps_after),
    )


def place_change(before: Float32Array, after: Float32Array) -> float:
    """Return how far maps move at one place on average, relative to the usual maximum of a map: the largest of all.

    Rounding moves single values to either side, and little of it is left in the mean over many images. A fault of a
    backend, such as a border that it computes otherwise, is at the same places in all of them, and may reach no
    image's maximum and so no score.

    Args:
        before: Maps of N images in FP32, [N, H, W].
        after: The same in the other precision.
    """
    moved = np.abs(after.mean(0, dtype=np.float64) - before.mean(0, dtype=np.float64))
    return float(moved.max() / (float(before.max((1, 2)).mean()) or 1.0))


# ---- Measuring -------------------------------------------------------------------------------------------------------


def _scores(
    inspector: Inspector, images: Sequence[UInt8Array], title: str, progress: Progress
) -> tuple[npt.NDArray[np.float64], Float32Array]:
    maps, scores = [], []
    for done, image in enumerate(images, 1):
        image_maps, image_scores = inspector.infer(image[None])
        maps.append(image_maps[0])
        scores.append(float(image_scores[0]))
        progress(title, done, len(images))
    return np.array(scores), np.stack(maps)


def _labelled(inspector: Inspector, samples: Sequence[Sample], progress: Progress) -> Measured | None:
    if not samples:
        return None
    measured = measure_images(inspector, samples, progress)
    # A fault in one precision alone would leave its image out of one figure, and the change would be of the images.
    if not measured.usable.all():
        lost = measured.samples[int(np.flatnonzero(~measured.usable)[0])]
        raise DataError(f"gate: expected every labelled image to be scored, got a fault on {lost.path}. Repair it.")
    return measured


def _image_auroc(measured: Measured) -> float | None:
    return auroc(measured.scores, measured.labels)


def _pixel_auroc(measured: Measured) -> float | None:
    ranking = rank_pixels(measured.maps, measured.masks, measured.has_truth, measured.inside)
    return None if ranking is None else pixel_auroc(ranking)


def _change(
    first: Measured | None, second: Measured | None, figure: Callable[[Measured], float | None]
) -> tuple[float | None, float | None]:
    if first is None or second is None:
        return None, None
    before, after = figure(first), figure(second)
    return before, None if before is None or after is None else after - before


def _speeds(reference: Inspector, candidate: Inspector, images: Sequence[UInt8Array]) -> tuple[float, float]:
    """Return images per second of both precisions, from medians over alternating blocks."""
    # In turn, so that a clock that falls with temperature slows both alike. The first inferences of a block still share
    # the cores with spinning threads of the other session, so they are not counted.
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_BLOCKS):
        for inspector, seconds in zip((reference, candidate), times, strict=True):
            for index in range(_ROUNDS):
                started = time.perf_counter()
                inspector.infer(images[index % len(images)][None])
                if index >= _SETTLE:
                    seconds.append(time.perf_counter() - started)
    return 1.0 / float(np.median(times[0])), 1.0 / float(np.median(times[1]))
