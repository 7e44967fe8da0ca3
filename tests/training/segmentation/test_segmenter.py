"""The segmenter: what a batch consists of, what differs between two trainings, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_dataset import write_rgb

from flawscope.config import change_settings, from_flat
from flawscope.errors import ArgumentError
from flawscope.imaging.images import Preprocessing
from flawscope.progress import no_progress
from flawscope.training.features.backbone import untrained_backbone
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.segmenter import (
    Labelled,
    Segmenter,
    SegmenterConfig,
    SegmenterData,
    SegmenterTask,
    build_segmenter_config,
    draw_batch,
    enlarge,
    image_scores,
    predict,
    train_segmenter,
)

SIDE = 32
SIZE = Preprocessing(resize=(SIDE, SIDE))
NUMBER = {"good": 10, "held_back": 4, "real": 3, "synthetic": 5}


def config(**changes: Any) -> SegmenterConfig:
    plain = from_flat(
        SegmenterConfig,
        {
            "resize": (SIDE, SIDE),
            "stages": (1, 2),
            "batch_size": 8,
            "steps": 40,
            "learning_rate": 0.02,
            "ema": 0.8,
            "width": 16,
            "warmup_steps": 5,
            "device": "cpu",
            "num_workers": 1,
        },
    )
    return change_settings(plain, changes)


def write(folder: Path, name: str, count: int, bright: bool) -> tuple[list[Path], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Dark images, each with a bright square that is its label, which no other colour comes near."""
    paths, labels = [], np.zeros((count, SIDE, SIDE), np.bool_)
    for index in range(count):
        chance = np.random.default_rng((index, len(name)))
        image = chance.integers(20, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        if bright:
            row, column = chance.integers(2, SIDE - 12, 2)
            labels[index, row : row + 8, column : column + 9] = True
            image[labels[index]] = 250
        paths.append(write_rgb(folder / name / f"{index}.png", image))
    return paths, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SegmenterData:
    folder = tmp_path_factory.mktemp("pictures")
    written = {name: write(folder, name, count, name in ("real", "synthetic")) for name, count in NUMBER.items()}
    images = {name: ImageReader(paths, SIZE, 1, 100) for name, (paths, _) in written.items()}
    real, synthetic = (Labelled(images[name], written[name][1]) for name in ("real", "synthetic"))
    return SegmenterData(images["good"], images["held_back"], real, synthetic)


@pytest.fixture(scope="module")
def without(data: SegmenterData) -> SegmenterData:
    return SegmenterData(data.good, data.held_back, data.real)


# ---- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "defective"), [(0.5, 4), (0.25, 2), (0.01, 1), (0.99, 7)])
def test_a_share_of_every_batch_is_defective_and_neither_kind_is_ever_missing(
    data: SegmenterData, share: float, defective: int
) -> None:
    for seed in range(5):
        batch = draw_batch(config(defective_share=share), data, seed)
        assert batch.labels.any(axis=(1, 2)).tolist() == [False] * (8 - defective) + [True] * defective


def test_the_label_moves_with_its_image(data: SegmenterData) -> None:
    for seed in range(20):
        batch = draw_batch(config(flip_vertical=True, shift=0.25), data, seed)
        assert np.array_equal((batch.images == 250).all(axis=3), batch.labels)


def test_without_movements_a_batch_has_the_images_as_they_are(data: SegmenterData) -> None:
    stored = next(iter(data.good.batches(range(10), 10)))
    batch = draw_batch(config(flip=False, shift=0.0), data, 1)
    assert all(any(np.array_equal(image, original) for original in stored) for image in batch.images[:4])


def test_with_movements_each_image_is_moved_and_mirrored_in_its_own_way(data: SegmenterData) -> None:
    changes: list[dict[str, Any]] = [{"flip": True}, {"flip_vertical": True}, {"shift": 0.1}]
    for change in changes:
        still = draw_batch(config(flip=False, shift=0.0), data, 2)
        moved = draw_batch(config(**{"flip": False, "shift": 0.0, **change}), data, 2)
        equal = [np.array_equal(a, b) for a, b in zip(still.images, moved.images, strict=True)]
        assert not all(equal), change


def test_synthetic_images_change_nothing_but_the_places_they_take(data: SegmenterData, without: SegmenterData) -> None:
    seen = 0
    for seed in range(10):
        real, both = draw_batch(config(), without, seed), draw_batch(config(), data, seed)
        is_real = ~both.is_synthetic
        assert np.array_equal(real.images[is_real], both.images[is_real])
        assert np.array_equal(real.labels[is_real], both.labels[is_real])
        assert not both.is_synthetic[:4].any()
        assert not real.is_synthetic.any()
        seen += int(both.is_synthetic.sum())
    assert 10 < seen < 30  # of 40 places, with a chance of a half


def test_a_synthetic_share_of_nothing_is_the_same_as_no_synthetic_images_and_one_of_all_takes_every_place(
    data: SegmenterData, without: SegmenterData
) -> None:
    none, all_of_them = (
        draw_batch(config(synthetic_share=0.0), data, 3),
        draw_batch(config(synthetic_share=1.0), data, 3),
    )
    assert np.array_equal(none.images, draw_batch(config(), without, 3).images)
    assert all_of_them.is_synthetic.tolist() == [False] * 4 + [True] * 4


def test_only_synthetic_labels_are_coarse_and_only_where_they_are_boxes(data: SegmenterData) -> None:
    synthetic = data.synthetic
    assert synthetic is not None
    boxes = with_synthetic(data, Labelled(synthetic.images, synthetic.labels, is_coarse=True))
    for seed in range(5):
        batch = draw_batch(config(), boxes, seed)
        assert np.array_equal(batch.is_coarse, batch.is_synthetic)
        assert not draw_batch(config(), data, seed).is_coarse.any()


def with_synthetic(data: SegmenterData, synthetic: Labelled) -> SegmenterData:
    return SegmenterData(data.good, data.held_back, data.real, synthetic)


def test_batches_repeat_with_the_seed_and_change_with_it(data: SegmenterData) -> None:
    first, again, other = (draw_batch(config(), data, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


# ---- The network -----------------------------------------------------------------------------------------------------


def test_logits_lie_on_the_grid_of_the_finest_stage_and_begin_at_a_hundredth() -> None:
    torch.manual_seed(0)
    chosen = config(stages=(1, 2, 3), resize=(96, 64))
    segmenter = Segmenter(untrained_backbone(chosen.features), chosen).eval()
    images = torch.randint(0, 256, (2, 96, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = segmenter(images)
    assert logits.shape == (2, 1, 24, 16)
    assert enlarge(logits, (96, 64)).shape == (2, 1, 96, 64)
    assert logits.sigmoid().numpy() == pytest.approx(0.01, rel=0.5)


def test_features_of_normal_images_are_standardised(data: SegmenterData) -> None:
    segmenter = SegmenterTask(config(), untrained_backbone(config().features), data).segmenter
    with torch.inference_mode():
        stages = segmenter.encoder(torch.from_numpy(next(iter(data.good.batches(range(10), 10)))))
    for index, stage in enumerate(stages):
        standardised = (stage - segmenter.get_buffer(f"center{index}")) * segmenter.get_buffer(f"scale{index}")
        assert standardised.mean(dim=(0, 2, 3)).numpy() == pytest.approx(0.0, abs=1e-3)
        deviation = standardised.std(dim=(0, 2, 3))
        assert deviation.max() == pytest.approx(1.0, abs=0.01)


def test_features_that_never_move_stay_small(tmp_path: Path) -> None:
    paths = [write_rgb(tmp_path / f"{index}.png", np.full((SIDE, SIDE, 3), 90, np.uint8)) for index in range(3)]
    flat = ImageReader(paths, SIZE, 1, 100)
    segmenter = Segmenter(untrained_backbone(config().features), config())
    segmenter.standardise(flat.batches(range(3), 2))
    assert all(segmenter.get_buffer(f"scale{index}").isfinite().all() for index in range(2))
    assert np.isfinite(predict(segmenter, flat)).all()


def test_the_start_depends_on_the_seed_alone(data: SegmenterData, without: SegmenterData) -> None:
    backbone = untrained_backbone(config().features)
    states = []
    for seed, training_data in ((0, data), (0, without), (1, data)):
        torch.rand(3)  # whatever was drawn before
        states.append(SegmenterTask(config(seed=seed), backbone, training_data).network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("learns", [False, True])
def test_the_encoder_learns_only_where_it_is_asked_to_and_its_statistics_never(
    data: SegmenterData, tmp_path: Path, learns: bool
) -> None:
    chosen = config(backbone="mobilenetv3_small_050", stages=(1, 2), steps=2, ema=0.0, train_encoder=learns)
    torch.manual_seed(1)
    backbone = untrained_backbone(chosen.features)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    segmenter, _ = train_segmenter(chosen, backbone, data, tmp_path, no_progress)
    after = segmenter.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(changed) == learns
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())  # a copy has learned


# ---- Training --------------------------------------------------------------------------------------------------------


def test_it_learns_to_see_defects_it_was_not_shown(data: SegmenterData, without: SegmenterData, tmp_path: Path) -> None:
    synthetic = data.synthetic
    assert synthetic is not None
    segmenter, trained = train_segmenter(
        config(steps=80), untrained_backbone(config().features), without, tmp_path, no_progress
    )
    maps, good = (
        enlarge(torch.from_numpy(predict(segmenter, images))[:, None], (SIDE, SIDE))[:, 0].numpy()
        for images in (synthetic.images, data.held_back)
    )
    assert (maps[synthetic.labels] > 0).mean() > 0.8
    assert (maps[~synthetic.labels] > 0).mean() < 0.1
    assert image_scores(maps, 20).mean() > image_scores(good, 20).mean() + 0.2
    assert trained.epoch == 1
    assert trained.error < 0.1
    assert (tmp_path / "previews" / "epoch_0001.png").stat().st_size > 100


def test_a_training_repeats_bit_for_bit(data: SegmenterData, tmp_path: Path) -> None:
    backbone = untrained_backbone(config().features)
    first, again, other = (
        train_segmenter(config(steps=4, seed=seed), backbone, data, tmp_path / str(run), no_progress)[0].state_dict()
        for run, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_loop_takes_as_many_steps_as_are_asked_for(data: SegmenterData, tmp_path: Path) -> None:
    progressed: list[tuple[int, int]] = []
    train_segmenter(
        config(steps=3),
        untrained_backbone(config().features),
        data,
        tmp_path,
        lambda stage, count, total: progressed.append((count, total)),
    )
    assert progressed == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_weak_labels_change_the_loss_of_synthetic_images_alone(data: SegmenterData, without: SegmenterData) -> None:
    synthetic = data.synthetic
    assert synthetic is not None
    boxes = with_synthetic(data, Labelled(synthetic.images, synthetic.labels, is_coarse=True))

    def loss(training_data: SegmenterData, tau: float | None) -> float:
        task = SegmenterTask(
            config(weak_tau=tau, synthetic_share=1.0), untrained_backbone(config().features), training_data
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            return float(task.loss(task.network, torch.arange(8), generator))

    assert loss(without, 0.1) == loss(without, None)
    assert loss(boxes, 0.1) < 0.5 * loss(boxes, None)  # at the start no pixel of a box is above 0.1


# ---- Scores and settings ---------------------------------------------------------------------------------------------


def test_a_score_is_the_mean_probability_of_the_highest_pixels() -> None:
    odds = np.array([[[1.0, 3.0], [9.0, 0.25]]])  # probabilities 1/2, 3/4, 9/10, 1/5
    logits = np.log(odds).astype(np.float32)
    assert image_scores(logits, 1) == pytest.approx([0.9])
    assert image_scores(logits, 2) == pytest.approx([(0.9 + 0.75) / 2])
    assert image_scores(logits, 100) == pytest.approx([(0.9 + 0.75 + 0.5 + 0.2) / 4])


def test_one_number_stands_for_both_sides_and_all_channels_and_the_later_layer_wins() -> None:
    merged = build_segmenter_config({"resize": 64, "mean": 0.5, "stages": 2, "steps": 5}, {"steps": 7})
    assert (merged.input.resize, merged.features.mean, merged.features.stages, merged.steps) == (
        (64, 64),
        (0.5, 0.5, 0.5),
        (2,),
        7,
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"step": 3}, "step: is no setting of the segmenter. Did you mean steps?"),
        ({"zzz": 3}, "zzz: is no setting of the segmenter. Known: accept_licence, accumulate,"),
        ({"epochs": 2}, "settings of the segmenter: epochs: expected 1 "),
        ({"max_steps": 2}, "settings of the segmenter: max_steps: expected none "),
        ({"width": 20}, "width: expected a multiple of 8"),
        ({"synthetic_share": 1.5}, "synthetic_share: expected a share from 0 to 1"),
        ({"weak_tau": 1.0}, "weak_tau: expected a probability"),
        ({"gamma": -1}, "gamma: expected 0 to 10"),
        ({"train_encoder": True}, "backbone: expected a network that can be trained (train_encoder is set), got 'sca"),
        ({"tile": [64, 64]}, "tile: is no setting of the segmenter. Known: accept_licence, accumulate,"),
        ({"batch_size": 1}, "batch_size: expected at least 2"),
        ({"steps": "many"}, "settings of the segmenter: Expected `int`"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as err:
        build_segmenter_config(settings)
    assert text in str(err.value)
