"""Which mask belongs to which image: by name, one or several, in folders of types or loose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from dataset_files import below, index, touch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.datasets import open_dataset
from flawscope.errors import ImageError

WORDS = st.sampled_from(["_mask", "_GT", "-mask", ".mask", "_label", "_seg", "_annotation", " ground_truth", "_Labels"])


@settings(max_examples=60)
@given(
    word=WORDS,
    extension=st.sampled_from([".png", ".bmp"]),
    paired=st.sets(st.integers(0, 9), max_size=4),
    orphans=st.sets(st.integers(20, 29), max_size=2),
)
def test_a_mask_beside_images_is_never_learned(tmp_path_factory, word, extension, paired, orphans):
    root = tmp_path_factory.mktemp("set")
    touch(root, *(f"good/{i}.png" for i in range(10)), *(f"good/{i}{word}{extension}" for i in paired | orphans))
    touch(root, *(f"dent/{i}.png" for i in range(10)), *(f"dent/{i}{word}{extension}" for i in paired | orphans))
    dataset = open_dataset(root)
    assert {sample.path.name for sample in dataset.samples} == {f"{i}.png" for i in range(10)}
    masks = {sample.path.stem: sample.mask.name for sample in dataset.samples if sample.mask is not None}
    assert masks == {str(i): f"{i}{word}{extension}" for i in paired}
    assert {path.name for path in dataset.orphan_masks} == {f"{i}{word}{extension}" for i in orphans}
    assert {path.name for path in dataset.ignored} == {f"{i}{word}{extension}" for i in paired | orphans}


def test_a_product_whose_every_name_ends_like_a_mask_is_learned(tmp_path):
    touch(tmp_path, *(f"good/{i}_mask.png" for i in range(5)), "tear/1_mask.png", "ground_truth/tear/1_mask_mask.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.samples) == 6
    assert [(r.kind, r.path.name) for r in dataset.remarks] == [
        ("named_like_masks", "good"),
        ("named_like_masks", "tear"),
    ]
    assert below(dataset, [s.mask for s in dataset.samples if s.mask]) == ["ground_truth/tear/1_mask_mask.png"]


# ---- several masks, and masks that lie loose


@settings(max_examples=40)
@given(
    form=st.sampled_from(["{}/{:03}.png", "{}_mask_{}.png", "{}_mask{}.png", "{}_{}.png", "{}-gt-{:02}.png"]),
    numbers=st.sets(st.integers(0, 12), min_size=1, max_size=4),
    stems=st.sets(st.sampled_from(["000", "part", "a b"]), min_size=1),
)
def test_an_image_may_have_several_masks(tmp_path_factory, form, numbers, stems):
    root = tmp_path_factory.mktemp("set")
    touch(root, "train/good/0.png", *(f"test/logical/{stem}.png" for stem in stems))
    masks = {stem: {f"ground_truth/logical/{form.format(stem, n)}" for n in numbers} for stem in stems}
    touch(root, *(name for names in masks.values() for name in names))
    dataset = open_dataset(root)
    assert {s.path.stem: set(below(dataset, s.masks)) for s in dataset.test} == masks
    assert (dataset.orphan_masks, dataset.ignored) == ((), ())


def test_the_masks_of_one_image_are_joined(tmp_path):
    touch(tmp_path, "train/good/0.png", "test/x/0.png")
    truth = np.zeros((2, 12, 16), np.uint8)
    truth[0, 2, 3] = truth[1, 4, 5] = 255
    (tmp_path / "ground_truth/x/0").mkdir(parents=True)
    for number, mask in enumerate(truth):
        assert cv2.imwrite(str(tmp_path / f"ground_truth/x/0/{number}.png"), mask)
    [sample] = open_dataset(tmp_path).test
    np.testing.assert_array_equal(sample.read_mask(), truth.any(axis=0))
    assert cv2.imwrite(str(tmp_path / "ground_truth/x/0/2.png"), truth[0, :8])
    [sample] = open_dataset(tmp_path).test
    with pytest.raises(ImageError, match=r"2\.png: expected 16x12 pixels as .*0\.png has, got 16x8"):
        sample.read_mask()


@pytest.mark.parametrize("name", ["masks/{}.png", "mask/{}_mask.png", "ground_truth/{}.bmp", "GT/{}/0.png"])
def test_loose_masks_belong_to_the_one_anomalous_image_of_their_stem(tmp_path, name):
    touch(tmp_path, *(f"good/{i}.png" for i in range(3)), "dent/1.png", "hole/2.png", "dent/3.png", "hole/3.png")
    touch(tmp_path, *(name.format(i) for i in (0, 1, 2, 3, 4)))
    dataset = open_dataset(tmp_path)
    masks = {place: mask for place, _, defect, mask in index(dataset) if defect != "good"}
    assert masks == {
        "dent/1.png": name.format(1),
        "hole/2.png": name.format(2),
        "dent/3.png": None,
        "hole/3.png": None,
    }
    [ambiguous] = [r for r in dataset.remarks if r.kind == "ambiguous_mask"]
    assert ambiguous.path == tmp_path / name.format(3)
    assert ambiguous.message.startswith("may belong to dent/3.png or hole/3.png")


@settings(max_examples=20)
@given(
    extensions=st.sets(st.sampled_from([".png", ".jpg", ".bmp", ".TIF"]), min_size=2),
    mask=st.sampled_from(["masks/dent/000.png", "masks/000_mask.png", "dent/000_GT.png"]),
)
def test_a_mask_of_two_images_of_one_stem_is_named_and_used_for_neither(tmp_path_factory, extensions, mask):
    root = tmp_path_factory.mktemp("set")
    touch(root, "good/0.png", *(f"dent/000{extension}" for extension in extensions), mask)
    dataset = open_dataset(root)
    assert [s.mask for s in dataset.test] == [None] * len(extensions)
    [problem] = [r for r in dataset.remarks if r.kind == "ambiguous_mask"]
    assert (problem.path, problem.severity) == (root / mask, "error")


def test_a_mask_of_a_test_image_is_not_taken_for_training(tmp_path):
    touch(tmp_path, "train/good/0.png", "train/dent/1.png", "test/dent/1.png", "ground_truth/dent/1_mask.png")
    assert [s.mask is not None for s in open_dataset(tmp_path).samples if s.is_anomalous] == [False, True]


def test_a_name_with_a_number_after_a_word_for_masks_is_a_mask_only_beside_its_image(tmp_path):
    touch(tmp_path, "good/0.png", "good/0_mask_1.png", *(f"good/bottle_label_{i}.png" for i in range(3)))
    dataset = open_dataset(tmp_path)
    assert [s.path.name for s in dataset.samples] == ["0.png", *(f"bottle_label_{i}.png" for i in range(3))]
