"""Advice: the method and the input that suit a dataset, with reasons; drawn datasets, nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shifted_parts import part_image, texture_image

from flawscope import cli
from flawscope.datasets import open_dataset
from flawscope.datasets.advice import advise
from flawscope.errors import ArgumentError


def write_set(root: Path, *, images: int, side: int = 64, turned: bool = False, thickness: int | None = None) -> Path:
    """Write normal images of one part, and if asked a test image with a defect of some thickness."""
    generator = np.random.default_rng(0)
    base = np.full((side, side), 200, np.uint8)
    cv2.rectangle(base, (side // 3, side // 4), (side // 2, side // 2), 20, -1)
    centre = ((side - 1) / 2, (side - 1) / 2)
    (root / "train" / "good").mkdir(parents=True)
    for number in range(images):
        angle = 360.0 * number / images if turned else 0.0
        matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
        image = cv2.warpAffine(base, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        image = image + generator.integers(0, 20, image.shape, np.uint8)
        cv2.imwrite(str(root / "train" / "good" / f"{number:03d}.png"), image)
    if thickness is not None:
        for folder in (root / "test" / "scratch", root / "ground_truth" / "scratch"):
            folder.mkdir(parents=True)
        mask = np.zeros((side, side), np.uint8)
        mask[10 : 10 + thickness, 5 : side - 5] = 255
        cv2.imwrite(str(root / "test" / "scratch" / "000.png"), base)
        cv2.imwrite(str(root / "ground_truth" / "scratch" / "000_mask.png"), mask)
    return root


def test_a_part_that_turns_asks_for_a_bank_with_a_pretrained_backbone(tmp_path):
    dataset = open_dataset(write_set(tmp_path / "set", images=60, turned=True), None)
    advice = advise(dataset, backbone="resnet18")
    assert advice.pose.kind == "turned"
    assert advice.method == "patchcore"
    assert "turned from image to image" in advice.reasons[0]


def test_few_images_ask_for_a_bank(tmp_path):
    advice = advise(open_dataset(write_set(tmp_path / "set", images=12), None))
    assert advice.pose.kind == "fixed"
    assert advice.method == "patchcore"
    assert "12 images are few" in advice.reasons[0]


def test_a_part_at_one_place_asks_for_gaussians(tmp_path):
    dataset = open_dataset(write_set(tmp_path / "set", images=60), None)
    assert advise(dataset).method == "padim"
    assert any("pretrained backbone" in reason for reason in advise(dataset).reasons)
    assert not any("pretrained backbone" in reason for reason in advise(dataset, backbone="resnet18").reasons)


@settings(max_examples=10, deadline=None)
@given(thickness=st.integers(1, 20), side=st.sampled_from([300, 600, 1500]))
def test_the_input_shows_a_defect_of_any_thickness_in_at_least_four_pixels(tmp_path_factory, thickness, side):
    root = write_set(tmp_path_factory.mktemp("set"), images=3, side=side, thickness=thickness)
    advice = advise(open_dataset(root, None))
    # Of an even thickness the distance to the border is half a pixel more.
    assert advice.defect_px == pytest.approx(thickness, abs=1.0)
    tile, resize = advice.settings.get("tile"), advice.settings.get("resize", [256, 256])
    shown = advice.defect_px * (resize[0] / tile[0] if tile else resize[0] / side)
    # More than the camera sees cannot be shown: there the reason says so.
    if shown < 3.99:
        assert tile == (256, 256) or resize[0] >= side
        assert tile or "closer camera" in advice.size_reason
    else:
        assert tile is None or tile[0] <= side
    asked = advise(open_dataset(root, None), defect_px=advice.defect_px)
    assert asked.settings == advice.settings
    assert "as asked" in asked.size_reason


def test_without_masks_the_input_is_left_alone_unless_asked(tmp_path):
    dataset = open_dataset(write_set(tmp_path / "set", images=3, side=1024), None)
    assert advise(dataset).settings == {}
    assert "tile" in advise(dataset, defect_px=2).settings


@pytest.mark.parametrize("pixels", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_size_that_is_none_is_refused(tmp_path, pixels):
    with pytest.raises(ArgumentError, match="smallest defect: expected 0 to 8192 pixels"):
        advise(open_dataset(write_set(tmp_path / "set", images=3), None), defect_px=pixels)


def test_inspect_prints_and_stores_the_advice(tmp_path, capsys):
    root = write_set(tmp_path / "set", images=4, side=1024)
    assert cli.run(["data", "inspect", str(root), "--smallest-defect", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Advice: patchcore --set tile=256,256" in printed.replace("\n", " ")
    assert cli.run(["data", "inspect", str(root), "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert (advice["method"], advice["settings"], advice["pose"]["kind"]) == ("patchcore", {}, "fixed")


def test_a_broken_image_is_passed_over(tmp_path):
    root = write_set(tmp_path / "set", images=4)
    (root / "train" / "good" / "broken.png").write_bytes(b"no image")
    assert advise(open_dataset(root, None)).pose.images == 4


def write_parts(root: Path, places: list[int]) -> Path:
    (root / "train" / "good").mkdir(parents=True)
    for number, right in enumerate(places):
        cv2.imwrite(str(root / "train" / "good" / f"{number}.png"), part_image(0, right, 0))
    return root


def test_the_shift_of_the_part_is_said_in_pixels(tmp_path, capsys):
    root = write_parts(tmp_path / "set", [-8, -4, -2, 0, 0, 2, 4, 8])
    advice = advise(open_dataset(root, None))
    assert (advice.shifts.images, advice.shifts.told) == (8, 8)
    assert advice.shifts.largest_px == pytest.approx(8, abs=0.5)
    assert advice.shifts.median_px == pytest.approx(3, abs=0.5)
    assert cli.run(["data", "inspect", str(root)]) == 0
    said = f"shifts by {advice.shifts.median_px:.1f} pixels in the middle and {advice.shifts.largest_px:.1f} at most"
    assert said in capsys.readouterr().out.replace("\n", " ")
    assert cli.run(["data", "inspect", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"]["shifts"]["largest_px"] == advice.shifts.largest_px


def test_a_part_that_stands_still_and_a_texture_say_nothing_of_shifts(tmp_path):
    still = advise(open_dataset(write_parts(tmp_path / "still", [0] * 6), None))
    assert still.shifts.largest_px < 1
    assert not any("shifts by" in reason for reason in still.reasons)
    root = tmp_path / "texture" / "train" / "good"
    root.mkdir(parents=True)
    for seed in range(6):
        cv2.imwrite(str(root / f"{seed}.png"), texture_image(seed))
    advice = advise(open_dataset(tmp_path / "texture", None))
    assert advice.shifts is None
    assert not any("shifts by" in reason for reason in advice.reasons)
