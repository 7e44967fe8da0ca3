"""What trainings on labelled defects share: batches with their originals, and an error that learning lowers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_judged import SIDE, Place, write_place

from flawscope.config import LabelledConfig, build_config
from flawscope.datasets import hash_contents, open_dataset
from flawscope.imaging.images import Preprocessing
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.labelled_sources import open_sources
from flawscope.training.segmentation.labelled_training import (
    Batch,
    HeldBack,
    TrainingData,
    draw_batch,
    hold_back,
    validation_error,
)
from flawscope.training.segmentation.procedural import draw_anomaly


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("labelled_training"))


def config(**changes: Any) -> LabelledConfig:
    built, _ = build_config("draem", {"resize": SIDE, "batch_size": 8, "depth": 2, "segmentation_depth": 2, **changes})
    assert isinstance(built, LabelledConfig)
    return built


def data_of(place: Place, built: LabelledConfig) -> TrainingData:
    dataset = open_dataset(place.root)
    learned, validation = dataset.train_good[:-4], dataset.train_good[-4:]
    hashes = hash_contents([sample.path for sample in dataset.samples])
    spec = Preprocessing((SIDE, SIDE))
    sources = open_sources(
        built.labelled, spec, dataset, learned, validation, hashes, procedural=draw_anomaly, with_originals=True
    )
    good, held = (ImageReader([sample.path for sample in part], spec, 1, 100) for part in (learned, validation))
    return TrainingData(good, held, sources)


@given(
    seed=st.integers(0, 1 << 32), shift=st.sampled_from([0.0, 0.1, 0.25]), flips=st.tuples(st.booleans(), st.booleans())
)
@settings(max_examples=15, deadline=None)
def test_image_original_and_label_are_moved_alike(
    place: Place, seed: int, shift: float, flips: tuple[bool, bool]
) -> None:
    built = config(shift=shift, flip=flips[0], flip_vertical=flips[1])
    batch = draw_batch(built, data_of(place, built), torch.Generator().manual_seed(seed))
    assert batch.has_original.all()
    assert batch.labels[4:].any()
    # Of procedural anomalies nothing outside the label differs from the original, wherever both were moved to.
    differs = (batch.images != batch.originals).any(axis=3)
    assert not (differs & ~batch.labels).any()
    assert not batch.labels[:4].any(), "normal ones come first"
    assert (batch.images[:4] == batch.originals[:4]).all()


def test_a_batch_follows_from_its_seed_and_real_images_have_no_original(place: Place) -> None:
    built = config(support=str(place.support), procedural=False)
    data = data_of(place, built)
    first, again, other = (draw_batch(built, data, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name in Batch.__dataclass_fields__:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.images != other.images).any()
    assert first.has_original.tolist() == [True] * 4 + [False] * 4
    assert (first.images == first.originals).all()


@pytest.mark.parametrize("gamma", [0.0, 2.0, 4.0, 10.0])
def test_a_network_that_has_learned_has_less_error_than_one_that_is_undecided(place: Place, gamma: float) -> None:
    """With the exponent of the training, 4 in DeSTSeg, the untrained state was kept as the best one."""
    built = config(gamma=gamma)
    data = data_of(place, built)
    held_back = hold_back(built, data)
    assert held_back.are_new
    truth = {image.tobytes(): label for image, label in zip(held_back.images, held_back.labels, strict=True)}

    def undecided(images: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
        return torch.full((len(images), 1, SIDE, SIDE), -0.5)

    def learned(images: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
        """Sure of four pixels in five; the fifth of a defect is missed."""
        labels = np.stack([truth.get(image.tobytes(), np.zeros((SIDE, SIDE), np.bool_)) for image in images])
        seen = labels & (np.arange(SIDE)[None, None] % 5 != 0)
        return torch.from_numpy(np.where(seen, 3.0, -3.0).astype(np.float32))[:, None]

    errors = [validation_error(built, data.validation, held_back, logits) for logits in (undecided, learned)]
    assert errors[1]["error"] < errors[0]["error"]
    for error in errors:
        assert error["error"] == pytest.approx(error["false_alarms"] + error["misses"])
    # Whatever the training's exponent, two trainings are measured alike.
    assert errors == [validation_error(config(), data.validation, held_back, logits) for logits in (undecided, learned)]


def test_the_error_counts_normal_and_anomalous_images_with_one_weight(place: Place) -> None:
    built = config()
    data = data_of(place, built)
    blank = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    half = np.zeros((2, SIDE, SIDE), np.bool_)
    half[:, : SIDE // 2] = True
    error = validation_error(
        built, data.validation, HeldBack(blank, half, True), lambda images: torch.zeros((len(images), 1, SIDE, SIDE))
    )
    # At even odds every pixel has a quarter of log 2, whatever its label.
    assert error["false_alarms"] == pytest.approx(np.log(2) / 4)
    assert error["misses"] == pytest.approx(np.log(2) / 4)
