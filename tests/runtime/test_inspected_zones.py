"""Zones: an image is rejected where any zone is above its own threshold, and never accepted unseen.

The map of the tiny bundle is the brightness of the image, so every expected score is one of its pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import SIDE, tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import Manifest, Thresholds, Zones, ZoneThresholds, make_region, make_zones, open_bundle
from flawscope.bundle.zones import REST
from flawscope.errors import BundleError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector, overlay


def with_zones(path: Path, zones: Zones, values: dict[str, float] | float = 150.0, **changes: object) -> Manifest:
    """Write a bundle with thresholds for the zones, by hand."""
    own = []
    for name in zones.names:
        alike = tiny_thresholds(values if isinstance(values, float) else values[name])
        own.append(ZoneThresholds(name, alike.image, alike.pixel))
    whole = tiny_thresholds(0.0).image
    largest = max((zone.pixel for zone in own), key=lambda threshold: threshold.value)
    return write_tiny_bundle(path, zones=zones, thresholds=Thresholds(whole, largest, zones=tuple(own)), **changes)


def random_zones(generator: np.random.Generator, count: int, inside: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return masks of zones that are anywhere, also of several pieces, and leave a rest."""
    numbers = generator.integers(0, count + 1, (SIDE, SIDE))
    # Each has a pixel, and so has the rest.
    numbers[0, : count + 1] = np.arange(count + 1)
    if inside is not None:
        inside[0, : count + 1] = True
        numbers[~inside] = 0
    return {f"zone {number}": numbers == number for number in range(1, count + 1)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), count=st.integers(1, 4), has_region=st.booleans())
def test_an_image_is_rejected_exactly_where_a_zone_exceeds_its_threshold(tmp_path_factory, seed, count, has_region):
    generator = np.random.default_rng(seed)
    inside = generator.random((SIDE, SIDE)) < 0.7 if has_region else None
    masks = random_zones(generator, count, inside)
    zones = make_zones(masks, inside, Preprocessing((SIDE, SIDE)))
    rest = ~np.any(list(masks.values()), axis=0) & (True if inside is None else inside)
    expected = {**masks, REST: rest}
    assert zones.names == tuple(expected)
    values = {name: float(generator.uniform(200, 256)) for name in zones.names}
    path = tmp_path_factory.mktemp("b") / "t.flaw"
    with_zones(path, zones, values, region=None if inside is None else make_region(inside), min_area_px=1)
    image = np.repeat(generator.integers(0, 240, (SIDE, SIDE, 1), np.uint8), 3, axis=2)
    with Inspector.load(path, "cpu") as inspector:
        result = inspector(image)
    brightness = image[..., 0].astype(np.float32)
    assert {zone.name: zone.score for zone in result.zones} == {
        name: float(brightness[mask].max()) for name, mask in expected.items()
    }
    assert {zone.name: zone.threshold for zone in result.zones} == values
    above = {name: brightness[mask].max() > values[name] for name, mask in expected.items()}
    assert result.decision == ("reject" if any(above.values()) else "accept")
    # The zone that is named is one that rejects, where any does; and its numbers are those of the result.
    assert above[result.zone] == any(above.values())
    named = next(zone for zone in result.zones if zone.name == result.zone)
    assert (result.score, result.threshold) == (named.score, named.threshold)
    # Boxes go by the threshold of the zone that a pixel lies in.
    called = np.any([mask & (brightness > np.float32(values[name])) for name, mask in expected.items()], axis=0)
    count_expected, _ = cv2.connectedComponents(called.astype(np.uint8), connectivity=8)
    assert len(result.boxes) == count_expected - 1


def halves(shape: tuple[int, int] = (SIDE, SIDE)) -> dict[str, np.ndarray]:
    left = np.zeros(shape, np.bool_)
    left[:, : shape[1] // 2] = True
    return {"left": left}


def test_a_strict_zone_rejects_what_a_lenient_one_accepts(tmp_path):
    zones = make_zones(halves(), None, Preprocessing((SIDE, SIDE)))
    path = tmp_path / "t.flaw"
    with_zones(path, zones, {"left": 150.0, "rest": 230.0})
    for column, decision, zone in ((2, "reject", "left"), (12, "accept", "rest")):
        image = np.full((SIDE, SIDE, 3), 90, np.uint8)
        image[5:9, column : column + 3] = 200
        with Inspector.load(path, "cpu") as inspector:
            result = inspector(image)
        assert (result.decision, result.zone) == (decision, zone)
        assert len(result.boxes) == (decision == "reject")
        line = result.to_json()
        assert line["zone"] == zone
        assert [entry["name"] for entry in line["zones"]] == ["left", "rest"]


def test_a_bundle_without_zones_says_nothing_of_them(tmp_path):
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds())
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        line = inspector(np.zeros((SIDE, SIDE, 3), np.uint8)).to_json()
    assert not {"zone", "zones"} & set(line)
    assert "zone" not in (tmp_path / "t.flaw/manifest.json").read_text()


GEOMETRIES = [{}, {"tiling": Tiling((20, 20))}, {"mode": "letterbox"}, {"crop": (SIDE, SIDE), "resize": (22, 24)}]


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (16, 16)])
@pytest.mark.parametrize("changes", GEOMETRIES)
def test_zones_lie_at_the_same_place_of_images_of_any_size(tmp_path, size, changes):
    spec = {key: value for key, value in changes.items() if key != "tiling"}
    rest = {key: value for key, value in changes.items() if key == "tiling"}
    preprocessing = Preprocessing(**{"resize": (SIDE, SIDE), **spec})
    zones = make_zones(halves(size), None, None)
    with_zones(tmp_path / "t.flaw", zones, {"left": 100.0, "rest": 250.0}, input=preprocessing, **rest)
    height, width = size
    for side, decision in ((slice(0, width // 3), "reject"), (slice(width - width // 3, width), "accept")):
        image = np.full((height, width, 3), 30, np.uint8)
        image[:, side] = 210
        with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
            assert inspector(image).decision == decision


def test_not_a_number_in_any_zone_is_a_fault(tmp_path):
    with_zones(tmp_path / "t.flaw", make_zones(halves(), None, None))
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        score = inspector.scorer.score
        for column, what in ((0, np.nan), (SIDE - 1, np.nan), (3, np.inf), (3, -np.inf)):

            def spoiled(images, column=column, what=what):
                maps, scores = score(images)
                maps = maps.copy()
                maps[:, 2, column] = what
                return maps, scores

            inspector.scorer.score = spoiled
            result = inspector(np.zeros((SIDE, SIDE, 3), np.uint8))
            assert result.decision == "fault"
            assert (result.zones, result.zone, result.score) == ((), None, None)
            assert "NaN" in result.reason


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_zone_that_vanishes_on_a_small_image_is_a_fault_and_not_an_accept(tmp_path, is_calibrated):
    mask = np.zeros((600, 600), np.bool_)
    mask[300:304, 300:304] = True
    zones = make_zones({"hole": mask}, None, None)
    with_zones(tmp_path / "t.flaw", zones, tiling=Tiling((16, 16)))
    if not is_calibrated:
        write_tiny_bundle(tmp_path / "t.flaw", zones=zones, tiling=Tiling((16, 16)))
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        result = inspector(np.zeros((20, 20, 3), np.uint8))
    assert result.decision == "fault"
    assert result.reason == "the image is too small to show the zone hole"
    assert result.score is None
    json.dumps(result.to_json(), allow_nan=False)


def test_what_counts_and_lies_in_no_zone_belongs_to_the_nearest_where_there_is_no_rest(tmp_path):
    """The edge of a region of another size may be rounded otherwise than that of the zone in it."""
    region, zone = np.zeros((24, 24), np.bool_), np.zeros((64, 64), np.bool_)
    region[:, 4:20] = True
    zone[:, 12:52] = True
    zones = make_zones({"all": zone}, region, Preprocessing((SIDE, SIDE)))
    zones = msgspec.structs.replace(zones, has_rest=False)
    with_zones(tmp_path / "t.flaw", zones, region=make_region(region))
    bright = np.full((SIDE, SIDE, 3), 220, np.uint8)
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        for column in range(SIDE):
            image = np.full((SIDE, SIDE, 3), 20, np.uint8)
            image[:, column] = bright[:, column]
            counts = inspector.region._inside_of(image[..., 0].astype(np.float32))[0, column]
            assert (inspector(image).decision == "reject") == counts, column


@settings(max_examples=30, deadline=None)
@given(png=st.binary(min_size=8, max_size=200), shape=st.sampled_from([(16, 16), (16, 16, 3)]))
def test_bytes_that_are_no_zones_are_refused(tmp_path_factory, png, shape):
    path = tmp_path_factory.mktemp("b") / "t.flaw"
    other = cv2.imencode(".png", np.full(shape, 7, np.uint8))[1].tobytes()
    for data in (png, other):
        write_tiny_bundle(path, zones=Zones(("a",), data, (16, 16), (0.5,), True))
        with pytest.raises(BundleError, match="zones"):
            Inspector.load(path, "cpu")


@pytest.mark.parametrize("names", [("left",), ("left", "rest", "more"), ("rest", "left"), ()])
def test_a_bundle_whose_zones_have_no_thresholds_is_refused(tmp_path, names):
    """A zone without a threshold would never reject."""
    alike = tiny_thresholds()
    own = tuple(ZoneThresholds(name, alike.image, alike.pixel) for name in names)
    thresholds = Thresholds(alike.image, alike.pixel, zones=own or msgspec.UNSET)
    write_tiny_bundle(tmp_path / "t.flaw", zones=make_zones(halves(), None, None), thresholds=thresholds)
    with pytest.raises(BundleError, match="for the zones left, rest"):
        open_bundle(tmp_path / "t.flaw")
    other = Thresholds(alike.image, alike.pixel, zones=(ZoneThresholds("left", alike.image, alike.pixel),))
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=other)
    with pytest.raises(BundleError, match="for the zones none"):
        open_bundle(tmp_path / "t.flaw")


def test_zones_with_an_image_threshold_of_their_own_are_refused(tmp_path):
    """Figures are of the largest score minus threshold, against 0: with another they would contradict the results."""
    thresholds = tiny_thresholds()
    own = tuple(ZoneThresholds(name, thresholds.image, thresholds.pixel) for name in ("left", "rest"))
    assert thresholds.image.value != 0.0
    write_tiny_bundle(
        tmp_path / "t.flaw",
        zones=make_zones(halves(), None, None),
        thresholds=Thresholds(thresholds.image, thresholds.pixel, zones=own),
    )
    with pytest.raises(BundleError, match="expected an image threshold of fp32 of 0, since the bundle has zones"):
        open_bundle(tmp_path / "t.flaw")


def test_the_heat_map_has_the_threshold_of_each_zone_in_the_middle_of_its_scale(tmp_path, capsys):
    with_zones(tmp_path / "t.flaw", make_zones(halves(), None, None), {"left": 60.0, "rest": 240.0})
    image = np.full((SIDE, SIDE, 3), 55, np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        found = inspector.pixel_thresholds(np.zeros((SIDE, SIDE), np.float32))
    assert found[0].tolist() == [60.0] * 8 + [240.0] * 8
    maps = tmp_path / "maps"
    assert cli.run(["score", str(tmp_path / "t.flaw"), str(tmp_path / "image.png"), "--maps", str(maps)]) == 0
    drawn = cv2.imread(str(maps / "image.png"))
    # 55 is near the threshold on the left, and far below it on the right, where nothing is drawn.
    assert drawn[8, 14].tolist() == [55, 55, 55]
    assert drawn[8, 1].tolist() != [55, 55, 55]
    assert "zone left" in capsys.readouterr().out


def test_the_heat_map_names_the_zones_that_rejected(tmp_path, monkeypatch):
    with_zones(tmp_path / "t.flaw", make_zones(halves(), None, None), {"left": 60.0, "rest": 240.0})
    cv2.imwrite(str(tmp_path / "image.png"), np.full((200, 200, 3), 90, np.uint8))
    written = []
    monkeypatch.setattr(overlay.cv2, "putText", lambda image, text, *rest: written.append(text))
    assert cli.run(["score", str(tmp_path / "t.flaw"), str(tmp_path / "image.png"), "--maps", str(tmp_path / "m")]) == 0
    assert set(written) == {"left: 90 > 60"}
    # And it can be seen, also of a name that the font does not have.
    monkeypatch.undo()
    plain, lines = (
        overlay.draw_overlay(np.full((200, 200, 3), 90, np.uint8), np.zeros((8, 8), np.float32), None, 1.0, (), text)
        for text in ((), ("Fläche: 2 > 1",))
    )
    changed = (plain != lines).any(axis=2)
    assert changed.any()
    assert not changed[20:].any()


def test_a_bundle_with_zones_opens_and_keeps_them_when_packed(tmp_path):
    zones = make_zones(halves(), None, None)
    with_zones(tmp_path / "t.flaw", zones)
    assert cli.run(["bundle", "pack", str(tmp_path / "t.flaw"), "--out", str(tmp_path / "p.flaw")]) == 0
    with open_bundle(tmp_path / "p.flaw") as opened:
        assert opened.manifest.zones == zones
