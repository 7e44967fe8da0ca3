"""A dataset unlike the images that a bundle learned from is named by calibrate and evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_bundles import write_fake_bundle

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration.evaluation.bundle_scores import unlike_notes
from flawscope.datasets import open_dataset


def test_another_category_and_the_most_frequent_differences_are_named(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "b.flaw", category="screw")
    with open_bundle(tmp_path / "b.flaw") as bundle:
        manifest = bundle.manifest
    assert unlike_notes(manifest, "screw", [(), ()]) == ()
    assert unlike_notes(manifest, "", [()]) == ()
    assert unlike_notes(manifest, "bottle", [("grey",), ("grey",), ()]) == (
        "The dataset is of the category bottle; the bundle learned from screw.",
        "Unlike the images that the bundle learned from: 2 of 3 images: grey.",
    )


def test_calibrate_and_evaluate_say_so(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(padim_bundle, tmp_path / "b.flaw")
    shutil.copytree(open_dataset(tiny_root).root, tmp_path / "other")
    for number, path in enumerate(sorted((tmp_path / "other").rglob("*.png"))):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image.ndim == 3:  # a mask stays, but for its size
            image = (image // 6 + number % 2).astype(np.uint8)
        cv2.imwrite(str(path), image)
    command = [str(tmp_path / "b.flaw"), "--data", str(tmp_path / "other"), "--backend", "cpu"]
    assert cli.run(["calibrate", *command]) == 0
    shown = capsys.readouterr()
    assert "darker than any image learned from" in shown.out + shown.err
    assert cli.run(["evaluate", *command, "--json", str(tmp_path / "e.json")]) == 0
    notes = json.loads((tmp_path / "e.json").read_text())["notes"]
    assert any("images: darker than any image learned from" in note for note in notes)
    assert any(note.startswith("The dataset is of the category other; the bundle learned from ") for note in notes)
