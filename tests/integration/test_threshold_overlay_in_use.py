"""A threshold overlay where decisions are made: `Inspector`, `score`, `evaluate`, `export-triton`."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
from tiny_dataset import CATEGORY, normal_images

from flawscope.bundle import Limits, ThresholdLimits, open_bundle, rewrite_manifest
from flawscope.bundle.file_names import overlay_beside
from flawscope.cli import run
from flawscope.errors import BundleError
from flawscope.runtime import Inspector


@pytest.fixture
def bundle(tmp_path, patchcore_bundle):
    """A bundle that accepts normal images, and whose thresholds may be moved down to 0."""
    path = shutil.copytree(patchcore_bundle, tmp_path / "part.flaw")
    with open_bundle(path) as opened:
        manifest = opened.manifest
    own = manifest.thresholds
    limits = ThresholdLimits(Limits(0.0, own.image.value), Limits(0.0, own.pixel.value))
    thresholds = msgspec.structs.replace(own, limits=limits)
    rewrite_manifest(path, msgspec.structs.replace(manifest, thresholds=thresholds))
    return path


@pytest.fixture
def image(tiny_root):
    return normal_images(tiny_root)[0]


def lower(path, *options, image="0"):
    line = ["bundle", "threshold", str(path), "--image", image, "--why", "all too bright", "--by", "Ada"]
    assert run([*line, *options]) == 0


def test_the_inspector_takes_the_overlay_beside_the_bundle(bundle, image):
    with Inspector.load(bundle, "cpu") as inspector:
        before = inspector(image)
    lower(bundle, "--min-area", "9999")
    with Inspector.load(bundle, "cpu") as inspector:
        after = inspector(image)
    assert (before.decision, before.threshold_revision) == ("accept", 0)
    assert (after.decision, after.threshold_revision, after.threshold, after.boxes) == ("reject", 1, 0.0, ())
    assert after.score == before.score
    with Inspector.load(bundle, "cpu", use_overlay=False) as inspector:
        assert inspector(image).to_json() | {"latency_ms": 0} == before.to_json() | {"latency_ms": 0}


def test_a_line_keeps_its_overlay_elsewhere(bundle, image, tmp_path):
    state = tmp_path / "state" / "one-top.json"
    lower(bundle, "--threshold-overlay", str(state))
    with Inspector.load(bundle, "cpu") as inspector:
        assert inspector(image).decision == "accept"
    with Inspector.load(bundle, "cpu", threshold_overlay=state) as inspector:
        assert inspector(image).decision == "reject"


def test_a_broken_overlay_ends_the_load(bundle, image, capsys):
    overlay_beside(bundle).write_bytes(b"{")
    with pytest.raises(BundleError, match="the threshold overlay is broken"):
        Inspector.load(bundle, "cpu")
    capsys.readouterr()
    assert run(["score", str(bundle), str(image)]) == 2
    printed, errors = capsys.readouterr()
    assert (printed, errors.count("\n")) == ("", 1)
    # Asked for, the bundle's own thresholds count.
    assert run(["score", str(bundle), str(image), "--no-overlay"]) == 0


def test_score_names_the_revision(bundle, image, capsys):
    assert run(["score", str(bundle), str(image), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold_revision"] == 0
    lower(bundle, image="0.5")
    lower(bundle)
    capsys.readouterr()
    run(["score", str(bundle), str(image), "--json"])
    printed, errors = capsys.readouterr()
    assert (json.loads(printed)["threshold_revision"], json.loads(printed)["decision"]) == (2, "reject")
    assert "revision" not in errors
    run(["score", str(bundle), str(image), str(image)])
    printed, errors = capsys.readouterr()
    assert errors.count("revision 2 of ") == 1
    assert "by Ada: all too bright" in errors
    assert "revision" not in printed


def test_evaluate_measures_at_the_thresholds_in_force_and_leaves_the_bundle(bundle, tiny_root, tmp_path, capsys):
    lower(bundle)
    with open_bundle(bundle) as opened:
        digest = opened.manifest.digest
    line = ["evaluate", str(bundle), "--data", str(tiny_root), "--category", CATEGORY, "--json"]
    capsys.readouterr()
    assert run([*line, str(tmp_path / "moved.json")]) == 0
    errors = capsys.readouterr().err
    assert "note: figures are not recorded in the bundle, because it has the threshold overlay " in errors
    assert "note: The thresholds are those of revision 1 of " in errors
    figures = json.loads((tmp_path / "moved.json").read_bytes())
    assert figures["confusion"]["image_threshold"]["value"] == 0
    assert figures["confusion"]["false_reject"]["value"] == 1.0
    # Also with the bundle's own thresholds: a record would change the digest, and the overlay would not hold any more.
    assert run([*line, str(tmp_path / "own.json"), "--no-overlay"]) == 0
    assert json.loads((tmp_path / "own.json").read_bytes())["confusion"]["false_reject"]["value"] < 1.0
    with open_bundle(bundle) as opened:
        assert opened.manifest.digest == digest
    with Inspector.load(bundle, "cpu") as inspector:
        assert inspector.in_force.revision == 1


def test_calibrate_moves_the_overlay_aside(bundle, tiny_root, capsys):
    lower(bundle)
    assert run(["calibrate", str(bundle), "--data", str(tiny_root), "--category", CATEGORY]) == 0
    assert "its threshold overlay no longer holds and was moved to " in capsys.readouterr().err
    with Inspector.load(bundle, "cpu") as inspector:
        assert inspector.in_force.revision == 0


def test_triton_gets_the_thresholds_in_force(bundle, tmp_path):
    lower(bundle, "--min-area", "7")
    assert run(["export-triton", str(bundle), "--out", str(tmp_path / "models")]) == 0
    (record,) = (tmp_path / "models").rglob("flawscope.json")
    written = json.loads(record.read_bytes())
    assert (written["thresholds"]["image"]["value"], written["min_area_px"]) == (0.0, 7)
