"""Box masks: sides in range, turned only where allowed, mostly inside, never grey; and range files."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from file_contents import files_of
from hypothesis import given
from hypothesis import strategies as st

from flawscope import cli
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.foreground import Coverage, find_foreground
from flawscope.datasets.defects.mask_ranges import CategoryRanges, read_ranges
from flawscope.datasets.defects.mask_sets import MaskSettings, write_masks
from flawscope.datasets.defects.random_masks import Sides, draw_mask, side_limits
from flawscope.datasets.defects.seeded_choice import generator
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.masks import read_mask

SIZE = 64


def disc(size=SIZE, radius=26):
    y, x = np.mgrid[:size, :size] + 0.5
    return Coverage((x - size / 2) ** 2 + (y - size / 2) ** 2 <= radius**2)


def whole(size=SIZE):
    return Coverage(np.ones((size, size), np.bool_))


def sides_strategy(largest=0.6):
    pair = st.tuples(st.floats(0.02, largest), st.floats(0.02, largest)).map(lambda p: (min(p), max(p)))
    return st.builds(Sides, pair, pair, st.booleans())


# --- one mask


@given(sides=sides_strategy(), seed=st.integers(0, 2**63 - 1), edges=st.sampled_from(["published", "exact"]))
def test_accepted_masks_have_their_sides_in_range_and_exceed_the_overlap(sides, seed, edges):
    template = disc()
    drawn = draw_mask(sides, template, generator(seed), overlap=0.75, edges=edges)
    more = int(edges == "published")
    for side, start, limits in ((drawn.width, drawn.left, sides.width), (drawn.height, drawn.top, sides.height)):
        low, high = side_limits(limits, SIZE)
        # At the border of the mask there is no further row or column.
        assert low <= side <= high + more
        assert side >= low + more or start + side == SIZE
        assert low == max(int(limits[0] * SIZE + 1e-9), 1)
    inside = np.count_nonzero(drawn.mask & template.mask)
    assert inside > 0.75 * drawn.width * drawn.height
    assert drawn.overlap == min(inside / (drawn.width * drawn.height), 1)


@given(sides=sides_strategy(), seed=st.integers(0, 2**63 - 1))
def test_masks_are_turned_only_where_it_is_flagged(sides, seed):
    drawn = draw_mask(sides, whole(), generator(seed))
    assert sides.rotate or drawn.angle == 0
    if drawn.angle in (0, 180):
        expected = np.zeros((SIZE, SIZE), np.bool_)
        expected[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width] = True
        np.testing.assert_array_equal(drawn.mask, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_masks_have_the_pixels_of_the_published_ones(turned):
    """Drawn again as the published script does: a rectangle to its last row, turned with linear interpolation."""
    sides, size, areas = Sides((0.05, 0.3), (0.1, 0.4), turned), 256, []
    for seed in range(60):
        drawn, exact = (draw_mask(sides, whole(size), generator(seed), edges=edges) for edges in ("published", "exact"))
        if (drawn.left, drawn.top, drawn.angle) != (exact.left, exact.top, exact.angle):
            continue  # turned out of the picture, another one was drawn
        picture = np.zeros((size, size), np.uint8)
        corner = (exact.left + exact.width, exact.top + exact.height)
        cv2.rectangle(picture, (exact.left, exact.top), corner, 255, -1)
        if turned:
            centre = (exact.left + exact.width / 2, exact.top + exact.height / 2)
            turn = cv2.getRotationMatrix2D(centre, -exact.angle, 1)
            picture = cv2.warpAffine(picture, turn, (size, size), flags=cv2.INTER_LINEAR)
        published = picture > 0
        areas.append((drawn.mask.sum(), published.sum(), exact.mask.sum()))
        apart = np.count_nonzero(drawn.mask != published)
        # Rounding of the interpolation decides on single pixels, and what is cut off is turned about its own centre.
        is_cut = size in (drawn.left + drawn.width, drawn.top + drawn.height)
        assert apart <= (0.1 * published.sum() if is_cut else 8) if turned else apart == 0
    assert len(areas) > 40
    ours, theirs, before = np.sum(areas, axis=0)
    assert ours == pytest.approx(theirs, rel=0.005)
    assert before < 0.97 * theirs


def test_flagged_masks_are_really_turned_and_by_all_angles():
    sides = Sides((0.1, 0.2), (0.3, 0.4), rotate=True)
    angles = {draw_mask(sides, whole(), generator(seed)).angle for seed in range(300)}
    assert min(angles) < 10
    assert max(angles) > 170
    assert len(angles) > 100


@given(
    box=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40), st.integers(1, 40)),
    angle=st.integers(0, 180),
)
def test_a_turned_rectangle_holds_the_pixels_whose_centres_lie_in_it(box, angle):
    from flawscope.datasets.defects.random_masks import _RotatedRect

    left, top, width, height = box
    turned = _RotatedRect(left, top, width, height, angle, SIZE)
    mask = np.zeros((SIZE, SIZE), np.bool_)
    turned.part_of(mask)[:] = turned.pixels()
    corners = np.array([(-width, -height), (width, -height), (width, height), (-width, height)]) / 2
    turn = np.radians(angle)
    corners = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    polygon = (corners + np.array([left + width / 2, top + height / 2])).astype(np.float32)
    for y in range(0, SIZE, 3):
        for x in range(0, SIZE, 3):
            distance = cv2.pointPolygonTest(polygon, (x + 0.5, y + 0.5), True)
            if abs(distance) > 1e-3:  # on the edge itself, rounding decides
                assert mask[y, x] == (distance > 0)


def test_a_turn_by_a_right_angle_swaps_the_sides():
    from flawscope.datasets.defects.random_masks import _RotatedRect

    turned = _RotatedRect(20, 10, 10, 30, 90, SIZE)
    assert turned.window == (10, 20, 30, 10)
    assert turned.pixels().all()


def test_a_mask_is_boolean_so_nothing_grey_can_be_written():
    drawn = draw_mask(Sides((0.2, 0.3), (0.2, 0.3), rotate=True), whole(), generator(3))
    assert drawn.mask.dtype == np.bool_
    assert drawn.mask.any()


def test_thin_masks_do_not_vanish():
    for seed in range(50):
        drawn = draw_mask(Sides((0.001, 0.001), (0.3, 0.3), rotate=True), whole(), generator(seed))
        assert drawn.mask.sum() >= 10


def test_a_template_too_small_for_any_box_is_refused_at_once():
    template = Coverage(np.zeros((SIZE, SIZE), np.bool_))
    with pytest.raises(ArgumentError, match=r"an area of 0 of 4096 pixels, got too small an area for any"):
        draw_mask(Sides((0.2, 0.3), (0.2, 0.3), rotate=False), template, generator(0))


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.serial
def test_a_search_without_a_fit_ends_and_says_what_was_looked_for(rotate):
    ring = np.zeros((SIZE, SIZE), np.bool_)
    ring[:6] = ring[-6:] = True  # enough area in all, and no place for a box of 30 x 30
    start = time.monotonic()
    with pytest.raises(ArgumentError, match=r"boxes 32-32 pixels wide and 32-32 high, .*got none in 3000 tries"):
        draw_mask(Sides((0.5, 0.5), (0.5, 0.5), rotate), Coverage(ring), generator(0), overlap=0.5, tries=3000)
    assert time.monotonic() - start < 5


# --- foreground


@pytest.mark.parametrize(("part", "ground"), [(200, 30), (30, 200)])
def test_the_foreground_is_the_part_whether_it_is_brighter_or_darker(part, ground):
    image = np.full((96, 128, 3), ground, np.uint8)
    image[30:70, 40:90] = part
    expected = np.zeros((96, 128), np.bool_)
    expected[30:70, 40:90] = True
    np.testing.assert_array_equal(find_foreground(image), expected)


def test_a_speck_in_the_corner_does_not_turn_the_foreground_round():
    image = np.full((96, 96, 3), 20, np.uint8)
    image[30:70, 30:70] = 220
    image[0, 0] = 220
    foreground = find_foreground(image)
    assert foreground[30:70, 30:70].all()
    assert foreground.sum() < 0.3 * foreground.size


def test_holes_of_the_part_are_closed():
    image = np.full((256, 256, 3), 20, np.uint8)
    image[60:200, 60:200] = 220
    image[120:124, 120:124] = 20
    assert find_foreground(image)[60:200, 60:200].all()


def test_a_solid_part_has_what_its_outline_encloses_and_no_more():
    image = np.full((128, 128, 3), 20, np.uint8)
    cv2.circle(image, (64, 64), 50, (220, 220, 220), -1)
    cv2.circle(image, (64, 64), 30, (20, 20, 20), -1)  # as dark as the background
    ring, disc = find_foreground(image), find_foreground(image, is_solid=True)
    assert not ring[64, 64]
    assert disc[64, 64]
    np.testing.assert_array_equal(ring[:, :30], disc[:, :30])
    assert not disc[0].any()


def test_an_image_of_one_grey_level_has_no_foreground():
    for level in (0, 128, 255):
        image = np.full((32, 32, 3), level, np.uint8)
        assert not find_foreground(image).any()
        assert not find_foreground(image, is_solid=True).any()


@given(
    mask=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((12, 17)) < 0.4),
    at=st.tuples(st.integers(0, 16), st.integers(0, 11), st.integers(0, 17), st.integers(0, 12)),
)
def test_coverage_counts_the_pixels_of_a_rectangle(mask, at):
    left, top, width, height = at
    width, height = min(width, 17 - left), min(height, 12 - top)
    assert Coverage(mask).count(left, top, width, height) == mask[top : top + height, left : left + width].sum()


# --- range files


def ranges_file(tmp_path, within="image", **changes):
    sides = {"width": [0.1, 0.2], "height": [0.2, 0.3], "rotate": False, **changes}
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"steel": {"within": within, "defects": {"pitting": sides}}}))
    return path


def test_a_range_file_is_read(tmp_path):
    expected = CategoryRanges("image", {"pitting": Sides((0.1, 0.2), (0.2, 0.3), rotate=False)})
    assert read_ranges(ranges_file(tmp_path)) == {"steel": expected}


def test_picture_is_the_former_name_of_image(tmp_path, capsys):
    for place in ("image", "picture"):
        typed = ["synth", "masks", "--ranges", str(ranges_file(tmp_path, place)), "--num", "3", "--size", "64"]
        assert cli.run([*typed, "--out", str(tmp_path / place)]) == 0
    assert capsys.readouterr().err == ""  # files of earlier versions have it: nothing to change there
    ranges = str(ranges_file(tmp_path, "foreground"))
    typed = ["synth", "masks", "--ranges", ranges, "--num", "3", "--size", "64", "--per-picture", "2"]
    assert cli.run([*typed, "--within", "picture", "--out", str(tmp_path / "typed")]) == 0
    said = capsys.readouterr().err
    assert "note: --per-picture is now called --per-image;" in said
    assert "note: --within picture is now called --within image;" in said
    first, *others = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))]
        for name in ("image", "picture", "typed")
    )
    assert len(first) == 4  # with the contact sheet, which says the same of all
    assert others == [first, first]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotate": "True"}, r"Expected `bool`, got `str` - at `\$.rotate`"),
        ({"rotate": "False"}, "Expected `bool`, got `str`"),
        ({"rotate": 0}, "Expected `bool`, got `int`"),
        ({"width": [0.3, 0.2]}, r"the smaller one first, got \[0.3, 0.2\]"),
        ({"width": [0.0, 0.2]}, r"above 0 and up to 1"),
        ({"height": [0.5, 1.2]}, r"height: expected two shares of the side above 0 and up to 1"),
        ({"height": [0.5]}, "Expected `array` of length 2"),
        ({"depth": 1}, "unknown field `depth`"),
    ],
)
def test_a_wrong_range_file_says_where_it_is_wrong(tmp_path, changes, message):
    path = ranges_file(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_ranges(path)
    assert str(caught.value).startswith(f"{path}: steel/pitting: expected width, height and rotate, got: ")


OF_ANOGEN = {
    "bottle": {
        "broken_large": [[0.2, 0.25], [0.25, 0.8], "True"],
        "broken_small": [[0.15, 0.25], [0.15, 0.25], "False"],
    },
    "candle": {"bad": [[0.05, 0.2], [0.05, 0.2], "True"]},
}


def test_a_range_file_of_anogen_is_read_in_its_own_form(tmp_path):
    path = tmp_path / "mvtec_range.json"
    path.write_text(json.dumps(OF_ANOGEN, indent=4))
    ranges = read_ranges(path)
    assert ranges["bottle"] == CategoryRanges(
        "template",
        {
            "broken_large": Sides((0.2, 0.25), (0.25, 0.8), rotate=True),
            "broken_small": Sides((0.15, 0.25), (0.15, 0.25), rotate=False),
        },
    )
    record = write_masks(ranges, tmp_path / "masks", MaskSettings(number=6, size=64), within="image")
    turned = {entry.defect for entry in record.masks if entry.angle}
    assert turned == {"broken_large", "bad"}


def test_a_published_file_in_its_own_form_is_the_built_in_table(tmp_path):
    from flawscope.datasets.defects.anogen_ranges import PUBLISHED

    def written(sides):
        return [list(sides.width), list(sides.height), str(sides.rotate)]

    for name, table in PUBLISHED.items():
        file = {c: {d: written(sides) for d, sides in entry.defects.items()} for c, entry in table.items()}
        (tmp_path / name).write_text(json.dumps(file))
        read = read_ranges(tmp_path / name)
        assert {c: entry.defects for c, entry in read.items()} == {c: entry.defects for c, entry in table.items()}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([[0.1, 0.2], [0.1, 0.2], "true"], "Invalid enum value 'true'"),
        ([[0.1, 0.2], [0.1, 0.2], True], "Expected `str`, got `bool`"),
        ([[0.1, 0.2], [0.1, 0.2]], "Expected `array` of at least length 3"),
        ([[0.3, 0.2], [0.1, 0.2], "True"], r"the smaller one first, got \[0.3, 0.2\]"),
        ([[0.1, 1.2], [0.1, 0.2], "True"], "above 0 and up to 1"),
        ({"width": [0.1, 0.2]}, "Expected `array`, got `object`"),
    ],
)
def test_a_wrong_range_file_of_anogen_shows_the_right_form(tmp_path, entry, message):
    path = tmp_path / "mvtec_range.json"
    path.write_text(json.dumps({"bottle": {"broken": entry}}))
    with pytest.raises(DataError, match=message) as caught:
        read_ranges(path)
    start = (
        f'{path}: bottle/broken: expected [[least, largest width], [least, largest height], "True" or "False"], got: '
    )
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_categories_whose_template_or_images_are_not_named_are_passed_over(tmp_path):
    ranges = {
        "free": CategoryRanges("picture", {"dent": Sides((0.1, 0.2), (0.1, 0.2), rotate=False)}),
        "bare": CategoryRanges("template", {"dent": Sides((0.1, 0.2), (0.1, 0.2), rotate=False)}),
        "screw": CategoryRanges("foreground", {"dent": Sides((0.1, 0.2), (0.1, 0.2), rotate=False)}),
    }
    record = write_masks(ranges, tmp_path / "masks", MaskSettings(number=2, size=32))
    assert {entry.category for entry in record.masks} == {"free"}
    assert record.passed_over == {
        "bare": "in a template: name the folder of templates with --templates",
        "screw": "in the foreground of normal images: name them with --data",
    }
    # Who names a category gets it or an error, and so does who has no other.
    for categories, named in ((("free", "screw"), "screw"), ((), "bare")):
        chosen = ranges if categories else {"bare": ranges["bare"]}
        with pytest.raises(ArgumentError, match=f"{named}: expected --(data|templates)"):
            write_masks(chosen, tmp_path / "no", MaskSettings(number=2, size=32), categories=categories)
    (tmp_path / "templates").mkdir()
    cv2.imwrite(str(tmp_path / "templates" / "other.png"), np.full((8, 8), 255, np.uint8))
    record = write_masks(ranges, tmp_path / "m", MaskSettings(number=1, size=32), templates=tmp_path / "templates")
    assert record.passed_over["bare"] == f"in a template, and {tmp_path / 'templates'} has none for dent"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steel": {"within": "image", "defects": {}}}', "\xff\xfe"])
def test_a_range_file_without_ranges_is_refused(tmp_path, content):
    path = tmp_path / "ranges.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="expected"):
        read_ranges(path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\\b", "line\nbreak"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    path = tmp_path / "ranges.json"
    sides = {"width": [0.1, 0.2], "height": [0.2, 0.3], "rotate": False}
    path.write_text(json.dumps({"steel": {"within": "image", "defects": {name: sides}}}))
    with pytest.raises(DataError, match="expected a name that a folder can have"):
        read_ranges(path)


def test_the_published_ranges_are_all_there():
    from flawscope.datasets.defects.anogen_ranges import PUBLISHED

    mvtec, visa = PUBLISHED["anogen-mvtec"], PUBLISHED["anogen-visa"]
    assert len(mvtec) == 15
    assert sum(len(entry.defects) for entry in mvtec.values()) == 73
    assert len(visa) == 12
    assert {tuple(entry.defects) for entry in visa.values()} == {("bad",)}
    assert mvtec["tile"].defects["crack"] == Sides((0.05, 0.1), (0.2, 1.0), rotate=True)
    assert mvtec["pill"].defects["pill_type"] == Sides((0.8, 0.8), (0.5, 0.5), rotate=False)
    assert {name for name, entry in mvtec.items() if entry.within == "foreground"} == {"screw"}


def test_every_published_range_can_be_drawn(tmp_path):
    from flawscope.datasets.defects.anogen_ranges import PUBLISHED

    for name, ranges in PUBLISHED.items():
        record = write_masks(ranges, tmp_path / name, MaskSettings(number=1, size=64), within="image")
        assert len(record.masks) == sum(len(entry.defects) for entry in ranges.values())


# --- mask sets


def a_range(within, rotate=True):
    return {"steel": CategoryRanges(within, {"scratch": Sides((0.1, 0.2), (0.2, 0.4), rotate)})}


def is_png_of_two_values(path):
    data = path.read_bytes()
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return data.startswith(b"\x89PNG\r\n") and pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}


def test_masks_in_a_template_lie_in_it(tmp_path):
    template = np.zeros((100, 100, 4), np.uint8)
    template[20:90, 30:95] = (255, 255, 255, 255)
    template[20:90, 28:30] = (127, 127, 127, 255)  # a soft edge, still black
    (tmp_path / "templates" / "steel" / "scratch").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "templates" / "steel" / "scratch" / "mask.png"), template)
    settings = MaskSettings(number=30, size=100, seed=4)
    record = write_masks(a_range("template"), tmp_path / "masks", settings, templates=tmp_path / "templates")
    allowed = np.zeros((100, 100), np.bool_)
    allowed[20:90, 30:95] = True
    assert [entry.mask for entry in record.masks] == [f"steel/scratch/{n:03d}.png" for n in range(1, 31)]
    for entry in record.masks:
        path = tmp_path / "masks" / entry.mask
        mask = read_mask(path)
        _, _, width, height = entry.box
        share = np.count_nonzero(mask & allowed) / (width * height)
        assert is_png_of_two_values(path)
        assert mask.shape == (100, 100)
        assert min(share, 1) == pytest.approx(entry.overlap, abs=1e-6)
        assert entry.overlap > 0.75
        assert entry.good is None
    assert len({entry.angle for entry in record.masks}) > 10


def test_masks_of_a_foreground_belong_to_an_image_and_keep_its_stem(tmp_path):
    root = tmp_path / "data" / "steel"
    (root / "train" / "good").mkdir(parents=True)
    for index in range(3):
        image = np.full((80, 80, 3), 20, np.uint8)
        image[20 + 5 * index : 70, 15:65] = 200
        cv2.imwrite(str(root / "train" / "good" / f"long_name_{index}.png"), image)
    settings = MaskSettings(number=8, size=64)
    record = write_masks(a_range("foreground"), tmp_path / "masks", settings, dataset=open_dataset(root))
    assert [entry.mask[-8:] for entry in record.masks] == ["-001.png", "-002.png"] * 3 + ["-003.png", "-004.png"]
    for entry in record.masks:
        assert entry.good is not None
        assert entry.mask.startswith(f"steel/scratch/{entry.good[len('train/good/') : -len('.png')]}-")
        part_image = cv2.resize(cv2.imread(str(root / entry.good)), (64, 64), interpolation=cv2.INTER_AREA)
        part = find_foreground(np.asarray(part_image, np.uint8))
        mask = read_mask(tmp_path / "masks" / entry.mask)
        assert np.count_nonzero(mask & part) > 0.75 * entry.box[2] * entry.box[3]


@pytest.mark.parametrize(("rotate", "turned"), [("flagged", {False, True}), ("all", {True}), ("none", {False})])
def test_turning_follows_the_flag_or_the_option(tmp_path, rotate, turned):
    ranges = {
        "steel": CategoryRanges(
            "picture",
            {name: Sides((0.1, 0.2), (0.2, 0.4), rotate=name == "yes") for name in ("yes", "no")},
        )
    }
    record = write_masks(ranges, tmp_path / "masks", MaskSettings(number=12, size=32, rotate=rotate))
    assert {any(e.angle for e in record.masks if e.defect == name) for name in ("yes", "no")} == turned


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_masks(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_masks(a_range("picture"), tmp_path / name, MaskSettings(number=5, size=64, seed=seed))
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    assert first["steel/scratch/001.png"] != other["steel/scratch/001.png"]
    assert set(first) == set(other)


def test_a_further_defect_type_or_more_masks_leave_the_others_as_they_are(tmp_path):
    write_masks(a_range("picture"), tmp_path / "a", MaskSettings(number=3, size=64))
    wider = {
        "steel": CategoryRanges(
            "picture", {"a": Sides((0.1, 0.2), (0.1, 0.2), rotate=False), **a_range("picture")["steel"].defects}
        )
    }
    write_masks(wider, tmp_path / "b", MaskSettings(number=6, size=64))
    few, many = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    for name in ("001", "002", "003"):
        assert few[f"steel/scratch/{name}.png"] == many[f"steel/scratch/{name}.png"]


def test_a_mask_that_fits_nowhere_names_category_and_defect_and_leaves_nothing(tmp_path):
    cv2.imwrite(str(tmp_path / "steel.png"), np.eye(32, dtype=np.uint8) * 255)
    with pytest.raises(ArgumentError, match=r"^steel/scratch: expected boxes 3-6 pixels wide"):
        write_masks(a_range("template"), tmp_path / "out", MaskSettings(size=32, tries=100), templates=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("within", "message"),
    [
        ("template", "expected --templates, a folder with steel/scratch/mask.png, got none"),
        ("foreground", "expected --data with normal images"),
    ],
)
def test_what_a_way_needs_has_to_be_there(tmp_path, within, message):
    with pytest.raises(ArgumentError, match=message):
        write_masks(a_range("picture"), tmp_path / "out", within=within)
    assert not (tmp_path / "out").exists()


def test_a_missing_template_names_the_places_looked_at(tmp_path):
    with pytest.raises(DataError, match=r"expected a template steel/scratch/mask.png, steel/scratch.png or steel.png"):
        write_masks(a_range("template"), tmp_path / "out", templates=tmp_path)


def test_progress_counts_every_mask(tmp_path):
    seen = []
    write_masks(
        a_range("picture"), tmp_path / "m", MaskSettings(number=4, size=32), progress=lambda *pair: seen.append(pair)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
