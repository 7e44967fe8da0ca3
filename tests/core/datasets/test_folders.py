"""Folders by their names: normal images, splits, folders in folders, and what lies beside them."""

from __future__ import annotations

import pytest
from dataset_files import below, index, touch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.datasets import list_categories, open_dataset
from flawscope.errors import DataError


@pytest.mark.parametrize("good", ["OK", "ok", "Normal", "GOOD", "Good"])
@pytest.mark.parametrize("train", ["", "train/", "Train/", "TRAIN/"])
def test_normal_images_and_splits_have_names_in_any_case(tmp_path, good, train):
    test = train.replace("rain", "est").replace("RAIN", "EST")
    touch(tmp_path, *(f"{train}{good}/{i}.png" for i in range(4)), f"{test}NG/0.png", "Ground_Truth/NG/0.png")
    dataset = open_dataset(tmp_path)
    assert index(dataset) == [
        *((f"{train}{good}/{i}.png", "train", "good", None) for i in range(4)),
        (f"{test}NG/0.png", "test", "NG", "Ground_Truth/NG/0.png"),
    ]
    noted = {remark.path.relative_to(tmp_path).as_posix() for remark in dataset.remarks}
    assert noted == {f"{train}{good}", *([] if train in ("", "train/") else [train[:-1], test[:-1]])}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("good/0.png", "OK/0.png"), "expected one folder of normal images, got OK and good"),
        (("train/good/0.png", "train/normal/0.png"), "expected one folder of normal images, got good and normal"),
        (("train/good/0.png", "Train/good/0.png"), "expected one folder of each split, got Train and train"),
    ],
)
def test_two_folders_that_may_hold_the_same_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        open_dataset(touch(tmp_path, *names))


def test_a_category_may_be_called_like_normal_images(tmp_path):
    for name in ("normal", "ok"):
        touch(tmp_path / name, "train/good/0.png", "test/good/1.png")
    assert list_categories(tmp_path) == ("normal", "ok")


PLACES = st.lists(
    st.sampled_from(["2024-01-01", "2024-01-02/early", "lot 7/a/b", "camera 1"]), min_size=1, max_size=4, unique=True
)


@settings(max_examples=40)
@given(
    places=PLACES,
    count=st.integers(1, 3),
    masks=st.sampled_from(["masks/dent/{}/{}.png", "dent/{}/{}_mask.png", "dent/{}/masks/{}.png"]),
    split=st.sampled_from(["", "train/"]),
)
def test_images_in_folders_below_a_type_are_of_that_type(tmp_path_factory, places, count, masks, split):
    root = tmp_path_factory.mktemp("set")
    test = "test/" if split else ""
    prefix = test if masks.startswith("dent") else ""
    for place in places:
        touch(root, *(f"{split}good/{place}/{i}.png" for i in range(count)))
        touch(root, *(f"{test}dent/{place}/{i}.png" for i in range(count)))
        touch(root, *(prefix + masks.format(place, i) for i in range(count)))
    dataset = open_dataset(root)
    assert len([s for s in dataset.samples if not s.is_anomalous]) == len(places) * count
    anomalous = {place: mask for place, _, defect, mask in index(dataset) if defect == "dent"}
    assert anomalous == {
        f"{test}dent/{place}/{i}.png": prefix + masks.format(place, i) for place in places for i in range(count)
    }
    assert dataset.orphan_masks == ()
    assert {r.kind for r in dataset.remarks} == {"nested_folders"}


def test_folders_beside_images_are_left_out(tmp_path):
    touch(tmp_path, "good/0.png", "good/lot 2/1.png", "dent/0.png")
    dataset = open_dataset(tmp_path)
    assert below(dataset, dataset.ignored) == ["good/lot 2"]
    assert dataset.remarks == ()


def test_images_in_no_folder_of_a_type_are_named(tmp_path):
    touch(tmp_path, "train/good/0.png", "train/1.png", "2.png", "test/good/3.png", "validation/good/4.png")
    dataset = open_dataset(tmp_path)
    assert [(r.kind, r.path.relative_to(tmp_path).as_posix()) for r in dataset.remarks] == [
        ("ignored", "validation"),
        ("ignored", "train/1.png"),
        ("ignored", "2.png"),
    ]
