"""Figures by product: each is judged by its own thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawscope.bundle import Threshold, Thresholds
from flawscope.calibration.evaluation.diagnosis import broken_bound
from flawscope.calibration.evaluation.figures import ProductFigures
from flawscope.calibration.evaluation.measured_figures import confusion_of
from flawscope.calibration.evaluation.measurements import Measured
from flawscope.datasets import Dataset
from flawscope.errors import ArgumentError

if TYPE_CHECKING:
    from flawscope.runtime import Inspector


def product_thresholds_of(inspector: Inspector, dataset: Dataset) -> dict[str, Thresholds]:
    """Return the thresholds of each product among the test images.

    Raises:
        ArgumentError: If the dataset is not one of all categories, or the bundle lacks thresholds of one of them.
    """
    path: Path = inspector.bundle.path
    names = sorted({sample.category for sample in dataset.test})
    if names == [""]:
        raise ArgumentError(
            f"{path}: expected a dataset of all categories with --by-product, got the category {dataset.category}. "
            "Name it with --category all, or one product with --product."
        )
    # An unknown one is refused here, before anything is scored.
    found = {name: inspector.thresholds_for(name) for name in names}
    return {name: thresholds for name, thresholds in found.items() if thresholds is not None}


def summary_of(products: Mapping[str, Thresholds]) -> Thresholds:
    """Return what stands for the thresholds of several products in figures over all of them.

    The image threshold is 0, on scores minus the threshold of their product, and has no bound: each product has its
    own. The pixel threshold is the largest.
    """
    images = sum(own.image.images for own in products.values())
    largest = max(own.pixel.value for own in products.values())
    return Thresholds(
        Threshold(0.0, "order-statistic", images=images), Threshold(largest, "order-statistic", images=images)
    )


def product_figures(measured: Measured, products: Mapping[str, Thresholds]) -> tuple[ProductFigures, ...]:
    """Return the decisions on the images of each product, sorted by name; empty without products."""
    shown = np.array([sample.category for sample in measured.samples])
    rows = []
    for name, thresholds in sorted(products.items()):
        confusion = confusion_of(measured.select(shown == name), thresholds)
        if confusion is not None:
            rows.append(ProductFigures(product=name, confusion=confusion))
    return tuple(rows)


def product_diagnosis(rows: tuple[ProductFigures, ...]) -> tuple[str, ...]:
    """Return a sentence for each product whose false rejects contradict the bound of its threshold."""
    return tuple(f"{row.product}: {text}" for row in rows if (text := broken_bound(row.confusion)) is not None)
