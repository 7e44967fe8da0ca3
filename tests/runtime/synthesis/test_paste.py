"""Cut, enlarge and paste back: exact outside the feathered mask, for boxes anywhere in the image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.imaging.crops import Crop, crop_around, cut_image, cut_mask
from flawscope.runtime.synthesis.paste import feather_mask, paste_drawn

HEIGHT, WIDTH = 30, 42


def part_image(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def box_mask(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


@st.composite
def boxes(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """Boxes of one pixel to the whole image; half of the sides lie on a border of the image."""
    sides = []
    for length in (HEIGHT, WIDTH):
        first = draw(st.one_of(st.just(0), st.integers(0, length - 1)))
        sides.append((first, draw(st.one_of(st.just(length), st.integers(first + 1, length)))))
    return np.asarray(box_mask(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))


@settings(max_examples=150, deadline=None)
@given(
    mask=boxes(),
    feather=st.integers(0, 5),
    size=st.sampled_from([(16, 16), (32, 32), (24, 40)]),
    fill=st.sampled_from([0.3, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_pixels_outside_the_feathered_mask_are_bit_identical(
    mask: npt.NDArray[np.bool_], feather: int, size: tuple[int, int], fill: float, seed: int
) -> None:
    good = part_image(seed)
    before = good.copy()
    crop = crop_around(mask, size, fill=fill, feather_px=feather)
    weight = feather_mask(mask, feather)
    result = paste_drawn(good, part_image(seed + 100, size), crop, weight)
    assert np.array_equal(result[weight == 0], good[weight == 0])
    assert np.array_equal(good, before)
    # The feathered mask itself, by its definition: nearer than feather + 1 to a marked pixel.
    rows, columns = np.nonzero(mask)
    grid = np.indices(mask.shape)
    nearest = (
        np.maximum(np.maximum(rows.min() - grid[0], grid[0] - rows.max()).clip(0), 0) ** 2
        + np.maximum(np.maximum(columns.min() - grid[1], grid[1] - columns.max()), 0) ** 2
    )
    assert np.array_equal(weight > 0, nearest < (feather + 1) ** 2 if feather else mask)
    assert np.all(weight[mask] == 1.0)


@settings(max_examples=60, deadline=None)
@given(mask=boxes(), feather=st.integers(0, 5), seed=st.integers(0, 9))
@pytest.mark.long
def test_at_the_models_own_size_the_mask_gets_exactly_what_was_drawn(
    mask: npt.NDArray[np.bool_], feather: int, seed: int
) -> None:
    good, drawn = part_image(seed), part_image(seed + 100)
    whole = Crop(0, 0, HEIGHT, WIDTH, (HEIGHT, WIDTH))
    weight = feather_mask(mask, feather)
    result = paste_drawn(good, drawn, whole, weight)
    assert np.array_equal(result[mask], drawn[mask])
    between = (weight > 0) & ~mask
    low, high = np.minimum(good, drawn)[between], np.maximum(good, drawn)[between]
    assert np.all((result[between] >= low) & (result[between] <= high))
    assert np.array_equal(paste_drawn(good, good, whole, weight), good)


@settings(max_examples=100, deadline=None)
@given(mask=boxes(), feather=st.integers(0, 5), zoom=st.sampled_from([1.0, 2.0, 4.0]))
def test_the_window_holds_the_box_and_its_feather(mask: npt.NDArray[np.bool_], feather: int, zoom: float) -> None:
    crop = crop_around(mask, (32, 32), max_zoom=zoom, feather_px=feather)
    assert 0 <= crop.top <= HEIGHT - crop.height
    assert 0 <= crop.left <= WIDTH - crop.width
    inside = np.zeros_like(mask)
    inside[crop.window] = True
    assert inside[feather_mask(mask, feather) > 0].all()
    for side, image_side in ((crop.height, HEIGHT), (crop.width, WIDTH)):
        assert side >= min(image_side, 32 / zoom)  # never enlarged by more
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if crop.height < HEIGHT and crop.width < WIDTH:
        assert len(rows) <= 0.5 * crop.height
        assert len(columns) <= 0.5 * crop.width


def test_a_small_box_is_enlarged_and_a_large_one_is_not() -> None:
    small = crop_around(box_mask(100, 200, 116, 216, (400, 400)), (256, 256), feather_px=0)
    assert (small.height, small.width) == (64, 64)
    assert (small.top, small.left) == (100 + 8 - 32, 200 + 8 - 32)
    medium = crop_around(box_mask(100, 100, 160, 150, (400, 400)), (256, 256), feather_px=0)
    assert (medium.height, medium.width) == (120, 120)
    large = crop_around(box_mask(0, 0, 390, 20, (400, 400)), (256, 256), feather_px=0)
    assert (large.top, large.left, large.height, large.width) == (0, 0, 400, 400)


def test_a_cut_and_paste_of_the_same_image_changes_little_inside_and_nothing_outside() -> None:
    smooth = cv2.GaussianBlur(part_image(3, (96, 96)), (0, 0), 4)
    mask = box_mask(40, 50, 52, 60, (96, 96))
    crop = crop_around(mask, (128, 128), feather_px=3)
    weight = feather_mask(mask, 3)
    result = paste_drawn(smooth, cut_image(smooth, crop), crop, weight)
    assert np.array_equal(result[weight == 0], smooth[weight == 0])
    assert np.abs(result.astype(int) - smooth.astype(int)).max() <= 2


@settings(max_examples=80, deadline=None)
@given(mask=boxes(), size=st.sampled_from([(5, 7), (16, 16), (30, 42), (64, 50)]))
def test_a_mask_marks_every_cell_that_it_touches(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> None:
    whole = Crop(0, 0, HEIGHT, WIDTH, size)
    cells = cut_mask(mask, whole)
    expected = np.zeros(size, bool)
    for row, column in np.argwhere(mask):
        # Cell i covers [i * n / m, (i + 1) * n / m) of the source; pixel p covers [p, p + 1).
        r = [i for i in range(size[0]) if i * HEIGHT < (row + 1) * size[0] and (i + 1) * HEIGHT > row * size[0]]
        c = [i for i in range(size[1]) if i * WIDTH < (column + 1) * size[1] and (i + 1) * WIDTH > column * size[1]]
        expected[r[0] : r[-1] + 1, c[0] : c[-1] + 1] = True
    assert np.array_equal(cells, expected)


def test_the_weight_falls_linearly() -> None:
    weight = feather_mask(box_mask(10, 10, 20, 20), 3)
    assert weight[15, 20:24].tolist() == [0.75, 0.5, 0.25, 0.0]
    assert weight[9, 15] == 0.75
    assert not feather_mask(np.zeros((8, 8), bool), 3).any()


def test_wrong_arguments_are_one_sentence() -> None:
    good, mask = part_image(0), box_mask(10, 10, 20, 20)
    crop = Crop(8, 8, 14, 14, (28, 28))
    drawn = part_image(1, (28, 28))
    with pytest.raises(ArgumentError, match=r"^mask: expected at least one white pixel, got an all-black mask\."):
        crop_around(np.zeros((8, 8), bool), (16, 16))
    with pytest.raises(ArgumentError, match=r"^fill: expected a share above 0 up to 1, got 0\.0\."):
        crop_around(mask, (16, 16), fill=0.0)
    with pytest.raises(ArgumentError, match=r"^max_zoom: expected a factor of at least 1, got 0\.5\."):
        crop_around(mask, (16, 16), max_zoom=0.5)
    with pytest.raises(ArgumentError, match=r"^size: expected a height and width of at least 1 pixel, got \[0, 16\]\."):
        crop_around(mask, (0, 16))
    with pytest.raises(ArgumentError, match=r"^feather_px: expected a number of pixels of at least 0, got -1\."):
        feather_mask(mask, -1)
    with pytest.raises(ArgumentError, match=r"^drawn: expected uint8 \[28, 28, 3\]"):
        paste_drawn(good, part_image(1, (27, 28)), crop, feather_mask(mask, 1))
    with pytest.raises(ArgumentError, match=r"^weight: expected 0 outside the window of 14 x 14 pixels"):
        paste_drawn(good, drawn, crop, feather_mask(mask, 3))
    with pytest.raises(ArgumentError, match=r"^weight: expected 0 to 1, got 0 to 2\."):
        paste_drawn(good, drawn, crop, 2 * feather_mask(mask, 0))
    with pytest.raises(
        ArgumentError, match=r"^crop: expected a window inside 42x30 pixels, got 14x14 at column 8, row 20"
    ):
        cut_image(good, Crop(20, 8, 14, 14, (28, 28)))


@settings(max_examples=60, deadline=None)
@given(boxes(), st.integers(0, 3))
def test_a_change_of_nothing_changes_nothing_and_outside_the_feather_no_change_does(mask, feather):
    image = part_image(1)
    crop = crop_around(mask, (16, 16), feather_px=feather)
    weight = np.zeros(mask.shape, np.float32)
    weight[crop.window] = feather_mask(mask, feather)[crop.window]
    reconstructed, drawn = part_image(2, crop.size), part_image(3, crop.size)
    np.testing.assert_array_equal(paste_drawn(image, reconstructed, crop, weight, reconstructed), image)
    pasted = paste_drawn(image, drawn, crop, weight, reconstructed)
    np.testing.assert_array_equal(pasted[weight == 0], image[weight == 0])


def test_a_change_is_added_in_grey_levels_and_stops_at_black_and_white():
    image = np.full((16, 16, 3), 100, np.uint8)
    image[:4] = 3
    reconstructed, drawn = np.full((16, 16, 3), 90, np.uint8), np.full((16, 16, 3), 80, np.uint8)
    weight = np.ones((16, 16), np.float32)
    weight[:, 8:] = 0.5
    pasted = paste_drawn(image, drawn, Crop(0, 0, 16, 16, (16, 16)), weight, reconstructed)
    assert (pasted[4:, :8] == 90).all()
    assert (pasted[4:, 8:] == 95).all()
    assert (pasted[:4, :8] == 0).all()


def test_what_is_known_must_have_the_size_of_what_was_drawn():
    image, crop = part_image(1), Crop(0, 0, 16, 16, (16, 16))
    weight = np.zeros(image.shape[:2], np.float32)
    with pytest.raises(ArgumentError, match="known"):
        paste_drawn(image, part_image(2, (16, 16)), crop, weight, part_image(3, (8, 16)))
