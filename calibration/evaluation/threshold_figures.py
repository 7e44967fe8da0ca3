"""Figures at the thresholds in force: pixel F1 and recall, and how many defects are found by their size."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array
from flawscope.bundle import Thresholds
from flawscope.calibration.evaluation.figures import SizeFigures, ZoneFigures
from flawscope.calibration.evaluation.intervals import Interval, draw_counts, percentile_interval, rate
from flawscope.calibration.evaluation.measurements import Measured

_CONFIDENCE = 0.95
_GROUPS = 4
_FEWEST = 5
"""Least defects of a size group: of fewer, a share would say nothing."""


def pixel_figures_at_threshold(
    measured: Measured, thresholds: Thresholds | None, seed: int, resamples: int
) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Return `pixel_f1` and `pixel_recall` at the pixel threshold, and their bootstrap intervals over whole images.

    Both are None without thresholds, or where no image has a defect pixel; pixels of all images are counted together.
    """
    values: dict[str, float | None] = {"pixel_f1": None, "pixel_recall": None}
    use = measured.has_truth
    if thresholds is None or not measured.masks[use].any():
        return values, {}
    common = thresholds.pixel.value
    # One image at a time: a comparison of all maps at once would take as much memory as the masks once more.
    counts = np.array(
        [_counts(measured, int(row), measured.pixel_threshold(int(row), common)) for row in np.flatnonzero(use)],
        np.float64,
    )
    anomalous: BoolArray = np.asarray(measured.masks[use].any(axis=(1, 2)), np.bool_)
    found = _figures(counts.sum(axis=0)[None])
    drawn = [_figures(rows @ counts) for rows in draw_counts((anomalous, ~anomalous), resamples, seed)]
    intervals = {
        name: percentile_interval(np.concatenate([part[name] for part in drawn]), _CONFIDENCE) for name in found
    }
    return {name: float(value[0]) for name, value in found.items()}, intervals


def _counts(measured: Measured, row: int, threshold: float | Float32Array) -> tuple[int, int, int]:
    """Return the pixels of an image that are called and defective, only called, and only defective."""
    called, mask = measured.maps[row] > threshold, measured.masks[row]
    if measured.inside is not None:
        called &= np.broadcast_to(measured.inside, measured.maps.shape)[row]  # masks are empty outside already
    both = int(np.count_nonzero(called & mask))
    return both, int(np.count_nonzero(called)) - both, int(np.count_nonzero(mask)) - both


def _figures(counts: Float64Array) -> dict[str, Float64Array]:
    """Return the figures of counts float64 [R, 3]; there is a defect pixel in each."""
    true, false, missed = counts.T
    return {"pixel_f1": 2 * true / (2 * true + false + missed), "pixel_recall": true / (true + missed)}


def recall_by_size(measured: Measured, thresholds: Thresholds | None) -> tuple[SizeFigures, ...]:
    """Return how many anomalous images were not accepted, by the size of their largest defect, smallest first.

    Groups are quarters of the images, or fewer groups where these would have less than 5 images; images without a mask
    and those that could not be scored are left out. Empty without thresholds, and with fewer than 10 images.
    """
    rows = np.flatnonzero(measured.usable & np.isfinite(measured.diameters))
    groups = min(_GROUPS, len(rows) // _FEWEST)
    if thresholds is None or groups < 2:
        return ()
    # Stable: images of one size stay in the order of the dataset, so the same set gives the same groups.
    ordered = rows[np.argsort(measured.diameters[rows], kind="stable")]
    figures = []
    for group in np.array_split(ordered, groups):
        found = sum(measured.outcomes[int(row)].decision != "accept" for row in group)
        figures.append(
            SizeFigures(
                smallest_px=float(measured.diameters[group[0]]),
                largest_px=float(measured.diameters[group[-1]]),
                detection=rate(found, len(group)),
            )
        )
    return tuple(figures)


def zone_figures(measured: Measured, thresholds: Thresholds | None) -> tuple[ZoneFigures, ...]:
    """Return what each zone rejected, in the order of the zones; empty without zones or thresholds."""
    figures = []
    for index, own in enumerate(() if thresholds is None else thresholds.of_zones):
        rejected = np.array([bool(row.zones) and row.zones[index].is_rejected for row in measured.outcomes], np.bool_)
        good, defective = measured.usable & ~measured.labels, measured.usable & measured.labels
        figures.append(
            ZoneFigures(
                zone=own.name,
                image_threshold=own.image.value,
                false_reject=rate(int((rejected & good).sum()), int(good.sum())),
                detection=rate(int((rejected & defective).sum()), int(defective.sum())),
            )
        )
    return tuple(figures)
