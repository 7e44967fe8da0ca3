"""A region of interest: what lies outside counts nowhere; drawn regions, images and geometries.

The map of the tiny bundle is the brightness of the image, so every expected score is one of its pixels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import SIDE, tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import Region, change_bundle, make_region, mask_on_map, open_bundle, region_mask
from flawscope.bundle.region import LARGEST_SIDE
from flawscope.errors import ArgumentError, BundleError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector


def half(side: str = "left", height: int = SIDE, width: int = SIDE) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[:, slice(0, width // 2) if side == "left" else slice(width // 2, None)] = True
    return mask


def with_region(path: Path, mask: np.ndarray, **changes: object) -> Path:
    write_tiny_bundle(path, region=make_region(mask), thresholds=tiny_thresholds(), **changes)
    return path


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_score_and_map_are_those_of_the_pixels_inside(tmp_path_factory, seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((SIDE, SIDE)) < generator.uniform(0.1, 0.9)
    mask[0, 0], mask[-1, -1] = True, False
    image = np.repeat(generator.integers(0, 256, (SIDE, SIDE, 1), np.uint8), 3, axis=2)
    with Inspector.load(with_region(tmp_path_factory.mktemp("b") / "t.flaw", mask), "cpu") as inspector:
        result = inspector(image)
    brightness = image[..., 0].astype(np.float32)
    assert result.score == brightness[mask].max()
    assert result.decision == ("reject" if result.score > 150 else "accept")
    np.testing.assert_array_equal(result.anomaly_map[mask], brightness[mask])
    assert (result.anomaly_map[~mask] == brightness[mask].min()).all()
    # No box lies outside alone: each holds a pixel inside that is above the threshold.
    for box in result.boxes:
        place = (slice(box.y, box.y + box.height), slice(box.x, box.x + box.width))
        assert (brightness[place] * mask[place]).max() > 150


def test_a_defect_outside_is_accepted_and_one_inside_is_rejected(tmp_path):
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image[4:9, 10:14] = 220
    for side, decision in (("left", "accept"), ("right", "reject")):
        with Inspector.load(with_region(tmp_path / f"{side}.flaw", half(side)), "cpu") as inspector:
            assert inspector(image).decision == decision


GEOMETRIES = [{}, {"tiling": Tiling((20, 20))}, {"mode": "letterbox"}, {"crop": (10, 12)}]
# In a letterbox a strip of 8x300 would have less than a row.
PLACES = [
    (size, changes)
    for size in ((40, 64), (64, 40), (16, 16), (8, 300))
    for changes in GEOMETRIES
    if "mode" not in changes or max(size) < 300
]


@pytest.mark.parametrize(("size", "changes"), PLACES)
def test_the_region_lies_at_the_same_place_of_images_of_any_size(tmp_path, size, changes):
    height, width = size
    spec = {key: value for key, value in changes.items() if key in ("mode", "crop")}
    rest = {key: value for key, value in changes.items() if key == "tiling"}
    if "crop" in spec:
        # The graph takes 16x16: the crop is cut out of a larger resize.
        spec = {"resize": (22, 24), "crop": (SIDE, SIDE)}
    preprocessing = Preprocessing(**{"resize": (SIDE, SIDE), **spec})
    left = np.full((height, width, 3), 30, np.uint8)
    left[:, : width // 2] = 210
    for side, expected in (("left", "reject"), ("right", "accept")):
        path = with_region(
            tmp_path / f"{side}.flaw", inner(half(side, height, width), side), input=preprocessing, **rest
        )
        with Inspector.load(path, "cpu") as inspector:
            result = inspector(left)
        assert result.decision == expected, (side, result.score, result.reason)


def inner(mask: np.ndarray, side: str) -> np.ndarray:
    """Return a half without the third next to the middle, where resizing mixes both halves."""
    width = mask.shape[1]
    mask[:, width // 3 : width - width // 3] = False
    return mask


def test_no_box_leaves_the_region_where_all_of_it_is_anomalous(tmp_path):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[4:9, 3:7] = True
    image = np.full((SIDE, SIDE, 3), 220, np.uint8)
    with Inspector.load(with_region(tmp_path / "t.flaw", mask), "cpu") as inspector:
        (box,) = inspector(image).boxes
    assert (box.x, box.y, box.width, box.height) == (3, 4, 4, 5)


def test_not_a_number_outside_is_a_fault(tmp_path):
    path = with_region(tmp_path / "t.flaw", half())
    with Inspector.load(path, "cpu") as inspector:
        score = inspector.scorer.score

        def spoiled(images):
            maps, scores = score(images)
            maps = maps.copy()
            maps[:, 0, -1] = np.nan
            return maps, scores

        inspector.scorer.score = spoiled
        result = inspector(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert result.decision == "fault"
    assert "NaN" in result.reason


def test_a_region_that_vanishes_on_a_small_image_is_a_fault_and_not_an_accept(tmp_path):
    mask = np.zeros((600, 600), np.bool_)
    mask[300:304, 300:304] = True
    path = with_region(tmp_path / "t.flaw", mask, tiling=Tiling((16, 16)))
    with Inspector.load(path, "cpu") as inspector:
        result = inspector(np.zeros((20, 20, 3), np.uint8))
    assert result.decision == "fault"
    assert result.reason == "the image is too small to show the region of interest"


# --- the mask


@settings(max_examples=20, deadline=None)
@given(height=st.integers(8, 1500), width=st.integers(8, 1500), seed=st.integers(0, 1000))
def test_a_mask_comes_back_as_it_was_or_scaled_down(height, width, seed):
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.bool_)
    mask[: max(1, height // 2), : max(1, int(width * generator.uniform(0.2, 0.9)))] = True
    region = make_region(mask)
    stored = region_mask(region, "b")
    assert max(stored.shape) <= LARGEST_SIDE
    assert region.size == (height, width)
    assert region.share == pytest.approx(mask.mean(), abs=0.02)
    if max(height, width) <= LARGEST_SIDE:
        np.testing.assert_array_equal(stored, mask)
        np.testing.assert_array_equal(mask_on_map(stored, None, (height, width)), mask)


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_of_one_part_is_no_region(value):
    with pytest.raises(ArgumentError, match=r"got (everywhere|nowhere)"):
        make_region(np.full((8, 8), value))


@settings(max_examples=30, deadline=None)
@given(png=st.binary(min_size=8, max_size=200))
def test_bytes_that_are_no_mask_are_refused(tmp_path_factory, png):
    path = tmp_path_factory.mktemp("b") / "t.flaw"
    write_tiny_bundle(path, region=Region(png, (16, 16), 0.5))
    with pytest.raises(BundleError, match="region of interest"):
        Inspector.load(path, "cpu")


# --- the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds())
    return tmp_path / "t.flaw"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((48, 64, 3), 120, np.uint8))
    return tmp_path / "photo.png"


def region_of(path: Path) -> np.ndarray | None:
    with open_bundle(path) as opened:
        assert opened.manifest.thresholds is None
        return None if opened.manifest.region is None else region_mask(opened.manifest.region, "b")


@pytest.mark.parametrize("is_packed", [False, True])
def test_polygons_and_what_they_ignore_become_the_region_and_thresholds_go(tmp_path, bundle, photo, is_packed, capsys):
    if is_packed:
        assert cli.run(["bundle", "pack", str(bundle), "--out", str(tmp_path / "packed.flaw")]) == 0
        bundle = tmp_path / "packed.flaw"
    command = ["bundle", "region", str(bundle), "--on", str(photo), "--polygon", "0,0 31,0 31,47 0,47"]
    command += ["--ignore", "10,10 20,10 20,20 10,20"]
    preview = tmp_path / "preview.png"
    assert cli.run([*command, "--preview", str(preview)]) == 0
    expected = np.zeros((48, 64), np.bool_)
    expected[:, :32] = True
    expected[10:21, 10:21] = False
    np.testing.assert_array_equal(region_of(bundle), expected)
    assert "thresholds were removed" in capsys.readouterr().out
    shown = cv2.imread(str(preview))
    assert shown.shape == (48, 64, 3)
    assert shown[24, 50].tolist() == [40, 40, 40]  # darkened
    assert shown[40, 5].tolist() == [120, 120, 120]
    # An existing image is not overwritten unasked.
    assert cli.run([*command, "--preview", str(preview)]) == 2
    assert cli.run([*command, "--preview", str(preview), "--overwrite"]) == 0
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    assert f"defects count in {expected.mean():.1%} of the image" in capsys.readouterr().out
    assert cli.run(["bundle", "region", str(bundle), "--clear"]) == 0
    assert region_of(bundle) is None


def test_clearing_what_is_not_there_changes_nothing(bundle, capsys):
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run(["bundle", "region", str(bundle), "--clear"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert (bundle / "manifest.json").read_bytes() == before
    assert cli.run(["bundle", "region", str(bundle.parent / "nowhere.flaw"), "--clear"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_masks_say_what_counts_and_what_does_not(tmp_path, bundle):
    for name, mask in (("in", half("left", 40, 40)), ("out", np.tri(40, dtype=bool))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), mask.astype(np.uint8) * 255)
    masks = ["--mask", str(tmp_path / "in.png"), "--ignore-mask", str(tmp_path / "out.png")]
    assert cli.run(["bundle", "region", str(bundle), *masks]) == 0
    np.testing.assert_array_equal(region_of(bundle), half("left", 40, 40) & ~np.tri(40, dtype=bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected --mask"),
        (["--clear", "--polygon", "0,0 1,0 1,1"], "Expected --mask"),
        (["--polygon", "0,0 1,0 1,1"], "error: --polygon: expected --on IMAGE"),
        (["--ignore", "0,0 1,0 1,1"], "error: --ignore: expected --on IMAGE"),
        (["--polygon", "0,0 1,0 1,1", "--zone", "a", "0,0 1,0 1,1"], "error: --polygon and --zone: expected --on"),
        (["--on", "{photo}", "--polygon", "0,0 1,0"], "at least 3 corners"),
        (["--on", "{photo}", "--polygon", "0,0 1,0 nan,1"], "at least 3 corners"),
        (["--on", "{photo}", "--polygon", "0,0 900,0 9,9"], "within 64x48 pixels"),
        (["--on", "{photo}", "--polygon", "a,b c,d e,f"], "at least 3 corners"),
        (["--on", "{photo}", "--polygon", "0,0 64,0 64,48 0,48"], "everywhere"),
        (["--on", "{photo}", "--ignore", "0,0 64,0 64,48 0,48"], "nowhere"),
        (["--on", "{photo}", "--mask", "{small}"], "of one size"),
        (["--mask", "{missing}"], "missing.png"),
        (["--mask", "{grey}"], "expected a mask, black and white"),
        (["--on", "{photo}", "--polygon", "0,0 10,10 20,20"], "which are on one line"),
        (["--mask", "{small}", "--preview", "p.png"], "Expected --on"),
    ],
)
def test_what_is_no_region_is_refused_and_the_bundle_stays(tmp_path, bundle, photo, capsys, arguments, message):
    cv2.imwrite(str(tmp_path / "small.png"), half("left", 10, 10).astype(np.uint8) * 255)
    ramp = np.repeat(np.arange(0, 240, 15, dtype=np.uint8)[None], SIDE, axis=0)
    cv2.imwrite(str(tmp_path / "grey.png"), ramp)
    places = {name: str(tmp_path / f"{name}.png") for name in ("photo", "small", "missing", "grey")}
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run(["bundle", "region", str(bundle), *(text.format(**places) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_mask_of_another_shape_than_the_images_is_refused(tmp_path, patchcore_bundle, capsys):
    cv2.imwrite(str(tmp_path / "wide.png"), half("left", 20, 200).astype(np.uint8) * 255)
    assert cli.run(["bundle", "region", str(patchcore_bundle), "--mask", str(tmp_path / "wide.png")]) == 2
    assert "as wide by high as the images that the bundle learned from" in capsys.readouterr().err


def test_what_cannot_know_of_a_region_refuses_it(tmp_path, bundle, patchcore_bundle, padim_bundle, tiny_root, capsys):
    """Ensembles and Triton take graphs alone."""
    copy = tmp_path / "copy.flaw"
    shutil.copytree(patchcore_bundle, copy)
    with open_bundle(copy) as opened:
        size = opened.manifest.learned.heights[0], opened.manifest.learned.widths[0]
        read = opened.manifest
    change_bundle(copy, read, lambda now: msgspec.structs.replace(now, region=make_region(half("left", *size))))
    combine = [
        "bundle",
        "combine",
        str(copy),
        str(padim_bundle),
        "--data",
        str(tiny_root),
        "--out",
        str(tmp_path / "e.flaw"),
    ]
    assert cli.run(combine) == 2
    assert "region of interest" in capsys.readouterr().err


# --- the figures


def test_the_evaluation_is_of_the_region(tmp_path, bundle, capsys):
    """Defects outside are left out of the figures, and so are the pixels there."""
    root = tmp_path / "set"
    generator = np.random.default_rng(0)

    def write(name: str, column: int | None) -> None:
        image = generator.integers(60, 100, (SIDE, SIDE), np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if column is not None:
            image[4:8, column : column + 3], mask[4:8, column : column + 3] = 220, 255
        place = root / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), image)
        if column is not None:
            place = root / "ground_truth" / f"{name.removeprefix('test/')}_mask.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), mask)

    for index in range(6):
        write(f"train/good/{index}", None)
        write(f"test/good/{index}", None)
        write(f"test/inside/{index}", 1)
        write(f"test/outside/{index}", 11)
    cv2.imwrite(str(tmp_path / "left.png"), half().astype(np.uint8) * 255)
    evaluate = ["evaluate", str(bundle), "--data", str(root)]
    assert cli.run(["bundle", "region", str(bundle), "--mask", str(tmp_path / "left.png")]) == 0
    by_hand = ["--image-threshold", "150", "--pixel-threshold", "150"]
    assert cli.run(["calibrate", str(bundle), *by_hand]) == 0
    capsys.readouterr()
    assert cli.run([*evaluate, "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["images"], figures["anomalous"]) == (12, 6)
    assert figures["image_auroc"] == figures["pixel_auroc"] == 1.0
    assert {row["defect"] for row in figures["defects"]} == {"inside"}
    assert any("6 anomalous images have their defect outside" in note for note in figures["notes"])
    assert any("region of interest, 50.0%" in note for note in figures["notes"])
