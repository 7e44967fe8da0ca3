"""`calibrate` and `evaluate` of a bundle with zones, on images whose map is their brightness."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from tiny_bundle import SIDE, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import change_bundle, make_region, make_zones, open_bundle
from flawscope.calibration.thresholds.joint_thresholds import joint_thresholds

LEFT = np.zeros((SIDE, SIDE), np.bool_)
LEFT[:, :8] = True
ZONES = make_zones({"left": LEFT}, None, None)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """60 normal images, darker on the left than on the right; test: normal ones, and defects on either side."""
    generator, root = np.random.default_rng(5), tmp_path / "set"

    def normal() -> np.ndarray:
        image = generator.integers(40, 120, (SIDE, SIDE), np.uint8)
        image[:, 8:] = generator.integers(40, 200, (SIDE, 8), np.uint8)
        return image

    for index in range(60):
        write(root / f"train/good/{index}.png", normal())
    for index in range(12):
        write(root / f"test/good/{index}.png", normal())
        for side, column, value in (("left", 2, 150), ("right", 11, 230)):
            image, mask = normal(), np.zeros((SIDE, SIDE), np.uint8)
            image[4:8, column : column + 3], mask[4:8, column : column + 3] = value, 255
            write(root / f"test/{side}/{index}.png", image)
            write(root / f"ground_truth/{side}/{index}_mask.png", mask)
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw", zones=ZONES)
    return tmp_path / "t.flaw"


def brightness(folder: Path) -> np.ndarray:
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*.png"))])


def test_both_zones_get_the_joint_thresholds_of_the_same_images(bundle, root, capsys):
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    said = capsys.readouterr()
    images = brightness(root / "train/good")
    # In the order of the dataset, which does not matter but for ties.
    scores = np.stack([images[:, LEFT].max(axis=1), images[:, ~LEFT].max(axis=1)], axis=1).astype(np.float64)
    expected = joint_thresholds(scores, 0.1, 0.95)
    with open_bundle(bundle) as opened:
        thresholds, changes = opened.manifest.thresholds, opened.manifest.threshold_changes
    assert [own.image.value for own in thresholds.of_zones] == [own.pixel.value for own in thresholds.of_zones]
    assert [own.image.value for own in thresholds.of_zones] == expected.values.tolist()
    assert thresholds.image.value == 0.0
    assert thresholds.pixel.value == expected.values.max()
    assert thresholds.limits is None
    assert {own.image.upper_bound for own in thresholds.of_zones} == {expected.whole.upper_bound}
    assert thresholds.image.upper_bound == expected.whole.upper_bound
    assert {change.what for change in changes} == {
        f"{kind} of zone {z}" for kind in ("image", "pixel") for z in ("left", "rest")
    }
    assert "Expect up to" in said.out
    assert f"at most {expected.whole.upper_bound:.2%} of good parts" in said.out
    assert "its 2 zones share the rate, so that 10.00% at 95% confidence needs 46 normal images" in said.err
    # The same thresholds again are no change.
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    with open_bundle(bundle) as opened:
        assert len(opened.manifest.threshold_changes) == len(changes)


def test_too_few_images_say_how_many_all_zones_need(bundle, root, capsys):
    assert cli.run(["calibrate", str(bundle), "--data", str(root)]) == 0
    said = capsys.readouterr()
    # 473 for two zones at 1 % and 95 %, of which 60 are there.
    assert "until you add 413 images and calibrate again." in said.out
    assert "needs 473. The largest score of a normal image was taken in each zone." in said.err
    capsys.readouterr()
    assert cli.run(["evaluate", str(bundle), "--data", str(root), "--no-record"]) == 0
    assert "until you add 413 images and calibrate again." in capsys.readouterr().err


def test_a_zone_is_set_by_hand_and_the_bound_goes(bundle, root, capsys):
    change = ["calibrate", str(bundle), "--zone", "left", "--image-threshold", "145"]
    assert cli.run(change) == 2
    assert "Calibrate it with --data first" in capsys.readouterr().err
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    with open_bundle(bundle) as opened:
        before = opened.manifest.thresholds
    capsys.readouterr()
    assert cli.run(change) == 0
    assert "have no bound" in capsys.readouterr().err
    with open_bundle(bundle) as opened:
        after, changes = opened.manifest.thresholds, opened.manifest.threshold_changes
    left, rest = after.of_zones
    assert (left.image.value, left.image.method) == (145.0, "manual")
    assert (left.pixel, rest) == (before.of_zones[0].pixel, before.of_zones[1])
    assert after.image.upper_bound is None
    assert (changes[-1].what, changes[-1].new) == ("image of zone left", 145.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-threshold", "1"], "expected --zone with a zone of the bundle (left, rest), got none"),
        (["--zone", "nose", "--image-threshold", "1"], "(left, rest), got 'nose'"),
        (["--zone", "left", "--data", "{root}"], "--zone goes with --image-threshold"),
        (["--zone", "left", "--image-threshold", "nan"], "expected a finite number"),
        (["--data", "{root}", "--objective", "f1"], "expected the objective good, since the bundle has zones"),
        (["--data", "{root}", "--image-limits", "1", "2"], "expected no limits of threshold overlays"),
        (["--zone", "left", "--image-threshold", "1", "--pixel-limits", "1", "2"], "expected no limits"),
    ],
)
def test_what_zones_cannot_have_is_refused_in_a_line(bundle, root, capsys, arguments, message):
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run(["calibrate", str(bundle), *(text.format(root=root) for text in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert (bundle / "manifest.json").read_bytes() == before


def test_overlays_and_zones_of_bundles_without_any_are_refused(tmp_path, bundle, root, capsys):
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    assert cli.run(["bundle", "threshold", str(bundle), "--image", "3", "--why", "x"]) == 2
    assert "expected a bundle without zones" in capsys.readouterr().err
    write_tiny_bundle(tmp_path / "plain.flaw")
    assert cli.run(["calibrate", str(tmp_path / "plain.flaw"), "--zone", "a", "--image-threshold", "1"]) == 2
    assert "expected no zone, since the bundle has none, got 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("has_region", [False, True])
def test_the_evaluation_judges_by_the_thresholds_of_the_zones(tmp_path, root, capsys, has_region):
    """A defect on the left is darker than normal pixels on the right: one threshold could not find both."""
    region = None
    if has_region:
        inside = np.ones((SIDE, SIDE), np.bool_)
        inside[0] = False
        region = make_region(inside)
    write_tiny_bundle(tmp_path / "t.flaw", zones=ZONES, region=region)
    bundle, out = str(tmp_path / "t.flaw"), tmp_path / "f.json"
    evaluate = ["evaluate", bundle, "--data", str(root), "--json", str(out), "--overwrite"]
    # Before thresholds images are ranked by the highest score, which says nothing of the left.
    assert cli.run([*evaluate, "--no-record"]) == 0
    assert 0.4 < json.loads(out.read_text())["image_auroc"] < 0.9
    assert "zones" not in json.loads(out.read_text())
    assert cli.run(["calibrate", bundle, "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    assert cli.run([*evaluate, "--report", str(tmp_path / "report")]) == 0
    figures = json.loads(out.read_text())
    assert figures["image_auroc"] == 1.0
    assert figures["confusion"]["anomalous"] == {"n": 24, "accept": 0, "reject": 24, "fault": 0}
    with open_bundle(tmp_path / "t.flaw") as opened:
        values = np.where(LEFT, *(own.pixel.value for own in opened.manifest.thresholds.of_zones))
        assert opened.manifest.evidence.accuracy[-1].figures["image_auroc"] == 1.0
    # Against plain NumPy: images, zones and pixels.
    normal = brightness(root / "test/good")
    inside = np.ones((SIDE, SIDE), np.bool_) if region is None else inside
    wrong = ((normal > values) & inside).any(axis=(1, 2))
    assert figures["confusion"]["good"]["reject"] == wrong.sum()
    for row, mask in zip(figures["zones"], (LEFT, ~LEFT), strict=True):
        assert row["false_reject"]["count"] == ((normal > values) & inside & mask).any(axis=(1, 2)).sum()
        assert row["detection"]["count"] == 12 + sum(
            ((brightness(root / "test" / side) > values) & inside & mask).any(axis=(1, 2)).sum()
            for side in (("right",) if mask[0, 0] else ("left",))
        )
    true = false = 0
    for folder in ("good", "left", "right"):
        called = (brightness(root / "test" / folder) > values) & inside
        masks = np.zeros_like(called) if folder == "good" else brightness(root / "ground_truth" / folder) > 0
        true, false = true + (called & masks).sum(), false + (called & ~masks).sum()
    assert figures["pixel_recall"] == pytest.approx(true / (24 * 12))
    assert figures["pixel_f1"] == pytest.approx(2 * true / (2 * true + false + 24 * 12 - true))
    assert any("images are ranked (AUROC, AP, F1) by the largest score minus threshold" in n for n in figures["notes"])
    assert "image score, left" in (tmp_path / "report/report.html").read_text()
    assert "defective rejected" in capsys.readouterr().out


def test_drawing_zones_again_removes_thresholds_and_accuracy(tmp_path, bundle, root):
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    assert cli.run(["evaluate", str(bundle), "--data", str(root)]) == 0
    photo = str(root / "train/good/0.png")
    assert cli.run(["bundle", "region", str(bundle), "--on", photo, "--zone", "a", "0,0 5,0 5,5 0,5"]) == 0
    with open_bundle(bundle) as opened:
        assert opened.manifest.thresholds is None
        assert opened.manifest.evidence.accuracy == ()
        assert opened.manifest.drawn_zones.names == ("a", "rest")


def test_scores_minus_thresholds_have_no_relative_drift_and_other_thresholds_are_said(tmp_path, bundle, root):
    out, earlier = tmp_path / "f.json", tmp_path / "earlier.json"
    evaluate = ["evaluate", str(bundle), "--data", str(root), "--no-record", "--json"]
    assert cli.run(["calibrate", str(bundle), "--data", str(root), "--false-reject-rate", "0.1"]) == 0
    assert cli.run([*evaluate, str(earlier)]) == 0
    assert cli.run([*evaluate, str(out), "--against", str(earlier)]) == 0
    (drift,) = json.loads(out.read_text())["drift"]
    assert drift["paired"]["largest_relative"] is None
    assert drift["paired"]["rank_correlation"] == pytest.approx(1.0)
    assert not any("zones or products" in note for note in drift["notes"])
    assert cli.run(["calibrate", str(bundle), "--zone", "left", "--image-threshold", "100"]) == 0
    assert cli.run([*evaluate, str(out), "--against", str(earlier), "--overwrite"]) == 0
    (drift,) = json.loads(out.read_text())["drift"]
    assert any("thresholds of zones or products were others there" in note for note in drift["notes"])


def test_recorded_figures_at_other_thresholds_of_zones_are_no_drift_of_the_machine(tmp_path, bundle, root):
    """The image threshold of zones is always 0: theirs are compared, or ranks by them would look like drift."""
    out = tmp_path / "figures.json"
    evaluate = ["evaluate", str(bundle), "--data", str(root), "--json", str(out), "--overwrite"]
    assert cli.run(["calibrate", str(bundle), "--data", str(root)]) == 0
    assert cli.run(evaluate) == 0
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        (row,) = manifest.evidence.accuracy
        expected = {f"image_threshold of {own.name}": own.image.value for own in opened.manifest.thresholds.of_zones}
    assert {name: value for name, value in row.figures.items() if " of " in name} == expected
    elsewhere = (msgspec.structs.replace(row, backend="cuda"),)
    evidence = msgspec.structs.replace(manifest.evidence, accuracy=elsewhere)
    change_bundle(bundle, manifest, lambda now: msgspec.structs.replace(now, evidence=evidence))
    assert cli.run([*evaluate, "--no-record"]) == 0
    (drift,) = json.loads(out.read_text())["drift"]
    assert drift["figures"]["image_auroc"]["change"] == pytest.approx(0.0, abs=1e-9)
    assert not any("zones or products" in note for note in drift["notes"])
    assert cli.run(["calibrate", str(bundle), "--zone", "left", "--image-threshold", "20"]) == 0
    assert cli.run([*evaluate, "--no-record"]) == 0
    (drift,) = json.loads(out.read_text())["drift"]
    assert drift["figures"]["image_auroc"]["change"] < -0.1
    assert any("thresholds of zones or products were others there" in note for note in drift["notes"])
    assert not any("goal" in note for note in drift["notes"])
