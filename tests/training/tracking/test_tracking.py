"""A training tells a tracker of itself, all of it, in order; and goes on where the tracker fails."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Killed, killing_progress
from tiny_dataset import CATEGORY, write_tiny_dataset
from torch import Tensor, nn

from flawscope.cli import run
from flawscope.config import StfpmConfig, from_flat
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.progress import Progress, no_progress
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.tracking import TRACKERS, track_epoch, track_figures, tracking
from flawscope.training.tracking.trackers import TrackerRow

SIDE = 16


class Recording:
    """A tracker that keeps what it is told; `fails` names a method that raises."""

    fails: str | None = None
    runs: list[Recording] = []  # noqa: RUF012 - of all instances, emptied by the fixture

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name, self.settings = name, dict(settings)
        self.told: list[Any] = []
        self._maybe_fail("begin")
        Recording.runs.append(self)

    def _maybe_fail(self, method: str) -> None:
        if Recording.fails == method:
            raise RuntimeError(f"no answer\nto {method}")

    @property
    def place(self) -> str:
        return "here"

    def log(self, figures: Mapping[str, float], step: int | None) -> None:
        self._maybe_fail("log")
        self.told.append((step, dict(figures)))

    def image(self, path: Path, step: int) -> None:
        self._maybe_fail("image")
        self.told.append((step, path.name))

    def finish(self, *, failed: bool) -> None:
        self._maybe_fail("finish")
        self.told.append(("failed" if failed else "finished",))


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    """Put `Recording` into the table as the tracker `here`."""
    monkeypatch.setattr(Recording, "fails", None)
    monkeypatch.setattr(Recording, "runs", [])
    module = types.ModuleType("recording_tracker")
    module.Recording = Recording  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recording_tracker", module)
    rows = {**TRACKERS, "here": TrackerRow("recording_tracker:Recording", "here", "here")}
    monkeypatch.setattr("flawscope.training.tracking.trackers.TRACKERS", rows)
    return Recording


class Constant:
    """A task that learns nothing worth knowing."""

    def __init__(self) -> None:
        self.network: nn.Module = nn.Linear(1, 1)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        return network(torch.ones((1, 1))).square().mean()

    def validate(self) -> dict[str, float]:
        return {"error": 1.0}

    def preview(self, path: Path) -> None:
        path.write_bytes(b"preview")


@pytest.fixture(scope="module")
def part_images(tmp_path_factory: pytest.TempPathFactory) -> ImageReader:
    """Two images."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(2)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 100 + index, np.uint8))
    return ImageReader(paths, config().preprocessing, 1, 100)


def config() -> StfpmConfig:
    """Return the settings of four epochs of one batch."""
    return from_flat(
        StfpmConfig,
        {"resize": (SIDE, SIDE), "epochs": 4, "batch_size": 2, "preview_every": 2, "checkpoint_every": 2},
    )


def train(images: ImageReader, folder: Path, *, resume: bool = False, progress: Progress = no_progress) -> None:
    """Train as a command with `--track here` does."""
    with tracking("here", "runs/bottle", {"epochs": 4}):
        run_loop(Constant(), images, config(), folder, resume=resume, progress=progress)
        track_figures({"image_auroc": 0.75, "name": "bottle", "is_good": True, "none": None, "nan": math.nan})


def test_every_epoch_its_preview_and_the_figures_are_told(part_images, tmp_path, recording):
    train(part_images, tmp_path)
    (run,) = recording.runs
    assert (run.name, run.settings) == ("runs/bottle", {"epochs": 4})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    figures = [(line.pop("step"), line) for line in lines]
    previews = [path.name for path in sorted((tmp_path / "previews").iterdir())]
    assert run.told == [
        figures[0],
        figures[1],
        (2, previews[0]),
        figures[2],
        figures[3],
        (4, previews[1]),
        (None, {"image_auroc": 0.75}),
        ("finished",),
    ]


def test_a_training_that_resumes_is_a_whole_run(part_images, tmp_path, recording):
    with pytest.raises(Killed):
        train(part_images, tmp_path, progress=killing_progress(3))
    train(part_images, tmp_path, resume=True)
    before, after = recording.runs
    assert before.told[-1] == ("failed",)
    assert [told[0] for told in after.told] == [1, 2, 2, 3, 4, 4, None, "finished"]


@pytest.mark.parametrize("method", ["log", "image", "finish"])
def test_a_tracker_that_fails_ends_no_training(part_images, tmp_path, recording, capsys, method):
    recording.fails = method
    train(part_images, tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    told = capsys.readouterr().err
    assert told.count("note: here takes nothing any more") == 1
    assert f"no answer to {method}" in told


def test_who_asks_for_one_that_is_not_there_is_told_before_the_work(recording):
    with (
        pytest.raises(ArgumentError, match="--track: expected one of mlflow, wandb, here, got 'x'"),
        tracking("x", "", {}),
    ):
        pytest.fail("the work began")
    recording.fails = "begin"
    with pytest.raises(ArgumentError, match=r"--track here: .* got: no answer to begin"), tracking("here", "", {}):
        pytest.fail("the work began")


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_package_that_is_missing_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, TRACKERS[name].place.partition(":")[0], raising=False)
    with pytest.raises(MissingExtra, match=rf'flawscope\[{name}\]"'), tracking(name, "", {}):
        pytest.fail("the work began")


def test_nobody_is_told_of_what_was_not_asked_for(tmp_path, recording):
    with tracking(None, "run", {}):
        track_figures({"a": 1})
        track_epoch({"step": 1, "loss": 2.0}, tmp_path / "none.png")
    assert recording.runs == []


@given(st.dictionaries(st.text(max_size=3), st.none() | st.booleans() | st.floats() | st.integers() | st.text()))
def test_only_finite_numbers_are_told(figures):
    Recording.runs.clear()
    with tracking("here", "run", {}):
        track_figures(figures)
    told = Recording.runs[0].told[0][1]
    assert all(isinstance(value, float) and math.isfinite(value) for value in told.values())
    assert set(told) == {
        key
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow-skinny")
@pytest.mark.long
def test_mlflow_keeps_what_it_is_told(part_images, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    folder = tmp_path / "work"
    with tracking("mlflow", "bottle", {"epochs": 4, "long": "x" * 9000}):
        run_loop(Constant(), part_images, config(), folder, resume=False, progress=no_progress)
        track_figures({"image_auroc": 0.75})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("bottle", "FINISHED")
    assert run.data.params["epochs"] == "4"
    assert run.data.metrics["image_auroc"] == 0.75
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert len(client.list_artifacts(run.info.run_id, "previews")) == 2


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
@pytest.mark.long
def test_wandb_keeps_what_it_is_told_without_a_network(part_images, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with tracking("wandb", "bottle", {"epochs": 4}):
        run_loop(Constant(), part_images, config(), tmp_path / "work", resume=False, progress=no_progress)
        track_figures({"image_auroc": 0.75})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0


@pytest.mark.slow
def test_commands_tell_of_settings_and_of_the_figures_that_they_print(tmp_path, monkeypatch, recording, capsys):
    root = write_tiny_dataset(tmp_path / "data")
    # The table of the command line is fixed when it is imported: one of its names leads here.
    rows = {"mlflow": TrackerRow("recording_tracker:Recording", "here", "here")}
    monkeypatch.setattr("flawscope.training.tracking.trackers.TRACKERS", rows)
    arguments = ["--data", str(root), "--image-size", "64", "--seed", "3", "--track", "mlflow"]
    assert run(["pipeline", "padim", *arguments, "--out", str(tmp_path / "out")]) == 0
    (told,) = recording.runs
    assert (told.settings["seed"], told.settings["method"], told.settings["category"]) == (3, "padim", CATEGORY)
    assert told.settings["command"]
    figures = json.loads((tmp_path / "out/evaluation.json").read_text())
    (step, values), end = told.told
    assert (step, end) == (None, ("finished",))
    assert values["image_auroc"] == figures["image_auroc"]
    assert values["false_reject"] == figures["confusion"]["false_reject"]["value"]
    assert run(["train", "padim", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert 0 <= recording.runs[1].told[0][1]["drawn_image_auroc"] <= 1
    assert capsys.readouterr().err.count("mlflow: here") == 2


def _stand_in(name: str, calls: list[Any]) -> types.ModuleType:
    """Return a module with the functions of the package that are called, which writes down each call."""

    def noting(what: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append((what, arguments, named))
            return types.SimpleNamespace(
                info=types.SimpleNamespace(run_id="id"),
                url=None,
                dir="folder",
                log=noting("run.log"),
                finish=noting("run.finish"),
                summary=types.SimpleNamespace(update=noting("summary.update")),
            )

        return call

    module = types.ModuleType(name)
    for what in ("start_run", "log_params", "log_metrics", "log_artifact", "end_run", "get_tracking_uri", "init"):
        setattr(module, what, noting(what))
    module.Image = lambda path: ("image", path)  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mlflow",
            [
                ("start_run", (), {"run_name": "bottle"}),
                ("log_params", ({"list": "[1, 2]"},), {}),
                ("get_tracking_uri", (), {}),
                ("log_metrics", ({"loss": 0.5},), {"step": 3}),
                ("log_artifact", ("epoch.png", "previews"), {}),
                ("log_metrics", ({"auroc": 1.0},), {"step": None}),
                ("end_run", (), {"status": "FAILED"}),
            ],
        ),
        (
            "wandb",
            [
                ("init", (), {"project": "mine", "name": "bottle", "config": {"list": [1, 2]}}),
                ("run.log", ({"loss": 0.5},), {"step": 3}),
                ("run.log", ({"preview": ("image", "epoch.png")},), {"step": 3}),
                ("summary.update", ({"auroc": 1.0},), {}),
                ("run.finish", (), {"exit_code": 1}),
            ],
        ),
    ],
)
def test_each_is_called_as_its_package_asks_for(name, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.chdir(tmp_path)
    Path("epoch.png").write_bytes(b"")
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, name, _stand_in(name, calls))
    monkeypatch.delitem(sys.modules, TRACKERS[name].place.partition(":")[0], raising=False)

    def fail() -> None:
        with tracking(name, "bottle", {"list": [1, 2]}):
            track_epoch({"step": 3, "loss": 0.5}, Path("epoch.png"))
            track_figures({"auroc": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    # Of the stand-in: the next test imports the package itself.
    monkeypatch.delitem(sys.modules, TRACKERS[name].place.partition(":")[0])
    assert calls == expected
