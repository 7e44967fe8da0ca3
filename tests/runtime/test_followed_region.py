"""A region of interest that follows the part: where it lies, what is a fault, and what is said.

The map of the tiny bundle is the brightness of the image, so every expected score is one of its pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shifted_parts import SIDE, part_image, texture_image
from tiny_bundle import SIDE as INPUT
from tiny_bundle import tiny_manifest, tiny_thresholds, write_tiny_bundle
from tiny_ensemble import member_of, write_member, write_tiny_ensemble

from flawscope import cli
from flawscope.bundle import Manifest, Region, change_bundle, make_region, make_zones, open_bundle, region_mask
from flawscope.bundle.part_learning import learn_place
from flawscope.errors import BundleError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector

FOLLOWED = 12
# The region holds the part; the part's brightest block has 140 of 255, the threshold is 150.
INSIDE = (slice(30, 98), slice(30, 98))
TILES = Tiling((INPUT, INPUT))


def counted() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[INSIDE] = True
    return mask


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def write_normals(folder: Path, count: int = 6) -> Path:
    for number in range(count):
        write_image(folder / f"{number}.png", part_image(0, number - 2, 2 - number % 4))
    return folder


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Region:
    """A region that was drawn on the part at its place."""
    folder = tmp_path_factory.mktemp("part")
    on = write_image(folder / "on.png", part_image())
    normals = sorted(write_normals(folder / "good").iterdir())
    learned = learn_place(counted(), on, normals, FOLLOWED, None)
    assert (learned.place.measured, learned.too_far) == (6, 0)
    return msgspec.structs.replace(make_region(counted()), part=learned.place)


def set_thresholds(path: Path) -> None:
    change_bundle(path, manifest_of(path), lambda now: now.with_thresholds("fp32", tiny_thresholds()))


def manifest_of(path: Path) -> Manifest:
    with open_bundle(path) as opened:
        return opened.manifest


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory, followed: Region) -> Path:
    """A bundle whose map has the pixels of the image: tiles of the size of its input."""
    path = tmp_path_factory.mktemp("bundle") / "t.flaw"
    write_tiny_bundle(path, region=followed, tiling=TILES, thresholds=tiny_thresholds())
    return path


@pytest.fixture(scope="module")
def inspector(tiled: Path) -> Iterator[Inspector]:
    with Inspector.load(tiled, "cpu") as made:
        yield made


@settings(max_examples=25, deadline=None)
@given(right=st.integers(-12, 12), down=st.integers(-12, 12), gain=st.floats(0.7, 1.05))
def test_the_region_lies_where_the_part_lies_to_the_pixel(inspector, right, down, gain):
    image = part_image(0, right, down, gain=gain)
    mask = np.roll(counted(), (down, right), (0, 1))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # Something bright, right beside each edge of where the region is to be.
    for row, column in ((rows[0] - 1, 64), (rows[-1] + 1, 64), (64, columns[0] - 1), (64, columns[-1] + 1)):
        image[row, column] = 250
    result = inspector(image)
    assert result.decision == "accept", result.reason
    assert (result.part_shift.right, result.part_shift.down) == (
        pytest.approx(right, abs=0.5),
        pytest.approx(down, abs=0.5),
    )
    values = image[..., 0].astype(np.float32)
    np.testing.assert_allclose(result.anomaly_map[mask], values[mask], atol=1e-3)
    np.testing.assert_allclose(result.anomaly_map[~mask], values[mask].min(), atol=1e-3)
    # And a defect in the corner of the region is found, with a box that does not leave it.
    image[rows[0] : rows[0] + 3, columns[-1] - 2 : columns[-1] + 1] = 240
    found = inspector(image)
    assert found.decision == "reject"
    (box,) = found.boxes
    assert (box.x, box.y, box.width, box.height) == (columns[-1] - 2, rows[0], 3, 3)


GEOMETRIES = [
    {},
    {"tiling": TILES},
    {"input": Preprocessing((INPUT, INPUT), mode="letterbox")},
    {"input": Preprocessing((20, 20), (INPUT, INPUT))},
]


@pytest.mark.parametrize("changes", GEOMETRIES, ids=["whole", "tiles", "letterbox", "crop"])
@pytest.mark.parametrize("scale", [1, 3])
def test_the_region_moves_in_every_geometry_and_at_every_size(tmp_path, followed, changes, scale):
    """A bright stripe stands still in the image: the region moves on it and off it."""
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[40:88, 40:88] = True
    region = msgspec.structs.replace(make_region(mask), part=followed.part)
    write_tiny_bundle(tmp_path / "t.flaw", region=region, thresholds=tiny_thresholds(), **changes)
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        for right, expected in ((-10, "accept"), (10, "reject")):
            image = part_image(0, right, 0)
            # The region's right edge lies at 77 or at 97.
            image[:, 84:94] = 190
            result = inspector(image.repeat(scale, axis=0).repeat(scale, axis=1))
            assert result.decision == expected, (result.reason, result.score)
            assert result.part_shift.right == pytest.approx(scale * right, abs=1.0 * scale)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (part_image(0, 20, 0), "more than the 12 pixels that it follows"),
        (np.full((SIDE, SIDE, 3), 90, np.uint8), "place of the part cannot be told"),
        (part_image(8), "place of the part cannot be told"),
        (texture_image(1), "place of the part cannot be told"),
    ],
)
def test_a_part_that_is_not_where_the_region_can_be_is_a_fault(inspector, image, reason):
    before, result, after = inspector([part_image(), image, part_image()])
    assert (before.decision, result.decision, after.decision) == ("accept", "fault", "accept")
    assert reason in result.reason
    assert (result.score, result.part_shift, result.boxes) == (None, None, ())


def test_the_region_of_an_ensemble_follows_too(tmp_path, followed):
    members = {write_member(tmp_path / f"m{factor}.flaw", factor): factor for factor in (1.0, 2.0)}
    # Both have the brightness as their scaled map, so the ensemble has it too.
    entries = {path: member_of(path, 0.5, 0.0, factor) for path, factor in members.items()}
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[40:88, 40:88] = True
    region = msgspec.structs.replace(make_region(mask), part=followed.part)
    write_tiny_ensemble(tmp_path / "e.flaw", entries, golden=200.0, region=region, thresholds=tiny_thresholds())
    with Inspector.load(tmp_path / "e.flaw", "cpu") as inspector:
        for right, expected in ((-10, "accept"), (10, "reject"), (20, "fault")):
            image = part_image(0, right, 0)
            image[:, 84:94] = 190
            result = inspector(image)
            assert result.decision == expected, (result.reason, result.score)


def test_a_region_that_would_leave_the_image_is_a_fault(tmp_path, followed):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[20:123, 30:98] = True
    region = msgspec.structs.replace(make_region(mask), part=followed.part)
    write_tiny_bundle(tmp_path / "t.flaw", region=region, tiling=TILES, thresholds=tiny_thresholds())
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        assert inspector(part_image(0, 0, 5)).decision == "accept"
        result = inspector(part_image(0, 0, 6))
    assert result.decision == "fault"
    assert result.reason.endswith("which leaves what is inspected of the image at the bottom")


def test_without_following_bytes_and_lines_are_as_before(tmp_path):
    region = make_region(counted())
    assert set(msgspec.to_builtins(region)) == {"png", "size", "share"}
    write_tiny_bundle(tmp_path / "t.flaw", region=region, tiling=TILES, thresholds=tiny_thresholds())
    assert set(json.loads((tmp_path / "t.flaw/manifest.json").read_bytes())["region"]) == {"png", "size", "share"}
    with Inspector.load(tmp_path / "t.flaw", "cpu") as inspector:
        result = inspector(part_image(0, 20, 0))
    assert result.part_shift is None
    assert "part_shift" not in result.to_json()


# --- the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw", tiling=TILES)
    return tmp_path / "t.flaw"


@pytest.fixture
def drawn(tmp_path: Path, bundle: Path) -> list[str]:
    """The command that draws the region on an image, without following."""
    on = write_image(tmp_path / "on.png", part_image())
    return ["bundle", "region", str(bundle), "--on", str(on), "--polygon", "30,30 97,30 97,97 30,97"]


def test_a_region_follows_and_score_says_and_draws_it(tmp_path, bundle, drawn, capsys):
    normals = write_normals(tmp_path / "good")
    assert cli.run([*drawn, "--follow", "12", "--normal", str(normals)]) == 0
    printed = capsys.readouterr()
    assert "it follows the part up to 12 pixels, on 6 normal images" in printed.out
    assert "told on 6 of 6 normal images" in printed.err
    place = manifest_of(bundle).region.followed
    # The normal images lie 2 left to 3 right of where the region was drawn.
    assert place.largest_px == pytest.approx(3.0, abs=0.3)
    assert (place.images, place.measured) == (7, 6)
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    assert "follows the part up to 12 pixels" in capsys.readouterr().out
    set_thresholds(bundle)
    image = write_image(tmp_path / "moved.png", part_image(0, 7, -4))
    capsys.readouterr()
    assert cli.run(["score", str(bundle), str(image), "--json", "--maps", str(tmp_path / "maps")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["part_shift"] == {"x": pytest.approx(7, abs=0.5), "y": pytest.approx(-4, abs=0.5)}
    assert cli.run(["score", str(bundle), str(image)]) == 0
    assert "part shifted x +7." in capsys.readouterr().out.replace("+6.9", "+7.").replace("+6.8", "+7.")
    assert cli.run(["score", str(bundle), str(write_image(tmp_path / "drawn.png", part_image(0, 0, 0)))]) == 0
    assert "part shifted x +0.0 y +0.0" in capsys.readouterr().out
    shown = cv2.imread(str(tmp_path / "maps/moved.png"))
    green = (shown == (0, 220, 0)).all(axis=2)
    rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (26, 93, 37, 104)
    # Drawn again without --follow, it stays again where it is.
    assert cli.run(drawn) == 0
    assert manifest_of(bundle).region.followed is None
    assert "the region does not move with the part" in capsys.readouterr().err


def test_without_an_image_the_region_lies_at_the_median_place(tmp_path, bundle, capsys):
    mask = write_image(tmp_path / "mask.png", counted().astype(np.uint8) * 255)
    normals = write_normals(tmp_path / "good", 7)  # 2 left to 4 right, so the median place is 1 right
    command = ["bundle", "region", str(bundle), "--mask", str(mask), "--follow", "9", "--normal", str(normals)]
    assert cli.run(command) == 0
    place = manifest_of(bundle).region.followed
    assert place.largest_px == pytest.approx(3.0, abs=0.4)
    set_thresholds(bundle)
    with Inspector.load(bundle, "cpu") as inspector:
        assert inspector(part_image(0, 1, 0)).part_shift.right == pytest.approx(0.0, abs=0.5)


def test_normal_images_alone_say_how_far_the_part_shifts(tmp_path, bundle, drawn, capsys):
    normals = write_normals(tmp_path / "good")
    before = msgspec.to_builtins(make_region(counted()))
    assert cli.run([*drawn, "--normal", str(normals)]) == 0
    said = capsys.readouterr().err
    assert "note: the part shifts by 1.5 pixels in the middle and 3.0 at most, on 6 normal images" in said
    assert "use --follow 4" in said or "use --follow 5" in said
    assert msgspec.to_builtins(manifest_of(bundle).region) == before
    assert cli.run([*drawn, "--normal", str(normals / "0.png")]) == 0
    assert "expected at least 3 normal images to say how far the part shifts, got 1" in capsys.readouterr().err
    for seed in range(4):
        write_image(tmp_path / "texture" / f"{seed}.png", texture_image(seed))
    assert cli.run([*drawn, "--normal", str(tmp_path / "texture")]) == 0
    assert "no shift of the part can be told on 4 of 4 normal images" in capsys.readouterr().err


def test_few_images_take_a_limit_that_was_not_measured_and_say_so(bundle, drawn, capsys):
    assert cli.run([*drawn, "--follow", "12"]) == 0
    assert "was not measured. Name more with --normal" in capsys.readouterr().err
    place = manifest_of(bundle).region.followed
    assert (place.images, place.measured, place.least_clear) == (1, 0, 0.3)


def test_what_will_be_faults_is_said(tmp_path, bundle, drawn, capsys):
    normals = write_normals(tmp_path / "good")
    assert cli.run([*drawn, "--follow", "1", "--normal", str(normals)]) == 0
    assert "of 6 normal images lie further off than 1 pixels: they would be faults" in capsys.readouterr().err
    drawn[-1] = "30,4 97,4 97,97 30,97"
    assert cli.run([*drawn, "--follow", "12", "--normal", str(normals)]) == 0
    said = capsys.readouterr().err
    assert "a shift of 12 pixels moves the region out of what is inspected at the top, which would be a fault" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--follow", "0"], "--follow: expected 0 to 32 pixels"),
        (["--follow", "-2"], "--follow: expected 0 to 32 pixels"),
        (["--follow", "nan"], "--follow: expected 0 to 32 pixels"),
        (["--follow", "33"], "--follow: expected 0 to 32 pixels"),
        (["--follow", "ten"], "--follow"),
        (["--follow", "9", "--normal", "{missing}"], "missing"),
        (["--follow", "9", "--normal", "{empty}"], "expected images in this folder, got none"),
        (["--follow", "9", "--normal", "{textures}"], "on which the place of the part can be told, got 4 of 4"),
        (["--follow", "9", "--on", "{blank}"], "as alike itself elsewhere"),
        (["--clear", "--follow", "9"], "Expected no --follow and --normal with --clear"),
        (["--clear", "--normal", "{textures}"], "Expected no --follow and --normal with --clear"),
        (["--mask", "{mask}", "--follow", "9"], "expected --on IMAGE or --normal"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line_and_the_bundle_stays(
    tmp_path, bundle, drawn, capsys, arguments, message
):
    for seed in range(4):
        write_image(tmp_path / "textures" / f"{seed}.png", texture_image(seed))
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "blank.png", np.full((SIDE, SIDE, 3), 90, np.uint8))
    write_image(tmp_path / "mask.png", counted().astype(np.uint8) * 255)
    arguments = [
        text.format(
            **{n: tmp_path / n for n in ("textures", "empty", "missing")},
            **{n: tmp_path / f"{n}.png" for n in ("blank", "mask")},
        )
        for text in arguments
    ]
    base = drawn[:3] if {"--clear", "--mask"} & set(arguments) else drawn
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (bundle / "manifest.json").read_bytes() == before


def test_zones_do_not_follow_and_say_so(tmp_path, bundle, drawn, followed, capsys):
    """They would judge another place by their thresholds than that which they were drawn on."""
    zone = ["--zone", "face", "40,40 60,40 60,60 40,60"]
    for arguments in ([*drawn, "--follow", "9", *zone], [*drawn[:5], *zone]):
        if arguments[3:] == [*drawn[3:5], *zone]:
            assert cli.run([*drawn, "--follow", "9"]) == 0
        before = (bundle / "manifest.json").read_bytes()
        capsys.readouterr()
        assert cli.run(arguments) == 2
        assert "expected zones in a region that stays" in capsys.readouterr().err
        assert (bundle / "manifest.json").read_bytes() == before
    assert cli.run([*drawn[:5], *zone, "--follow", "9"]) == 2
    assert "Expected a region, by --mask, --polygon or the like" in capsys.readouterr().err
    zones = make_zones({"face": counted()}, counted(), None)
    write_tiny_bundle(tmp_path / "both.flaw", region=followed, zones=zones)
    with pytest.raises(BundleError, match="zones in a region that stays, got one that follows"):
        Inspector.load(tmp_path / "both.flaw", "cpu")


# --- the figures


def test_the_evaluation_is_of_the_region_where_it_lies(tmp_path, tiled, capsys):
    """Defects are inside of the moved region alone, and would be outside of one that stands still, or the other way."""
    root = tmp_path / "set"

    def write(name: str, right: int, column: int | None) -> None:
        image, mask = part_image(0, right, 0), np.zeros((SIDE, SIDE), np.uint8)
        if column is not None:
            image[40:56, column : column + 9], mask[40:56, column : column + 9] = 200, 255
            write_image(root / "ground_truth" / f"{name.removeprefix('test/')}_mask.png", mask)
        write_image(root / f"{name}.png", image)

    for number in range(4):
        right = 8 + number % 2
        write(f"train/good/{number}", right, None)
        write(f"test/good/{number}", right + 1, None)
        write(f"test/inside/{number}", right, 96)
        write(f"test/outside/{number}", right, 24)
    write_image(root / "test/good/blank.png", np.full((SIDE, SIDE, 3), 90, np.uint8))
    assert cli.run(["evaluate", str(tiled), "--data", str(root), "--json", str(tmp_path / "f.json")]) == 1
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["images"], figures["anomalous"]) == (9, 4)
    assert figures["image_auroc"] == figures["pixel_auroc"] == 1.0
    assert any("4 anomalous images have their defect outside" in note for note in figures["notes"])
    assert any("1 of 9 images could not be scored" in note for note in figures["notes"])


def test_a_region_of_before_still_opens_and_one_that_is_broken_does_not(tmp_path, followed, capsys):
    old = tiny_manifest(region=make_region(counted()))
    assert region_mask(old.region, "b").any()
    broken = msgspec.structs.replace(followed, part=msgspec.structs.replace(followed.part, png=b"no thumbnail"))
    write_tiny_bundle(tmp_path / "t.flaw", region=broken, thresholds=tiny_thresholds())
    image = write_image(tmp_path / "a.png", part_image())
    assert cli.run(["score", str(tmp_path / "t.flaw"), str(image)]) == 2
    assert "expected a part that the region follows" in capsys.readouterr().err
