"""How an image becomes the input of a graph: bits, resize, letterbox, crop."""

from __future__ import annotations

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging.images import Preprocessing, check_image, decode_image, prepare, prepare_mask, resize, to_8_bit


def noise(height=20, width=30, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def test_prepare_leaves_an_image_of_the_right_size_alone():
    image = noise(32, 48)
    prepared = prepare(image, Preprocessing(resize=(32, 48)))
    np.testing.assert_array_equal(prepared, image)
    assert prepared.flags.c_contiguous


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(8, 500), st.integers(8, 500)),
    target=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    version=st.sampled_from([1, 2]),
    mode=st.sampled_from(["stretch", "letterbox"]),
    crops=st.booleans(),
    is_smooth=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_grey_gives_what_its_three_equal_channels_give(size, target, version, mode, crops, is_smooth, seed):
    image = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    if is_smooth:
        image = cv2.blur(image, (5, 5))
    crop = tuple(max(16, side - 5) for side in target) if crops and mode == "stretch" else None
    spec = Preprocessing(resize=target, crop=crop, version=version, mode=mode)
    prepared = prepare(image, spec)
    np.testing.assert_array_equal(prepared, prepare(np.dstack([image] * 3), spec))
    assert prepared.flags.c_contiguous


def test_prepare_averages_areas_where_it_shrinks():
    blocks = noise(16, 24)
    image = blocks.repeat(4, axis=0).repeat(2, axis=1)  # each block is of one colour, so its mean is exact
    np.testing.assert_array_equal(prepare(image, Preprocessing(resize=(16, 24))), blocks)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    assert np.unique(prepare(stripes, Preprocessing(resize=(32, 32)))).tolist() == [100]


def test_prepare_interpolates_where_one_side_grows():
    ramp = np.repeat(np.array([[0], [200]], np.uint8).repeat(16, axis=0), 64, axis=1)
    prepared = prepare(np.dstack([ramp] * 3), Preprocessing(resize=(64, 32)))
    assert prepared.shape == (64, 32, 3)
    assert sorted(set(prepared[:, 0, 0].tolist())) == [0, 50, 150, 200]


def test_prepare_does_not_keep_the_aspect_and_crops_the_centre():
    spec = Preprocessing(resize=(40, 50), crop=(16, 25))
    assert spec.size == (16, 25)
    assert spec.offset == (12, 12)
    image = noise(40, 50)
    np.testing.assert_array_equal(prepare(image, spec), image[12:28, 12:37])
    assert prepare(noise(90, 33), spec).shape == (16, 25, 3)


@given(
    factor=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    cut=st.tuples(st.integers(0, 24), st.integers(0, 24)),
)
@settings(max_examples=40, deadline=None)
def test_masks_follow_the_geometry_of_images(factor, size, cut):
    crop = (max(16, size[0] - cut[0]), max(16, size[1] - cut[1]))
    spec = Preprocessing(resize=size, crop=crop)
    cells = np.random.default_rng(size).random(size) < 0.3
    mask = cells.repeat(factor[0], axis=0).repeat(factor[1], axis=1)
    prepared = prepare_mask(mask, spec)
    assert prepared.shape == crop
    assert prepared.dtype == np.bool_
    image = np.dstack([mask.astype(np.uint8) * 255] * 3)
    np.testing.assert_array_equal(prepared, prepare(image, spec)[..., 0] == 255)


@given(
    size=st.tuples(st.integers(8, 400), st.integers(8, 400)),
    target=st.tuples(st.integers(16, 80), st.integers(16, 80)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_letterbox_shows_the_whole_image_by_one_factor_in_the_middle(size, target, seed):
    spec = Preprocessing(resize=target, mode="letterbox")
    rows, columns = place = spec.place_of(size)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    # One of the two sides is filled; the other is off by less than a pixel, and the margins by one at most.
    assert height == target[0] or width == target[1]
    factor = min(target[0] / size[0], target[1] / size[1])
    for got, side, most in ((height, size[0], target[0]), (width, size[1], target[1])):
        assert 1 <= got <= most
        assert abs(got - side * factor) <= 1
    assert 0 <= (target[0] - rows.stop) - rows.start <= 1
    assert 0 <= (target[1] - columns.stop) - columns.start <= 1
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    prepared = prepare(image, spec)
    assert prepared.shape == (*target, 3)
    np.testing.assert_array_equal(prepared[place], resize(image, (height, width)))
    # The margin is made of pixels of the image alone: no edge that no part has.
    assert {tuple(pixel) for pixel in prepared.reshape(-1, 3)} == {
        tuple(pixel) for pixel in prepared[place].reshape(-1, 3)
    }
    # A mask lies where the image lies, and nowhere else.
    whole = prepare_mask(np.ones(size, np.bool_), spec)
    assert whole[place].all()
    assert whole.sum() == height * width


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@given(bar=st.integers(4, 60), place=st.floats(0, 1), size=st.sampled_from([(60, 2048), (2048, 60), (240, 1920)]))
@settings(max_examples=40, deadline=None)
def test_no_bar_across_a_long_image_is_lost(mode, bar, place, size):
    axis = int(size[1] > size[0])
    image = np.full((*size, 3), 200, np.uint8)
    first = int(place * (size[axis] - bar))
    image[(slice(None),) * axis + (slice(first, first + bar),)] = 0
    prepared = prepare(image, Preprocessing(resize=(64, 64), mode=mode))
    shown = prepared[Preprocessing(resize=(64, 64), mode=mode).place_of(size)]
    # What is darkened is the same share of the whole, wherever the bar lies.
    assert 200 - shown.mean() == pytest.approx(200 * bar / size[axis], abs=1.0)


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_the_largest_value_of_the_bits_in_use_becomes_255(bits):
    most = 2**bits - 1
    ramp = np.linspace(0, most, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    data = cv2.imencode(".png", ramp)[1].tobytes()
    expected = np.floor(ramp.astype(np.float64) * 255 / most + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(data, bits=bits), np.dstack([expected] * 3))
    assert len(np.unique(decode_image(data, bits=bits))) == 256
    # Without the setting a camera of 12 bit is left with 17 grey levels.
    assert len(np.unique(decode_image(data))) == (256 if bits == 16 else 2 ** (bits - 8) + 1)


def test_sixteen_bits_become_what_they_were_before_there_was_a_setting():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    before = ((every.astype(np.uint32) + 128) // 257).astype(np.uint8)
    np.testing.assert_array_equal(to_8_bit(every, "image", None), before)
    np.testing.assert_array_equal(to_8_bit(every, "image", 16), before)


def test_more_bits_than_are_said_to_be_in_use_are_an_error():
    image = np.full((16, 16), 4095, np.uint16)
    image[3, 4] = 4096
    data = cv2.imencode(".tif", image)[1].tobytes()
    message = r"a\.tif: expected values up to 4095 \(12 bits in use\), got 4096\. Set bits to those of the camera"
    with pytest.raises(ImageError, match=message):
        decode_image(data, "a.tif", 12)
    assert decode_image(data, "a.tif", 13).max() == 128


def test_bits_change_nothing_of_8_bit():
    image = noise(16, 16)
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, bits=12), decode_image(data))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": (15, 64)}, r"resize: expected height and width from 16 to 8192 pixels, got \[15, 64\]"),
        ({"resize": (64, 8193)}, r"resize: expected .* got \[64, 8193\]"),
        ({"resize": (64, 64), "crop": (64, 65)}, r"crop: expected at most the resized size \[64, 64\], got \[64, 65\]"),
        ({"resize": (64, 64), "crop": (8, 64)}, r"crop: expected height and width from 16"),
        ({"resize": (64, 64), "version": 3}, "preprocessing version: expected 1 to 2, got 3"),
        ({"resize": (64, 64), "version": 0}, "preprocessing version: expected 1 to 2, got 0"),
        (
            {"resize": (64, 64), "crop": (32, 32), "mode": "letterbox"},
            "crop: expected none with letterbox, got",
        ),
        ({"resize": (64, 64), "bits": 8}, "bits: expected 9 to 16, or null for all bits of a file, got 8"),
    ],
)
def test_a_wrong_preprocessing_is_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Preprocessing(**fields)


def test_a_preprocessing_survives_json():
    spec = Preprocessing(resize=(256, 320), crop=(224, 224), bits=12)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Preprocessing) == spec


def test_check_image_accepts_rgb_images_only():
    image = noise(8, 8)
    assert check_image(image) is image
    for wrong in (image[..., 0], image.astype(np.float32), [1, 2], np.dstack([image, image])):
        with pytest.raises(ArgumentError, match="part: expected "):
            check_image(wrong, "part")
    with pytest.raises(ArgumentError, match="expected sides of at least 8 pixels, got 8x7"):
        check_image(image[:7])


SIDES = st.integers(16, 160)


@settings(max_examples=100)
@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES, place=st.floats(0, 1), seed=st.integers(0, 9))
def test_no_bar_is_lost_however_the_sides_change(height, width, rows, columns, place, seed):
    """A bar across the side that shrinks the most darkens the result by its share of that side."""
    image = np.full((rows, columns, 3), 200, np.uint8)
    along = 0 if rows / height > columns / width else 1
    side = image.shape[along]
    at = int(place * (side - 2))
    image[(slice(None),) * along + (slice(at, at + 2),)] = 0
    prepared = prepare(image, Preprocessing(resize=(height, width)))
    if side > (height, width)[along]:
        np.testing.assert_allclose(200 - prepared.mean(), 400 / side, atol=1.5)


@settings(max_examples=100)
@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES)
def test_version_1_and_2_differ_only_where_one_side_shrinks_and_the_other_grows(height, width, rows, columns):
    image = noise(rows, columns)
    first, second = (prepare(image, Preprocessing(resize=(height, width), version=version)) for version in (1, 2))
    if (rows - height) * (columns - width) >= 0:
        np.testing.assert_array_equal(first, second)


def test_version_1_is_what_it_was():
    line = noise(60, 2048)
    prepared = prepare(line, Preprocessing(resize=(64, 64), version=1))
    np.testing.assert_array_equal(prepared, cv2.resize(line, (64, 64), interpolation=cv2.INTER_LINEAR))
