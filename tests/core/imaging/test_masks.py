"""Masks: what a file means, and what makes one suspicious."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flawscope.errors import ImageError
from flawscope.imaging.masks import looks_inverted, read_mask, understand_mask


def encode(extension, image, *options):
    is_encoded, data = cv2.imencode(extension, image, list(options))
    assert is_encoded
    return data.tobytes()


def blobs(seed, size=64, value=255):
    """Return two rectangles that are filled with `value`, or by a function of their number."""
    random, mask = np.random.default_rng(seed), np.zeros((size, size), np.uint8)
    for number in range(2):
        top, left = random.integers(2, size // 2, 2)
        height, width = random.integers(6, size // 3, 2)
        mask[top : top + height, left : left + width] = value(number) if callable(value) else value
    return mask


def test_a_mask_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png: could not be read: No such file"):
        read_mask(tmp_path / "absent.png")


# ---- grey levels


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif"])
def test_an_8_bit_mask_is_true_from_128_on(tmp_path, extension):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (path := tmp_path / f"m{extension}").write_bytes(encode(extension, values))
    mask = read_mask(path)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, values >= 128)


def test_a_16_bit_mask_is_true_from_32768_on(tmp_path):
    values = np.array([0, 127, 32_766, 32_767, 32_768, 32_769, 40_000, 65_535], np.uint16)
    (path := tmp_path / "m.png").write_bytes(encode(".png", np.tile(values, (8, 1))))
    np.testing.assert_array_equal(read_mask(path)[3], [False] * 4 + [True] * 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_indexed_mask_is_true_at_every_class(tmp_path, dtype):
    values = np.tile(np.array([0, 1, 2, 3, 0, 127, 128, 255], dtype), (8, 1))
    (path := tmp_path / "m.png").write_bytes(encode(".png", values))
    np.testing.assert_array_equal(read_mask(path, is_indexed=True), values > 0)


def test_a_colour_mask_counts_its_largest_channel_and_drops_alpha(tmp_path):
    stored = np.zeros((8, 8, 4), np.uint8)
    stored[..., 3] = 255
    stored[2, 3, 0] = 128
    stored[4, 5] = (127, 127, 127, 255)
    (path := tmp_path / "m.png").write_bytes(encode(".png", stored))
    assert np.argwhere(read_mask(path)).tolist() == [[2, 3]]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    soften=st.sampled_from(["area", "linear", "box 3", "box 5", "gauss"]),
    extension=st.sampled_from([".png", ".jpg", ".webp"]),
)
def test_soft_edges_are_halved_and_never_taken_for_classes(seed, soften, extension):
    sharp = blobs(seed, 96)
    soft = {
        "area": lambda m: cv2.resize(m, (48, 48), interpolation=cv2.INTER_AREA),
        "linear": lambda m: cv2.resize(m, (300, 300), interpolation=cv2.INTER_LINEAR),
        "box 3": lambda m: cv2.blur(m, (3, 3)),
        "box 5": lambda m: cv2.blur(m, (5, 5)),
        "gauss": lambda m: cv2.GaussianBlur(m, (0, 0), 1.5),
    }[soften](sharp)
    data = encode(extension, soft)
    reading = understand_mask(data)
    assert reading.classes == ()
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.count_nonzero(reading.defect != (stored > 127)) <= 0.001 * stored.size  # luma of WebP


# ---- class numbers


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    numbers=st.one_of(
        st.lists(st.integers(1, 127), min_size=2, max_size=2), st.tuples(st.integers(1, 32), st.just(255))
    ),
    extension=st.sampled_from([".png", ".bmp", ".tif"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_every_class_number_is_a_defect_and_is_told(seed, numbers, extension, dtype):
    mask = blobs(seed, value=lambda number: numbers[number]).astype(dtype if extension != ".bmp" else np.uint8)
    reading = understand_mask(encode(extension, mask))
    np.testing.assert_array_equal(reading.defect, mask > 0)
    expected = np.unique(mask[mask > 0]).tolist()
    # 255 alone in 8 bit is full scale, and means the same either way.
    assert list(reading.classes) == ([] if expected == [255] and mask.dtype == np.uint8 else expected)


def test_classes_in_alternate_rows_are_classes():
    mask = blobs(3)
    mask[1::2][mask[1::2] > 0] = 2
    reading = understand_mask(encode(".png", mask))
    np.testing.assert_array_equal(reading.defect, mask > 0)
    assert reading.classes == (2, 255)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), level=st.integers(33, 127))
def test_a_grey_between_is_told_and_is_no_defect(seed, level):
    mask = blobs(seed, value=lambda number: (level, 255)[number])
    reading = understand_mask(encode(".png", mask))
    np.testing.assert_array_equal(reading.defect, mask > 127)
    assert (reading.classes, reading.faint) == ((), (level,) if level in mask else ())


def test_a_faint_spot_beside_bright_areas_is_told_and_is_no_defect():
    mask = blobs(5)
    mask[60, 60:63] = 0
    mask[61, 60] = 40
    reading = understand_mask(encode(".png", mask))
    assert (reading.classes, reading.faint) == ((), (40,))
    np.testing.assert_array_equal(reading.defect, mask > 127)


# ---- alpha, and inverted masks


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("level", [0, 255])
def test_a_mask_in_the_alpha_channel_is_read_where_the_colours_say_nothing(kind, level):
    mask, buffer = blobs(7), io.BytesIO()
    stored = np.dstack([np.full((64, 64, 3), level, np.uint8), mask])
    Image.fromarray(stored).save(buffer, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    reading = understand_mask(buffer.getvalue())
    assert reading.is_from_alpha
    np.testing.assert_array_equal(reading.defect, mask > 127)


def test_alpha_is_left_out_where_the_colours_are_the_mask():
    mask = blobs(8)
    reading = understand_mask(encode(".png", np.dstack([mask, mask, mask, blobs(9)])))
    assert not reading.is_from_alpha
    np.testing.assert_array_equal(reading.defect, mask > 127)


@settings(max_examples=40)
@given(seed=st.integers(0, 999))
def test_a_mask_with_a_bright_background_looks_inverted_and_the_other_does_not(seed):
    mask = blobs(seed, 96) > 0
    assert not looks_inverted(mask)
    assert looks_inverted(~mask)


def test_a_defect_over_most_of_the_image_does_not_look_inverted():
    mask = np.zeros((40, 40), np.bool_)
    mask[2:, :30] = True
    assert not looks_inverted(mask)
