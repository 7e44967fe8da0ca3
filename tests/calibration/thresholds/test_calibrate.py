"""Thresholds of a bundle: which images are used, what is written, what is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import cv2
import pytest
from fake_bundles import FakeInspector, write_image
from tiny_synth_bundle import write_tiny_synth

from flawscope import cli
from flawscope.bundle import open_bundle, pack_bundle
from flawscope.calibration import calibrate_bundle, set_thresholds
from flawscope.calibration.thresholds import calibrate, threshold_record
from flawscope.calibration.thresholds.calibrate import propose_thresholds, write_thresholds
from flawscope.datasets import image_hash, open_dataset
from flawscope.errors import ArgumentError, BundleError, DataError, StorageError


def _manifest(path):
    with open_bundle(path) as bundle:
        return bundle.manifest


def test_only_normal_images_outside_the_bank_set_the_thresholds(make_bundle, dataset):
    path = make_bundle()
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="flawscope calibrate")
    # 20 scores, 50 to 69. The bound for one reject among 20 is 21.6 %, for none 13.9 %.
    assert result.new.image.value == 69.0
    assert result.new.image.images == 20
    assert result.new.image.upper_bound == pytest.approx(1 - 0.05 ** (1 / 20))
    assert result.left_out == (("that the detector has learned", 10),)
    assert result.notes == ()
    assert result.new.pixel.value == 69.0


def test_the_manifest_records_thresholds_and_every_change(make_bundle, dataset):
    path = make_bundle()
    before = _manifest(path)
    calibrate_bundle(path, dataset, false_reject_rate=0.2, min_area_px=9, command="flawscope calibrate one")
    calibrate_bundle(path, dataset, false_reject_rate=0.5, command="flawscope calibrate two")
    manifest = _manifest(path)
    assert manifest.thresholds.image.method == "order-statistic"
    assert manifest.thresholds.image.backend == "cpu"
    assert (manifest.thresholds.image.false_reject_rate, manifest.thresholds.image.confidence) == (0.5, 0.95)
    # The bound for 5 rejects among 20 is 45.6 %, for 6 it is 50.8 %: the sixth largest score is the threshold.
    changes = [(change.name, change.old, change.new, change.command) for change in manifest.threshold_changes]
    assert changes == [
        ("image", None, 69.0, "flawscope calibrate one"),
        ("pixel", None, 69.0, "flawscope calibrate one"),
        ("image", 69.0, 64.0, "flawscope calibrate two"),
        ("pixel", 69.0, 64.0, "flawscope calibrate two"),
    ]
    assert manifest.threshold_changes[0].when.endswith("+00:00")
    assert manifest.min_area_px == 9
    assert manifest.files == before.files


def test_a_packed_bundle_is_calibrated_in_place(make_bundle, dataset, tmp_path):
    packed = tmp_path / "packed.flaw"
    with open_bundle(make_bundle()) as bundle:
        pack_bundle(bundle, packed)
    calibrate_bundle(packed, dataset, false_reject_rate=0.2, command="c")
    assert packed.is_file()
    assert _manifest(packed).thresholds.image.value == 69.0


def test_too_few_images_for_the_claim_are_said_with_what_they_support(make_bundle, dataset):
    result = calibrate_bundle(make_bundle(), dataset, command="c")
    assert result.images_needed == 299
    assert result.new.image.value == 69.0
    assert "20 support a false-reject rate of at most 13.91%" in result.notes[0]
    assert "which needs 299" in result.notes[0]


def test_copies_of_an_image_count_once(make_bundle, dataset):
    original = dataset.train_good[-1].path
    shutil.copy(original, original.with_name("copy.png"))
    result = calibrate_bundle(make_bundle(), open_dataset(dataset.root), false_reject_rate=0.2, command="c")
    assert result.new.image.images == 20
    assert ("copies of another image: they are not independent", 1) in result.left_out


def test_copies_in_other_bytes_are_known_whether_hashes_are_of_files_or_of_pixels(make_bundle, dataset):
    pixels = [image_hash(sample.path) for sample in dataset.train_good]
    for sample in dataset.train_good:
        cv2.imwrite(str(sample.path.with_suffix(".tiff")), cv2.imread(str(sample.path)))
    again = open_dataset(dataset.root)
    for options in ({}, {"training": pixels[:10], "held_out": pixels[10:]}):
        result = calibrate_bundle(make_bundle(**options), again, false_reject_rate=0.2, command="c")
        assert result.new.image.images == 20
        assert dict(result.left_out) == {
            "that the detector has learned": 20,
            "copies of another image: they are not independent": 20,
        }


def test_another_set_is_used_whole(make_bundle, tmp_path):
    path = make_bundle()
    for value in range(100, 120):
        write_image(tmp_path / f"other/train/good/{value}.png", value)
    result = calibrate_bundle(path, open_dataset(tmp_path / "other"), false_reject_rate=0.2, command="c")
    assert (result.new.image.images, result.new.image.value, result.left_out) == (20, 119.0, ())


def test_a_bundle_that_knows_all_images_is_refused(make_bundle, dataset):
    from flawscope.datasets import content_hash

    path = make_bundle(training=[content_hash(sample.path) for sample in dataset.train_good])
    with pytest.raises(DataError, match="expected normal images that the detector has not learned from, got none"):
        calibrate_bundle(path, dataset, command="c")
    assert _manifest(path).thresholds is None


def test_an_image_that_cannot_be_scored_stops_the_calibration(make_bundle, dataset):
    broken = dataset.train_good[-1].path
    broken.write_bytes(broken.read_bytes()[:60])
    path = make_bundle()
    with pytest.raises(DataError, match=r"got 1 of 20 that could not be: .*69\.png"):
        calibrate_bundle(path, dataset, command="c")
    assert _manifest(path).thresholds is None


def test_a_map_with_nan_stops_the_calibration(make_bundle, tmp_path, nan_rule):
    path = make_bundle(rule=nan_rule)
    for value in (100, 110):
        write_image(tmp_path / f"other/train/good/{value}.png", value)
    with pytest.raises(DataError, match=r"got 1 of 2 that could not be: .*110\.png \(inference gave NaN"):
        calibrate_bundle(path, open_dataset(tmp_path / "other"), command="c")


def test_the_highest_scores_are_named(make_bundle, dataset, capsys):
    path = make_bundle()
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c")
    assert [(image.name, score) for image, score in result.highest] == [(f"{v}.png", v) for v in range(69, 64, -1)]
    assert cli.run(["calibrate", str(path), "--data", str(dataset.root)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"highest scores of normal images: \S*69\.png 69, \S*68\.png 68, ", out)
    assert "stands far above" not in err
    # Anomalous test images are no surprise: those of the objective f1 are the normal ones too.
    labelled = calibrate_bundle(path, dataset, objective="f1", command="c")
    assert {image.parent.name for image, _ in labelled.highest} == {"good"}


def test_a_mislabelled_defect_is_warned_of(make_bundle, dataset, capsys):
    write_image(dataset.root / "train/good/odd.png", 60, 250)
    assert cli.run(["calibrate", str(make_bundle()), "--data", str(dataset.root)]) == 0
    err = capsys.readouterr().err
    assert re.search(r"The score of \S*odd\.png \(250\) stands far above the rest, whose highest is 69:", err)


@pytest.mark.parametrize(("old", "is_said"), [(34.0, True), (35.0, False), (-1.0, False), (100.0, False)])
def test_a_threshold_that_more_than_doubles_is_warned_of(make_bundle, dataset, old, is_said):
    path = make_bundle()
    set_thresholds(path, old, old, None, command="by hand")
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="flawscope calibrate")
    said = "The image threshold rose from 34 to 69, to the 2.0-fold: these normal images are unlike those that set"
    assert [note.startswith(said) for note in result.notes] == [True] * is_said


def test_an_image_of_which_the_map_alone_is_odd_is_warned_of(make_bundle, dataset, monkeypatch):
    class Capped(FakeInspector):
        def stream(self, sources, batch=1):
            for result in super().stream(sources, batch):
                yield dataclasses.replace(result, score=min(result.score, 70.0))

    path = make_bundle()
    monkeypatch.setattr(calibrate, "load_inspector", Capped.loader())
    write_image(dataset.root / "train/good/odd.png", 60, 250)
    [note, *_] = calibrate_bundle(path, open_dataset(dataset.root), command="c").notes
    assert re.match(r"The largest value of the anomaly map of \S*odd\.png \(250\) stands far above the rest", note)


def test_f1_uses_labelled_images_only_when_asked_and_says_so(make_bundle, dataset):
    path = make_bundle()
    result = calibrate_bundle(path, dataset, false_reject_rate=0.3, objective="f1", command="c")
    # Good test scores 71 to 80, spots 100 to 107, dull ones 36 to 39 that no threshold separates.
    assert result.new.image.method == "f1"
    assert result.new.image.value == 90.0
    assert result.new.image.upper_bound is None
    assert "optimistic" in result.notes[0]
    # The pixel threshold never sees a defect: it comes from the 10 normal test images.
    assert (result.new.pixel.method, result.new.pixel.images, result.new.pixel.value) == ("order-statistic", 10, 80.0)


def test_f1_without_anomalous_images_is_refused(make_bundle, tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / f"other/{split}/good/1.png", 90 + len(split))
    with pytest.raises(DataError, match="expected normal and anomalous test images"):
        calibrate_bundle(make_bundle(), open_dataset(tmp_path / "other"), objective="f1", command="c")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"false_reject_rate": 5.0}, "false-reject rate: expected a fraction"),
        ({"confidence": 95.0}, "confidence: expected a fraction"),
        ({"min_area_px": 0}, "smallest area: expected at least 1 pixel"),
    ],
)
def test_impossible_requests_are_refused(make_bundle, dataset, options, match):
    with pytest.raises(ArgumentError, match=match):
        calibrate_bundle(make_bundle(), dataset, command="c", **options)


def test_thresholds_set_by_hand_are_recorded_and_keep_the_other_one(make_bundle):
    path = make_bundle()
    set_thresholds(path, 1.5, 2.5, None, command="first")
    set_thresholds(path, 1.75, None, 7, command="second")
    manifest = _manifest(path)
    assert (manifest.thresholds.image.value, manifest.thresholds.pixel.value, manifest.min_area_px) == (1.75, 2.5, 7)
    assert manifest.thresholds.image.method == "manual"
    assert [(c.name, c.old, c.new, c.command) for c in manifest.threshold_changes] == [
        ("image", None, 1.5, "first"),
        ("pixel", None, 2.5, "first"),
        ("image", 1.5, 1.75, "second"),
    ]


def test_one_threshold_by_hand_is_not_enough_for_a_bundle_without_any(make_bundle):
    with pytest.raises(ArgumentError, match="expected both --image-threshold and --pixel-threshold"):
        set_thresholds(make_bundle(), 1.5, None, None, command="c")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_threshold_by_hand_must_be_finite(make_bundle, value):
    with pytest.raises(ArgumentError, match="image threshold: expected a finite number"):
        set_thresholds(make_bundle(), value, 1.0, None, command="c")


def test_a_broken_record_of_training_images_is_refused(make_bundle, dataset):
    from flawscope.bundle import write_bundle

    path = make_bundle()
    manifest = _manifest(path)
    write_bundle(
        path, manifest, {"score.onnx": b"graph", "bank.safetensors": b"bank", "images.json": b"{}"}, overwrite=True
    )
    with pytest.raises(BundleError, match="expected the hashes of training and held-out images"):
        calibrate_bundle(path, dataset, command="c")


def test_command_prints_threshold_bound_and_need(make_bundle, dataset, capsys):
    path = make_bundle()
    assert cli.run(["calibrate", str(path), "--data", str(dataset.root), "--false-reject-rate", "0.01"]) == 0
    out, err = capsys.readouterr()
    assert "299" in out
    assert "left out: 10 that the detector has learned" in out
    assert "With 95% confidence at most 13.91% of good parts like these are rejected (n = 20" in " ".join(out.split())
    assert "Too few normal images" in err


def test_command_sets_thresholds_by_hand_without_data(make_bundle, capsys):
    path = make_bundle()
    assert cli.run(["calibrate", str(path), "--image-threshold", "3", "--pixel-threshold", "4"]) == 0
    assert "have no bound on false rejects" in capsys.readouterr().err
    assert _manifest(path).thresholds.pixel.value == 4.0


def test_command_changes_the_smallest_area_alone(make_bundle, capsys):
    path = make_bundle(threshold=75.0)
    assert cli.run(["calibrate", str(path), "--min-area", "11"]) == 0
    out, err = capsys.readouterr()
    assert "smallest region that gets a box: 11 pixels" in out
    assert "With 95%" not in out
    assert err == ""
    assert _manifest(path).min_area_px == 11
    assert _manifest(path).threshold_changes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected --data ROOT, or --image-threshold X and --pixel-threshold Y"),
        (["--data", "x", "--image-threshold", "1"], "exclude each other"),
        (["--data", "missing-folder"], "expected a dataset's folder"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(make_bundle, capsys, arguments, message):
    assert cli.run(["calibrate", str(make_bundle()), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_bundle_that_draws_gets_no_thresholds(tmp_path):
    write_tiny_synth(tmp_path / "drawer.flaw")
    before = (tmp_path / "drawer.flaw" / "manifest.json").read_bytes()
    with pytest.raises(ArgumentError, match="expected a bundle that scores, got one that draws defects"):
        set_thresholds(tmp_path / "drawer.flaw", 1.0, 2.0, None, command="test")
    assert (tmp_path / "drawer.flaw" / "manifest.json").read_bytes() == before


# --- other writers, and bundles that cannot be written


def test_thresholds_that_others_set_meanwhile_are_recorded_as_those_in_force(make_bundle, dataset):
    path = make_bundle(threshold=10.0)
    proposal = propose_thresholds(path, dataset, false_reject_rate=0.2)
    set_thresholds(path, 20.0, 30.0, 7, command="meanwhile")
    result = write_thresholds(proposal, command="flawscope calibrate")
    assert result.old is not None
    assert (result.old.image.value, result.old.pixel.value, result.min_area_px) == (20.0, 30.0, 7)
    with open_bundle(path) as bundle:
        changes = bundle.manifest.threshold_changes
        assert bundle.manifest.thresholds == result.new
    assert [(c.name, c.old, c.command) for c in changes] == [
        ("image", 10.0, "meanwhile"),
        ("pixel", 10.0, "meanwhile"),
        ("image", 20.0, "flawscope calibrate"),
        ("pixel", 30.0, "flawscope calibrate"),
    ]


def test_a_bundle_exported_meanwhile_gets_no_thresholds(make_bundle, dataset):
    path = make_bundle()
    proposal = propose_thresholds(path, dataset, false_reject_rate=0.2)
    make_bundle(training=[])
    with pytest.raises(BundleError, match=r"got the other model \w+… that was written meanwhile"):
        write_thresholds(proposal, command="c")
    with open_bundle(path) as bundle:
        assert bundle.manifest.thresholds is None


def test_thresholds_that_cannot_be_written_are_printed_all_the_same(make_bundle, dataset, capsys, monkeypatch):
    path = make_bundle()

    def full(*_, **__):
        raise StorageError("part.flaw: could not be written: the disk is full.")

    monkeypatch.setattr(threshold_record, "change_bundle", full)
    assert cli.run(["calibrate", str(path), "--data", str(dataset.root), "--false-reject-rate", "0.2"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("computed, but not written:")
    assert "With 95% confidence at most" in out
    assert err.splitlines()[-1] == "error: part.flaw: could not be written: the disk is full."


def test_a_bundle_that_cannot_be_written_is_said_before_images_are_scored(make_bundle, dataset, monkeypatch):
    path = make_bundle()
    monkeypatch.setattr(calibrate, "load_inspector", lambda *_, **__: pytest.fail("scored in vain"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match=r"part.flaw: could not be written: Permission denied"):
        calibrate_bundle(path, dataset, command="c")
