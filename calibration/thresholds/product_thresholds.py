"""Thresholds by product, of a detector that has learned several: each from its own normal images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawscope.arrays import Float64Array
from flawscope.bundle import Guarantee, Manifest, ProductThresholds, Thresholds
from flawscope.calibration.evaluation.intervals import in_parts
from flawscope.calibration.thresholds.threshold_images import Objective
from flawscope.calibration.thresholds.thresholds_from_scores import thresholds_from_scores
from flawscope.datasets import Dataset
from flawscope.errors import ArgumentError

LEAST_IMAGES = 20
"""Least normal images of a product: of fewer, more than 1 in 8 good parts may be rejected at 95 % confidence."""


def check_product_request(path: Path, manifest: Manifest, dataset: Dataset | None, objective: Objective) -> None:
    """Raise ArgumentError unless thresholds by product can be set.

    Args:
        path: The bundle.
        manifest: Its manifest.
        dataset: Where the normal images are from; None for cross-fitted scores alone.
        objective: What thresholds are set for.
    """
    if dataset is None or not any(sample.category for sample in dataset.samples):
        got = "no dataset" if dataset is None else f"the category {dataset.category}"
        raise ArgumentError(
            f"{path}: expected a dataset of all categories for thresholds by product, got {got}. Name it with --data "
            "ROOT --category all."
        )
    if manifest.drawn_zones is not None:
        raise ArgumentError(
            f"{path}: expected a bundle without zones for thresholds by product, got one with "
            f"{', '.join(manifest.drawn_zones.names)}. Leave --by-product out, or remove them with flawscope bundle "
            "region --clear."
        )
    if objective != "good":
        raise ArgumentError(
            f"{path}: expected the objective good with thresholds by product, which are of normal images, got "
            f"{objective}. Leave one of them out."
        )


def with_products(
    new: Thresholds,
    products: Sequence[str],
    scores: Float64Array,
    map_max: Float64Array,
    false_reject_rate: float,
    confidence: float,
    backend: str,
    guarantee: Guarantee = "bound",
) -> Thresholds:
    """Return thresholds with those of each product beside, set on its own images, with a bound of its own.

    Args:
        new: The common thresholds.
        products: The product that each image shows, N of them; empty where it is not known.
        scores: Scores of the normal images, float64 [N].
        map_max: The largest values of their maps, float64 [N].
        false_reject_rate: Share of normal images of a product that may be rejected, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        backend: What computed the scores.
        guarantee: What the bounds are.
    """
    shown, rows = np.array(products), []
    for name in sorted(set(products) - {""}):
        of_it = shown == name
        count = int(of_it.sum())
        if count < LEAST_IMAGES:
            rows.append(ProductThresholds(name, count))
            continue
        own, _ = thresholds_from_scores(
            scores[of_it], map_max[of_it], false_reject_rate, confidence, backend, guarantee
        )
        rows.append(ProductThresholds(name, count, own.image, own.pixel))
    return Thresholds(new.image, new.pixel, new.limits, products=tuple(rows))


def product_notes(old: Thresholds | None, new: Thresholds) -> tuple[str, ...]:
    """Return what limits thresholds by product, a sentence each; empty where nothing does.

    Args:
        old: The thresholds before.
        new: The thresholds now.
    """
    if not new.by_product:
        gone = ", ".join(row.name for row in (old.by_product if old else ()))
        return (f"The thresholds by product ({gone}) were removed. Set them with --by-product.",) if gone else ()
    notes = [
        f"{row.name} has {row.images} normal images that can be used, fewer than {LEAST_IMAGES}: it gets no thresholds "
        "of its own, and cannot be named with --product. Add normal images and calibrate again."
        for row in new.by_product
        if row.image is None
    ]
    notes += [
        f"{row.name}: {row.images} normal images are too few for the rate that was asked for. Expect up to "
        f"{in_parts(row.image.upper_bound)} normal parts of it rejected."
        for row in new.by_product
        if row.image is not None
        and row.image.upper_bound is not None
        and row.image.false_reject_rate is not None
        and row.image.upper_bound > row.image.false_reject_rate
    ]
    return tuple(notes)
