"""Evaluating a bundle: figures, decisions, faults, evidence and the JSON that scripts rely on."""

from __future__ import annotations

import builtins
import importlib
import re
import shutil
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundles import write_image, write_mask

from flawscope import cli
from flawscope import scratch as scratch_files
from flawscope.bundle import open_bundle
from flawscope.calibration import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.evaluation_notes import inspection_notes
from flawscope.datasets import Problem, content_hash, image_hash, inspect_dataset, open_dataset
from flawscope.errors import BundleError, DataError, ImageError, MissingExtra
from flawscope.imaging.tiles import Tiling

MASKS = ("inverted_mask", "mask_size", "mask_of_classes")


def _evaluation(path, dataset, **options):
    return evaluate_bundle(path, dataset, command="flawscope evaluate", resamples=100, **options)


def _evaluate(path, dataset, **options):
    return _evaluation(path, dataset, **options).figures


def test_figures_of_a_set_that_can_be_counted_by_hand(make_bundle, dataset):
    figures = _evaluate(make_bundle(threshold=75.0), dataset)
    # Good 71 to 80, spots 100 to 107 all above them, dull 36 to 39 all below.
    assert (figures.images, figures.anomalous) == (22, 12)
    assert figures.image_auroc == pytest.approx(8 / 12)
    assert figures.image_f1_max == pytest.approx(2 * 8 / (8 + 12))
    assert figures.f1_threshold == 90.0
    assert figures.latency_ms.p50 == figures.latency_ms.p99 == 2.0
    assert (figures.backend, figures.precision) == ("cpu", "fp32")


def test_pixel_figures_leave_out_defects_without_masks_and_count_them(make_bundle, dataset):
    figures = _evaluate(make_bundle(), dataset)
    # Every masked pixel is brighter than every other one of the good and the spot images.
    assert figures.pixel_auroc == figures.pixel_ap == 1.0
    assert figures.aupro == pytest.approx(1.0)
    assert figures.without_mask == 4
    assert any("4 anomalous images have no usable mask" in note for note in figures.notes)


def test_a_set_without_masks_has_no_pixel_figures(make_bundle, dataset):
    for mask in dataset.root.glob("ground_truth/*/*.png"):
        mask.unlink()
    figures = _evaluate(make_bundle(), open_dataset(dataset.root))
    assert figures.pixel_auroc is figures.pixel_ap is figures.aupro is None
    assert figures.image_auroc is not None
    assert figures.without_mask == 12


def test_a_mask_that_vanishes_at_the_models_size_is_counted(make_bundle, dataset):
    mask = np.zeros((320, 320), np.uint8)
    mask[0, 0] = 255

    cv2.imwrite(str(dataset.root / "ground_truth/spot/0_mask.png"), mask)
    figures = _evaluate(make_bundle(), dataset)
    assert (figures.without_mask, figures.masks_lost) == (5, 1)


def test_decisions_and_their_limits(make_bundle, dataset):
    confusion = _evaluate(make_bundle(threshold=75.0), dataset).confusion
    assert (confusion.good.accept, confusion.good.reject, confusion.good.fault) == (5, 5, 0)
    assert (confusion.anomalous.accept, confusion.anomalous.reject) == (4, 8)
    assert (confusion.miss.count, confusion.miss.n) == (4, 12)
    assert confusion.false_reject.low < 0.5 < confusion.false_reject.upper < confusion.false_reject.high


def test_pixel_figures_at_the_threshold_count_the_pixels_of_all_images(make_bundle, dataset):
    figures = _evaluate(make_bundle(threshold=102.5), dataset)
    # Spots of 64 pixels are 100 to 107 bright, in 8 images; nothing else is above 102.5.
    assert figures.pixel_recall == pytest.approx(5 / 8)
    assert figures.pixel_f1 == pytest.approx(2 * 5 / (2 * 5 + 3))
    assert figures.intervals["pixel_recall"].low < 5 / 8 < figures.intervals["pixel_recall"].high
    without = _evaluate(make_bundle(), dataset)
    assert without.pixel_recall is without.pixel_f1 is None
    assert "pixel_f1" not in without.intervals


def test_a_strict_limit_of_false_pixels_has_its_own_figure(make_bundle, dataset):
    perfect = _evaluate(make_bundle(), dataset)
    assert perfect.aupro_05 == pytest.approx(1.0)

    def below(image):
        # A false pixel in a hundred outside the spots is brighter than they are.
        brightness = image.mean(axis=2, dtype=np.float32)
        brightness[0, :10] = 255
        return brightness

    lower = _evaluate(make_bundle(rule=below), dataset)
    # The spots are covered from a false-positive rate of 10 / 1024 (a little more, since spots are no false pixels).
    assert lower.aupro_05 == pytest.approx(1 - 0.01 / 0.05, abs=0.01)
    assert lower.aupro == pytest.approx(1 - 0.01 / 0.3, abs=0.01)


def test_each_defect_type_stands_against_all_normal_images(make_bundle, dataset):
    dull, spot = _evaluate(make_bundle(threshold=75.0), dataset).defects
    assert (dull.defect, dull.image_auroc, dull.detection.value, dull.pixel_auroc) == ("dull", 0.0, 0.0, None)
    assert (spot.defect, spot.image_auroc, spot.detection.count, spot.pixel_auroc) == ("spot", 1.0, 8, 1.0)


def test_a_fault_is_never_an_accept_and_is_left_out_of_the_ranking(make_bundle, dataset, nan_rule):
    broken = dataset.root / "test/good/0.png"
    broken.write_bytes(b"no picture")
    figures = _evaluate(make_bundle(threshold=85.0, rule=nan_rule), dataset)
    assert len(figures.faults) == 4
    assert (figures.confusion.good.accept, figures.confusion.good.fault) == (9, 1)
    assert figures.confusion.false_reject.count == 1
    assert (figures.confusion.anomalous.fault, figures.confusion.miss.count) == (3, 4)
    # 9 normal images, 5 spots above them, 4 dull ones below.
    assert figures.image_auroc == pytest.approx(5 / 9)
    assert figures.images == 22
    assert figures.notes[0].startswith("4 of 22 images could not be scored. They count as not accepted")


def test_a_bundle_without_thresholds_is_ranked_but_not_judged(make_bundle, dataset):
    figures = _evaluate(make_bundle(), dataset)
    assert figures.confusion is None
    assert figures.faults == ()
    assert figures.image_auroc is not None
    assert any("no thresholds" in note for note in figures.notes)


@pytest.mark.parametrize("kind", [content_hash, image_hash])
def test_test_images_that_were_trained_on_are_reported(make_bundle, dataset, kind):
    path = make_bundle(training=[kind(dataset.root / "test/good/3.png")])
    assert any("1 test images were also used to train" in note for note in _evaluate(path, dataset).notes)


def test_thresholds_from_labels_or_another_backend_are_reported(make_bundle, dataset):
    notes = _evaluate(make_bundle(threshold=75.0, method="f1"), dataset).notes
    assert any("chosen on labelled images" in note for note in notes)


def test_one_kind_of_image_has_no_ranking(make_bundle, tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / f"other/{split}/good/1.png", 90 + len(split))
    figures = _evaluate(make_bundle(threshold=75.0), open_dataset(tmp_path / "other"))
    assert figures.image_auroc is figures.image_ap is figures.image_f1_max is None
    assert figures.confusion.miss.value is None
    assert any("Only one kind of image" in note for note in figures.notes)


def _normal(root, *values, folder=""):
    for value in values:
        write_image(root / folder / f"{value}.png", value)
    return open_dataset(root)


@pytest.mark.parametrize("folder", ["", "good"])
def test_normal_images_in_a_folder_are_tested_without_those_that_were_learned(make_bundle, tmp_path, folder):
    # 45 was learned and 55 was held out for the thresholds; both are known by their content, wherever they lie.
    dataset = _normal(tmp_path / "new", 45, 55, 71, 72, 90, folder=folder)
    assert not dataset.test
    figures = _evaluate(make_bundle(threshold=75.0), dataset)
    assert (figures.images, figures.anomalous) == (3, 0)
    assert (figures.confusion.good.accept, figures.confusion.good.reject) == (2, 1)
    (note,) = (note for note in figures.notes if "set apart for the test" in note)
    assert "without 2 that the bundle was made with" in note
    assert [Path(row.image).name for row in figures.per_image] == ["71.png", "72.png", "90.png"]
    whole = _evaluate(make_bundle(threshold=75.0), _normal(tmp_path / "whole", 71, 72, folder=folder))
    assert whole.images == 2
    assert not any("was made with" in note for note in whole.notes)


def test_normal_images_that_were_all_learned_are_refused(make_bundle, tmp_path):
    dataset = _normal(tmp_path / "old", 45, 55)
    with pytest.raises(DataError, match="expected images that the bundle was made without, got none among 2"):
        _evaluate(make_bundle(threshold=75.0), dataset)


def test_what_is_undefined_has_no_row_in_the_terminal(make_bundle, dataset, tmp_path, capsys):
    bundle = make_bundle(threshold=75.0)
    typed = ["evaluate", str(bundle), "--no-record", "--data"]
    assert cli.run([*typed, str(_normal(tmp_path / "new", 71, 90).root)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^false rejects +1 of 2 ", shown, re.MULTILINE)
    for word in ("AUROC", "pixel", "AU-PRO", "missed defects", "–"):
        assert word not in shown, word
    shutil.rmtree(dataset.root / "ground_truth")
    assert cli.run([*typed, str(dataset.root)]) == 0
    shown = capsys.readouterr().out
    assert "image AUROC" in shown
    assert "pixel" not in shown
    shutil.rmtree(dataset.root / "test/spot")
    shutil.rmtree(dataset.root / "test/dull")
    assert cli.run(["evaluate", str(make_bundle()), "--no-record", "--data", str(dataset.root)]) == 0
    assert "figure" not in capsys.readouterr().out  # no thresholds either: no table


def test_a_set_without_test_images_is_refused(make_bundle, tmp_path):
    write_image(tmp_path / "other/train/good/1.png", 90)
    with pytest.raises(DataError, match="expected test images"):
        _evaluate(make_bundle(), open_dataset(tmp_path / "other"))


def test_a_broken_mask_is_refused_before_scoring(make_bundle, dataset):
    write_mask(dataset.root / "ground_truth/spot/0_mask.png").write_bytes(b"no mask")
    with pytest.raises(ImageError, match=r"0_mask\.png"):
        _evaluate(make_bundle(), dataset)


def test_figures_repeat_with_the_same_seed(make_bundle, dataset):
    path = make_bundle(threshold=75.0)
    first, second = _evaluate(path, dataset), _evaluate(path, dataset)
    assert first.intervals == second.intervals
    assert first.dataset == second.dataset
    assert first.bundle == second.bundle


def test_evidence_replaces_older_figures_of_the_same_set_and_backend(make_bundle, dataset):
    path = make_bundle(threshold=75.0)
    record_accuracy(path, _evaluation(path, dataset))
    record_accuracy(path, _evaluation(path, dataset))
    with open_bundle(path) as bundle:
        (entry,) = bundle.manifest.evidence.accuracy
        assert len(bundle.manifest.evidence.parity) == 1
    assert entry.figures["image_auroc"] == pytest.approx(8 / 12)
    assert (entry.figures["miss_rate"], entry.figures["miss_n"]) == (pytest.approx(4 / 12), 12)
    assert entry.figures["image_threshold"] == 75.0
    (dataset.root / "test/dull/0.png").unlink()
    record_accuracy(path, _evaluation(path, open_dataset(dataset.root)))
    with open_bundle(path) as bundle:
        assert [entry.images for entry in bundle.manifest.evidence.accuracy] == [22, 21]


def test_evidence_of_both_paths_stands_side_by_side(make_bundle, dataset):
    path = make_bundle(threshold=75.0)
    for graph_path in ("graph", "kernel"):
        record_accuracy(path, _evaluation(path, dataset, graph_path=graph_path))
    with open_bundle(path) as bundle:
        assert [entry.backend for entry in bundle.manifest.evidence.accuracy] == ["cpu", "cpu (kernel)"]


def test_figures_go_to_the_bundle_that_was_measured_or_nowhere(make_bundle, dataset):
    path = make_bundle(threshold=75.0)
    evaluation = _evaluation(path, dataset)
    make_bundle(threshold=80.0)  # other thresholds of the same model
    record_accuracy(path, evaluation)
    make_bundle(threshold=75.0, training=[])
    with pytest.raises(BundleError, match=r"got the other model \w+… that was written meanwhile"):
        record_accuracy(path, evaluation)
    with open_bundle(path) as bundle:
        assert bundle.manifest.evidence.accuracy == ()


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_measured(
    make_bundle, dataset, tmp_path, capsys, option
):
    (tmp_path / "file").write_bytes(b"x")
    path = make_bundle(threshold=75.0)
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), option, str(tmp_path / "file" / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "could not be written" in err


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_figures_that_cannot_be_written_are_printed_all_the_same(
    make_bundle, dataset, tmp_path, capsys, monkeypatch, option
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = make_bundle(threshold=75.0)
    monkeypatch.setattr(scratch_files, "_make", full)
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), option, str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert "image AUROC" in out
    assert "could not be written" in err
    with open_bundle(path) as bundle:
        assert bundle.manifest.evidence.accuracy == ()


def test_json_holds_the_keys_that_scripts_rely_on(make_bundle, dataset, tmp_path, read_json, capsys):
    path, file = make_bundle(threshold=75.0), tmp_path / "out/figures.json"
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), "--json", str(file)]) == 0
    figures = read_json(file)
    flat = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_05")
    flat += ("pixel_f1", "pixel_recall")
    assert all(isinstance(figures[name], float) for name in flat)
    assert (figures["images"], figures["anomalous"], figures["without_mask"]) == (22, 12, 4)
    assert (figures["backend"], figures["precision"]) == ("cpu", "fp32")
    assert figures["latency_ms"] == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert set(figures["intervals"]) == set(flat)
    assert figures["confusion"]["miss"]["n"] == 12
    assert figures["recall_by_size"] == []  # 8 masks are too few for groups
    assert any("Near chance" in text for text in figures["diagnosis"])
    assert len(figures["bundle"]["digest"]) == len(figures["dataset"]["fingerprint"]) == 64
    assert figures["command"]
    with open_bundle(path) as bundle:
        assert len(bundle.manifest.evidence.accuracy) == 1
    out = capsys.readouterr().out
    assert "image AUROC       0.667" in out
    assert "4 of 12" in out
    # The report rounds by the same functions.
    assert "33.3% (9.9% to 65.1%)" in out


def test_no_record_leaves_the_bundle_as_it_is(make_bundle, dataset, capsys):
    path = make_bundle(threshold=75.0)
    before = (path / "manifest.json").read_bytes()
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), "--no-record"]) == 0
    assert (path / "manifest.json").read_bytes() == before


def test_a_fault_makes_the_exit_status_1_after_everything_was_written(make_bundle, dataset, tmp_path, capsys):
    (dataset.root / "test/good/0.png").write_bytes(b"no picture")
    file = tmp_path / "figures.json"
    path = make_bundle(threshold=75.0)
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), "--json", str(file)]) == 1
    assert file.is_file()
    assert "fault: " in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("sklearn.metrics", "scikit-learn"), ("scipy.stats", "scipy")])
def test_a_missing_package_is_named_before_anything_is_scored(make_bundle, dataset, monkeypatch, module, package):
    real_import = importlib.import_module

    def missing(name, *rest):
        if name == module:
            raise ImportError(name)
        return real_import(name, *rest)

    path = make_bundle()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=rf"needs the package {package}.*flawscope\[calibrate\]"):
        _evaluate(path, dataset)


def test_the_package_imports_no_heavy_library_by_itself():
    import subprocess

    code = (
        "import sys, flawscope.calibration, flawscope.calibration.thresholds.calibrate_command\n"
        "import flawscope.calibration.evaluation.evaluate_command\n"
        "print([m for m in ('matplotlib', 'scipy', 'sklearn', 'jinja2', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    import flawscope.calibration as room

    assert all(callable(getattr(room, name)) for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = room.nothing
    assert builtins.sorted(room.__all__) == room.__all__


def test_what_inspection_finds_in_masks_and_images_is_repeated(make_bundle, dataset):
    truth = dataset.root / "ground_truth/spot"
    shape = cv2.imread(str(truth / "0_mask.png"), cv2.IMREAD_UNCHANGED)
    for number, change in enumerate((lambda m: 255 - m, lambda m: m[::2, ::2], lambda m: (m > 0) * np.uint8(2))):
        cv2.imwrite(str(truth / f"{number}_mask.png"), change(shape))
    (dataset.root / "notes").mkdir()
    changed = open_dataset(dataset.root)
    notes = [note for note in _evaluate(make_bundle(), changed).notes if note.startswith("Dataset: ")]
    found = [problem for problem in inspect_dataset(changed).problems if problem.kind in MASKS]
    assert len(found) == 3
    for problem in found:
        place = problem.path.relative_to(dataset.root)
        assert any(note.startswith(f"Dataset: {place} {problem.message}") for note in notes)
    assert not any("notes" in note for note in notes)  # nothing of the figures
    [missing] = [note for note in notes if "has no mask" in note]
    assert missing.startswith("Dataset: test/dull/0.png has no mask")
    assert "(and 3 more like this, see flawscope data inspect)" in missing


@pytest.mark.parametrize(
    ("kinds", "preprocessing", "tiling"),
    [
        ({"few_levels"}, {"bits": 12}, None),
        ({"aspect_ratio", "mixed_aspect_ratios"}, {"mode": "letterbox"}, None),
        ({"aspect_ratio", "mixed_aspect_ratios"}, {}, Tiling((32, 32), 0.25)),
    ],
)
def test_what_the_bundle_has_settled_is_not_repeated(make_bundle, dataset, kinds, preprocessing, tiling):
    with open_bundle(make_bundle()) as bundle:
        manifest = bundle.manifest
    every = [Problem(kind, dataset.root, kind) for kind in ("few_levels", "aspect_ratio", "mixed_aspect_ratios")]
    inspection = msgspec.structs.replace(inspect_dataset(dataset), problems=tuple(every))
    settled = msgspec.structs.replace(
        manifest, input=msgspec.structs.replace(manifest.input, crop=None, **preprocessing), tiling=tiling
    )
    before, after = (len(inspection_notes(inspection, which)) for which in (manifest, settled))
    assert (before, after) == (3, 3 - len(kinds))


@pytest.mark.parametrize("json_file", ["new", "new/report", "new/report/report.html"])
def test_figures_do_not_take_the_place_of_the_report(tmp_path, capsys, json_file):
    places = ["--json", str(tmp_path / json_file), "--report", str(tmp_path / "new" / "report")]
    assert cli.run(["evaluate", str(tmp_path / "absent.flaw"), "--data", str(tmp_path), *places]) == 2
    assert "expected another file than the report, and no folder of it" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
