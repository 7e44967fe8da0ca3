"""Evaluations whose images are judged by thresholds of zones or products: made from one with common thresholds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_bundles import FakeInspector, write_fake_bundle, write_image, write_mask

from flawscope.bundle import Thresholds
from flawscope.bundle.threshold_structs import Threshold, ZoneThresholds
from flawscope.calibration.evaluation import evaluate
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.measured_figures import confusion_of, results_of
from flawscope.calibration.evaluation.product_figures import product_figures, summary_of
from flawscope.calibration.evaluation.threshold_figures import zone_figures
from flawscope.datasets import open_dataset
from flawscope.runtime.results import ZoneScore

STRANGER = "<img src=x onerror=alert(1)>"
"""Name of an image and of a type of defect."""


def small_evaluation(folder: Path) -> Evaluation:
    """Return an evaluation of 22 images that can be counted by hand, in a folder that is empty.

    Brightness is the score. Good: 71 to 79 and a fault; spots 100 to 106; dull ones 36 to 39; and one with a name that
    is markup, at 77. The threshold is 75.
    """
    root = folder / "part"
    write_image(root / "train/good/1.png", 40)
    for index in range(9):
        write_image(root / f"test/good/{index}.png", 71 + index)
    (root / "test/good/9.png").write_bytes(b"no image")
    for index in range(7):
        write_image(root / f"test/spot/{index}.png", 60, 100 + index)
        write_mask(root / f"ground_truth/spot/{index}_mask.png")
    for index in range(4):
        write_image(root / f"test/dull/{index}.png", 35, 36 + index)
    write_image(root / f"test/{STRANGER}/{STRANGER}.png", 77)
    bundle = write_fake_bundle(folder / "part.flaw", thresholds=Thresholds(_threshold(75.0), _threshold(75.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_inspector", FakeInspector.loader())
        return evaluate.evaluate_bundle(bundle, open_dataset(root), command="c", resamples=50)


def _threshold(value: float) -> Threshold:
    return Threshold(value, "order-statistic", 20, 0.2, 0.95, 0.14, "cpu")


def _judged(evaluation: Evaluation, **changes: object) -> Evaluation:
    """Return an evaluation with figures that follow from its measurements."""
    new = dataclasses.replace(evaluation, **changes)
    rows = zip(new.measured.samples, evaluation.figures.per_image, strict=True)
    contents = {sample.path: result.content for sample, result in rows}
    figures = msgspec.structs.replace(
        new.figures,
        confusion=confusion_of(new.measured, new.thresholds),
        per_image=results_of(new.measured, contents, new.root, is_calibrated=new.thresholds is not None),
        zones=zone_figures(new.measured, new.thresholds) or msgspec.UNSET,
        products=product_figures(new.measured, new.products) or msgspec.UNSET,
    )
    return dataclasses.replace(new, figures=figures)


def with_zones(evaluation: Evaluation) -> Evaluation:
    """Return it with two zones: one sees the score, and one sees it mirrored and finds what the other misses."""
    values = {"rim <b>": 78.0, "core": 62.5}
    zones = tuple(ZoneThresholds(name, _threshold(value), _threshold(value)) for name, value in values.items())
    thresholds = Thresholds(_threshold(0.0), _threshold(78.0), zones=zones)
    measured, outcomes, scores = evaluation.measured, [], []
    for score, outcome, is_usable in zip(measured.scores, measured.outcomes, measured.usable, strict=True):
        seen = tuple(
            ZoneScore(name, float(np.float32(of)), values[name])
            for name, of in (("rim <b>", score), ("core", 100.1 - score))
        )
        decision = "reject" if any(zone.score > zone.threshold for zone in seen) else "accept"
        outcomes.append(dataclasses.replace(outcome, zones=seen, decision=decision) if is_usable else outcome)
        scores.append(max(zone.score - zone.threshold for zone in seen) if is_usable else 0.0)
    moved = dataclasses.replace(measured, outcomes=tuple(outcomes), scores=np.array(scores))
    return _judged(evaluation, measured=moved, thresholds=thresholds)


def by_product(evaluation: Evaluation) -> Evaluation:
    """Return it with every other image of another product; a score of each lies exactly at its threshold."""
    products = {name: Thresholds(_threshold(value), _threshold(value)) for name, value in (("a", 73.0), ("b", 78.0))}
    measured, samples, outcomes, scores = evaluation.measured, [], [], []
    rows = zip(measured.samples, measured.outcomes, measured.scores, measured.usable, strict=True)
    for row, (sample, outcome, score, is_usable) in enumerate(rows):
        name = "ab"[row % 2]
        margin = float(score) - products[name].image.value
        samples.append(msgspec.structs.replace(sample, category=name))
        decision = "reject" if margin > 0 else "accept"
        outcomes.append(dataclasses.replace(outcome, decision=decision, pixel_threshold=75.0) if is_usable else outcome)
        scores.append(margin if is_usable else 0.0)
    moved = dataclasses.replace(measured, samples=tuple(samples), outcomes=tuple(outcomes), scores=np.array(scores))
    return _judged(evaluation, measured=moved, thresholds=summary_of(products), products=products)


def without_thresholds(evaluation: Evaluation) -> Evaluation:
    """Return it as that of a bundle that was not calibrated."""
    return _judged(evaluation, thresholds=None)
