"""Boxes around real defects, and random ones from the ranges seen."""

from __future__ import annotations

import json

import cv2
import msgspec
import numpy as np
import pytest
from file_contents import files_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.datasets.defects import box_sets
from flawscope.datasets.defects.anomalous_samples import list_anomalous
from flawscope.datasets.defects.box_sets import BoxRecord, BoxSettings, shares, write_boxes
from flawscope.datasets.defects.foreground import Coverage, find_foreground
from flawscope.datasets.defects.mask_ranges import read_ranges
from flawscope.datasets.defects.random_boxes import PLACES, Match, draw_box, range_of
from flawscope.datasets.defects.seeded_choice import generator
from flawscope.datasets.defects.set_files import read_json
from flawscope.datasets.drawing.correspondence import Correspondence, surroundings_of
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.boxes import Rect
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask

# --- random boxes


def test_the_range_is_the_5th_and_95th_percentile():
    boxes = [(Rect(0, 0, width, 10), (100, 200)) for width in range(1, 102)]
    seen = range_of(boxes)
    assert seen.boxes == 101
    assert seen.width == (6 / 200, 96 / 200)
    assert seen.height == (0.1, 0.1)
    assert seen.y == (0.05, 0.05)
    assert seen.x == (3 / 200, 48 / 200)


@given(
    box=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 33), st.integers(1, 33)),
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    seed=st.integers(0, 2**63 - 1),
    places=st.sampled_from(PLACES),
)
def test_random_boxes_have_sizes_and_places_like_those_seen(box, size, seed, places):
    seen = range_of([(Rect(*box), (64, 64))])
    plain = np.full((64, 64, 3), 90, np.uint8)
    around = surroundings_of(plain, np.zeros((64, 64), np.bool_), Rect(*box))
    match = Match(Correspondence(np.full((*size, 3), 90, np.uint8)), [around])
    placed = draw_box(seen, size, generator(seed), places=places, match=match)
    assert placed is not None
    drawn, tries = placed
    height, width = size
    assert tries == 1
    assert 0 <= drawn.left <= width - drawn.width
    assert 0 <= drawn.top <= height - drawn.height
    assert max(1, round(0.8 * box[2] / 64 * width - 1)) <= drawn.width <= max(1, 1.2 * box[2] / 64 * width + 1)
    assert max(1, round(0.8 * box[3] / 64 * height - 1)) <= drawn.height <= max(1, 1.2 * box[3] / 64 * height + 1)
    if places == "observed":  # a tenth of the image to either side, unless the border pushes the box inwards
        x = drawn.left + drawn.width / 2
        assert abs(x - (box[0] + box[2] / 2) / 64 * width) <= 0.1 * width + 1 or drawn.left in (0, width - drawn.width)


@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 24), st.integers(1, 24)),
        min_size=1,
        max_size=4,
    ),
    size=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_box_near_a_seen_one_touches_the_sides_that_it_touched(boxes, size, seed):
    seen = range_of([(Rect(*box), (64, 64)) for box in boxes])
    placed = draw_box(seen, size, generator(seed))
    assert placed is not None
    drawn = placed[0]

    def touched(place, total):
        left, top, right, bottom = place
        return left == 0, top == 0, right == total[1], bottom == total[0]

    drawn_sides = touched((drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height), size)
    seen_sides = [touched((x, y, x + w, y + h), (64, 64)) for x, y, w, h in boxes]
    # A distance of one pixel of 64 counts as touching, too.
    nearly = [tuple(gap <= 1 for gap in (x, y, 64 - x - w, 64 - y - h)) for x, y, w, h in boxes]
    assert any(
        all(is_touched or not was for is_touched, was in zip(drawn_sides, sides, strict=True))
        and all(was or not is_touched for is_touched, was in zip(drawn_sides, close, strict=True))
        for sides, close in zip(seen_sides, nearly, strict=True)
    )


def test_a_range_of_an_older_record_has_no_seen_boxes_to_be_near(tmp_path):
    seen = msgspec.structs.replace(range_of([(Rect(0, 0, 8, 8), (64, 64))]), seen=())
    with pytest.raises(ArgumentError, match="seen: expected the boxes that were seen, got none"):
        draw_box(seen, (64, 64), generator(0))
    assert draw_box(seen, (64, 64), generator(0), places="observed") is not None


def test_random_boxes_on_a_part_lie_on_it():
    area = np.zeros((64, 64), np.bool_)
    area[10:40, 20:50] = True
    seen = range_of([(Rect(0, 0, 8, 8), (64, 64))])
    for seed in range(50):
        placed = draw_box(seen, (64, 64), generator(seed), within=Coverage(area), places="anywhere")
        assert placed is not None
        box = placed[0]
        assert np.count_nonzero(area & box.to_mask((64, 64))) > 0.75 * box.width * box.height


def test_a_box_that_fits_nowhere_is_none_and_not_an_endless_search():
    nothing = Coverage(np.zeros((64, 64), np.bool_))
    assert draw_box(range_of([(Rect(0, 0, 8, 8), (64, 64))]), (64, 64), generator(0), within=nothing) is None


@given(number=st.integers(0, 1000), types=st.integers(1, 20))
def test_the_shares_add_up_and_the_first_types_take_what_is_left(number, types):
    parts = shares(number, types)
    assert sum(parts) == number
    assert len(parts) == types
    assert parts == sorted(parts, reverse=True)
    assert max(parts) - min(parts) <= 1


# --- a set on disk


@pytest.fixture
def steel(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


def test_boxes_around_real_defects_are_written_as_masks_of_the_image_s_size(steel, tmp_path):
    record = write_boxes(steel, list_anomalous(steel, "test"), tmp_path / "boxes")
    assert len(record.real) == 6
    for entry in record.real:
        path = tmp_path / "boxes" / entry.mask
        assert entry.mask == f"steel/bbox/{entry.defect}/{entry.source[-7:-4]}_mask.png"
        assert entry.split == "test"
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stored.shape == entry.size
        assert set(np.unique(stored)) == {0, 255}
        defect = read_mask(steel.root / "ground_truth" / entry.defect / f"{entry.source[-7:-4]}_mask.png")
        assert not (defect & ~read_mask(path)).any()
    assert set(record.ranges["steel"]) == set(DEFECTS)
    assert (tmp_path / "boxes" / "contact_sheet.png").is_file()


def test_the_ranges_written_are_a_range_file_of_the_masks_command(steel, tmp_path):
    record = write_boxes(steel, list_anomalous(steel, "test"), tmp_path / "boxes", BoxSettings(within="image"))
    ranges = read_ranges(tmp_path / "boxes" / "ranges.json")
    assert ranges["steel"].within == "image"
    for defect, sides in ranges["steel"].defects.items():
        assert sides.width == record.ranges["steel"][defect].width
        assert sides.rotate is False


@pytest.mark.parametrize("within", ["image", "foreground"])
def test_random_boxes_come_with_lines_of_good_mask_and_text(steel, tmp_path, within):
    out = tmp_path / "boxes"
    record = write_boxes(steel, list_anomalous(steel, "test"), out, BoxSettings(number=7, within=within))
    lines = [json.loads(line) for line in (out / "steel" / "steel_test.jsonl").read_text().splitlines()]
    assert record.random == len(lines) == 7
    assert [line["defect"] for line in lines] == [DEFECTS[0]] * 4 + [DEFECTS[1]] * 3
    assert [line["mask"] for line in lines] == [
        *(f"steel/mask/{DEFECTS[0]}/{n:03d}.png" for n in (1, 2, 3, 4)),
        *(f"steel/mask/{DEFECTS[1]}/{n:03d}.png" for n in (1, 2, 3)),
    ]
    for line in lines:
        assert line["good"].startswith("train/good/")
        image, mask = read_image(steel.root / line["good"]), read_mask(out / line["mask"])
        assert mask.shape == image.shape[:2]
        np.testing.assert_array_equal(mask, Rect(*line["bbox"]).to_mask(mask.shape))
        assert line["text"].endswith(f"; steel_{line['defect']}")
        if within == "foreground":
            assert np.count_nonzero(mask & find_foreground(image)) > 0.75 * mask.sum()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_boxes(steel, tmp_path):
    entries = list_anomalous(steel, "test")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_boxes(steel, entries, tmp_path / name, BoxSettings(number=4, within="image", seed=seed))
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    assert first["steel/steel_test.jsonl"] != other["steel/steel_test.jsonl"]


@pytest.mark.parametrize("together", [[], ["--together"]])
def test_places_that_match_are_drawn_the_same_from_the_same_seed(tiny_root, tmp_path, together):
    data = ["synth", "boxes", "--data", str(tiny_root), "--category", CATEGORY, "--split", "test", "--num", "4"]
    for name in ("a", "b"):
        how = ["--within", "image", "--places", "match", *together, "--out", str(tmp_path / name)]
        assert run([*data, *how]) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    record = read_json(tmp_path / "a" / "boxes.json", BoxRecord, "boxes")
    assert (record.random, record.settings.places) == (4, "match")


def test_a_defect_that_fills_its_image_has_one_place_and_one_among_others_alone_none(tmp_path, capsys, monkeypatch):
    root = tmp_path / "steel"
    for place in ("train/good/000.png", "test/dent/000.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / place), np.full((64, 64, 3), 90, np.uint8))
    (root / "ground_truth" / "dent").mkdir(parents=True)
    cv2.imwrite(str(root / "ground_truth" / "dent" / "000_mask.png"), np.full((64, 64), 255, np.uint8))
    data = ["synth", "boxes", "--data", str(root), "--split", "test", "--num", "1", "--within", "image"]
    assert run([*data, "--places", "match", "--out", str(tmp_path / "out")]) == 0
    (line,) = (tmp_path / "out" / "steel" / "steel_test.jsonl").read_text().splitlines()
    assert json.loads(line)["bbox"] == [0, 0, 64, 64]
    capsys.readouterr()
    monkeypatch.setattr(box_sets, "surroundings_of", lambda *_: None)
    assert run([*data, "--places", "match", "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith(
        "000.png: expected surroundings of the defect to find places by, got other defects alone. Take it out of the "
        "support set, or take --places near.\n"
    )
    assert not (tmp_path / "none").exists()


def test_distant_parts_of_a_defect_are_boxed_apart_unless_together(tmp_path):
    root = tmp_path / "steel"
    for place in ("train/good/000.png", "test/dent/000.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / place), np.full((64, 64, 3), 90, np.uint8))
    (root / "ground_truth" / "dent").mkdir(parents=True)
    spots = np.zeros((64, 64), np.uint8)
    spots[4:8, 4:8] = spots[6, 9] = spots[50:60, 50:54] = 255  # the speck beside the first part belongs to it
    cv2.imwrite(str(root / "ground_truth" / "dent" / "000_mask.png"), spots)
    data = ["synth", "boxes", "--data", str(root), "--split", "test"]
    dataset = open_dataset(root)
    apart = write_boxes(dataset, list_anomalous(dataset, "test"), tmp_path / "default")
    assert run([*data, "--out", str(tmp_path / "apart")]) == 0
    assert run([*data, "--together", "--out", str(tmp_path / "together")]) == 0
    records = [read_json(tmp_path / name / "boxes.json", BoxRecord, "boxes") for name in ("apart", "together")]
    assert records[0].real == apart.real
    assert [len(record.real[0].boxes) for record in records] == [2, 1]


def test_a_record_from_before_places_were_kept_is_read_as_it_was_meant(steel, tmp_path):
    settings = BoxSettings(number=2, within="image", places="observed", per_component=False)
    record = write_boxes(steel, list_anomalous(steel, "test"), tmp_path / "boxes", settings)
    content = json.loads((tmp_path / "boxes" / "boxes.json").read_text())
    for types in content["ranges"].values():
        for seen in types.values():
            assert len(seen.pop("seen")) == seen["boxes"] == 3
    (tmp_path / "boxes" / "boxes.json").write_text(json.dumps(content))
    older = read_json(tmp_path / "boxes" / "boxes.json", BoxRecord, "boxes")
    assert older.settings == settings
    assert older.real == record.real
    assert all(seen.seen == () for types in older.ranges.values() for seen in types.values())


def test_empty_masks_are_passed_over_and_named(tmp_path):
    root = tmp_path / "steel"
    for place in ("train/good/000.png", "test/dent/000.png", "test/dent/001.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / place), np.full((32, 32, 3), 90, np.uint8))
    (root / "ground_truth" / "dent").mkdir(parents=True)
    spot = np.zeros((32, 32), np.uint8)
    cv2.imwrite(str(root / "ground_truth" / "dent" / "000_mask.png"), spot)
    spot[4:8, 4:8] = 255
    cv2.imwrite(str(root / "ground_truth" / "dent" / "001_mask.png"), spot)
    dataset = open_dataset(root)
    record = write_boxes(dataset, list_anomalous(dataset, "test"), tmp_path / "boxes")
    assert record.passed_over == {"test/dent/000.png": "its mask shows no defect"}
    assert [entry.source for entry in record.real] == ["test/dent/001.png"]
    with pytest.raises(DataError, match=r"steel/dent: expected a mask that shows a defect, got empty ones"):
        write_boxes(dataset, list_anomalous(dataset, "test")[:1], tmp_path / "none")
    with pytest.raises(DataError, match=r"steel/dent: expected a random box .* got none in 2000 tries"):
        write_boxes(dataset, list_anomalous(dataset, "test"), tmp_path / "none", BoxSettings(number=1, tries=2000))
    assert not (tmp_path / "none").exists()


def test_a_mask_of_another_size_is_refused(tmp_path):
    root = tmp_path / "steel"
    for place in ("train/good/000.png", "test/dent/000.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / place), np.full((32, 40, 3), 90, np.uint8))
    (root / "ground_truth" / "dent").mkdir(parents=True)
    cv2.imwrite(str(root / "ground_truth" / "dent" / "000_mask.png"), np.full((16, 16), 255, np.uint8))
    dataset = open_dataset(root)
    with pytest.raises(DataError, match=r"000_mask.png: expected 40x32 pixels as its image has, got 16x16"):
        write_boxes(dataset, list_anomalous(dataset, "test"), tmp_path / "boxes")
