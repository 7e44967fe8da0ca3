"""Evaluating and calibrating beside a support set: what is left out, what stands beside, what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundles import FakeInspector, write_image, write_mask
from hypothesis import given
from hypothesis import strategies as st

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration import calibrate_bundle, evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation import evaluate, report, rounding
from flawscope.calibration.evaluation.contamination import find_contamination
from flawscope.datasets import Dataset, Sample, content_hash, open_dataset
from flawscope.datasets.defects.support_set import NearDuplicate, SupportImage, SupportRecord, write_support
from flawscope.datasets.inspection import inspect_and_hash
from flawscope.errors import ArgumentError, DataError

FLAT = (
    *("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_05"),
    *("pixel_f1", "pixel_recall"),
)


def _image(content, category="part", source="test/spot/0.png"):
    mask_content = hashlib.sha256(f"mask of {content}".encode()).hexdigest()
    return SupportImage(category, "spot", "test", source, content, "m.png", mask_content, source, "m", 64)


def _record(root, of_set, alike=()):
    """Return the record of a support set of these images below `root`, and of others that look like the first."""
    images = tuple(_image(content_hash(root / place), source=place) for place in of_set)
    duplicates = tuple(NearDuplicate(place, content_hash(root / place), of_set[0]) for place in alike)
    return SupportRecord("0", "part", len(of_set), 7, "test", images, duplicates)


def _evaluate(path, dataset, **options):
    return evaluate_bundle(path, dataset, command="flawscope evaluate", resamples=100, **options)


@pytest.fixture
def record(dataset):
    """Two spots, and a dull image that looks like the first."""
    return _record(dataset.root, ("test/spot/0.png", "test/spot/5.png"), ("test/dull/0.png",))


def test_figures_are_those_of_a_set_without_the_files_and_with_leak_those_of_the_whole(make_bundle, dataset, record):
    path = make_bundle(threshold=75.0)
    figures = _evaluate(path, dataset, support=record).figures
    whole = _evaluate(path, dataset).figures
    leak = figures.support.with_leak
    assert {name: getattr(leak, name) for name in FLAT} == {name: getattr(whole, name) for name in FLAT}
    assert (leak.images, leak.anomalous, leak.intervals) == (22, 12, whole.intervals)
    assert (leak.false_reject, leak.miss) == (whole.confusion.false_reject, whole.confusion.miss)
    assert whole.support is None
    masks = [f"ground_truth/spot/{number}_mask.png" for number in (0, 5)]
    for place in ("test/spot/0.png", "test/spot/5.png", "test/dull/0.png", *masks):
        (dataset.root / place).unlink()
    without = _evaluate(path, open_dataset(dataset.root)).figures
    assert figures.notes[1:] == without.notes
    same = {"support": None, "notes": (), "when": ""}
    assert msgspec.structs.replace(figures, **same) == msgspec.structs.replace(without, **same)


def test_what_is_left_can_be_counted_by_hand(make_bundle, dataset, record):
    figures = _evaluate(make_bundle(threshold=75.0), dataset, support=record).figures
    # 6 spots above all 10 normal images and 3 dull ones below them; with leak 8 and 4.
    assert figures.image_auroc == pytest.approx(6 / 9)
    assert figures.support.with_leak.image_auroc == pytest.approx(8 / 12)
    assert (figures.images, figures.anomalous, figures.without_mask) == (19, 9, 3)
    assert (figures.confusion.miss.count, figures.confusion.miss.n) == (3, 9)
    assert (figures.support.with_leak.miss.count, figures.support.with_leak.miss.n) == (4, 12)
    assert [(row.defect, row.images) for row in figures.defects] == [("dull", 3), ("spot", 6)]
    support = figures.support
    assert (support.pictures, support.of_set, support.alike, support.missing) == (2, 2, 1, 0)
    assert figures.support.left_out == {
        "test/dull/0.png": "probably the same part as test/spot/0.png",
        "test/spot/0.png": "a support image",
        "test/spot/5.png": "a support image",
    }
    assert figures.notes[0].startswith("3 of 22 test images are left out: 2 of the support set, 1 that probably show")


def test_images_are_scored_and_hashed_once(make_bundle, dataset, record, monkeypatch):
    path, scored, hashed = make_bundle(), [], []
    stream = FakeInspector.stream

    def counted(self, sources, batch=1):
        scored.extend(sources)
        return stream(self, sources, batch)

    def counted_hashes(whole, progress=None):
        hashed.extend(sample.path for sample in whole.samples)
        return inspect_and_hash(whole, progress)

    monkeypatch.setattr(FakeInspector, "stream", counted)
    monkeypatch.setattr(evaluate, "inspect_and_hash", counted_hashes)
    _evaluate(path, dataset, support=record)
    assert scored == [sample.path for sample in dataset.test]
    assert hashed == [sample.path for sample in dataset.samples]


def test_a_copy_under_another_name_is_left_out_as_well(make_bundle, dataset, record):
    shutil.copy(dataset.root / "test/spot/5.png", dataset.root / "test/good/copy.png")
    figures = _evaluate(make_bundle(), open_dataset(dataset.root), support=record).figures
    assert figures.support.left_out["test/good/copy.png"] == "a support image"
    assert figures.support.of_set == 3


def test_a_support_image_that_is_called_alike_too_counts_once(make_bundle, dataset):
    record = _record(dataset.root, ("test/spot/0.png",), ("test/spot/0.png",))
    support = _evaluate(make_bundle(), dataset, support=record).figures.support
    assert (support.of_set, support.alike) == (1, 0)
    assert support.left_out == {"test/spot/0.png": "a support image"}


def test_masks_lost_are_counted_among_what_is_left(make_bundle, dataset):
    mask = np.zeros((320, 320), np.uint8)
    mask[0, 0] = 255
    for index in (0, 1):
        cv2.imwrite(str(dataset.root / f"ground_truth/spot/{index}_mask.png"), mask)
    figures = _evaluate(make_bundle(), dataset, support=_record(dataset.root, ("test/spot/0.png",))).figures
    assert (figures.without_mask, figures.masks_lost) == (5, 1)


def test_evidence_of_the_whole_set_and_of_the_rest_stand_side_by_side(make_bundle, dataset, record):
    path = make_bundle(threshold=75.0)
    for support in (None, record, None, record):
        record_accuracy(path, _evaluate(path, dataset, support=support))
    with open_bundle(path) as bundle:
        entries = bundle.manifest.evidence.accuracy
    assert [entry.images for entry in entries] == [22, 19]
    assert entries[0].dataset != entries[1].dataset
    assert "support_left_out" not in entries[0].figures
    assert entries[1].figures["support_left_out"] == 3
    assert entries[1].figures["image_auroc"] == pytest.approx(6 / 9)


def test_support_images_of_the_training_split_leave_everything_in(make_bundle, dataset, capsys):
    write_image(dataset.root / "train/spot/9.png", 60, 130)
    write_mask(dataset.root / "ground_truth/spot/9_mask.png")
    dataset = open_dataset(dataset.root)
    path = make_bundle(threshold=75.0)
    figures = _evaluate(path, dataset, support=_record(dataset.root, ("train/spot/9.png",))).figures
    whole = _evaluate(path, dataset).figures
    assert figures.notes[0] == "None of the 1 support images is among the test images, and nothing is left out."
    assert figures.dataset == whole.dataset
    assert figures.intervals == whole.intervals == figures.support.with_leak.intervals
    assert (figures.support.left_out, figures.support.with_leak.images) == ({}, 22)


def test_images_alike_are_left_out_even_when_the_support_set_itself_was_for_training(make_bundle, dataset):
    write_image(dataset.root / "train/spot/9.png", 60, 130)
    write_mask(dataset.root / "ground_truth/spot/9_mask.png")
    dataset = open_dataset(dataset.root)
    record = _record(dataset.root, ("train/spot/9.png",), ("test/spot/0.png",))
    notes = _evaluate(make_bundle(), dataset, support=record).figures.notes
    assert notes[0] == "None of the 1 support images is among the test images."
    assert notes[1].startswith("1 of 22 test images are left out: 0 of the support set, 1 that probably show")


def test_defect_types_of_which_nothing_is_left_are_named(make_bundle, dataset):
    record = _record(dataset.root, tuple(f"test/dull/{index}.png" for index in range(4)))
    figures = _evaluate(make_bundle(), dataset, support=record).figures
    assert [row.defect for row in figures.defects] == ["spot"]
    assert "All images of these defect types are left out, so they are not judged: dull." in figures.notes


def test_support_images_that_are_not_there_are_counted_but_not_those_of_other_categories(make_bundle, dataset):
    record = _record(dataset.root, ("test/spot/0.png",))
    missing = (_image("changed"), _image("elsewhere", category="other"))
    record = msgspec.structs.replace(record, pictures=(*record.pictures, *missing))
    figures = _evaluate(make_bundle(), dataset, support=record).figures
    assert figures.support.missing == 1
    assert any(note.startswith("1 of 3 support images are not in this dataset") for note in figures.notes)


def test_support_images_that_are_not_there_are_counted_in_a_folder_of_another_name(make_bundle, dataset):
    record = _record(dataset.root, ("test/spot/0.png", "test/spot/1.png"))
    path = make_bundle()
    (dataset.root / "test/spot/1.png").unlink()
    renamed = open_dataset(dataset.root.rename(dataset.root.with_name("renamed")))
    assert _evaluate(path, renamed, support=record).figures.support.missing == 1


def test_the_support_set_of_another_dataset_is_refused_before_anything_is_scored(make_bundle, dataset, monkeypatch):
    record = SupportRecord("0", "part", 1, 0, "test", (_image("elsewhere"),))
    path = make_bundle()
    monkeypatch.setattr(FakeInspector, "stream", lambda *_: pytest.fail("scored"))
    with pytest.raises(DataError, match=r"got none of its 1 among 52\. Name the dataset it was taken from"):
        _evaluate(path, dataset, support=record)


def test_a_support_set_of_all_test_images_leaves_nothing_to_measure(make_bundle, dataset):
    record = _record(dataset.root, tuple(sample.path.relative_to(dataset.root).as_posix() for sample in dataset.test))
    with pytest.raises(DataError, match="expected test images beside the support set, got none: all 22 are of it"):
        _evaluate(make_bundle(), dataset, support=record)


def test_a_fault_among_what_is_left_out_is_still_said(make_bundle, dataset, tmp_path, capsys):
    dark = dataset.root / "test/spot/0.png"
    path = make_bundle(threshold=75.0)
    write_support(dataset, tmp_path / "set", shots=1, split="test", defects=["spot"])
    record = _record(dataset.root, ("test/spot/1.png",))
    dark.write_bytes(b"no picture")
    record = msgspec.structs.replace(
        record, alike=(NearDuplicate("test/spot/0.png", content_hash(dark), "test/spot/1.png"),)
    )
    (tmp_path / "set/support.json").write_bytes(msgspec.json.encode(record))
    figures = _evaluate(path, dataset, support=record).figures
    assert figures.faults == ()
    assert [fault.image for fault in figures.support.with_leak.faults] == [str(dark)]
    assert any(note.startswith("1 of the images that are left out could not be scored") for note in figures.notes)
    data = ["--data", str(dataset.root), "--support", str(tmp_path / "set"), "--no-record"]
    assert cli.run(["evaluate", str(path), *data]) == 1
    assert f"fault: {dark}: " in capsys.readouterr().err


def test_the_identity_of_a_support_set_is_that_of_its_contents_wherever_it_lies(dataset, record, tmp_path):
    lines = "".join(f"{image.content}\n{image.mask_content}\n" for image in record.pictures)
    assert record.digest == hashlib.sha256(lines.encode()).hexdigest()
    shutil.copytree(dataset.root, tmp_path / "elsewhere/part")
    asked = {"shots": 2, "split": "test", "defects": ["spot"], "allow_alike": True}  # there are few, and alike
    digests = [
        write_support(open_dataset(root), tmp_path / name, seed=seed, **asked).digest
        for name, root, seed in (("a", dataset.root, 0), ("b", tmp_path / "elsewhere/part", 0), ("c", dataset.root, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_command_writes_both_columns_and_the_struct_without_a_path(make_bundle, dataset, tmp_path, read_json, capsys):
    path, file = make_bundle(threshold=75.0), tmp_path / "figures.json"
    record = write_support(dataset, tmp_path / "set", shots=1, split="test", defects=["spot"])
    (left_out,) = record.pictures
    data = ["--data", str(dataset.root), "--json", str(file)]
    assert cli.run(["evaluate", str(path), *data]) == 0
    assert read_json(file)["support"] is None
    assert "with leak" not in capsys.readouterr().out
    assert cli.run(["evaluate", str(path), *data, "--overwrite", "--support", str(tmp_path / "set")]) == 0
    figures = read_json(file)
    support = figures["support"]
    assert figures["images"] == 22 - 1 - len(record.alike)
    assert (support["digest"], support["shots"], support["seed"]) == (record.digest, 1, 0)
    assert support["left_out"][left_out.source] == "a support image"
    assert set(support["with_leak"]["intervals"]) == set(FLAT)
    assert str(tmp_path) not in msgspec.json.encode(support).decode()
    out, err = capsys.readouterr()
    table = out[out.index("figure ") : out.index("verdict: ")]
    head, *rows = (re.split(r"  +", line.strip()) for line in table.splitlines())
    assert head == ["figure", "value", "95% interval", "with leak", "95% interval"]
    cells = {row[0]: row for row in rows}
    assert (cells["image AUROC"][1], cells["image AUROC"][3]) == (rounding.figure(figures["image_auroc"]), "0.667")
    assert (cells["missed defects"][1], cells["missed defects"][3]) == (f"4 of {figures['anomalous']}", "4 of 12")
    assert max(map(len, table.splitlines())) <= 80
    assert "note: " in err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "which flawscope synth support makes, got: No such file or directory"),
        (lambda folder: folder.write_bytes(b""), "which flawscope synth support makes, got: Not a directory"),
        (lambda folder: (folder.mkdir(), (folder / "support.json").write_text("{}")), "missing required field"),
    ],
)
@pytest.mark.parametrize("verb", [["evaluate"], ["calibrate", "--objective", "f1"]])
def test_what_is_no_support_set_is_one_line_and_status_2(make_bundle, dataset, tmp_path, capsys, verb, make, message):
    make(tmp_path / "set")
    given_words = [*verb, str(make_bundle()), "--data", str(dataset.root), "--support", str(tmp_path / "set")]
    assert cli.run(given_words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_report_shows_both_and_no_image_that_was_left_out(make_bundle, dataset, record):
    evaluation = _evaluate(make_bundle(threshold=75.0), dataset, support=record)
    page = report.render_report(evaluation).replace("<wbr>", "")
    assert "Without and with the support set" in page
    assert "19 test images against all 22" in page
    assert page.count("<td><b>0.667</b></td>") == 1
    assert "<td><b>3 of 9</b></td>" in page
    assert "<td>4 of 12</td>" in page
    assert evaluation.figures.support.digest in page
    after = page[page.index('id="decisions"') :]
    before = page[: page.index('id="leak"')]
    for place in record.pictures[0].source, record.pictures[1].source, record.alike[0].source:
        assert page.count(place) >= 1
        assert place not in before
        assert place not in after
    assert len(evaluation.measured.samples) == 19


def test_the_report_has_no_second_column_where_nothing_was_left_out(make_bundle, dataset):
    write_image(dataset.root / "train/spot/9.png", 60, 130)
    dataset = open_dataset(dataset.root)
    record = _record(dataset.root, ("train/spot/9.png",))
    page = report.render_report(_evaluate(make_bundle(threshold=75.0), dataset, support=record))
    assert "Without and with the support set" not in page
    assert "None of the 1 support images is among the test images" in page
    assert record.digest in page


def test_the_threshold_of_the_largest_f1_is_set_beside_the_support_set(make_bundle, dataset):
    path = make_bundle()
    record = _record(dataset.root, ("test/spot/0.png", "test/spot/1.png"), ("test/spot/2.png",))
    result = calibrate_bundle(
        path, dataset, false_reject_rate=0.3, objective="f1", support=record, command="flawscope calibrate"
    )
    # Good test scores 71 to 80, spots that stay 103 to 107.
    assert result.new.image.value == pytest.approx((80 + 103) / 2)
    assert result.new.image.images == 19
    assert result.left_out == (("of the support set, or probably of the same parts", 3),)
    assert result.new.pixel.images == 10


def test_the_objective_f1_needs_defects_beside_the_support_set(make_bundle, dataset):
    places = (sample.path.relative_to(dataset.root).as_posix() for sample in dataset.test if sample.is_anomalous)
    with pytest.raises(DataError, match="expected anomalous test images for the objective f1, got none beside"):
        calibrate_bundle(
            make_bundle(), dataset, objective="f1", support=_record(dataset.root, tuple(places)), command="c"
        )


def test_normal_training_images_need_no_support_set(make_bundle, dataset, record):
    with pytest.raises(ArgumentError, match="expected none with the objective good"):
        calibrate_bundle(make_bundle(), dataset, support=record, command="c")


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "x"],
        ["--image-threshold", "1", "--pixel-threshold", "2", "--objective", "f1"],
        ["--min-area", "3"],
    ],
)
def test_a_support_set_that_would_not_be_used_is_refused(make_bundle, tmp_path, capsys, words):
    assert cli.run(["calibrate", str(make_bundle()), "--support", str(tmp_path), *words]) == 2
    err = capsys.readouterr().err
    assert "--support goes with --data and --objective f1" in err
    assert err.count("\n") == 1


def test_command_calibrates_beside_a_support_set(make_bundle, dataset, tmp_path, capsys):
    record = write_support(dataset, tmp_path / "set", shots=1, split="test", defects=["spot"])
    words = ["--data", str(dataset.root), "--objective", "f1", "--support", str(tmp_path / "set")]
    assert cli.run(["calibrate", str(make_bundle()), *words]) == 0
    number = 1 + len(record.alike)
    assert f"left out: {number} of the support set, or probably of the same parts" in capsys.readouterr().out


_KINDS = st.sampled_from(["set", "alike", "other"])


@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), _KINDS), min_size=1), st.randoms())
def test_every_test_image_is_kept_or_left_out_and_training_images_stay(kinds, random):
    kinds = sorted([*kinds, ("train", "set"), ("test", "other")], key=lambda kind: kind[0] == "test")
    samples = tuple(Sample(Path(f"/d/{i}"), split, "good") for i, (split, _) in enumerate(kinds))
    # Several images may have one content.
    contents = {sample.path: f"{kind} {random.randint(0, 2)}" for sample, (_, kind) in zip(samples, kinds, strict=True)}
    record = SupportRecord(
        "0",
        "d",
        3,
        0,
        "test",
        tuple(_image(f"set {i}") for i in range(3)),
        tuple(NearDuplicate("a", f"alike {i}", "b") for i in range(3)),
    )
    leak = find_contamination(Dataset(Path("/d"), "d", "mvtec", samples), record, contents)
    of_test = [kind for split, kind in kinds if split == "test"]
    assert leak.of_set.tolist() == [kind == "set" for kind in of_test]
    assert leak.alike.tolist() == [kind == "alike" for kind in of_test]
    assert leak.remaining.tolist() == [kind == "other" for kind in of_test]
    assert len(leak.left_out) == int((~leak.remaining).sum())
    stays = [split == "train" or kind == "other" for split, kind in kinds]
    assert leak.reduced.samples == tuple(sample for sample, stay in zip(samples, stays, strict=True) if stay)


def test_no_module_of_the_package_is_loaded_for_an_evaluation_without_a_support_set():
    import subprocess
    import sys

    code = (
        "import sys, flawscope.calibration.thresholds.calibrate_command\n"
        "import flawscope.calibration.evaluation.evaluate_command\n"
        "print('flawscope.runtime.synthesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
