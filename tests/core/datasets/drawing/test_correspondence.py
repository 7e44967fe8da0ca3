"""Places by correspondence: where the surroundings of a defect are found again."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flawscope.datasets.defects.random_boxes import Match, draw_box, range_of
from flawscope.datasets.defects.seeded_choice import generator
from flawscope.datasets.drawing.correspondence import Correspondence, surroundings_of
from flawscope.datasets.drawing.pasting import PasteOptions, cut_defects, paste_defect, try_paste
from flawscope.datasets.drawing.places import AT_BORDER, box_at, place_of_box
from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import Rect

SIZE = (160, 200)


def part(seed, region, level=0):
    """Return a grainy part with a striped region."""
    image = np.random.default_rng(seed).normal(120 + level, 3, SIZE)
    stripes = 25 * np.sign(np.sin(np.arange(SIZE[1]) * 1.2))[None, :].repeat(SIZE[0], axis=0)
    image[region.window] += stripes[region.window]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


regions = st.builds(Rect, st.integers(0, 120), st.integers(0, 90), st.just(80), st.just(70))


@given(seen=regions, found=regions, seed=st.integers(0, 2**32 - 2), level=st.integers(-40, 40))
@settings(max_examples=8, deadline=None)
def test_places_lie_in_the_texture_that_the_defect_was_seen_in(seen, found, seed, level):
    image, mask = part(seed, seen), np.zeros(SIZE, np.bool_)
    box = Rect(seen.left + 32, seen.top + 28, 14, 12)
    mask[box.window] = True
    image[mask] = 10
    around = surroundings_of(image, mask, box)
    match = Match(Correspondence(part(seed + 1, found, level)), [around])
    area = found.to_mask(SIZE)
    for number in range(20):
        drawn, _ = draw_box(range_of([(box, SIZE)]), SIZE, generator(number), places="match", match=match)
        assert area[drawn.window].all(), "wholly in the stripes"
    cutouts = cut_defects(image, mask)
    for number in range(10):
        pasted = try_paste(part(seed + 1, found, level), cutouts[0], generator(number), PasteOptions(places="match"))
        assert area[pasted.placement.box.window].all()


def test_near_and_anywhere_do_not_find_the_texture():
    seen, found = Rect(0, 0, 80, 70), Rect(120, 90, 80, 70)
    box = Rect(32, 28, 14, 12)
    area = found.to_mask(SIZE)
    for places in ("near", "anywhere"):
        inside = [
            area[draw_box(range_of([(box, SIZE)]), SIZE, generator(number), places=places)[0].window].all()
            for number in range(40)
        ]
        assert sum(inside) < 20
    image, mask = part(0, seen), box.to_mask(SIZE)
    assert len(Correspondence(part(1, found)).centres(surroundings_of(image, mask, box))) < 200


@given(
    box=st.builds(Rect, st.integers(0, 180), st.integers(0, 140), st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    sides=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_a_place_lies_in_the_image_at_the_borders_that_were_touched_and_at_no_other(box, size, sides, seed):
    chance = np.random.default_rng(seed)
    around = surroundings_of(chance.integers(0, 256, (*SIZE, 3), np.uint8), box.to_mask(SIZE), box)
    centres = Correspondence(chance.integers(0, 256, (*size, 3), np.uint8)).centres(around)
    assert centres.ndim == 2
    assert len(centres) >= 1
    sides = (min(sides[0], size[0]), min(sides[1], size[1]))
    for x, y in centres[:: max(len(centres) // 10, 1)].tolist():
        drawn = box_at(around.place, (x, y), sides, size)
        gaps = (drawn.left, drawn.top, size[1] - drawn.left - drawn.width, size[0] - drawn.top - drawn.height)
        assert (drawn.height, drawn.width) == sides
        assert min(gaps) >= 0
        for axis in (0, 1):
            touched, room = around.place.sides[axis::2], gaps[axis] + gaps[axis + 2]
            if not any(touched):
                assert min(gaps[axis], gaps[axis + 2]) >= 1 or room < 2
            else:
                near, distance = (
                    (gaps[axis], (around.place.left, around.place.top)[axis])
                    if touched[0]
                    else (gaps[axis + 2], (around.place.right, around.place.bottom)[axis])
                )
                assert near <= AT_BORDER * size[1 - axis] + 1
                assert distance <= AT_BORDER


@given(size=st.tuples(st.integers(8, 120), st.integers(8, 120)), level=st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_on_a_plain_image_every_place_is_as_good_as_another(size, level):
    box = Rect(90, 70, 14, 12)
    around = surroundings_of(part(0, Rect(60, 50, 80, 70)), box.to_mask(SIZE), box)
    centres = Correspondence(np.full((*size, 3), level, np.uint8)).centres(around)
    shares = centres.mean(axis=0)
    assert np.abs(shares - 0.5).max() < 0.1, "not all at the top left"


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_same_seed_gives_the_same_place(seed):
    box = Rect(90, 70, 14, 12)
    around = surroundings_of(part(seed, Rect(60, 50, 80, 70)), box.to_mask(SIZE), box)
    assume(around is not None)
    boxes = {
        draw_box(
            range_of([(box, SIZE)]),
            SIZE,
            generator(seed),
            places="match",
            match=Match(Correspondence(part(seed, Rect(20, 20, 80, 70))), [around]),
        )
        for _ in range(3)
    }
    assert len(boxes) == 1


def test_the_defect_itself_does_not_count():
    box, region = Rect(90, 70, 14, 12), Rect(60, 50, 80, 70)
    dark, bright = part(0, region), part(0, region)
    dark[box.window], bright[box.window] = 0, 255
    ends = [surroundings_of(image, box.to_mask(SIZE), box).cells for image in (dark, bright)]
    # The edges of the defect reach a pixel into the cells around it.
    assert np.abs(ends[0] - ends[1]).mean() < 0.02


def test_a_defect_without_surroundings_cannot_be_matched():
    image, mask = part(0, Rect(0, 0, 80, 70)), np.ones(SIZE, np.bool_)
    assert surroundings_of(image, mask, Rect(50, 50, 20, 20)) is None, "a defect all around"
    (cutout,) = cut_defects(image, Rect(50, 50, 20, 20).to_mask(SIZE))
    cutout = dataclasses.replace(cutout, around=None)
    with pytest.raises(ArgumentError, match=r"^places: expected a defect with surroundings to match, got one among"):
        paste_defect(image, cutout, generator(0), PasteOptions(places="match"))
    with pytest.raises(ArgumentError, match=r"^match: expected the surroundings of each of the 1 seen boxes, got none"):
        draw_box(range_of([(Rect(1, 1, 9, 9), SIZE)]), SIZE, generator(0), places="match")


@given(
    gaps=st.tuples(*[st.integers(0, 3)] * 4),
    size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
)
@settings(max_examples=20, deadline=None)
def test_a_defect_that_fills_its_image_has_one_place(gaps, size):
    left, top, right, bottom = gaps
    image = np.random.default_rng(0).integers(0, 256, (320, 640, 3), np.uint8)
    box = Rect(left, top, 640 - left - right, 320 - top - bottom)
    around = surroundings_of(image, box.to_mask((320, 640)), box)
    chance = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    centres = Correspondence(chance).centres(around)
    assert np.abs(centres - 0.5).max() < 2.5 / min(np.ceil(np.array(size) * 64 / max(size)))


def test_an_enlarged_photograph_has_the_same_places():
    seen = Rect(0, 0, 80, 70)
    box = Rect(32, 28, 14, 12)
    around = surroundings_of(part(0, seen), box.to_mask(SIZE), box)
    found = part(1, Rect(100, 80, 80, 70))
    large = cv2.resize(found, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    one, other = (Correspondence(image).centres(around).mean(axis=0) for image in (found, large))
    assert np.abs(one - other).max() < 0.05
    assert place_of_box(box, SIZE) == around.place
