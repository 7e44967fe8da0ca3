"""All categories below a root as one dataset: names, order, split, inspection, figures per defect type."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_files import index_with_categories, touch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.cli import run
from flawscope.datasets import (
    Sample,
    fingerprint,
    hash_contents,
    inspect_dataset,
    list_categories,
    open_dataset,
    split_held_out,
)
from flawscope.errors import DataError


def identity(root: Path, category: str | None = None) -> str:
    dataset = open_dataset(root, category)
    return fingerprint(dataset, hash_contents(s.path for s in dataset.samples))


def part_image(path: Path, seed: int, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    if "ground_truth" in path.parts:
        image = np.zeros((12, 16, 3), np.uint8)
        image[2:5, 3:6] = value
    assert cv2.imwrite(str(path), image)


MVTEC = (
    *("wood/train/good/000.png", "wood/test/good/000.png", "wood/test/hole/000.png"),
    *("tile/train/good/000.png", "tile/train/good/001.png", "tile/test/good/000.png", "tile/test/hole/000.png"),
    *("tile/ground_truth/hole/000_mask.png", "tile/ground_truth/hole/7_mask.png", "tile/train/good/notes.txt"),
)
MERGED = [
    ("tile/train/good/000.png", "tile", "train", "good", None),
    ("tile/train/good/001.png", "tile", "train", "good", None),
    ("wood/train/good/000.png", "wood", "train", "good", None),
    ("tile/test/good/000.png", "tile", "test", "good", None),
    ("wood/test/good/000.png", "wood", "test", "good", None),
    ("tile/test/hole/000.png", "tile", "test", "tile/hole", "tile/ground_truth/hole/000_mask.png"),
    ("wood/test/hole/000.png", "wood", "test", "wood/hole", None),
]


# ---- what is merged


def test_all_categories_of_the_mvtec_layout_become_one_dataset(tmp_path):
    dataset = open_dataset(touch(tmp_path, *MVTEC, "readme.txt", "docs/manual.txt"), "all")
    assert (dataset.root, dataset.category, dataset.layout) == (tmp_path, "all", "mvtec")
    assert index_with_categories(dataset) == MERGED
    assert dataset.defects == ("tile/hole", "wood/hole")
    assert dataset.orphan_masks == (tmp_path / "tile/ground_truth/hole/7_mask.png",)
    assert dataset.ignored == (tmp_path / "tile/train/good/notes.txt",)


def test_every_image_of_all_is_one_of_its_category_and_the_other_way_round(tmp_path):
    touch(tmp_path, *MVTEC)
    merged = {(s.path, s.split, s.mask, s.is_anomalous) for s in open_dataset(tmp_path, "all").samples}
    parts = [open_dataset(tmp_path, name) for name in ("tile", "wood")]
    assert merged == {(s.path, s.split, s.mask, s.is_anomalous) for part in parts for s in part.samples}
    assert {s.category for part in parts for s in part.samples} == {""}


def test_class_folders_keep_the_split_of_each_category(tmp_path):
    touch(tmp_path, *(f"{c}/good/{i}.png" for c, n in (("cap", 10), ("nut", 5)) for i in range(n)))
    touch(tmp_path, "cap/dent/0.png", "nut/rust/0.png")
    dataset = open_dataset(tmp_path, "all")
    parts = [open_dataset(tmp_path, name) for name in ("cap", "nut")]
    assert dataset.layout == "folders"
    assert {s.path for s in dataset.train_good} == {s.path for part in parts for s in part.train_good}
    assert Counter((s.category, s.defect) for s in dataset.test) == {
        ("cap", "good"): 2,
        ("nut", "good"): 1,
        ("cap", "cap/dent"): 1,
        ("nut", "nut/rust"): 1,
    }


def test_all_objects_of_visa_become_one_dataset(tmp_path):
    rows = ("pcb,train,normal,pcb/0.JPG,", "fryum,train,normal,fryum/0.JPG,", "fryum,test,anomaly,fryum/1.JPG,f/1.png")
    (tmp_path / "visa.csv").write_text("\n".join(("object,split,label,image,mask", *rows)))
    dataset = open_dataset(tmp_path, "all")
    assert dataset.layout == "visa"
    assert index_with_categories(dataset) == [
        ("fryum/0.JPG", "fryum", "train", "good", None),
        ("pcb/0.JPG", "pcb", "train", "good", None),
        ("fryum/1.JPG", "fryum", "test", "fryum/bad", "f/1.png"),
    ]
    assert dataset.samples[-1].is_mask_indexed


def write_records(root: Path, names: tuple[str, ...]) -> None:
    """Describe the images of MVTec folders as records."""
    masks = {name for name in names if "/ground_truth/" in name}
    for split in ("train", "test"):
        lines = []
        for name in names:
            category, of_split, kind, file = name.split("/")
            mask = f"{category}/ground_truth/{kind}/{file[:-4]}_mask.png"
            if of_split == split and file.endswith(".png") and (kind == "good" or mask in masks):
                entry = {"filename": name, "label": int(kind != "good"), "clsname": category}
                lines.append(json.dumps(entry | ({"maskname": mask} if kind != "good" else {})))
        (root / f"{split}.json").write_text("\n".join(lines))


def test_records_of_all_categories_equal_the_folders_they_describe(tmp_path):
    names = (*MVTEC, "wood/ground_truth/hole/000_mask.png")
    folders = touch(tmp_path / "folders", *names)
    records = touch(tmp_path / "records", *names)
    write_records(records, names)
    dataset = open_dataset(records, "all")
    assert dataset.layout == "records"
    assert index_with_categories(dataset) == index_with_categories(open_dataset(folders, "all"))
    assert identity(records, "all") == identity(folders, "all")


def test_a_single_category_may_be_taken_as_all_of_them(tmp_path):
    dataset = open_dataset(touch(tmp_path, "tile/train/good/0.png", "tile/test/hole/0.png"), "all")
    assert (dataset.category, dataset.root, dataset.defects) == ("all", tmp_path, ("tile/hole",))


# ---- what is called all


def test_a_category_that_is_called_all_is_that_category(tmp_path):
    touch(tmp_path, *MVTEC, "all/train/good/0.png")
    assert list_categories(tmp_path) == ("all", "tile", "wood")
    dataset = open_dataset(tmp_path, "all")
    assert (dataset.root, len(dataset.samples)) == (tmp_path / "all", 1)
    with pytest.raises(DataError, match=r"got 3: all, tile, wood\. Name one with --category\.$"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"got 'x'\. Choose one of them\.$"):
        open_dataset(tmp_path, "x")


def test_a_flat_folder_that_is_called_all_is_that_folder(tmp_path):
    touch(tmp_path, *MVTEC, "all/0.png")
    assert open_dataset(tmp_path, "all").layout == "flat"
    with pytest.raises(DataError, match=r"got 2: tile, wood\. Name one with --category\.$"):
        open_dataset(tmp_path)


def test_a_root_that_is_called_all_is_its_category(tmp_path):
    assert open_dataset(touch(tmp_path / "all", "train/good/0.png"), "all").samples[0].category == ""


def test_an_object_of_a_table_that_is_called_all_is_that_object(tmp_path):
    rows = ("all,train,normal,all/0.JPG,", "pcb,train,normal,pcb/0.JPG,")
    (tmp_path / "visa.csv").write_text("\n".join(("object,split,label,image,mask", *rows)))
    assert [s.path.name for s in open_dataset(tmp_path, "all").samples] == ["0.JPG"]
    with pytest.raises(DataError, match=r"got 2: all, pcb\. Name one with --category\.$"):
        open_dataset(tmp_path)


def test_another_folder_that_is_called_all_hides_nothing(tmp_path):
    touch(tmp_path, *MVTEC, "all/readme.txt")
    assert index_with_categories(open_dataset(tmp_path, "all")) == MERGED


# ---- what is refused


def test_messages_that_list_categories_mention_all(tmp_path):
    touch(tmp_path, *MVTEC)
    with pytest.raises(DataError, match=r"Name one with --category, or take all with --category all\.$"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"categories tile, wood; got 'x'\. Choose one of them, or all\.$"):
        open_dataset(tmp_path, "x")
    shutil.rmtree(tmp_path / "wood")
    with pytest.raises(DataError, match=r"categories tile; got 'x'\. Choose one of them\.$"):
        open_dataset(tmp_path, "x")


def test_all_of_a_single_category_s_own_folder_is_refused(tmp_path):
    touch(tmp_path, *MVTEC)
    with pytest.raises(DataError, match=r"tile: expected a folder that holds categories, got a category itself"):
        open_dataset(tmp_path / "tile", "all")


@pytest.mark.parametrize(
    ("names", "got"), [((), "an empty folder"), (("docs/a.txt", "caps/0.png"), "the folders caps")]
)
def test_all_of_nothing_says_what_is_there(tmp_path, names, got):
    with pytest.raises(DataError, match=f"expected normal images in train/good or good, .*, got {got}"):
        open_dataset(touch(tmp_path, *names), "all")


def test_all_beside_an_empty_folder_of_that_name_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"all: expected normal images in train/good or good, .*, got 1 other files"):
        open_dataset(touch(tmp_path, "all/a.txt"), "all")


def test_a_category_that_nothing_can_be_learned_of_is_named(tmp_path):
    touch(tmp_path, *MVTEC, "cap/test/good/0.png", "cap/test/dent/0.png")
    with pytest.raises(DataError, match=r"cap: expected normal images .*, got no normal training image among 2"):
        open_dataset(tmp_path, "all")


def test_categories_of_different_layouts_are_refused(tmp_path):
    touch(tmp_path, *MVTEC, "cap/good/0.png")
    with pytest.raises(
        DataError, match=r"expected all categories in one layout, got cap \(folders\), tile \(mvtec\)\. "
    ):
        open_dataset(tmp_path, "all")


# ---- identity


def test_the_fingerprint_of_all_stays_when_the_dataset_is_copied_and_changes_with_a_category_s_name(tmp_path):
    first = identity(touch(tmp_path / "a", *MVTEC), "all")
    assert identity(touch(tmp_path / "b", *reversed(MVTEC)), "all") == first
    (tmp_path / "b/wood").rename(tmp_path / "b/oak")
    assert identity(tmp_path / "b", "all") != first


def test_the_fingerprint_of_one_category_is_what_it_was(tmp_path):
    touch(tmp_path, *MVTEC)
    rows = [
        ["train/good/000.png", "train", "good", "wood/train/good/000.png"],
        ["test/good/000.png", "test", "good", "wood/test/good/000.png"],
        ["test/hole/000.png", "test", "hole", "wood/test/hole/000.png"],
    ]
    hashed = [[*row[:3], hashlib.sha256(row[3].encode()).hexdigest()] for row in rows]
    expected = hashlib.sha256("".join(json.dumps(row) for row in hashed).encode()).hexdigest()
    assert identity(tmp_path, "wood") == expected


# ---- held-out samples


def goods(**numbers: int) -> list[Sample]:
    return [
        Sample(Path(f"{name}/train/good/{i:04}.png"), "train", "good", category=name)
        for name, n in numbers.items()
        for i in range(n)
    ]


def per_category(samples: tuple[Sample, ...]) -> dict[str, int]:
    return dict(Counter(s.category for s in samples))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"a": 100, "b": 100, "c": 200}, {"a": 10, "b": 10, "c": 20}),
        ({"a": 4, "b": 396}, {"a": 1, "b": 39}),  # every one gives at least one
        ({"a": 3, "b": 3, "c": 4}, {"a": 1, "b": 1, "c": 2}),  # never more than half of a category
        ({"a": 1, "b": 99}, {"b": 20}),  # a single image is for learning
        ({"a": 1, "b": 1}, {}),
    ],
)
def test_every_category_gives_its_share(numbers, expected):
    train, held = split_held_out(goods(**numbers))
    assert per_category(held) == expected
    assert per_category(train) == {name: n - expected.get(name, 0) for name, n in numbers.items()}


@given(
    numbers=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 60), min_size=1),
    share=st.floats(0.02, 0.98),
    minimum=st.integers(0, 30),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_shares_are_even_whatever_the_numbers_and_the_order(numbers, share, minimum, seed, order: random.Random):
    samples = goods(**numbers)
    train, held = split_held_out(samples, share, minimum, seed)
    order.shuffle(samples)
    assert split_held_out(samples, share, minimum, seed) == (train, held)
    assert sorted(s.path for s in (*train, *held)) == sorted(s.path for s in samples)
    count = per_category(held)
    assert all(count.get(name, 0) <= n // 2 for name, n in numbers.items())
    # Where no category has reached its half, all have given the same part of themselves, up to one image.
    open_ones = {name: n for name, n in numbers.items() if count.get(name, 0) < n // 2}
    parts = [(count.get(name, 0) / n, 1 / n) for name, n in open_ones.items()]
    assert all(a - a_step <= b + 1e-9 for a, a_step in parts for b, _ in parts)


def test_the_choice_within_a_category_is_that_of_its_name_alone():
    both = split_held_out(goods(a=100, b=100), 0.1, 0)[1]
    assert {s.path for s in both if s.category == "a"} == {s.path for s in split_held_out(goods(a=100), 0.1, 0)[1]}


@given(contents=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=40), share=st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_images_of_equal_content_in_two_categories_stay_on_one_side(contents, share):
    samples = [Sample(Path(f"{c}/{i}.png"), "train", "good", category=c) for i, (c, _) in enumerate(contents)]
    hashes = {s.path: str(content) for s, (_, content) in zip(samples, contents, strict=True)}
    train, held = split_held_out(samples, share, 5, hashes=hashes)
    assert not {hashes[s.path] for s in train} & {hashes[s.path] for s in held}
    assert len(train) + len(held) == len(samples)
    for name in "ab":
        number = sum(s.category == name for s in samples)
        assert sum(s.category == name for s in held) <= number // 2


# ---- inspection


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Two categories of real images: three training images, one good and two anomalous test images each."""
    for c, name in enumerate(("tile", "wood")):
        for i in range(3):
            part_image(tmp_path / name / f"train/good/{i}.png", 100 * c + i)
        part_image(tmp_path / name / "test/good/0.png", 100 * c + 10)
        for i in range(2):
            part_image(tmp_path / name / f"test/hole/{i}.png", 100 * c + 20 + i)
            part_image(tmp_path / name / f"ground_truth/hole/{i}_mask.png", 0)
    return tmp_path


def problems(root: Path) -> list[tuple[str, str, str]]:
    inspection = inspect_dataset(open_dataset(root, "all"))
    return [(p.severity, p.kind, p.path.relative_to(root).as_posix()) for p in inspection.problems]


def test_all_categories_are_inspected_together(real):
    inspection = inspect_dataset(open_dataset(real, "all"))
    assert (inspection.category, inspection.root, inspection.is_usable, inspection.problems) == ("all", real, True, ())
    assert [(c.split, c.defect, c.images, c.masks) for c in inspection.counts] == [
        ("train", "good", 6, 0),
        ("test", "good", 2, 0),
        ("test", "tile/hole", 2, 2),
        ("test", "wood/hole", 2, 2),
    ]


def test_a_category_with_too_few_images_to_learn_it_is_an_error(real):
    for i in (1, 2):
        (real / f"wood/train/good/{i}.png").write_text("broken")
    inspection = inspect_dataset(open_dataset(real, "all"))
    assert inspection.is_usable
    assert problems(real) == [
        ("error", "unreadable_image", "wood/train/good/1.png"),
        ("error", "unreadable_image", "wood/train/good/2.png"),
        ("error", "too_few_of_category", "."),
    ]
    assert inspection.problems[-1].message == (
        "has 1 readable normal training images of wood; at least 2 are needed to learn it"
    )


def test_an_image_in_two_categories_is_found(real):
    shutil.copy(real / "tile/train/good/0.png", real / "wood/train/good/0.png")
    shutil.copy(real / "tile/train/good/1.png", real / "wood/test/hole/0.png")
    assert problems(real) == [
        ("error", "label_conflict", "wood/test/hole/0.png"),
        ("note", "duplicate_image", "wood/train/good/0.png"),
    ]


def test_flat_folders_beside_the_categories_are_named_as_left_out(real):
    part_image(real / "caps/0.png", 7)
    dataset = open_dataset(real, "all")
    assert dataset.ignored == (real / "caps",)
    [problem] = inspect_dataset(dataset).problems
    assert (problem.kind, problem.severity) == ("ignored", "note")
    assert problem.message == "is a flat folder of images, which is a category only when it is named, and was left out"


def test_the_command_inspects_all_as_one_set(real, capsys):
    assert run(["data", "inspect", str(real), "--category", "all"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"all (MVTec AD, {real})"
    assert lines[2:6] == ["train good 6 -", "test good 2 -", "test tile/hole 2 2", "test wood/hole 2 2"]
    assert run(["data", "inspect", str(real), "--category", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"][2]["defect"] == "tile/hole"
    assert run(["data", "inspect", str(real)]) == 0
    assert "tile/hole" not in capsys.readouterr().out
