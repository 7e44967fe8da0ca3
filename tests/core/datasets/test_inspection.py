"""What `data inspect` finds and prints, and the command `data demo`."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from image_files import image, inspected, mask, problems, write
from project_paths import DATA

from flawscope.cli import run
from flawscope.datasets import ImageCount, Inspection, SizeSummary, inspect_dataset, open_dataset
from flawscope.datasets.parts import KINDS

# ---- inspect_dataset


def test_a_faultless_dataset_is_counted_and_has_no_problems(tile):
    assert inspected(tile) == Inspection(
        root=tile,
        category="tile",
        layout="mvtec",
        is_usable=True,
        counts=(
            ImageCount("train", "good", 3, 0),
            ImageCount("test", "good", 1, 0),
            ImageCount("test", "hole", 2, 2),
        ),
        sizes=SizeSummary((12, 16), (12, 16), (12, 16), 6, 1),
        formats={"colour, 8 bit": 6},
        problems=(),
    )


def test_sizes_and_formats_are_summed_up(tile):
    image(tile / "train/good/3.png", 3, (8, 40), channels=1)
    image(tile / "train/good/4.png", 4, (30, 9), channels=1, dtype=np.uint16)
    inspection = inspected(tile)
    assert inspection.sizes == SizeSummary((12, 16), (8, 40), (12, 16), 6, 3)
    assert inspection.formats == {"colour, 8 bit": 6, "grey, 8 bit": 1, "grey, 16 bit": 1}


def test_progress_is_called_after_every_sample(tile):
    seen = []
    inspect_dataset(open_dataset(tile), lambda completed, total: seen.append((completed, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_broken_absent_and_truncated_images_are_errors_and_the_rest_stays_usable(tile):
    (tile / "train/good/3.png").write_text("not an image")
    (tile / "train/good/4.png").symlink_to("nowhere.png")
    data = (tile / "test/good/0.png").read_bytes()
    (tile / "test/good/0.png").write_bytes(data[:-30])
    inspection = inspected(tile)
    assert inspection.is_usable
    assert [(p.severity, p.kind, p.path.name, p.message[:44]) for p in inspection.problems] == [
        ("error", "unreadable_image", "3.png", "expected an image (bmp, jpeg, png, tiff, web"),
        ("error", "unreadable_image", "4.png", "could not be read: No such file or directory"),
        ("error", "unreadable_image", "0.png", "expected a whole png image, got broken data."),
    ]


@pytest.mark.parametrize("readable", [0, 1])
def test_a_dataset_without_two_readable_training_images_cannot_be_used(tile, readable):
    for i in range(readable, 3):
        (tile / f"train/good/{i}.png").write_text("broken")
    inspection = inspected(tile)
    assert not inspection.is_usable
    worst = inspection.problems[0]
    assert (worst.kind, worst.is_fatal, worst.path) == ("too_few_training_images", True, tile)
    assert worst.message.startswith(f"has {readable} readable normal training images")
    assert [p.is_fatal for p in inspection.problems[1:]] == [False] * (3 - readable)


def test_copies_of_one_image_are_not_enough_to_train(tmp_path):
    for i in range(3):
        image(tmp_path / f"{i}.png", seed=0)
    assert not inspected(tmp_path).is_usable


@pytest.mark.parametrize("value", [0, 100, 255])
def test_images_of_one_colour_are_named_and_cannot_be_learned(tmp_path, value):
    image(tmp_path / "good/0.png")
    for i in range(1, 5):
        write(tmp_path / f"good/{i}.png", np.full((12, 16, 3), max(0, value - i), np.uint8))
    inspection = inspect_dataset(open_dataset(tmp_path))
    assert sum(problem.kind == "constant_image" for problem in inspection.problems) == 4
    assert not inspection.is_usable
    image(tmp_path / "good/another.png", 1)
    assert inspect_dataset(open_dataset(tmp_path)).is_usable


def test_copies_in_other_bytes_are_one_image(tmp_path):
    for suffix in ("png", "tiff", "bmp"):
        image(tmp_path / f"good/0.{suffix}")
    inspection = inspect_dataset(open_dataset(tmp_path))
    assert [problem.kind for problem in inspection.problems][:1] == ["too_few_training_images"]
    assert "has 1 readable" in inspection.problems[0].message


def test_every_fault_of_masks_is_found(tile):
    truth = tile / "ground_truth/hole"
    for i in range(2, 6):
        image(tile / f"test/hole/{i}.png", 20 + i)
    mask(truth / "2_mask.png", value=0)
    mask(truth / "3_mask.png", size=(12, 15))
    (truth / "4_mask.png").write_text("broken")
    mask(truth / "9_mask.png")
    assert problems(tile) == [
        ("error", "empty_mask", "ground_truth/hole/2_mask.png"),
        ("error", "mask_size", "ground_truth/hole/3_mask.png"),
        ("error", "unreadable_mask", "ground_truth/hole/4_mask.png"),
        ("error", "missing_mask", "test/hole/5.png"),
        ("error", "orphan_mask", "ground_truth/hole/9_mask.png"),
    ]
    [wrong_size] = [p.message for p in inspected(tile).problems if p.kind == "mask_size"]
    assert wrong_size == "is 15x12 pixels, while its image is 16x12"


def test_class_numbers_are_taken_and_told(tile):
    mask(tile / "ground_truth/hole/0_mask.png", value=1)
    [problem] = inspected(tile).problems
    assert (problem.kind, problem.severity) == ("mask_of_classes", "note")
    assert problem.message == "was taken as class numbers (1): every value but 0 is a defect"


def test_a_faint_jpeg_mask_says_why_it_is_empty(tile):
    (tile / "ground_truth/hole/0_mask.png").unlink()
    mask(tile / "ground_truth/hole/0_mask.jpg", value=90)
    [problem] = inspected(tile).problems
    assert problem.kind == "empty_mask"
    assert re.fullmatch(r"shows no defect \(largest value \d+; a defect is above half of full scale\)", problem.message)


def test_inverted_masks_are_named(tile):
    truth = np.full((12, 16), 255, np.uint8)
    truth[2:5, 3:6] = 0
    write(tile / "ground_truth/hole/0_mask.png", truth)
    [problem] = inspected(tile).problems
    assert (problem.kind, problem.severity) == ("inverted_mask", "error")
    assert "95.3% of it is defect" in problem.message


def test_masks_in_alpha_are_taken_or_named(tile):
    alpha = np.zeros((12, 16, 4), np.uint8)
    alpha[2:5, 3:6, 3] = 255
    write(tile / "ground_truth/hole/0_mask.png", alpha)
    assert problems(tile) == [("note", "mask_in_alpha", "ground_truth/hole/0_mask.png")]
    assert open_dataset(tile).test[1].read_mask().sum() == 9
    shutil.rmtree(tile / "ground_truth")
    alpha[..., :3] = np.random.default_rng(5).integers(0, 250, (12, 16, 3))
    write(tile / "test/hole/1.png", alpha)
    assert problems(tile) == [("error", "mask_in_alpha_of_image", "test/hole/1.png"), ("note", "alpha", ".")]


def test_several_masks_of_an_image_are_told(tile):
    (tile / "ground_truth/hole/0_mask.png").unlink()
    mask(tile / "ground_truth/hole/0/000.png")
    mask(tile / "ground_truth/hole/0/001.png")
    assert problems(tile) == [("note", "several_masks", "ground_truth/hole/0/000.png")]
    mask(tile / "ground_truth/hole/0/001.png", size=(12, 15))
    assert [kind for _, kind, _ in problems(tile)] == ["mask_size", "unreadable_mask", "several_masks"]


def test_what_was_taken_otherwise_than_it_lies_is_listed(tmp_path, capsys):
    for i in range(3):
        image(tmp_path / f"Train/OK/day {i}/0.png", i)
    assert run(["data", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Train was taken as train" in out
    assert "Train/OK was taken as the folder of normal images" in out
    assert "Train/OK holds no image itself: those in day 0, day 1, day 2 were taken as good" in out
    assert "No problems found." not in out


def test_images_without_masks_are_no_problem_where_no_image_has_one(tmp_path):
    for i in range(3):
        image(tmp_path / f"good/{i}.png", i)
    image(tmp_path / "dent/0.png", 9)
    assert problems(tmp_path) == []


def test_indexed_masks_of_visa_are_not_empty(tmp_path):
    rows = ["object,split,label,image,mask"]
    for i in range(2):
        image(tmp_path / f"pcb/n{i}.png", i)
        rows.append(f"pcb,train,normal,pcb/n{i}.png,")
    image(tmp_path / "pcb/a.png", 5)
    mask(tmp_path / "pcb/m.png", value=1)
    rows.append("pcb,test,anomaly,pcb/a.png,pcb/m.png")
    (tmp_path / "visa.csv").write_text("\n".join(rows))
    [sample] = open_dataset(tmp_path).test
    mask_read = sample.read_mask()
    assert mask_read is not None
    assert mask_read.sum() == 9
    assert problems(tmp_path) == []


def test_a_sample_without_a_mask_file_reads_none(tile):
    dataset = open_dataset(tile)
    assert dataset.train_good[0].read_mask() is None
    assert dataset.test[-1].read_mask().sum() == 9


def test_equal_images_are_told_apart_by_split_and_label(tile):
    image(tile / "train/good/7.png", 0)  # again in training
    image(tile / "test/good/7.png", 1)  # from training
    image(tile / "test/hole/0.png", 2)  # a normal one
    assert problems(tile) == [
        ("error", "train_test_duplicate", "test/good/7.png"),
        ("error", "label_conflict", "test/hole/0.png"),
        ("note", "duplicate_image", "train/good/7.png"),
    ]
    messages = {p.kind: p.message for p in inspected(tile).problems}
    assert (
        messages["train_test_duplicate"]
        == "is the same image as train/good/1.png: figures on the test split would be too good"
    )
    assert messages["label_conflict"] == "is the same image as train/good/2.png, which has the label good"


def test_flat_folders_chosen_splits_and_left_out_files_are_noted(tmp_path):
    for i in range(6):
        image(tmp_path / f"flat/{i}.png", i)
        image(tmp_path / f"classes/good/{i}.png", i)
    image(tmp_path / "classes/dent/0.png", 9)
    (tmp_path / "classes/dent/notes.txt").write_text("x")
    (tmp_path / "classes/good/lot 2").mkdir()
    assert problems(tmp_path / "flat") == [("note", "flat_folder", ".")]
    assert problems(tmp_path / "classes") == [
        ("note", "chosen_split", "."),
        ("note", "ignored", "classes/dent/notes.txt".removeprefix("classes/")),
        ("note", "ignored", "good/lot 2"),
    ]


def test_defective_training_images_are_noted(tile):
    image(tile / "train/hole/5.png", 30)
    mask(tile / "ground_truth/hole/5_mask.png")
    assert problems(tile) == [("note", "unused_training_image", "train/hole/5.png")]


# ---- the command


def test_the_command_prints_counts_sizes_and_no_problems(tile, capsys):
    assert run(["data", "inspect", str(tile)]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:5] == [
        f"tile (MVTec AD, {tile})",
        "split type images masks",
        "train good 3 -",
        "test good 1 -",
        "test hole 2 2",
    ]
    assert lines[5:8] == ["Width x height: 16x12", "Stored as: colour, 8 bit (6)", "No problems found."]
    assert err == ""


def test_long_lists_of_one_kind_end_with_their_number(tile, capsys):
    for i in range(12):
        mask(tile / f"ground_truth/hole/{100 + i}_mask.png")
    (tile / "test/good/notes.txt").write_text("x")
    assert run(["data", "inspect", str(tile)]) == 0
    out = capsys.readouterr().out
    assert "Problems: 12 errors, 1 note" in out
    assert out.count("belongs to no image") == 10
    assert "and 2 more of this kind (--all lists them)" in out
    assert "notes.txt is a file without the extension of an image" in out
    assert run(["data", "inspect", str(tile), "--all"]) == 0
    out = capsys.readouterr().out
    assert out.count("belongs to no image") == 12
    assert "more of this kind" not in out


def test_json_is_one_object_a_line_for_every_category(tile, capsys):
    image(tile.parent / "cap/good/0.png", 0)
    image(tile.parent / "cap/good/1.png", 1)
    mask(tile / "ground_truth/hole/9_mask.png")
    assert run(["data", "inspect", str(tile.parent), "--json"]) == 0
    cap_report, tile_report = map(json.loads, capsys.readouterr().out.splitlines())
    assert (cap_report["category"], cap_report["is_usable"], cap_report["problems"]) == ("cap", True, [])
    assert tile_report["counts"][2] == {"split": "test", "defect": "hole", "images": 2, "masks": 2}
    assert tile_report["problems"] == [
        {
            "kind": "orphan_mask",
            "path": str(tile / "ground_truth/hole/9_mask.png"),
            "message": "belongs to no image (or to one that has another mask)",
            "severity": "error",
        }
    ]
    assert run(["data", "inspect", str(tile.parent), "--category", "cap", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cap_report


def test_an_unusable_category_ends_with_2_after_all_were_shown(tile, capsys):
    (tile.parent / "cap/train/good").mkdir(parents=True)
    (tile.parent / "bolt/good").mkdir(parents=True)
    (tile.parent / "bolt/good/0.png").write_text("broken")
    assert run(["data", "inspect", str(tile.parent)]) == 2
    out, err = capsys.readouterr()
    assert "tile (MVTec AD" in out
    assert "  fatal  " in out
    assert err.count("error: ") == 1
    assert "cap: expected normal images" in err


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nowhere"], "got: No such file or directory"), ([".", "--category", "x"], "got 'x'")]
)
def test_a_wrong_root_or_category_is_one_line(tile, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tile.parent)
    assert run(["data", "inspect", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_names_with_markup_are_printed_as_they_are(tmp_path, capsys):
    root = tmp_path / "[bold]x"
    for i in range(2):
        image(root / f"[red]{i}.png", i)
    (root / "[link].txt").write_text("x")
    assert run(["data", "inspect", str(root)]) == 0
    out = capsys.readouterr().out
    assert "[bold]x (flat folder" in out
    assert "[link].txt is a file" in out


def test_demo_writes_a_dataset_that_inspect_finds_faultless(tmp_path, capsys):
    kind, root = KINDS[0], tmp_path / "d"
    numbers = ["--size", "64", "--train", "3", "--test-good", "2", "--test-defective", "1"]
    assert run(["data", "demo", str(root), "--kind", kind, "--seed", "3", *numbers]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"dataset: {tmp_path / 'd'} ({kind})",
        f"overview: {tmp_path / 'd' / 'contact_sheet.png'}",
    ]
    assert err == ""
    assert (root / "contact_sheet.png").is_file()
    dataset = open_dataset(root)
    assert (dataset.category, len(dataset.train_good)) == (kind, 3)
    inspection = inspect_dataset(dataset)
    assert inspection.problems == ()
    assert inspection.counts[1].images == 2
    assert {count.images for count in inspection.counts[2:]} == {1}


# ---- real data

REAL = DATA / "magnetic_tile"


@pytest.mark.skipif(not REAL.is_dir(), reason="the magnetic tile set is not here (FLAWSCOPE_DATA)")
def test_the_magnetic_tile_set_is_read_as_published():
    inspection = inspected(REAL)
    assert {(c.split, c.defect): (c.images, c.masks) for c in inspection.counts} == {
        ("train", "good"): (761, 0),
        ("test", "good"): (191, 0),
        ("test", "blowhole"): (115, 115),
        ("test", "break"): (85, 85),
        ("test", "crack"): (57, 57),
        ("test", "fray"): (32, 32),
        ("test", "uneven"): (103, 103),
    }
    assert {(p.kind, p.path.stem) for p in inspection.problems if p.severity == "error"} == {
        ("empty_mask", f"{name}_mask")
        for name in ("exp4_num_45057", "exp4_num_352527", "exp3_num_45042", "exp4_num_124690")
    }
    notes = [p.kind for p in inspection.problems if p.severity == "note"]
    assert notes == ["aspect_ratio", "mixed_aspect_ratios"]


def test_a_mask_that_was_found_by_its_name_is_listed(tile):
    image(tile / "test/dent/0.png", 30)
    mask(tile / "test/dent/0_GT.png")
    image(tile / "train/good/0_GT.png", 40)
    assert problems(tile) == [
        ("note", "mask_beside_image", "test/dent/0_GT.png"),
        ("note", "ignored", "train/good/0_GT.png"),
    ]
