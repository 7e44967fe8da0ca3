"""What the image files of a dataset say together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import image, inspected, mask, problems, write
from PIL import Image

from flawscope.datasets import inspect_dataset, open_dataset


def test_images_of_two_values_look_like_masks(tile):
    mask(tile / "train/good/0_x.png")
    assert problems(tile) == [("error", "looks_like_mask", "train/good/0_x.png"), ("note", "mixed_channels", ".")]


def test_where_all_images_have_two_values_the_product_is_like_that(tmp_path):
    for i in range(3):
        write(tmp_path / f"good/{i}.png", np.roll(np.eye(12, 16, dtype=np.uint8) * 200, i, 1))
    assert problems(tmp_path) == [("note", "looks_like_mask", ".")]


@settings(max_examples=20)
@given(orientations=st.lists(st.integers(1, 8), min_size=3, max_size=5))
def test_exif_orientations_are_told_and_mixed_ones_are_an_error(tmp_path_factory, orientations):
    root = tmp_path_factory.mktemp("set")
    for i, orientation in enumerate(orientations):
        exif = Image.Exif()
        exif[274] = orientation
        pixels = np.random.default_rng(i).integers(0, 250, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.jpg", exif=exif)
    found = [(p.severity, p.kind) for p in inspected(root).problems if p.kind != "flat_folder"]
    if set(orientations) == {1}:
        assert found == []
    elif len(set(orientations)) == 1:
        assert found == [("note", "exif_orientation")]
    else:
        assert found == [("error", "mixed_orientation")]


@settings(max_examples=20)
@given(pages=st.integers(1, 4))
def test_several_pages_are_told(tmp_path_factory, pages):
    root = tmp_path_factory.mktemp("set")
    for i in range(2):
        image(root / f"{i}.png", i)
    first, *rest = (
        Image.fromarray(np.random.default_rng(9 + i).integers(0, 250, (12, 16), np.uint8)) for i in range(pages)
    )
    first.convert("RGB").save(root / "many.tif", save_all=True, append_images=[page.convert("RGB") for page in rest])
    told = [p.message for p in inspected(root).problems if p.kind == "several_pages"]
    assert told == ([f"has {pages} pages, of which the first is used"] if pages > 1 else [])


@settings(max_examples=30)
@given(largest=st.integers(2, 65_535))
def test_16_bit_images_that_use_fewer_bits_are_named(tmp_path_factory, largest):
    root = tmp_path_factory.mktemp("set")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, largest, (12, 16), dtype=np.uint16)
        pixels[0, i] = largest
        write(root / f"good/{i}.png", pixels)
    told = [p.message for p in inspected(root).problems if p.kind == "few_levels"]
    needed = next((bits for bits in (8, 10, 12, 14) if largest < 2**bits), None)
    assert len(told) == (needed is not None)
    if needed:
        levels = ((np.arange(largest + 1) + 128) // 257).max() + 1
        assert f"largest value is {largest}, which suggests {needed} bit in a file of 16: {levels} of 256" in told[0]


@pytest.mark.parametrize(
    ("other", "kinds"),
    [
        ({"size": (24, 32)}, ["mixed_sizes"]),
        ({"size": (32, 24)}, ["mixed_aspect_ratios"]),
        ({"size": (12, 80)}, ["aspect_ratio", "mixed_aspect_ratios"]),
        ({"channels": 1}, ["mixed_channels"]),
        ({"channels": 3, "dtype": np.uint16}, ["mixed_bits"]),
    ],
)
def test_mixed_images_are_told(tile, other, kinds):
    image(tile / "train/good/9.png", 40, **other)
    assert [kind for _, kind, _ in problems(tile)] == kinds
    assert all(problem.severity == "note" for problem in inspected(tile).problems)


def test_images_of_several_categories_are_mixed_each_by_itself(tmp_path):
    for i in range(2):
        image(tmp_path / f"cap/good/{i}.png", i)
        image(tmp_path / f"wide/good/{i}.png", i, (8, 40))
    found = inspect_dataset(open_dataset(tmp_path, "all")).problems
    assert [(p.kind, p.message[:35]) for p in found] == [("aspect_ratio", "has 2 of 2 images of wide whose asp")]
