"""The dataset index: layouts, pairing of masks, fixed splits, hashes."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_files import below, index, touch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd_files import ODD, refuse_listing

from flawscope.datasets import (
    Sample,
    as_recorded,
    content_hash,
    fingerprint,
    hash_contents,
    image_hash,
    list_categories,
    open_dataset,
    split_held_out,
)
from flawscope.datasets.folders import images_to_add
from flawscope.errors import ArgumentError, DataError

# ---- MVTec AD


def mvtec(root: Path) -> Path:
    return touch(
        root,
        *("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/hole/000.png", "test/hole/001.png"),
        *("test/a crack/7.png", "ground_truth/hole/000_mask.png", "ground_truth/hole/001_mask.png"),
        "ground_truth/a crack/7_mask.png",
    )


def test_the_mvtec_layout_is_indexed_in_a_fixed_order(tmp_path):
    dataset = open_dataset(mvtec(tmp_path / "tile"))
    assert (dataset.category, dataset.layout) == ("tile", "mvtec")
    assert index(dataset) == [
        ("train/good/000.png", "train", "good", None),
        ("train/good/001.png", "train", "good", None),
        ("test/good/000.png", "test", "good", None),
        ("test/a crack/7.png", "test", "a crack", "ground_truth/a crack/7_mask.png"),
        ("test/hole/000.png", "test", "hole", "ground_truth/hole/000_mask.png"),
        ("test/hole/001.png", "test", "hole", "ground_truth/hole/001_mask.png"),
    ]
    assert dataset.defects == ("a crack", "hole")
    assert dataset.train_good == dataset.samples[:2]
    assert dataset.test == dataset.samples[2:]
    assert [s.is_anomalous for s in dataset.test] == [False, True, True, True]
    assert dataset.orphan_masks == ()
    assert dataset.ignored == ()


@pytest.mark.parametrize(
    "place", [".", "train", "train/good", "test/hole", "test/a crack", "ground_truth", "ground_truth/hole"]
)
def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch, place):
    mvtec(tmp_path)
    refuse_listing(monkeypatch, tmp_path / place)
    with pytest.raises(DataError, match="expected a folder that can be listed, got: Permission denied"):
        open_dataset(tmp_path)


def test_masks_are_paired_by_stem_and_never_by_order(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/x/b.JPG", "test/x/c.png", "test/x/d.tif")
    touch(tmp_path, "ground_truth/x/a_mask.png", "ground_truth/x/b_MASK.png", "ground_truth/x/d.bmp")
    dataset = open_dataset(tmp_path)
    assert index(dataset)[1:] == [
        ("test/x/b.JPG", "test", "x", "ground_truth/x/b_MASK.png"),
        ("test/x/c.png", "test", "x", None),
        ("test/x/d.tif", "test", "x", "ground_truth/x/d.bmp"),
    ]
    assert below(dataset, dataset.orphan_masks) == ["ground_truth/x/a_mask.png"]


def test_a_mask_of_another_defect_type_is_not_paired(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/x/0.png", "test/y/0.png", "ground_truth/y/0.png", "ground_truth/z/0.png")
    dataset = open_dataset(tmp_path)
    assert [s.mask for s in dataset.test] == [None, tmp_path / "ground_truth/y/0.png"]
    assert below(dataset, dataset.orphan_masks) == ["ground_truth/z/0.png"]


def test_the_second_mask_of_an_image_is_an_orphan(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/x/0.png", "ground_truth/x/0.png", "ground_truth/x/0_mask.png")
    dataset = open_dataset(tmp_path)
    assert index(dataset)[1][3] == "ground_truth/x/0.png"
    assert below(dataset, dataset.orphan_masks) == ["ground_truth/x/0_mask.png"]


def test_masks_of_normal_images_are_left_out(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/good/1.png", "ground_truth/good/1_mask.png")
    dataset = open_dataset(tmp_path)
    assert [s.mask for s in dataset.samples] == [None, None]
    assert dataset.orphan_masks == ()


def test_extensions_count_in_any_case_and_other_files_are_named(tmp_path):
    names = [f"train/good/{i}.{e}" for i, e in enumerate(["png", "JPG", "Jpeg", "BMP", "tif", "TIFF", "webp"])]
    touch(tmp_path, *names, "train/good/notes.txt", "train/good/x.gif", "train/good/lot 2/1.png", "license.txt")
    dataset = open_dataset(tmp_path)
    assert len(dataset.train_good) == len(names)
    assert sorted(below(dataset, dataset.ignored)) == ["train/good/lot 2", "train/good/notes.txt", "train/good/x.gif"]


def test_hidden_files_and_leftovers_are_invisible(tmp_path):
    touch(tmp_path, "train/good/0.png", "train/good/.0.png", "train/good/._0.png", "train/good/Thumbs.db")
    touch(tmp_path, "train/good/.DS_Store", "train/good/0.png~", "train/.cache/good/1.png", "__MACOSX/good/1.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.samples) == 1
    assert dataset.ignored == ()


def test_defective_training_images_are_indexed_but_not_good(tmp_path):
    touch(tmp_path, "train/good/0.png", "train/hole/1.png", "ground_truth/hole/1_mask.png")
    dataset = open_dataset(tmp_path)
    assert index(dataset)[1] == ("train/hole/1.png", "train", "hole", "ground_truth/hole/1_mask.png")
    assert len(dataset.train_good) == 1


def test_symbolic_links_are_followed_and_loops_do_not_hang(tmp_path):
    touch(tmp_path, "elsewhere/0.png", "root/tile/train/good/1.png")
    root = tmp_path / "root"
    good = root / "tile/train/good"
    (good / "0.png").symlink_to(tmp_path / "elsewhere/0.png")
    (good / "self.png").symlink_to("self.png")
    (good / "up").symlink_to(tmp_path / "root")
    (root / "tile/test").symlink_to(root / "tile")
    (root / "again").symlink_to(root)
    (root / "again2").symlink_to("again2")
    dataset = open_dataset(root)
    assert dataset.category == "tile"
    assert [s.path.name for s in dataset.train_good] == ["0.png", "1.png", "self.png"]
    assert "train/good/up" in below(dataset, dataset.ignored)


# ---- class folders and flat folders


def test_class_folders_find_masks_in_all_three_places(tmp_path):
    touch(tmp_path, "good/0.png", "dent/a.png", "dent/b.png", "dent/c.png", "dent/d.png")
    touch(tmp_path, "dent/a_mask.bmp", "masks/dent/b.png", "ground_truth/dent/c_mask.png", "dent/z_mask.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert index(dataset) == [
        ("good/0.png", "train", "good", None),
        ("dent/a.png", "test", "dent", "dent/a_mask.bmp"),
        ("dent/b.png", "test", "dent", "masks/dent/b.png"),
        ("dent/c.png", "test", "dent", "ground_truth/dent/c_mask.png"),
        ("dent/d.png", "test", "dent", None),
    ]
    assert below(dataset, dataset.orphan_masks) == ["dent/z_mask.png"]


@pytest.mark.parametrize(("good", "test"), [(1, 0), (4, 0), (5, 1), (7, 1), (8, 2), (50, 10)])
def test_a_fifth_of_the_normal_images_becomes_test_where_there_are_defects(tmp_path, good, test):
    touch(tmp_path, "dent/0.png", *(f"good/{i:03}.png" for i in range(good)))
    dataset = open_dataset(tmp_path)
    assert len(dataset.train_good) == good - test
    assert len([s for s in dataset.test if not s.is_anomalous]) == test


@pytest.mark.parametrize(("good", "wanted"), [(1, 1), (3, 2), (7, 1), (50, 259), (40, 40)])
@pytest.mark.parametrize("defect", ["dent", None])
def test_so_many_images_are_added_that_the_training_gets_those_that_are_wanted(tmp_path, good, wanted, defect):
    touch(tmp_path, *(f"good/{i:03}.png" for i in range(good)), *([f"{defect}/0.png"] if defect else []))
    before = open_dataset(tmp_path)
    added = images_to_add(before, wanted)
    touch(tmp_path, *(f"good/new{i:03}.png" for i in range(added)))
    assert len(open_dataset(tmp_path).train_good) == len(before.train_good) + wanted
    # A split that lies in the folders keeps nothing back; nor does one without defects.
    assert (added > wanted) == (defect is not None and (good, wanted) not in [(1, 1)])


def test_where_the_split_lies_in_folders_all_that_is_added_is_for_the_training(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/good/0.png", "test/dent/0.png")
    assert images_to_add(open_dataset(tmp_path), 259) == 259


def test_the_chosen_test_images_never_change(tmp_path):
    touch(tmp_path, "dent/0.png", *(f"good/{i:03}.png" for i in range(20)))
    chosen = [s.path.name for s in open_dataset(tmp_path).test if not s.is_anomalous]
    # By the definition: the smallest SHA-256 of "0/NAME".
    by_hash = sorted((f"{i:03}.png" for i in range(20)), key=lambda n: hashlib.sha256(f"0/{n}".encode()).digest())
    assert chosen == sorted(by_hash[:4])


def test_without_defects_every_normal_image_is_for_training(tmp_path):
    touch(tmp_path, *(f"good/{i}.png" for i in range(10)))
    dataset = open_dataset(tmp_path)
    assert len(dataset.train_good) == 10
    assert dataset.test == ()


def test_a_flat_folder_is_taken_as_good(tmp_path):
    dataset = open_dataset(touch(tmp_path / "caps", "b.png", "a.jpg", "readme.txt"))
    assert (dataset.layout, dataset.category) == ("flat", "caps")
    assert index(dataset) == [("a.jpg", "train", "good", None), ("b.png", "train", "good", None)]
    assert below(dataset, dataset.ignored) == ["readme.txt"]


# ---- which category


def test_the_category_may_be_named_below_the_root_or_be_the_root(tmp_path):
    mvtec(tmp_path / "tile")
    touch(tmp_path, "cap/good/0.png", "contact_sheet.png")
    assert list_categories(tmp_path) == ("cap", "tile")
    assert list_categories(tmp_path / "tile") == ()
    named = open_dataset(tmp_path, "tile")
    assert named == open_dataset(tmp_path / "tile") == open_dataset(tmp_path / "tile", "tile")
    assert named.root == tmp_path / "tile"


def test_a_named_category_may_be_a_flat_folder(tmp_path):
    mvtec(tmp_path / "tile")
    touch(tmp_path, "caps/0.png")
    assert list_categories(tmp_path) == ("tile",)
    assert open_dataset(tmp_path, "caps").layout == "flat"


def test_the_only_category_is_taken(tmp_path):
    mvtec(tmp_path / "tile")
    touch(tmp_path, "docs/readme.txt")
    assert open_dataset(tmp_path).category == "tile"


def test_the_current_folder_has_the_name_of_its_category(tmp_path, monkeypatch):
    monkeypatch.chdir(mvtec(tmp_path / "tile"))
    assert open_dataset(Path()).category == "tile"


def test_two_categories_where_one_was_meant_are_named(tmp_path):
    mvtec(tmp_path / "tile")
    mvtec(tmp_path / "wood")
    with pytest.raises(DataError, match=r"expected one category, got 2: tile, wood\. Name one with --category, or"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["wood", "..", "tile/train", ""])
def test_an_unknown_category_names_those_that_exist(tmp_path, name):
    mvtec(tmp_path / "tile")
    with pytest.raises(DataError, match=rf"expected one of the categories tile; got '{name}'"):
        open_dataset(tmp_path, name)


def test_a_category_below_a_category_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds the category wood, got a category itself\. Leave the category out"):
        open_dataset(mvtec(tmp_path / "tile"), "wood")


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ((), r"got an empty folder\. Put the normal"),
        (("a.txt", "b.md"), r"got 2 other files\. Put the normal"),
        (
            ("fine/0.png", "dent/0.png"),
            r"got the folders dent, fine\. Call the one that holds the normal images good",
        ),
        (("a.png", "dent/0.png"), r"got images beside the folders dent\. Put the normal"),
    ],
)
def test_a_folder_without_a_known_layout_says_what_is_there(tmp_path, names, got):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=rf"expected normal images in train/good or good, .*, {got}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (("train/fine/0.png",), ""),
        (("train/0.png",), r" \(left out: 1 images in train itself\)"),
        (("test/good/0.png", "test/dent/0.png"), ""),
        (
            ("good/a.txt", "good/b.pgm", "good/c.pgm", "dent/0.png"),
            r" \(left out: files 2 \.pgm, 1 \.txt, while images",
        ),
        (("good/train/0.png", "good/test/0.png", "dent/0.png"), r" \(left out: folders good/test, good/train\)"),
        (("good/NG/0.png", "dent/0.png"), r" \(left out: folders good/NG\)"),
    ],
)
def test_a_dataset_without_normal_training_images_is_refused(tmp_path, names, left_out):
    with pytest.raises(DataError, match=rf"got no normal training image among [0123]{left_out}"):
        open_dataset(touch(tmp_path, *names))


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent: expected a dataset's folder, got: No such file or directory"):
        open_dataset(tmp_path / "absent")
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected a dataset's folder, got a file"):
        open_dataset(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected a dataset's folder"):
        list_categories(tmp_path / "a.png")


# ---- hashes


def test_content_hash_is_the_sha256_of_the_bytes(tmp_path):
    touch(tmp_path, "a")
    assert content_hash(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()
    with pytest.raises(DataError, match=r"b: expected a file that can be read, got: No such file"):
        content_hash(tmp_path / "b")


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_has_no_hash(tmp_path, kind):
    ODD[kind](tmp_path / "a.png")
    for hashed in (content_hash, image_hash):
        with pytest.raises(DataError, match=r"a\.png: "):
            hashed(tmp_path / "a.png")


def test_hash_contents_hashes_every_path_and_reports(tmp_path):
    touch(tmp_path, "a", "b", "c")
    seen = []
    hashes = hash_contents((tmp_path / n for n in "cab"), lambda completed, total: seen.append((completed, total)))
    assert hashes == {tmp_path / n: hashlib.sha256(n.encode()).hexdigest() for n in "cab"}
    assert seen == [(1, 3), (2, 3), (3, 3)]


PIXELS = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([(9, 8), (8, 9), (9, 8, 3), (8, 9, 3)]),
    elements=st.integers(0, 255),
)


@settings(max_examples=40)
@given(image=PIXELS, text=st.binary(min_size=1, max_size=30), level=st.integers(0, 9))
def test_images_are_the_same_when_their_pixels_are(tmp_path_factory, image, text, level):
    folder = tmp_path_factory.mktemp("hashes")
    first = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
    chunk = b"tEXt" + b"a\0" + text.hex().encode()
    again = first[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + first[33:]
    other = image.copy()
    other.flat[0] ^= 1
    for name, data in (("first", first), ("again", again), ("other", cv2.imencode(".png", other)[1].tobytes())):
        (folder / name).write_bytes(data)
    (folder / "tiff").write_bytes(cv2.imencode(".tiff", image)[1].tobytes())
    hashes = {path.name: content for path, content in hash_contents(folder.iterdir()).items()}
    assert hashes["first"] == hashes["again"] == hashes["tiff"] != hashes["other"]
    assert hashes["first"].startswith("pixels:")
    assert content_hash(folder / "first") != content_hash(folder / "again")


def test_grey_saved_in_colour_is_the_same_image_and_another_shape_is_not(tmp_path):
    grey = np.arange(96, dtype=np.uint8).reshape(8, 12)
    for name, image in (
        ("a", grey),
        ("b", np.dstack([grey] * 3)),
        ("c", grey.reshape(12, 8)),
        ("d", grey.astype(np.uint16)),
    ):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    a, b, c, d = (image_hash(tmp_path / f"{name}.png") for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_hashes_of_older_records_are_found_whatever_the_copies_bytes(tmp_path):
    image = np.arange(96, dtype=np.uint8).reshape(8, 12)
    for name, pixels in (("old.png", image), ("copy.tiff", image), ("other.png", image + 1)):
        assert cv2.imwrite(str(tmp_path / name), pixels)
    contents = hash_contents(sorted(tmp_path.iterdir()))
    old, other = content_hash(tmp_path / "old.png"), image_hash(tmp_path / "other.png")
    assert list(as_recorded(contents, {old}).values()) == [old, old, other]
    assert as_recorded(contents, {contents[tmp_path / "old.png"], other}) == contents
    # A record with both kinds: neither is lost.
    assert as_recorded(contents, {old, contents[tmp_path / "old.png"]}) == contents


def fingerprint_of(root: Path) -> str:
    dataset = open_dataset(root)
    return fingerprint(dataset, hash_contents(s.path for s in dataset.samples))


def test_the_fingerprint_stays_when_the_dataset_is_copied(tmp_path):
    assert fingerprint_of(mvtec(tmp_path / "a/tile")) == fingerprint_of(mvtec(tmp_path / "b/other"))


def test_the_fingerprint_changes_with_content_name_split_and_label(tmp_path):
    prints = [fingerprint_of(mvtec(tmp_path / "tile"))]
    (tmp_path / "tile/train/good/000.png").write_bytes(b"other")
    prints.append(fingerprint_of(tmp_path / "tile"))
    (tmp_path / "tile/train/good/000.png").rename(tmp_path / "tile/train/good/9.png")
    prints.append(fingerprint_of(tmp_path / "tile"))
    (tmp_path / "tile/train/good/9.png").rename(tmp_path / "tile/test/good/9.png")
    prints.append(fingerprint_of(tmp_path / "tile"))
    (tmp_path / "tile/test/hole").rename(tmp_path / "tile/test/holes")
    prints.append(fingerprint_of(tmp_path / "tile"))
    assert len(set(prints)) == 5


def test_the_fingerprint_needs_every_hash(tmp_path):
    with pytest.raises(ArgumentError, match=r"hashes: expected one for every sample, got none for .*000\.png"):
        fingerprint(open_dataset(mvtec(tmp_path)), {})


# ---- held-out samples


def good(count: int) -> list[Sample]:
    return [Sample(Path(f"good/{i:04}.png"), "train", "good") for i in range(count)]


@pytest.mark.parametrize(
    ("count", "held_out"), [(0, 0), (1, 0), (2, 1), (19, 9), (39, 19), (40, 20), (100, 20), (300, 30), (1000, 100)]
)
def test_a_tenth_is_held_out_but_at_least_20_and_at_most_half(count, held_out):
    train, held = split_held_out(good(count))
    assert (len(train), len(held)) == (count - held_out, held_out)
    assert sorted(train + held, key=lambda s: s.path) == good(count)


@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_choice_does_not_depend_on_the_order(order: random.Random, seed):
    samples = good(60)
    expected = split_held_out(samples, seed=seed)
    order.shuffle(samples)
    assert split_held_out(samples, seed=seed) == expected


def test_the_held_out_images_of_a_category_never_change():
    # By the definition: the smallest SHA-256 of "SEED/NAME".
    by_hash = sorted((f"{i:04}.png" for i in range(60)), key=lambda n: hashlib.sha256(f"3/{n}".encode()).digest())
    assert [s.path.name for s in split_held_out(good(60), seed=3)[1]] == sorted(by_hash[:20])


def test_another_seed_chooses_others_and_another_place_the_same():
    samples = good(200)
    moved = [Sample(Path("/elsewhere") / s.path, s.split, s.defect) for s in samples]
    chosen = [s.path.name for s in split_held_out(samples)[1]]
    assert [s.path.name for s in split_held_out(moved)[1]] == chosen
    assert [s.path.name for s in split_held_out(samples, seed=1)[1]] != chosen


@given(contents=st.lists(st.integers(0, 12), min_size=0, max_size=60), share=st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_images_of_equal_content_stay_on_one_side(contents, share):
    samples = good(len(contents))
    hashes = {s.path: str(c) for s, c in zip(samples, contents, strict=True)}
    train, held = split_held_out(samples, share, 5, hashes=hashes)
    assert not {hashes[s.path] for s in train} & {hashes[s.path] for s in held}
    assert len(held) <= len(samples) // 2
    assert len(train) + len(held) == len(samples)


def test_hashes_change_nothing_where_every_content_differs():
    samples = good(80)
    assert split_held_out(samples, hashes={s.path: s.path.name for s in samples}) == split_held_out(samples)


def test_wrong_arguments_of_split_held_out_are_refused():
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ArgumentError, match="share: expected a fraction above 0 and below 1"):
            split_held_out(good(3), share)
    with pytest.raises(ArgumentError, match="minimum: expected 0 samples or more, got -1"):
        split_held_out(good(3), minimum=-1)
    with pytest.raises(ArgumentError, match=r"got none for good/0000\.png|got none for good/0001\.png"):
        split_held_out(good(2), hashes={})


@pytest.mark.parametrize("name", [".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".nfs0001.png", "__MACOSX/0.png"])
def test_what_file_managers_leave_behind_is_passed_over(tmp_path, name):
    touch(tmp_path, *(f"good/{i}.png" for i in range(3)), f"good/{name}")
    dataset = open_dataset(tmp_path)
    assert len(dataset.samples) == 3
    assert dataset.ignored == ()
