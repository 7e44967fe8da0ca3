"""A small labelled set of images, and a bundle that knows some of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_bundles import FakeInspector, write_fake_bundle, write_image, write_mask

from flawscope.bundle import Threshold, Thresholds
from flawscope.calibration.evaluation import evaluate
from flawscope.calibration.thresholds import calibrate
from flawscope.datasets import content_hash, open_dataset

GOOD = range(40, 70)
"""Brightness of the normal training images, which is their score; those below 50 are in the bank."""


@pytest.fixture
def dataset(tmp_path):
    """30 normal training images; test: 10 good, 8 bright spots with masks, 4 dark ones without."""
    root = tmp_path / "part"
    for value in GOOD:
        write_image(root / f"train/good/{value}.png", value)
    for index in range(10):
        write_image(root / f"test/good/{index}.png", 71 + index)
    for index in range(8):
        write_image(root / f"test/spot/{index}.png", 60, 100 + index)
        write_mask(root / f"ground_truth/spot/{index}_mask.png")
    for index in range(4):
        write_image(root / f"test/dull/{index}.png", 35, 36 + index)
    return open_dataset(root)


@pytest.fixture
def make_bundle(tmp_path, dataset, monkeypatch):
    """Return a function that writes a bundle and makes `rule` its detector."""

    def make(threshold=None, method="order-statistic", rule=None, **options):
        hashes = {int(sample.path.stem): content_hash(sample.path) for sample in dataset.train_good}
        thresholds = None
        if threshold is not None:
            both_alike = Threshold(threshold, method, 20, 0.2, 0.95, 0.14, "cpu")
            thresholds = Thresholds(both_alike, both_alike)
        options = {
            "training": [hashes[value] for value in GOOD if value < 50],
            "held_out": [hashes[value] for value in GOOD if value >= 50],
            **options,
        }
        loader = FakeInspector.loader(rule) if rule else FakeInspector.loader()
        for module in (calibrate, evaluate):
            monkeypatch.setattr(module, "load_inspector", loader)
        return write_fake_bundle(tmp_path / "part.flaw", thresholds=thresholds, **options)

    return make


@pytest.fixture
def read_json():
    """Return a function that reads a JSON file and refuses NaN."""

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return lambda path: json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def nan_rule():
    """A detector that fails on bright images."""

    def rule(image):
        value = image.mean(axis=2, dtype=np.float32)
        return np.full_like(value, np.nan) if value.max() >= 105 else value

    return rule
