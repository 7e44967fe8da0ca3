"""Cross-fitting: every image is scored once, by a fit without it, as the exported detector would; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_dataset import CATEGORY, write_rgb

from flawscope import cli
from flawscope.config import MethodConfig, PadimConfig, PatchcoreConfig, from_flat
from flawscope.cross_scores import CrossScores
from flawscope.datasets import Dataset, hash_contents, image_hash, open_dataset, split_folds
from flawscope.datasets.parts import render
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import prepare, read_image
from flawscope.training.detectors.cross_fitting import score_image
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.trainer import trainer_of

IMAGES = 7
EVERY_PATCH: dict[str, Any] = {"coreset": 1.0, "reweight": "none", "standardize": "none", "stages": (2,), "sigma": 2.0}
"""A bank of all patches in a fixed space: more images never raise a score."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven normal images of 64x96 pixels, and a copy of one under another name and in another format."""
    folder = tmp_path_factory.mktemp("few") / "data" / CATEGORY / "train" / "good"
    for index in range(IMAGES):
        write_rgb(folder / f"{index}.png", render(CATEGORY, 0, index, 96)[0][:64])
    write_rgb(folder / "copy.tif", render(CATEGORY, 0, 3, 96)[0][:64])
    return folder.parents[2]


def patchcore(**settings: object) -> PatchcoreConfig:
    return from_flat(PatchcoreConfig, {"resize": (64, 64), "stages": (1,), "coreset": 60, "sigma": 2.0, **settings})


def padim(**settings: object) -> PadimConfig:
    return from_flat(PadimConfig, {"resize": (64, 64), "stages": (2,), "channels": 6, "sigma": 2.0, **settings})


def train(config: MethodConfig, dataset: Dataset, out: Path) -> Run:
    train_detector(config, dataset, out)
    return read_run(out)


def cross_of(run: Run) -> CrossScores:
    assert run.record.cross is not None
    return run.record.cross


def of_folds(dataset: Dataset, folds: int) -> list[list[Path]]:
    hashes = hash_contents([sample.path for sample in dataset.samples])
    return [[sample.path for sample in fold] for fold in split_folds(dataset.train_good, folds, 0, hashes)]


@pytest.mark.parametrize("config", [patchcore(cross_fit=3), padim(cross_fit=3)], ids=["patchcore", "padim"])
def test_the_detector_learns_from_all_images_as_without_cross_fitting(
    config: MethodConfig, root: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(root, CATEGORY)
    crossed = train(config, dataset, tmp_path / "crossed")
    plain = patchcore(held_out=0.0) if isinstance(config, PatchcoreConfig) else padim(held_out=0.0)
    train(plain, dataset, tmp_path / "plain")
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("crossed", "plain")]
    assert files[0] == files[1]
    assert crossed.record.held_out == ()
    assert set(cross_of(crossed).images) == set(crossed.record.training)


def test_every_image_is_scored_by_all_other_images(root: Path, tmp_path: Path) -> None:
    """Against distances in plain NumPy: with a bank of all patches the score is the largest of the nearest ones."""
    dataset = open_dataset(root, CATEGORY)
    run = train(patchcore(**EVERY_PATCH, cross_fit=-1), dataset, tmp_path / "run")
    cross = cross_of(run)
    assert cross.folds == len(cross.images) == IMAGES
    config = run.record.config
    patches = {}
    for sample in dataset.train_good:
        image = prepare(read_image(sample.path), config.preprocessing)
        patches[image_hash(sample.path)] = run.module(_batch(image))[0].double().numpy()
    for content, score in zip(cross.images, cross.scores, strict=True):
        others = np.concatenate([rows for name, rows in patches.items() if name != content])
        distances = np.linalg.norm(patches[content][:, None] - others[None], axis=2).min(axis=1)
        assert score == pytest.approx(distances.max(), rel=1e-4)


def _batch(image: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(image[None])


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(patchcore(cross_fit=3, neighbors=4), marks=pytest.mark.slow),
        pytest.param(patchcore(cross_fit=3, resize_mode="letterbox"), marks=pytest.mark.slow),
        patchcore(cross_fit=3, tile=(48, 48)),
        padim(cross_fit=3),
    ],
    ids=["patchcore", "letterbox", "tiles", "padim"],
)
def test_scores_of_a_fold_are_those_of_a_bundle_that_was_made_without_it(
    config: Any, root: Path, tmp_path: Path
) -> None:
    from flawscope.config import change_settings
    from flawscope.export.detectors.detector_export import export_run
    from flawscope.runtime import Inspector

    dataset = open_dataset(root, CATEGORY)
    cross = cross_of(train(config, dataset, tmp_path / "crossed"))
    expected = dict(zip(cross.images, zip(cross.scores, cross.map_max, strict=True), strict=True))
    held = of_folds(dataset, 3)[0]
    shutil.copytree(root, tmp_path / "rest")
    for path in held:
        (tmp_path / "rest" / path.relative_to(root)).unlink()
    without = change_settings(config, {"cross_fit": 0, "held_out": 0.0})
    train(without, open_dataset(tmp_path / "rest", CATEGORY), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "part.flaw")
    with Inspector.load(tmp_path / "part.flaw", "cpu") as inspector:
        results = inspector(held)
    for path, result in zip(held, results, strict=True):
        score, map_max = expected[image_hash(path)]
        assert result.score == pytest.approx(score, rel=1e-3)
        assert result.anomaly_map is not None
        assert float(result.anomaly_map.max()) == pytest.approx(map_max, rel=1e-3)


def test_more_images_never_raise_a_score_where_the_average_rate_is_claimed_for_it(root: Path, tmp_path: Path) -> None:
    """The condition of `flawscope.cross_scores`: the detector's score of an image is at most that of any fold."""
    dataset = open_dataset(root, CATEGORY)
    config = patchcore(**EVERY_PATCH, held_out=0.0)
    fits = [read_run(train(config, dataset, tmp_path / "all").path)]
    for place, held in enumerate(of_folds(dataset, 3)):
        rest = tmp_path / f"data{place}"
        shutil.copytree(root, rest)
        for path in held:
            (rest / path.relative_to(root)).unlink()
        fits.append(train(config, open_dataset(rest, CATEGORY), tmp_path / f"fold{place}"))
    new = tmp_path / "new.png"
    for index in range(3):
        write_rgb(new, render(CATEGORY, 0, 100 + index, 96)[0][:64])
        scores, largest = [], []
        for run in fits:
            maps, found = trainer_of(config).scores(
                config, run.module, run.fitted, [prepare(read_image(new), config.preprocessing)]
            )
            scores.append(float(found[0]))
            largest.append(float(maps[0].max()))
        assert scores[0] <= min(scores[1:]) * (1 + 1e-6)
        assert largest[0] <= min(largest[1:]) * (1 + 1e-6)


@pytest.mark.parametrize("folds", [2, 5, 10])
@pytest.mark.parametrize("rank", [10, 8])
def test_the_average_rate_is_at_most_the_one_claimed_where_more_images_never_raise_a_score(
    folds: int, rank: int
) -> None:
    """The claim of `flawscope.cross_scores` by simulation: points for images, nearest neighbours for the detector."""
    n, draws = 10, 20_000
    points = np.random.default_rng(folds).standard_exponential((draws, n + 1, 2))
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=3)
    fold = np.arange(n) % folds
    unseen = np.where(fold[:, None] == fold[None], np.inf, distances[:, :n, :n])
    threshold = np.sort(unseen.min(axis=2), axis=1)[:, rank - 1]
    rejected = distances[:, n, :n].min(axis=1) > threshold
    claimed = (n - rank + 1) / (n + 1)
    assert rejected.mean() <= claimed + 4 * np.sqrt(claimed / draws)
    if folds == n:  # and it is no idle claim: with each image its own fold it is nearly reached
        assert rejected.mean() >= 0.7 * claimed


def test_the_score_of_an_image_is_that_of_the_reference(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset(root, CATEGORY)
    config = patchcore(held_out=0.0)
    run = train(config, dataset, tmp_path / "run")
    sample = dataset.train_good[0]
    anomaly_map, score = score_image(trainer_of(config), config, run.module, run.fitted, sample)
    maps, scores = trainer_of(config).scores(
        config, run.module, run.fitted, [prepare(read_image(sample.path), config.preprocessing)]
    )
    assert np.array_equal(anomaly_map, maps[0])
    assert score == float(scores[0])


# ---- What is refused -------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int, copies: int = 0) -> Dataset:
    for index in range(count):
        write_rgb(folder / CATEGORY / "train" / "good" / f"{index}.png", render(CATEGORY, 0, index, 64)[0])
    for index in range(copies):
        write_rgb(folder / CATEGORY / "train" / "good" / f"again{index}.png", render(CATEGORY, 0, 0, 64)[0])
    return open_dataset(folder, CATEGORY)


@pytest.mark.parametrize("make", [patchcore, padim])
@pytest.mark.parametrize(
    ("count", "copies", "folds", "message"),
    [
        (2, 0, 2, "expected at least 3 different normal images"),
        (2, 0, -1, "expected at least 3 different normal images"),
        (2, 4, 5, "expected at least 3 different normal images"),  # copies are one image
        (1, 5, 2, "has 1 readable normal training images that differ"),
        (3, 0, 2, "leave at least 2 different images to learn from, got 2 folds of 3 images"),
        (4, 3, 5, "expected 2 to 4 folds, as there are 4 different normal images, got 5"),
    ],
)
def test_too_few_images_for_the_folds_are_refused_in_one_line_before_the_work(
    make: Any, count: int, copies: int, folds: int, message: str, tmp_path: Path
) -> None:
    dataset = write_images(tmp_path / "data", count, copies)
    with pytest.raises((ArgumentError, DataError), match=message) as caught:
        train_detector(make(cross_fit=folds), dataset, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("make", [patchcore, padim])
@pytest.mark.parametrize(("count", "folds"), [(3, 3), (3, -1), (4, 2)])
def test_the_fewest_images_for_their_folds_are_enough(make: Any, count: int, folds: int, tmp_path: Path) -> None:
    run = train(make(cross_fit=folds), write_images(tmp_path / "data", count), tmp_path / "run")
    assert len(cross_of(run).scores) == count


@pytest.mark.parametrize(
    ("count", "assignment", "notes"),
    [
        (7, "cross_fit=3", ["7 different normal images are few, below 20"]),
        (7, "held_out=0", ["7 different normal images are few, below 20"]),
        (21, "held_out_minimum=7", ["7 of 21 normal images were held out for thresholds. --set cross_fit=20"]),
        (22, "held_out_minimum=7", []),
    ],
)
def test_few_images_have_a_warning(
    count: int, assignment: str, notes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data", count)
    arguments = ["train", "padim", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    arguments += [
        "--image-size",
        "64",
        "--set",
        "stages=2",
        "--set",
        "channels=4",
        "--set",
        assignment,
        "--no-drawn-check",
    ]
    assert cli.run(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == len(notes)
    for line, note in zip(lines, notes, strict=True):
        assert note in line


@pytest.mark.parametrize("method", ["stfpm", "ddad", "dsad", "lafite"])
def test_a_method_in_epochs_says_why_it_is_not_cross_fitted(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.run(["train", method, "--data", str(tmp_path), "--out", str(out), "--set", "cross_fit=5"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "patchcore, padim" in line
    assert "would be trained once for every fold" in line
    assert not out.exists()
