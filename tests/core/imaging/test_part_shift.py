"""Shifts of a part: known ones are found, and none is invented; drawn parts and textures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shifted_parts import SIDE as IMAGE
from shifted_parts import part_image, texture_image

from flawscope.errors import ArgumentError
from flawscope.imaging.part_reference import LEAST_CLEAR, learn_reference
from flawscope.imaging.part_shift import SIDE, PartFinder, moved, part_thumbnail, thumbnail_size

SIZE = thumbnail_size(IMAGE, IMAGE)
WHOLE = (0, 0, *SIZE)
SCALE = SIDE / IMAGE


def small(image: np.ndarray) -> np.ndarray:
    return part_thumbnail(image, SIZE)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    right=st.integers(-20, 20),
    down=st.integers(-20, 20),
    noise=st.floats(0, 8),
    gain=st.floats(0.5, 1.6),
)
def test_a_known_shift_is_found_within_half_a_pixel_in_any_light(seed, right, down, noise, gain):
    finder = PartFinder(small(part_image(seed)), WHOLE, 56)
    found = finder.find(small(part_image(seed, right, down, noise=noise, gain=gain)))
    assert found.right / SCALE == pytest.approx(right, abs=0.5)
    assert found.down / SCALE == pytest.approx(down, abs=0.5)
    assert found.clear >= LEAST_CLEAR


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), right=st.floats(-20, 20), down=st.floats(-20, 20))
def test_shifts_between_pixels_are_found(seed, right, down):
    reference = small(part_image(seed, noise=0.0))
    found = PartFinder(reference, WHOLE, 40).find(moved(reference, down, right))
    assert (found.right, found.down) == (pytest.approx(right, abs=0.3), pytest.approx(down, abs=0.3))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    top=st.integers(0, 80),
    left=st.integers(0, 80),
    level=st.sampled_from([0, 255]),
    right=st.integers(-12, 12),
)
def test_a_defect_of_a_tenth_of_the_image_hides_no_place_or_it_is_not_told(seed, top, left, level, right):
    image = part_image(seed, right, 3)
    image[top : top + 40, left : left + 41] = level
    found = PartFinder(small(part_image(seed)), WHOLE, 40).find(small(image))
    is_right = abs(found.right / SCALE - right) < 1 and abs(found.down / SCALE - 3) < 1
    assert is_right or found.clear < 0.15


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_another_texture_another_part_and_a_blank_image_are_at_no_place(seed):
    finder = PartFinder(small(part_image(seed)), WHOLE, 40)
    noise = np.random.default_rng(seed).integers(99, 101, (IMAGE, IMAGE, 3)).astype(np.uint8)
    for image in (texture_image(seed), np.full((IMAGE, IMAGE, 3), 80, np.uint8), noise):
        assert finder.find(small(image)).clear < 0.15
    # Another part of blocks has one that fits; it stays far below the part itself, of which half is the limit.
    own = finder.find(small(part_image(seed, 5, 5, noise=4.0))).clear
    assert finder.find(small(part_image(seed + 1))).clear < 0.5 * own
    assert PartFinder(small(texture_image(seed)), WHOLE, 40).find(small(texture_image(seed + 1))).clear < 0.15


def test_a_pattern_that_repeats_is_alike_everywhere():
    rows, columns = np.mgrid[:IMAGE, :IMAGE]
    pattern = np.repeat((110 + 40 * np.sin(rows / 2.5) * np.sin(columns / 2.5))[..., None], 3, axis=2).astype(np.uint8)
    found = PartFinder(small(pattern), WHOLE, 40).find(small(pattern))
    assert found.alike > 0.9
    assert found.clear < 0.05


def test_a_reference_without_anything_finds_nothing():
    blank = np.full(SIZE, 80.0, np.float32)
    assert PartFinder(blank, WHOLE, 40).find(small(part_image())).clear == 0.0


def test_what_stands_still_beside_the_box_does_not_hold_the_part():
    """A fixture in view: the box around the part follows the part, the whole image does not."""

    def view(right: int) -> np.ndarray:
        image = part_image(4, right, 0)
        image[:30, ::6], image[100:, ::5] = 255, 0
        return small(image)

    box = (64, 60, 192, 196)
    assert PartFinder(view(0), box, 40).find(view(8)).right / SCALE == pytest.approx(8, abs=0.5)
    assert abs(PartFinder(view(0), WHOLE, 40).find(view(8)).right / SCALE) < 0.5


@pytest.mark.parametrize("kind", ["grey", "16 bit", "alpha"])
def test_how_an_image_is_stored_makes_no_difference(kind):
    image = part_image(1)
    stored = {
        "grey": image[..., 0],
        "16 bit": image.astype(np.uint16) * 257,
        "alpha": np.dstack([image, np.zeros(image.shape[:2], np.uint8)]),
    }[kind]
    np.testing.assert_allclose(part_thumbnail(stored, SIZE), small(image), atol=1.0)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(512, 1024, (128, 256)), (64, 64, (256, 256)), (8, 900, (8, 256))]
)
def test_the_longest_side_of_a_thumbnail_is_256(height, width, size):
    assert thumbnail_size(height, width) == size


# --- references


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), is_first=st.booleans())
def test_the_mean_of_shifted_images_lies_at_the_first_or_the_median_place(seed, is_first):
    generator = np.random.default_rng(seed)
    places = generator.integers(-9, 10, (9, 2))
    thumbnails = [small(part_image(seed, int(right), int(down))) for right, down in places]
    reference = learn_reference(thumbnails, WHOLE, 56, is_first=is_first)
    assert reference.images == 9
    origin = places[0] if is_first else np.median(places, axis=0)
    found = np.array([(row.right, row.down) for row in reference.found]) / SCALE
    np.testing.assert_allclose(found, places - origin, atol=0.6)
    shifts = reference.shifts((IMAGE, IMAGE))
    longest = np.abs(places - origin).max(axis=1)
    assert (shifts.images, shifts.told, shifts.are_told) == (9, 9, True)
    assert shifts.largest_px == pytest.approx(longest.max(), abs=0.6)
    assert shifts.median_px == pytest.approx(np.median(longest), abs=0.6)


def test_a_few_bad_images_are_left_out_of_the_mean_and_counted():
    images = [part_image(3, number % 4, 0) for number in range(20)]
    images[7] = np.full((IMAGE, IMAGE, 3), 90, np.uint8)
    reference = learn_reference([small(image) for image in images], WHOLE, 40, is_first=True)
    shifts = reference.shifts((IMAGE, IMAGE))
    assert (reference.images, shifts.told, shifts.are_told) == (19, 19, True)


@pytest.mark.parametrize("is_first", [True, False])
def test_textures_have_no_place(is_first):
    reference = learn_reference([small(texture_image(seed)) for seed in range(9)], WHOLE, 40, is_first=is_first)
    assert not reference.shifts((IMAGE, IMAGE)).are_told


def test_two_images_are_no_mean():
    reference = learn_reference([small(part_image(0)), small(part_image(0, 4, 0))], WHOLE, 40, is_first=True)
    assert reference.images == 1
    assert not reference.shifts((IMAGE, IMAGE)).are_told
    with pytest.raises(ArgumentError, match="at least one image"):
        learn_reference([], WHOLE, 40, is_first=True)
