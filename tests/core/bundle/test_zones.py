"""Zones as they are drawn: polygons and masks that do not overlap, inside of the region, kept as one map of numbers."""

from __future__ import annotations

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
from flawscope.bundle import (
    Zones,
    change_bundle,
    make_zones,
    open_bundle,
    region_mask,
    zone_numbers,
    zones_on_map,
)
from flawscope.bundle.region import LARGEST_SIDE
from flawscope.errors import ArgumentError
from flawscope.imaging.images import Preprocessing


@settings(max_examples=25, deadline=None)
@given(height=st.integers(8, 1600), width=st.integers(8, 1600), cut=st.floats(0.3, 0.7))
def test_zones_come_back_as_they_were_or_scaled_down(height, width, cut):
    row, column = int(height * cut), int(width * cut)
    top, left = np.zeros((height, width), np.bool_), np.zeros((height, width), np.bool_)
    top[:row], left[row:, :column] = True, True
    zones = make_zones({"top": top, "left": left}, None, None)
    stored = zone_numbers(zones, "b")
    assert max(stored.shape) <= LARGEST_SIDE
    assert zones.size == (height, width)
    assert zones.names == ("top", "left", "rest")
    np.testing.assert_allclose(zones.shares, [top.mean(), left.mean()], atol=0.01)
    if max(height, width) <= LARGEST_SIDE:
        np.testing.assert_array_equal(stored, top + 2 * left)
        np.testing.assert_array_equal(zones_on_map(stored, None, (height, width)), top + 2 * left)


@given(seed=st.integers(0, 1000), count=st.integers(1, 6))
def test_a_pixel_of_a_map_of_any_size_lies_in_one_zone(seed, count):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, count + 1, (20, 30)).astype(np.uint8)
    shape = tuple(generator.integers(8, 60, 2))
    on_map = zones_on_map(numbers, None, shape)
    assert on_map.shape == shape
    assert set(np.unique(on_map)) <= set(np.unique(numbers))


def test_there_is_no_rest_where_zones_take_all_that_counts():
    left, right = np.zeros((SIDE, SIDE), np.bool_), np.zeros((SIDE, SIDE), np.bool_)
    left[:, :8], right[:, 8:] = True, True
    assert make_zones({"l": left, "r": right}, None, None).names == ("l", "r")
    assert make_zones({"l": left}, left, None).names == ("l",)
    # The rest that a crop cuts off can have no score.
    crop = Preprocessing((24, 24), crop=(16, 16))
    inner = np.zeros((24, 24), np.bool_)
    inner[2:22, 2:22] = True
    assert make_zones({"inner": inner}, None, crop).names == ("inner",)


@pytest.mark.parametrize("name", ["rest", "", " a", "a ", "x" * 65, "a\nb", "\x1b[1m"])
def test_names_that_are_no_names_are_refused(name):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[:4] = True
    with pytest.raises(ArgumentError, match="zone: expected a name"):
        make_zones({name: mask}, None, None)
    zones = make_zones({"a": mask}, None, None)
    broken = msgspec.json.encode(zones).replace(b'["a"]', msgspec.json.encode([name]))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(broken, type=Zones)


# --- the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds())
    return tmp_path / "t.flaw"


@pytest.fixture
def photo(tmp_path: Path) -> str:
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((48, 64, 3), 120, np.uint8))
    return str(tmp_path / "photo.png")


def command(bundle: Path, photo: str, *arguments: str) -> list[str]:
    return ["bundle", "region", str(bundle), "--on", photo, *arguments]


def zones_of(path: Path) -> Zones | None:
    with open_bundle(path) as opened:
        assert opened.manifest.thresholds is None
        return opened.manifest.drawn_zones


FACE = ("--zone", "face", "0,0 31,0 31,23 0,23")
EDGE = ("--zone", "edge", "31,0 63,0 63,23 31,23")


def test_polygons_and_masks_become_zones_and_thresholds_go(tmp_path, bundle, photo, capsys):
    mask = np.zeros((48, 64), np.uint8)
    mask[30:, :10] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    preview = tmp_path / "preview.png"
    more = ("--zone", "face", "0,40 20,40 20,47 0,47")
    parts = command(bundle, photo, *FACE, *EDGE, "--zone-mask", "hole", str(tmp_path / "mask.png"))
    assert cli.run([*parts, "--preview", str(preview)]) == 0
    zones = zones_of(bundle)
    assert zones.names == ("face", "edge", "hole", "rest")
    expected = np.zeros((48, 64), np.uint8)
    expected[:24, :32], expected[:24, 32:], expected[30:, :10] = 1, 2, 3  # the shared edge is the first one's
    np.testing.assert_array_equal(zone_numbers(zones, "b"), expected)
    said = capsys.readouterr().out
    assert "zones face (25.0%), edge (25.0%), hole (5.9%), rest. Its thresholds were removed" in said
    shown = cv2.imread(str(preview))
    assert shown[0, 5].tolist() != [120, 120, 120]
    assert shown[28, 40].tolist() == [120, 120, 120]
    # Outlines of one name are one zone, and zones take the place of those before.
    assert cli.run(command(bundle, photo, *FACE, *more)) == 0
    assert zones_of(bundle).names == ("face", "rest")
    assert zone_numbers(zones_of(bundle), "b")[44, 5] == 1
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    assert "face (" in capsys.readouterr().out
    assert cli.run(["bundle", "region", str(bundle), "--clear"]) == 0
    assert zones_of(bundle) is None


def test_zones_keep_the_region_and_a_new_region_removes_them(bundle, photo, capsys):
    region = ("--polygon", "0,0 63,0 63,30 0,30")
    assert cli.run(command(bundle, photo, *region)) == 0
    assert cli.run(command(bundle, photo, *FACE)) == 0
    with open_bundle(bundle) as opened:
        assert region_mask(opened.manifest.region, "b").sum() == 64 * 31
        assert opened.manifest.drawn_zones.names == ("face", "rest")
    assert cli.run(command(bundle, photo, "--zone", "low", "0,20 63,20 63,47 0,47")) == 2
    assert "zone low: expected a zone inside of the region of interest" in capsys.readouterr().err
    assert cli.run(command(bundle, photo, *region)) == 0
    assert "its zones were removed" in capsys.readouterr().out
    assert zones_of(bundle) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--zone", "a", "0,0 20,0 20,20 0,20", "--zone", "b", "15,0 40,0 40,20 15,20"), "overlaps a in"),
        (("--zone", "rest", "0,0 20,0 20,20 0,20"), "expected a name other than 'rest'"),
        (("--zone", "", "0,0 20,0 20,20 0,20"), "expected a name of 1 to 64"),
        (("--zone", "a", "0,0 20,0"), "--zone a: expected at least 3 corners"),
        (("--zone", "a", "0,0 90,0 90,20"), "within 64x48 pixels"),
        (("--zone-mask", "a", "{black}"), "expected a mask"),
        (("--zone-mask", "a", "{small}"), "of one size"),
        (("--zone-mask", "a", "{missing}"), "missing.png"),
        (("--clear", "--zone", "a", "0,0 20,0 20,20 0,20"), "got both"),
        (("--polygon", "0,0 10,0 10,47 0,47", "--zone", "a", "0,0 20,0 20,20 0,20"), "lies outside"),
        (
            [part for i in range(33) for part in ("--zone", f"z{i}", f"{i},0 {i + 1},0 {i + 1},3 {i},3")],
            "expected 1 to 32, got 33",
        ),
    ],
)
def test_what_is_no_zone_is_refused_in_a_line_and_the_bundle_stays(tmp_path, bundle, photo, capsys, arguments, message):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((48, 64), np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.full((10, 10), 255, np.uint8))
    places = {name: str(tmp_path / f"{name}.png") for name in ("black", "small", "missing")}
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run(command(bundle, photo, *(text.format(**places) for text in arguments))) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.strip().splitlines()[-1].startswith(("error:", "Error:"))
    assert (bundle / "manifest.json").read_bytes() == before


def test_polygons_of_zones_need_an_image(bundle, capsys):
    assert cli.run(["bundle", "region", str(bundle), *FACE]) == 2
    assert "error: --zone: expected --on IMAGE" in capsys.readouterr().err


def test_what_cannot_know_of_zones_refuses_them(tmp_path, patchcore_bundle, padim_bundle, tiny_root, capsys):
    """Ensembles and overlays take one threshold for the image as a whole."""
    copy = tmp_path / "copy.flaw"
    shutil.copytree(patchcore_bundle, copy)
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[:, :8] = True
    with open_bundle(copy) as opened:
        read = opened.manifest
    zones = make_zones({"left": mask}, None, None)
    change_bundle(copy, read, lambda now: msgspec.structs.replace(now, zones=zones, thresholds=None))
    members = [str(copy), str(padim_bundle)]
    assert cli.run(["bundle", "combine", *members, "--data", str(tiny_root), "--out", str(tmp_path / "e.flaw")]) == 2
    assert "got one with zones" in capsys.readouterr().err
