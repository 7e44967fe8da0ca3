"""What images have in common, and in what another one differs."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.imaging.learned_images import (
    LearnedImages,
    Look,
    describe_learned,
    differences,
    look_of,
    merge_learned,
    summarize_differences,
    summarize_looks,
)

LOOKS = st.builds(
    Look,
    height=st.integers(8, 5000),
    width=st.integers(8, 5000),
    is_grey=st.booleans(),
    bits=st.sampled_from([8, 16]),
    brightness=st.floats(0, 255),
    red_minus_blue=st.floats(-255, 255),
)
USUAL = Look(height=480, width=640, is_grey=False, bits=8, brightness=100.0, red_minus_blue=30.0)
LEARNED = summarize_looks([USUAL, USUAL._replace(brightness=110.0, red_minus_blue=34.0)])


def coloured(red, green, blue, size=(40, 50)):
    return np.full((*size, 3), (red, green, blue), np.uint8)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 100))
def test_grey_looks_as_its_three_equal_channels_do(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    assert look_of(image, 16) == look_of(np.dstack([image] * 3), 16)


def test_the_look_of_an_image_is_counted_by_hand():
    image = coloured(10, 20, 60)
    image[:20] = (110, 20, 60)
    assert look_of(image, 16) == Look(40, 50, False, 16, 140 / 3, 0.0)
    assert look_of(np.full((40, 50, 3), 7, np.uint8)) == Look(40, 50, True, 8, 7.0, 0.0)


def test_an_image_of_equal_means_is_not_grey_for_that():
    image = np.zeros((64, 64, 3), np.uint8)
    for channel in range(3):
        image[channel * 16 : (channel + 1) * 16, :, channel] = 200
    assert not look_of(image).is_grey


@given(looks=st.lists(LOOKS, min_size=1, max_size=6))
def test_no_image_learned_from_differs(looks):
    learned = summarize_looks(looks)
    assert learned.images == len(looks)
    for look in looks:
        assert differences(look, learned) == ()
    # What was stored and read back says the same.
    assert msgspec.json.decode(msgspec.json.encode(learned), type=LearnedImages) == learned


@given(first=st.lists(LOOKS, min_size=1, max_size=4), second=st.lists(LOOKS, min_size=1, max_size=4))
def test_what_two_bundles_learned_from_is_what_both_learned_from_at_once(first, second):
    merged = merge_learned([summarize_looks(first), summarize_looks(second)])
    both = summarize_looks(first + second)
    assert merged == msgspec.structs.replace(both, images=max(len(first), len(second)))
    assert merge_learned([summarize_looks(first), None]) is None
    assert merge_learned([]) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": 320, "height": 240}, "320x240 pixels, of the images learned from 640x480"),
        ({"width": 641}, "641x480 pixels, of the images learned from 640x480"),
        ({"width": 480, "height": 640}, "width by height is 0.75, of the images learned from 1.33"),
        ({"is_grey": True, "red_minus_blue": 0.0}, "grey; the images learned from are coloured"),
        ({"bits": 16}, "16 bit; the images learned from have 8"),
        ({"brightness": 87.0}, "darker than any image learned from: their mean brightness is from 100 to 110"),
        ({"brightness": 123.0}, "brighter than any image learned from: their mean brightness is from 100 to 110"),
        ({"red_minus_blue": -32.0}, "red and blue look exchanged (color=bgr?)"),
    ],
)
def test_a_difference_is_named(changes, expected):
    assert differences(USUAL._replace(**changes), LEARNED) == (expected,)


@pytest.mark.parametrize("changes", [{"brightness": 89.0}, {"brightness": 121.0}, {"red_minus_blue": 20.0}])
def test_what_a_few_images_cannot_tell_is_no_difference(changes):
    assert differences(USUAL._replace(**changes), LEARNED) == ()


def test_of_several_sizes_more_may_come_and_of_one_none():
    learned = summarize_looks([USUAL, USUAL._replace(width=800, height=600)])
    assert differences(USUAL._replace(width=960, height=720), learned) == ()
    assert differences(USUAL._replace(width=1280, height=960), learned) == (
        "1280x960 pixels, of the images learned from 640x480 to 800x600",
    )


def test_what_was_learned_from_is_told_in_one_line():
    assert describe_learned(LEARNED) == "2 images, 640x480 px, coloured, 8 bit, mean brightness 100 to 110"


def test_colours_that_are_the_same_both_ways_round_cannot_be_exchanged():
    learned = summarize_looks([USUAL._replace(red_minus_blue=cast) for cast in (-3.0, 4.0)])
    assert differences(USUAL._replace(red_minus_blue=-40.0), learned) == ()


def test_a_coloured_image_among_grey_ones_is_named():
    learned = summarize_looks([USUAL._replace(is_grey=True, red_minus_blue=0.0)])
    assert differences(USUAL, learned) == ("coloured; the images learned from are grey",)


def test_differences_of_many_images_are_counted_and_the_list_ends():
    each = [("a", "b"), (), ("a",), *((str(number),) for number in range(7))]
    lines = summarize_differences(each)
    assert lines[:2] == ("2 of 10 images: a", "1 of 10 images: b")
    assert len(lines) == 6
    assert lines[-1] == "4 more such notes"
    assert summarize_differences([(), ()]) == ()
