"""Inputs of reference systems, drawn by the test in the same form: files of settings, and masks of zero and one."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_dataset import CATEGORY, DEFECTS

from flawscope import cli
from flawscope.bundle.region_drawing import drawn_mask
from flawscope.config import build_config, flatten
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.mask_ranges import CategoryRanges
from flawscope.datasets.defects.mask_sets import MaskSettings, write_masks
from flawscope.datasets.defects.random_masks import Sides
from flawscope.datasets.defects.support_set import read_support
from flawscope.imaging.masks import read_mask
from flawscope.runs import read_run_record
from flawscope.runtime.synthesis.sites import Site
from flawscope.training.settings import read_settings
from flawscope.training.synthesis.support_examples import read_support_examples

# As the shipped files of the three methods have them, each with every key.
COMMON = {
    "device": "cpu",
    "seed": 3,
    "batch_size": 1,
    "num_workers": 0,
    "category": CATEGORY,
    "resize": "[64, 64]",
    "data_path": "DATA",
    "save_path": "output/",
    "do_eval": "True",
    "backbone": "resnet18",
    "save_pic": "True",
    "model_path": f"output/resnet18/{CATEGORY}/{CATEGORY}.pdparams",
    "img_path": f"data/{CATEGORY}/test/crack/000.png",
    "threshold": 0.5,
}
OWN = {
    "padim": {"crop_size": "[56, 56]"},
    "patchcore": {"crop_size": "[64, 64]", "method": "coreset", "k": 10},
    "stfpm": {"epochs": 100, "lr": 0.4, "momentum": 0.9, "weight_decay": 0.0001, "compute_pro": "False"},
}


def yml(folder: Path, method: str, data: Path, **changes: object) -> Path:
    """Write the file of a method as QualityInspector ships it."""
    path = folder / f"{method}_resnet18_mvtec.yml"
    lines = {**COMMON, "data_path": data, **OWN[method], **changes}
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


@pytest.mark.parametrize("method", list(OWN))
def test_files_of_quality_inspector_are_taken_as_they_are(
    tmp_path: Path, tiny_root: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings(str(yml(tmp_path, method, tiny_root)))
    settings = {key: value for key, value in settings.items() if key not in ("data_path", "category")}
    flat = flatten(build_config(method, settings)[0])
    assert (flat["num_workers"], flat["batch_size"], flat["seed"], flat["resize"]) == (0, 1, 3, (64, 64))
    expected = {
        "padim": {"crop": (56, 56)},
        "patchcore": {"coreset": 0.1, "crop": None},
        "stfpm": {"epochs": 100, "learning_rate": 0.4, "momentum": 0.9, "weight_decay": 0.0001},
    }[method]
    assert {key: flat[key] for key in expected} == expected
    if method == "stfpm":
        return  # trained for long; what the command makes of a file is the same for all
    # Its backbone would be downloaded: the built in one does as well here.
    typed = ["--config", str(yml(tmp_path, method, tiny_root, backbone="scattering")), "--set", "stages=1,2"]
    own = ["--set", "channels=10"] if method == "padim" else ["--set", "coreset=90"]
    assert cli.run(["train", method, *typed, *own, "--set", "held_out_minimum=5", "--out", str(tmp_path / "run")]) == 0
    assert "note: not used by train: save_path, do_eval, save_pic" in capsys.readouterr().err
    assert read_run_record(tmp_path / "run")[0].category == CATEGORY


# --- masks of zero and one


def shape() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 12:50] = 1
    return mask


@pytest.mark.parametrize("name", ["m.png", "m.bmp", "m.tif", "m16.png", "m16.tif", "m.jpg", "rgb.png", "rgb.bmp"])
def test_a_mask_of_zero_and_one_is_read_in_every_format(tmp_path: Path, name: str) -> None:
    mask = shape()
    stored = mask.astype(np.uint16) if "16" in name else mask
    stored = np.repeat(stored[..., None], 3, axis=2) if "rgb" in name else stored
    assert cv2.imwrite(str(tmp_path / name), stored, [cv2.IMWRITE_JPEG_QUALITY, 100])
    # The compression of JPEG takes a few pixels of the edge away.
    apart = np.count_nonzero(read_mask(tmp_path / name) != (mask > 0))
    assert apart <= (8 if name.endswith(".jpg") else 0)


def test_masks_of_zero_and_one_are_masks_wherever_masks_are_read(tmp_path: Path, tiny_root: Path) -> None:
    """Every place that opens a mask which a user names gets what the same mask of 0 and 255 gives."""
    results = []
    for white in (255, 1):
        root = Path(shutil.copytree(tiny_root, tmp_path / f"data{white}"))
        for path in root.rglob("*_mask.png"):
            grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert cv2.imwrite(str(path), np.where(np.asarray(grey) > 127, white, 0).astype(np.uint8))
        given = tmp_path / f"mask{white}.png"
        assert cv2.imwrite(str(given), shape() * np.uint8(white))
        dataset = open_dataset(root, CATEGORY)
        support = tmp_path / f"support{white}" / CATEGORY
        for source, name in (("test", DEFECTS[1]), ("ground_truth", f"{DEFECTS[1]}_mask")):
            shutil.copytree(root / CATEGORY / source / DEFECTS[1], support / name)
        templates = tmp_path / f"templates{white}"
        templates.mkdir()
        shutil.copyfile(given, templates / f"{CATEGORY}.png")
        ranges = {CATEGORY: CategoryRanges("template", {"dent": Sides((0.1, 0.2), (0.1, 0.2), rotate=True)})}
        masks = write_masks(ranges, tmp_path / f"masks{white}", MaskSettings(number=5, size=64), templates=templates)
        good = dataset.train_good[0].path
        results.append(
            {
                "dataset": [sample.read_mask().tolist() for sample in dataset.test if sample.mask is not None],
                "support": [image.defect_px for image in read_support(support).pictures],
                "examples": [example.mask.tolist() for example in read_support_examples(support).examples],
                "template": [entry.box for entry in masks.masks],
                "region": drawn_mask(given).tolist(),
                "site": Site(CATEGORY, "dent", good, "g", given, "m").read_mask((64, 64)).tolist(),
            }
        )
    assert results[0] == results[1]
    assert all(results[0].values())
