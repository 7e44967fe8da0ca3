"""Support sets: which images are chosen, what is recorded, and how an evaluation leaves them out."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from file_contents import files_of
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.datasets import content_hash, open_dataset
from flawscope.datasets.defects.anomalous_samples import list_anomalous
from flawscope.datasets.defects.near_duplicates import appearance_of, is_near_duplicate
from flawscope.datasets.defects.support_set import (
    exclude_support,
    find_support,
    read_support,
    support_record,
    write_support,
)
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask


@pytest.fixture
def steel(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


@pytest.fixture
def own_root(tiny_root, tmp_path):
    """A copy of the tiny dataset that a test may change."""
    return shutil.copytree(tiny_root / CATEGORY, tmp_path / "data" / CATEGORY)


def test_each_defect_type_gets_so_many_images_with_their_masks(steel, tmp_path):
    record = write_support(steel, tmp_path / "set", shots=2, split="test")
    assert [image.defect for image in record.pictures] == [name for name in DEFECTS for _ in range(2)]
    for image in record.pictures:
        source, mask_source = steel.root / image.source, steel.root / image.mask_source
        assert image.picture == f"steel/{image.defect}/{source.stem}.png"
        assert image.mask == f"steel/{image.defect}_mask/{source.stem}_mask.png"
        np.testing.assert_array_equal(read_image(tmp_path / "set" / image.picture), read_image(source))
        mask = cv2.imread(str(tmp_path / "set" / image.mask), cv2.IMREAD_UNCHANGED)
        assert mask.ndim == 2
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask > 0, read_mask(mask_source))
        assert image.defect_px == np.count_nonzero(mask)
        assert image.content == content_hash(source)
        assert image.mask_content == content_hash(mask_source)
        assert image.split == "test"
    assert len({image.content for image in record.pictures}) == 4


def test_the_record_can_be_read_back(steel, tmp_path):
    record = write_support(steel, tmp_path / "set", shots=1, split="test", seed=7)
    assert read_support(tmp_path / "set") == record
    assert json.loads((tmp_path / "set" / "support.json").read_text())["seed"] == 7


def test_copies_are_real_png_whatever_the_original_was(own_root, tmp_path):
    for path in sorted((own_root / "test").glob("*/*.png")):
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    record = write_support(open_dataset(own_root), tmp_path / "set", shots=1, split="test")
    for image in record.pictures:
        assert image.source.endswith(".jpg")
        assert (tmp_path / "set" / image.picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_seed_gives_the_same_bytes_wherever_the_dataset_lies(steel, own_root, tmp_path):
    write_support(steel, tmp_path / "a", shots=1, split="test", seed=3)
    write_support(open_dataset(own_root), tmp_path / "b", shots=1, split="test", seed=3)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_seeds_choose_different_images(steel, tmp_path):
    chosen = set()
    for seed in range(12):
        record = write_support(steel, tmp_path / str(seed), shots=1, split="test", seed=seed)
        chosen.add(tuple(image.source for image in record.pictures))
    assert len(chosen) > 3


def test_more_shots_keep_those_that_fewer_chose(steel, tmp_path):
    few = write_support(steel, tmp_path / "few", shots=1, split="test", defects=DEFECTS[:1])
    many = write_support(steel, tmp_path / "more", shots=3, split="test", defects=DEFECTS[:1])
    assert few.pictures[0] == many.pictures[0]


def test_test_images_are_not_taken_unasked(steel, tmp_path):
    with pytest.raises(DataError, match=r"in the train split, got none, and 3 in test. Take those with --split test"):
        write_support(steel, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_defective_training_images_are_preferred_by_default(own_root, tmp_path):
    for defect in DEFECTS:
        (own_root / "train" / defect).mkdir()
        shutil.move(own_root / "test" / defect / "001.png", own_root / "train" / defect / "001.png")
    record = write_support(open_dataset(own_root), tmp_path / "set", shots=1)
    assert [image.source for image in record.pictures] == [f"train/{name}/001.png" for name in DEFECTS]
    assert {image.split for image in record.pictures} == {"train"}


def test_empty_masks_and_equal_images_are_passed_over_and_recorded(own_root, tmp_path):
    folder, masks = own_root / "test" / DEFECTS[0], own_root / "ground_truth" / DEFECTS[0]
    cv2.imwrite(str(masks / "000_mask.png"), np.zeros((64, 64), np.uint8))
    shutil.copy(folder / "001.png", folder / "copy.png")
    shutil.copy(masks / "001_mask.png", masks / "copy_mask.png")
    record = write_support(open_dataset(own_root), tmp_path / "set", shots=2, split="test", defects=DEFECTS[:1], seed=2)
    assert len({image.content for image in record.pictures}) == 2
    with pytest.raises(DataError, match=r"expected 3 different images .*got 2\. Ask for fewer with --shots"):
        write_support(open_dataset(own_root), tmp_path / "all", shots=3, split="test", defects=DEFECTS[:1])
    reasons = set()
    for seed in range(8):
        passed = write_support(
            open_dataset(own_root), tmp_path / f"set{seed}", shots=2, split="test", defects=DEFECTS[:1], seed=seed
        ).passed_over
        assert passed.get(f"test/{DEFECTS[0]}/000.png", "its mask shows no defect") == "its mask shows no defect"
        reasons |= {reason.partition(" as ")[0] for reason in passed.values()}
    assert reasons == {"its mask shows no defect", "the same image"}


def test_a_support_set_is_found_again_and_left_out_of_the_evaluation(own_root, tmp_path):
    shutil.copy(own_root / "test" / DEFECTS[0] / "001.png", own_root / "test" / "good" / "hidden_copy.png")
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "set", shots=3, split="test", defects=DEFECTS[:1])
    assert {entry.place for entry in find_support(dataset, record)} == {p.source for p in record.pictures}
    remaining, left_out = exclude_support(dataset, record)
    assert set(left_out) == {p.source for p in record.pictures} | {"test/good/hidden_copy.png"}
    assert len(remaining.samples) == len(dataset.samples) - 4
    assert {s.defect for s in remaining.test} == {"good", DEFECTS[1]}
    assert not {content_hash(s.path) for s in remaining.samples} & record.contents


def test_the_same_part_under_another_light_is_named_and_left_out(own_root, tmp_path):
    folder, masks = own_root / "test" / DEFECTS[0], own_root / "ground_truth" / DEFECTS[0]
    for name in ("000", "001", "002"):
        image = cv2.imread(str(folder / f"{name}.png"))
        cv2.imwrite(str(folder / f"{name}_dark.png"), (image * 0.6 + 10).astype(np.uint8)[1:, :-1])
        cv2.imwrite(str(masks / f"{name}_dark_mask.png"), cv2.imread(str(masks / f"{name}_mask.png"))[1:, :-1])
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "set", shots=1, split="test", defects=DEFECTS[:1])
    [part_image], [alike] = record.pictures, record.alike
    stem = part_image.source.rpartition("/")[2].removesuffix(".png")
    other = stem.removesuffix("_dark") if stem.endswith("_dark") else f"{stem}_dark"
    assert alike.source == f"test/{DEFECTS[0]}/{other}.png"
    assert alike.like == part_image.source
    assert set(exclude_support(dataset, record)[1]) == {part_image.source, alike.source}
    assert exclude_support(dataset, record, with_alike=False)[1] == (part_image.source,)


@pytest.mark.parametrize("seed", range(5))
def test_no_two_images_of_a_support_set_show_the_same_part_unless_that_is_allowed(own_root, tmp_path, seed):
    folder, masks = own_root / "test" / DEFECTS[0], own_root / "ground_truth" / DEFECTS[0]
    for name in ("000", "001"):
        image = cv2.imread(str(folder / f"{name}.png"))
        cv2.imwrite(str(folder / f"{name}_dark.png"), (image * 0.6 + 10).astype(np.uint8))
        shutil.copy(masks / f"{name}_mask.png", masks / f"{name}_dark_mask.png")
    dataset = open_dataset(own_root)
    chosen = {"split": "test", "defects": DEFECTS[:1], "seed": seed}
    record = write_support(dataset, tmp_path / "set", shots=3, **chosen)
    parts = {image.source.removesuffix(".png").removesuffix("_dark")[-3:] for image in record.pictures}
    assert parts == {"000", "001", "002"}
    assert not record.allow_alike
    assert all("probably the same part as test/" in reason for reason in record.passed_over.values())
    wanted = (
        r"expected 4 different .* got 3, and 2 that probably show the same parts \(.*/00\d.*png, .*\)\. .*--allow-alike"
    )
    with pytest.raises(DataError, match=wanted):
        write_support(dataset, tmp_path / "more", shots=4, **chosen)
    assert not (tmp_path / "more").exists()
    assert len(write_support(dataset, tmp_path / "more", shots=5, allow_alike=True, **chosen).pictures) == 5


def test_a_record_from_before_near_duplicates_were_refused_may_have_some(steel, tmp_path):
    write_support(steel, tmp_path / "set", shots=1, split="test")
    content = json.loads((tmp_path / "set" / "support.json").read_text())
    assert content.pop("allow_alike") is False
    (tmp_path / "set" / "support.json").write_text(json.dumps(content))
    assert read_support(tmp_path / "set").allow_alike


def test_different_parts_are_not_taken_for_the_same(steel, tmp_path):
    assert write_support(steel, tmp_path / "set", shots=1, split="test").alike == ()


def test_an_image_is_alike_to_itself_and_to_nothing_at_another_place():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    mask, elsewhere, empty = (np.zeros((60, 90), np.bool_) for _ in range(3))
    mask[10:20, 10:20] = elsewhere[40:50, 70:80] = True
    assert is_near_duplicate(appearance_of(image, mask), appearance_of(image, mask))
    assert not is_near_duplicate(appearance_of(image, mask), appearance_of(image, elsewhere))
    assert not is_near_duplicate(appearance_of(image, empty), appearance_of(image, empty))
    other = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    assert not is_near_duplicate(appearance_of(image, mask), appearance_of(other, mask))


def test_another_image_under_the_same_name_is_no_support_image(own_root, tmp_path):
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "set", shots=1, split="test", defects=DEFECTS[:1])
    path = own_root / record.pictures[0].source
    cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="expected the file the support set was taken from, got other content"):
        find_support(dataset, record)
    assert exclude_support(dataset, record)[1] == ()
    path.unlink()
    with pytest.raises(DataError, match=r"expected the support image test/.* with its mask, got none there"):
        find_support(open_dataset(own_root), record)


def test_in_a_dataset_of_all_categories_each_keeps_its_own_folder(tiny_root, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(tiny_root / CATEGORY, tmp_path / "data" / name)
    dataset = open_dataset(tmp_path / "data", "all")
    record = write_support(dataset, tmp_path / "set", shots=1, split="test")
    assert {(p.category, p.defect) for p in record.pictures} == {(c, d) for c in ("one", "two") for d in DEFECTS}
    assert all(p.picture.startswith(f"{p.category}/{p.defect}/") for p in record.pictures)
    assert len(find_support(dataset, record)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots: expected a whole number from 1 to 1000, got 0"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"defects": ("nope",)}, r"defect: expected defect types of .*pitting, stain.*, got 'nope'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(steel, tmp_path, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        write_support(steel, tmp_path / "set", split="test", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_defects_is_refused(own_root, tmp_path):
    shutil.rmtree(own_root / "test")
    with pytest.raises(DataError, match="expected anomalous images with masks, got normal ones only"):
        write_support(open_dataset(own_root), tmp_path / "set")


def test_masks_of_one_type_may_not_lie_among_images_of_another(own_root, tmp_path):
    for kind in ("test", "ground_truth"):
        shutil.copytree(own_root / kind / DEFECTS[0], own_root / kind / f"{DEFECTS[0]}_mask")
    with pytest.raises(DataError, match=f"expected none called {DEFECTS[0]}_mask beside {DEFECTS[0]}"):
        write_support(open_dataset(own_root), tmp_path / "set", split="test")


def test_a_folder_with_other_files_is_left_alone(steel, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "letter.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"expected a new folder or one with support\.json"):
        write_support(steel, tmp_path / "set", split="test")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', "[1, 2]"])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "support.json").write_text(text)
    with pytest.raises(DataError, match=r"support\.json: expected the record of a support set, which .*, got"):
        read_support(tmp_path)


@pytest.mark.parametrize("place", ["../elsewhere.png", "/etc/passwd"])
def test_a_record_that_names_files_outside_its_folder_is_refused(steel, tmp_path, place):
    write_support(steel, tmp_path / "set", shots=1, split="test")
    path = tmp_path / "set" / "support.json"
    record = json.loads(path.read_text())
    record["pictures"][0]["mask"] = place
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"support\.json: expected a path below .*/set, got"):
        read_support(tmp_path / "set")


def test_a_record_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"expected the record of a support set, which .*, got: No such file"):
        read_support(tmp_path / "none")


def test_the_order_of_the_samples_does_not_matter(steel, tmp_path):
    import msgspec

    turned = msgspec.structs.replace(steel, samples=steel.samples[::-1])
    for name, dataset in (("a", steel), ("b", turned)):
        write_support(dataset, tmp_path / name, shots=1, split="test", defects=DEFECTS[:1])
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert {e.place for e in list_anomalous(steel, "any")} == {e.place for e in list_anomalous(turned, "test")}


@pytest.mark.parametrize("changed", [0, 1])
def test_another_mask_of_an_image_with_several_is_found(own_root, tmp_path, changed):
    for path in sorted((own_root / "ground_truth").glob("*/*.png")):
        folder = path.parent / path.stem.removesuffix("_mask")
        folder.mkdir()
        path.rename(folder / "0.png")
        part = np.zeros((64, 64), np.uint8)
        part[:3, :3] = 255
        cv2.imwrite(str(folder / "1.png"), part)
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "set", shots=1, split="test", defects=DEFECTS[:1])
    assert len(find_support(dataset, record)) == 1
    mask = read_mask(tmp_path / "set" / record.pictures[0].mask)
    assert mask[:3, :3].all()
    assert mask[3:, 3:].any()
    mask_file = own_root / record.pictures[0].mask_source
    (mask_file.parent / f"{changed}.png").write_bytes(
        cv2.imencode(".png", np.eye(64, dtype=np.uint8) * 255)[1].tobytes()
    )
    with pytest.raises(DataError, match="expected the file the support set was taken from, got other content"):
        find_support(dataset, record)


# --- without a record, as AnoGen ships its sets


def bare_copy(root, place, defects=DEFECTS, count=2):
    """Write `place` as AnoGen's images/train_images: NAME/DEFECT/NNN.png and NAME/DEFECT_mask/NNN_mask.png."""
    for defect in defects:
        for folder in (defect, f"{defect}_mask"):
            (place / CATEGORY / folder).mkdir(parents=True)
        for path in sorted((root / "test" / defect).glob("*.png"))[:count]:
            shutil.copyfile(path, place / CATEGORY / defect / path.name)
            mask = f"{path.stem}_mask.png"
            shutil.copyfile(root / "ground_truth" / defect / mask, place / CATEGORY / f"{defect}_mask" / mask)
    return place


@pytest.mark.parametrize("named", [".", CATEGORY])
def test_a_set_without_a_record_is_found_in_the_dataset_by_its_content(own_root, tmp_path, named):
    folder = bare_copy(own_root, tmp_path / "train_images") / named
    steel = open_dataset(own_root)
    # Other names in the dataset do not matter.
    record = read_support(folder)
    assert (record.category, record.shots, record.is_bare) == (CATEGORY, 2, True)
    assert [(image.category, image.defect) for image in record.pictures] == [
        (CATEGORY, d) for d in DEFECTS for _ in "ab"
    ]
    entries = find_support(steel, record)
    assert [entry.place for entry in entries] == [f"test/{d}/00{i}.png" for d in DEFECTS for i in range(2)]
    for entry, image in zip(entries, record.pictures, strict=True):
        _, mask = entry.read()
        assert mask.sum() == image.defect_px > 0
    remaining, left_out = exclude_support(steel, record)
    assert sorted(left_out) == sorted(entry.place for entry in entries)
    assert len(remaining.samples) == len(steel.samples) - 4


def test_a_set_of_several_categories_is_taken_as_far_as_the_dataset_goes(own_root, tmp_path):
    folder = bare_copy(own_root, tmp_path / "train_images")
    (folder / "bottle").mkdir()
    for name in ("crack", "crack_mask"):
        (folder / "bottle" / name).mkdir()
        cv2.imwrite(str(folder / "bottle" / name / ("0.png" if name == "crack" else "0_mask.png")), np.eye(8) * 255)
    record = read_support(folder)
    assert record.category == "all"
    assert {entry.category for entry in find_support(open_dataset(own_root), record)} == {CATEGORY}
    with pytest.raises(DataError, match=r"expected a support set of steel, got one of bottle"):
        find_support(open_dataset(own_root), read_support(folder / "bottle"))


def test_images_that_the_dataset_lacks_are_refused_and_never_stay_in_a_test_unseen(own_root, tmp_path):
    folder = bare_copy(own_root, tmp_path / "train_images")
    image = folder / CATEGORY / DEFECTS[0] / "000.png"
    cv2.imwrite(str(image), 255 - cv2.imread(str(image)))
    record, steel = read_support(folder), open_dataset(own_root)
    with pytest.raises(
        DataError, match=r"expected the support image steel/pitting/000\.png with its mask, got none of"
    ):
        find_support(steel, record)
    with pytest.raises(
        DataError, match=r"expected the 1 images of the support set like steel/pitting/000\.png, to leave"
    ):
        exclude_support(steel, record)


def test_what_a_set_without_a_record_lacks_is_said(own_root, tmp_path):
    folder = bare_copy(own_root, tmp_path / "train_images")
    (folder / CATEGORY / f"{DEFECTS[0]}_mask" / "000_mask.png").unlink()
    with pytest.raises(DataError, match=r"000\.png: expected its mask .*pitting_mask/000_mask\.png, got none"):
        read_support(folder)
    shutil.rmtree(folder / CATEGORY / f"{DEFECTS[0]}_mask")
    for named in (folder, folder / CATEGORY):
        with pytest.raises(DataError, match=r"pitting: expected its masks in pitting_mask beside it, got none"):
            read_support(named)
    # Another layout is no support set.
    with pytest.raises(DataError, match=r"support\.json: expected the record of a support set"):
        read_support(own_root)


def test_the_record_that_a_run_keeps_is_read_back(own_root, tmp_path):
    folder = bare_copy(own_root, tmp_path / "train_images")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "support.json").write_bytes(support_record(folder))
    assert read_support(tmp_path / "run") == read_support(folder)
    write_support(open_dataset(own_root), tmp_path / "set", shots=1, split="test")
    assert support_record(tmp_path / "set") == (tmp_path / "set" / "support.json").read_bytes()
