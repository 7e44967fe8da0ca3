"""The main job on real images: magnetic tiles with an ImageNet backbone, through the command line.

The data and the weights are not part of the project: FLAWSCOPE_DATA names the folder that holds `magnetic_tile`, and
FLAWSCOPE_WEIGHTS the one that holds the weights; without them `../shared/data` and `../shared/weights` are tried.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from project_paths import DATA, SHARED

from flawscope.cli import run

TILES = DATA / "magnetic_tile"
WEIGHTS = Path(os.environ.get("FLAWSCOPE_WEIGHTS", SHARED / "weights")) / "mobilenetv2_100_imagenet.safetensors"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not TILES.is_dir(), reason="needs the magnetic tile set, see FLAWSCOPE_DATA"),
    pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs MobileNetV2 weights, see FLAWSCOPE_WEIGHTS"),
]

COUNTS = {"train/good": 200, "test/good": 80, "test/blowhole": 25, "test/break": 25, "test/fray": 25}
SETTINGS = ('backbone_options={"pad_type": "same"}', "mean=0.50196078", "std=0.50196078", "held_out=0.3")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the set, every n-th image of a folder."""
    root = tmp_path_factory.mktemp("tiles")
    for name, count in COUNTS.items():
        images = sorted((TILES / name).iterdir())
        (root / name).mkdir(parents=True)
        for image in images[:: max(1, len(images) // count)][:count]:
            shutil.copyfile(image, root / name / image.name)
            mask = TILES / "ground_truth" / Path(name).name / f"{image.stem}_mask.png"
            if mask.is_file():
                target = root / "ground_truth" / Path(name).name / mask.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(mask, target)
    return root


@pytest.mark.parametrize(
    ("method", "least"), [("padim", 0.93), pytest.param("patchcore", 0.88, marks=pytest.mark.slow)]
)
def test_the_main_job_holds_its_promises_on_real_images(
    tiles: Path, tmp_path: Path, method: str, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, figures = str(tmp_path / "tile.flaw"), tmp_path / "figures.json"
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    backbone = ["--backbone", "mobilenetv2_100", "--weights", str(WEIGHTS), "--image-size", "224"]
    out = ["--out", str(tmp_path / "run")]
    assert run(["train", method, "--data", str(tiles), *backbone, *options, *out]) == 0, capsys.readouterr().err
    assert run(["export", str(tmp_path / "run"), "--out", bundle]) == 0, capsys.readouterr().err
    assert run(["calibrate", bundle, "--data", str(tiles), "--false-reject-rate", "0.05"]) == 0
    assert run(["evaluate", bundle, "--data", str(tiles), "--json", str(figures)]) == 0, capsys.readouterr().err
    found = json.loads(figures.read_text())
    assert found["images"] == 155
    assert found["anomalous"] == 75
    assert found["image_auroc"] >= least
    assert found["pixel_auroc"] >= 0.9
    # Sixty held-out images support 5 % at 95 % confidence (59 are needed); the normal test images, on which nothing
    # was chosen, must not contradict that.
    assert found["confusion"]["image_threshold"]["upper_bound"] <= 0.05
    assert found["confusion"]["false_reject"]["n"] == 80
    assert found["confusion"]["false_reject"]["low"] <= 0.05
    assert found["confusion"]["false_reject"]["value"] <= 0.1
