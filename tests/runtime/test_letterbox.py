"""Letterbox: a long image keeps its shape; maps, boxes, figures and pictures are of the image alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration.evaluation.measurements import measure_images
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, BundleError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.tiles import Tiling
from flawscope.progress import no_progress
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector

SIZE = (60, 240)
PLACE = (slice(20, 40), slice(150, 175))


def strip(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    grain = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=size).astype(np.float32), (0, 0), 1.5)
    return np.repeat(np.clip(128 + 60 * grain, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def dented(seed: int) -> np.ndarray:
    image = strip(seed)
    image[PLACE] = image[PLACE] // 2  # faint: the heat of a strong defect reaches far around it
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "rail"
    images = {f"train/good/{index}.png": strip(index) for index in range(12)}
    images |= {f"test/good/{index}.png": strip(50 + index) for index in range(3)}
    images |= {f"test/dent/{index}.png": dented(70 + index) for index in range(3)}
    mask = np.zeros(SIZE, np.uint8)
    mask[PLACE] = 255
    images |= {f"ground_truth/dent/{index}_mask.png": mask for index in range(3)}
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), image)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("letterbox")
    settings = {"resize": 240, "resize_mode": "letterbox", "stages": [1, 2], "sigma": 1.0, "held_out_minimum": 2}
    config = build_config("patchcore", {**settings, "coreset": 400, "neighbors": 1})[0]
    train_detector(config, open_dataset(root), folder / "run")
    export_run(folder / "run", folder / "rail.flaw", max_batch=4)
    assert cli.run(["calibrate", str(folder / "rail.flaw"), "--data", str(root)]) == 0
    return folder / "rail.flaw"


def test_the_map_is_the_part_that_shows_the_image_and_boxes_lie_on_the_defect(bundle: Path, root: Path) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        result = inspector(root / "test" / "dent" / "0.png")
        again = inspector(dented(70), color="bgr")
        other = inspector(strip(90, (240, 60)))  # upright: another place of the same input
    assert result.anomaly_map is not None
    assert result.anomaly_map.shape == (60, 240)
    assert other.anomaly_map is not None
    assert other.anomaly_map.shape == (240, 60)
    assert again.score == result.score
    assert result.decision == "reject"
    box = result.boxes[0]
    assert box.x <= 162 <= box.x + box.width <= 240
    assert box.y <= 30 <= box.y + box.height <= 60
    row, column = np.unravel_index(result.anomaly_map.argmax(), result.anomaly_map.shape)
    assert abs(column - 162) < 24
    assert abs(row - 30) < 24


def test_figures_and_pictures_are_of_the_image_alone(
    bundle: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation.json"
    report = tmp_path / "report"
    command = ["evaluate", str(bundle), "--data", str(root), "--json", str(out), "--report", str(report), "--no-record"]
    assert cli.run(command) == 0
    figures = json.loads(out.read_text())
    assert figures["image_auroc"] == 1.0
    assert figures["pixel_auroc"] > 0.9
    with Inspector.load(bundle, "cpu") as inspector:
        measured = measure_images(inspector, open_dataset(root).test, no_progress)
    # The mask fills as much of the map as of the image: no margin is counted as normal.
    anomalous = measured.masks[measured.labels]
    assert anomalous.mean() == pytest.approx(20 * 25 / (60 * 240), rel=0.15)
    capsys.readouterr()
    assert cli.run(["score", str(bundle), str(root / "test" / "dent"), "--maps", str(tmp_path / "maps")]) == 0
    drawn = cv2.imread(str(tmp_path / "maps" / "0.png"))
    assert drawn.shape == (60, 240, 3)
    # The hot end of the scale lies on the defect, and not where a stretched or shifted map would have it.
    red = drawn[..., 2].astype(int) - drawn[..., 0]
    inside = np.zeros(SIZE, np.bool_)
    inside[PLACE] = True
    assert red[inside].mean() > 80
    assert red[:, :100].mean() < red[inside].mean() / 2


def test_what_does_not_go_with_letterbox_is_refused(bundle: Path) -> None:
    for setting, value in (("tile", 64), ("crop", 32)):
        with pytest.raises(ArgumentError, match=f"{setting}: expected none with .*letterbox"):
            build_config("patchcore", {"resize_mode": "letterbox", "resize": 64, setting: value})
    from flawscope.bundle.cross_checks import check_manifest

    with open_bundle(bundle) as opened:
        changed = msgspec.structs.replace(opened.manifest, tiling=Tiling((64, 64)))
    with pytest.raises(BundleError, match="expected tiles to be stretched, got letterbox"):
        check_manifest(changed, "b.flaw")
