"""Accuracy of the contestants of edge_rivals.py on the same images, and how ours differ from anomalib's, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from edge_tables import Row

from flawscope.calibration.evaluation.metrics import stack_masks
from flawscope.calibration.evaluation.paired_differences import Tally, Truth, compare_tallies
from flawscope.datasets import Dataset
from flawscope.imaging.images import Preprocessing, prepare_mask

FIGURES = ("image_auroc", "pixel_auroc")


def truth_of(dataset: Dataset, size: int) -> Truth:
    """Return labels and masks, `size` pixels high and wide, of the test images."""
    spec = Preprocessing(resize=(size, size))
    masks = [sample.read_mask() for sample in dataset.test]
    prepared = [None if mask is None else prepare_mask(mask, spec) for mask in masks]
    return Truth(np.array([sample.is_anomalous for sample in dataset.test]), stack_masks(prepared, spec.size))


def add_differences(rows: Sequence[Row], tallies: Mapping[tuple[str, str], Tally], truth: Truth) -> None:
    """Add to every row of ours how it differs from that form of anomalib's default whose image AUROC is higher.

    `difference` has per figure `ratio`, ours less theirs, and `least` and `most`, the ends of its 95 % interval:
    images are drawn with replacement, the same for both. `against` is the rival's variant. Without such a rival
    nothing is added.

    Args:
        rows: Of one case, with `system` and `variant`.
        tallies: System and variant -> results on all test images.
        truth: What these show.
    """
    rivals = [name for name in tallies if name[0] == "anomalib" and name[1].endswith("default")]
    if not rivals:
        return
    best = max(rivals, key=lambda name: tallies[name].figures["image_auroc"])
    for row in rows:
        name = (row["system"], row["variant"])
        if name[0] == "flawscope" and name in tallies:
            found = compare_tallies([tallies[best]], [tallies[name]], truth)
            row["against"] = best[1]
            row["difference"] = {key: _interval(found[key]) for key in FIGURES if key in found}


def _interval(difference: Any) -> dict[str, float]:
    return {"ratio": difference.mean, "least": difference.interval.low, "most": difference.interval.high}
