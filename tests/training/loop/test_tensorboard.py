"""What TensorBoard shows of a training: every figure and preview once, also after an interruption."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interrupted import Killed, killing_progress
from tiny_dataset import CATEGORY
from torch import Tensor, nn

from flawscope.config import StfpmConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.errors import MissingExtra
from flawscope.progress import no_progress
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.workspace import open_workspace

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


class Falling:
    """Its loss falls; its preview is a colour that tells the epoch."""

    def __init__(self) -> None:
        self.network: nn.Module = nn.Linear(1, 1, bias=False)
        self.previews = 0

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        found: Tensor = network(torch.ones(1, 1)).square().mean()
        return found

    def validate(self) -> dict[str, float]:
        (weight,) = self.network.parameters()
        return {"error": abs(float(weight.detach())), "twice": 2 * abs(float(weight.detach()))}

    def preview(self, path: Path) -> None:
        colour = [10 * int(path.stem[-4:]), 0, 200]  # blue, green, red
        cv2.imwrite(str(path), np.full((8, 12, 3), colour, np.uint8))


def config(**changes: Any) -> StfpmConfig:
    plain = {"backbone": "resnet18", "epochs": 4, "batch_size": 2, "preview_every": 2, "tensorboard": True}
    settings = build_config("stfpm", {**plain, **changes})[0]
    assert isinstance(settings, StfpmConfig)
    return settings


def train(folder: Path, *, stop_at: int = 99, resume: bool = False, **changes: Any) -> None:
    torch.manual_seed(0)
    run_loop(Falling(), Numbers(4), config(**changes), folder, resume=resume, progress=killing_progress(stop_at))


def shown(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, list[int]]]]:
    """Return the figures by name, (step, value) each, and the previews, (step, colour) each, that TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in tags["scalars"]}
    previews = []
    for name in tags["images"]:
        assert name == "preview"
        for event in events.Images(name):
            image = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            assert image.shape == (8, 12, 3)
            previews.append((event.step, image[0, 0].tolist()))
    return scalars, previews


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_shown(folder: Path) -> None:
    scalars, previews = shown(folder)
    metrics = lines(folder)
    assert scalars.keys() == metrics[0].keys() - {"step"}
    for name, points in scalars.items():
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in metrics]
    assert previews == [(4, [20, 0, 200]), (8, [40, 0, 200])]


@needs_tensorboard
def test_every_figure_and_preview_is_shown_at_its_step(tmp_path: Path) -> None:
    train(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8]
    check_shown(tmp_path)


@needs_tensorboard
@pytest.mark.parametrize("stop_at", [3, 5, 7])
@pytest.mark.parametrize("before", [True, False], ids=["all along", "from then on"])
def test_nothing_is_shown_twice_after_an_interruption(tmp_path: Path, stop_at: int, before: bool) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stop_at=stop_at, checkpoint_every=2, tensorboard=before)
    train(tmp_path, resume=True, checkpoint_every=2)
    check_shown(tmp_path)


@needs_tensorboard
def test_somebody_who_looks_on_sees_what_is_taken_again_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        train(tmp_path, stop_at=7, checkpoint_every=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    train(tmp_path, resume=True, checkpoint_every=2)
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]


@needs_tensorboard
def test_times_rise_and_end_now(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        train(tmp_path, stop_at=7)
    train(tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    assert times == sorted(times)
    assert times[2] - times[1] == pytest.approx(lines(tmp_path)[2]["seconds"], abs=1e-3)


@needs_tensorboard
def test_what_is_shown_goes_into_the_run(tmp_path: Path, tiny_root: Path) -> None:
    settings = {
        **{"backbone": "scattering", "resize": 16, "stages": [1], "widths": [8, 8], "layers": 1, "attention": []},
        **{"epochs": 2, "preview_every": 2, "steps": 2, "max_steps": 4, "batch_size": 4, "warmup_steps": 0},
        **{"extractor": "none", "tensorboard": True, "validation": 0.4, "held_out_minimum": 5},
    }
    run = tmp_path / "run"
    dataset = open_dataset(tiny_root, CATEGORY)
    record = train_detector(build_config("ddad", settings)[0], dataset, run)
    learned = len(record.training) - int(record.facts["validation_pictures"])
    batches = -(-learned // 4)
    assert batches < 4 < 2 * batches
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("error")] == [line["step"] for line in lines(run)]
    assert [(line["epoch"], line["step"]) for line in lines(run)] == [(1, batches), (2, 4)]
    assert record.facts["epochs"] == len(lines(run))
    assert [event.step for event in events.Images("preview")] == [4]


def test_without_it_nothing_is_written(tmp_path: Path) -> None:
    train(tmp_path, tensorboard=False)
    assert not (tmp_path / "tensorboard").exists()


def test_a_package_that_is_missing_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r'^tensorboard=true needs the package tensorboard, .*pip install "flawscope\[tensorboard\]"$'
    with pytest.raises(MissingExtra, match=message), open_workspace(tmp_path / "run", config(), "", "", False):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MissingExtra, match=message):
        train(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_showing_more_or_keeping_more_does_not_hinder_going_on(tmp_path: Path) -> None:
    with pytest.raises(Killed), open_workspace(tmp_path / "run", config(tensorboard=False), "", "", False) as folder:
        train(folder, stop_at=3, tensorboard=False)
    changed = {"tensorboard": importlib.util.find_spec("tensorboard") is not None, "checkpoints_kept": 5}
    with open_workspace(tmp_path / "run", config(**changed), "", "", True) as folder:
        assert (folder / "checkpoints").is_dir()
        run_loop(Falling(), Numbers(4), config(**changed), folder, resume=True, progress=no_progress)
        assert len(list((folder / "checkpoints").iterdir())) == 4
