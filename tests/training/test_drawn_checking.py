"""The drawn check of fitted detectors: it lets good ones pass and finds those that see nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_dataset import CATEGORY, normal_images, training_images

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.config import PadimConfig, PatchcoreConfig, from_flat
from flawscope.datasets import open_dataset
from flawscope.drawn_check import DrawnCheck
from flawscope.errors import RunError
from flawscope.export.exporter import exporter_of
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.runs import RECORD, read_run_record
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.detectors.padim import PadimTrainer
from flawscope.training.drawn_checking import check_drawn
from flawscope.training.trainer import trainer_of

FAST = ["--image-size", "64", "--set", "stages=1,2", "--set", "channels=6", "--set", "held_out_minimum=5"]


def check(run: Run, tiny_root: Path, tensors: dict[str, Any] | None = None) -> DrawnCheck:
    """Return the check of a run, with other tensors where some are given."""
    fitted = run.fitted if tensors is None else dataclasses.replace(run.fitted, tensors=tensors)
    trainer = trainer_of(run.record.config)
    images = training_images(tiny_root)
    found = check_drawn(trainer, run.record.config, run.module, fitted, images, held_out=False, progress=no_progress)
    assert found is not None
    return found


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_fitted_detector_tells_drawn_defects_apart(runs: dict[str, Path], tiny_root: Path, method: str) -> None:
    record = read_run(runs[method]).record
    assert record.drawn is not None
    assert record.drawn.verdict != "near chance"
    assert record.drawn.held_out
    assert record.drawn.normal == len(record.held_out) == record.drawn.base


def test_a_detector_with_shuffled_numbers_is_called_near_chance(padim_run: Path, tiny_root: Path) -> None:
    run = read_run(padim_run)
    mean = run.fitted.tensors["mean"]
    # Also of another scale: features that are merely exchanged still grow with a defect.
    shuffled = 30 * np.random.default_rng(0).permutation(mean.ravel()).reshape(mean.shape)
    assert check(run, tiny_root).verdict != "near chance"
    assert check(run, tiny_root, {**run.fitted.tensors, "mean": shuffled}).verdict == "near chance"


def test_the_same_detector_and_images_give_the_same_figures(padim_run: Path, tiny_root: Path) -> None:
    run = read_run(padim_run)
    first, second = (msgspec.structs.replace(check(run, tiny_root), seconds=0.0) for _ in range(2))
    assert first == second


def test_scores_that_are_no_numbers_are_an_error(padim_run: Path, tiny_root: Path) -> None:
    run = read_run(padim_run)
    tensors = {**run.fitted.tensors, "mean": np.full_like(run.fitted.tensors["mean"], np.nan)}
    with pytest.raises(RunError, match="expected finite scores of the fitted detector, got NaN or infinity"):
        check(run, tiny_root, tensors)


def check_scores(run: Run, tiny_root: Path) -> None:
    """Check that the trainer scores images that were not learned from as the reference of the exporter does."""
    spec = run.record.config.preprocessing
    images = [prepare(read_image(path), spec) for path in normal_images(tiny_root)[:3]]
    exporter = exporter_of(run.record)
    expected = exporter.reference(run, exporter.head(run, images), images)
    found = trainer_of(run.record.config).scores(run.record.config, run.module, run.fitted, images)
    for got, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-3, atol=1e-3 * float(np.abs(expected[0]).max()))


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_trainer_scores_as_the_reference_of_its_exporter(runs: dict[str, Path], tiny_root: Path, method: str) -> None:
    check_scores(read_run(runs[method]), tiny_root)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"metric": "cosine", "top_share": 0.02, "standardize": "none"},
        {"layers": "separate"},
        {"window": 3},
        {"reweight": "seed"},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_it_does_so_with_every_option_of_the_bank(tmp_path: Path, tiny_root: Path, settings: dict[str, Any]) -> None:
    config = from_flat(
        PatchcoreConfig, {"resize": (64, 64), "stages": (1, 2), "coreset": 90, "reweight": "none", **settings}
    )
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    assert record.drawn is not None
    check_scores(read_run(tmp_path / "run"), tiny_root)


@pytest.mark.long
def test_train_says_it_and_the_bundle_keeps_it(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "part.flaw"
    assert cli.run(["train", "padim", "--data", str(tiny_root), *FAST, "--out", str(run)]) == 0
    assert "drawn defects: " in capsys.readouterr().out
    record, _ = read_run_record(run)
    assert record.drawn is not None
    assert cli.run(["export", str(run), "--out", str(bundle)]) == 0
    assert "drawn defects: " in capsys.readouterr().out
    with open_bundle(bundle) as opened:
        assert opened.manifest.evidence.drawn == record.drawn
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    assert "drawn defects  " in capsys.readouterr().out


@pytest.mark.long
def test_a_detector_near_chance_is_said_to_be_so_aloud(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(0)

    def guess(_: object, config: Any, module: object, fitted: object, images: Sequence[Any]) -> tuple[Any, Any]:
        return chance.random((len(images), *config.preprocessing.size), np.float32), chance.random(len(images))

    monkeypatch.setattr(PadimTrainer, "scores", guess)
    assert cli.run(["train", "padim", "--data", str(tiny_root), *FAST, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "drawn defects: near chance" in shown.out
    assert "warning: drawn defects are hardly told from normal images" in shown.err
    assert "mean, std and padding" in shown.err
    assert cli.run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "part.flaw")]) == 0
    assert "warning: drawn defects are hardly told from normal images" in capsys.readouterr().err


def test_it_can_be_left_out(tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "padim", "--data", str(tiny_root), *FAST, "--no-drawn-check", "--out", str(tmp_path / "run")]
    assert cli.run(command) == 0
    assert "drawn" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / RECORD).read_text())["drawn"] is None


def test_what_scores_nothing_has_no_check_to_leave_out(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "autoencoder", "--data", str(tiny_root), "--no-drawn-check", "--out", str(tmp_path / "run")]
    assert cli.run(command) == 2
    assert "--no-drawn-check: expected none with autoencoder" in capsys.readouterr().err


def test_with_too_few_held_out_it_takes_images_that_were_learned_from(tmp_path: Path, tiny_root: Path) -> None:
    config = from_flat(PadimConfig, {"resize": (64, 64), "stages": (1,), "channels": 4, "held_out": 0.0})
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    assert record.drawn is not None
    assert not record.drawn.held_out


def test_a_run_of_before_has_none(tmp_path: Path, padim_run: Path) -> None:
    plain = json.loads((padim_run / RECORD).read_text())
    del plain["drawn"]
    (tmp_path / RECORD).write_text(json.dumps(plain))
    assert read_run_record(tmp_path)[0].drawn is None
