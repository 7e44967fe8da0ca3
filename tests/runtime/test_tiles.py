"""Large images in tiles: all is covered, no seam shows, a small defect is found anywhere, memory is bounded."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope import cli
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DeviceError, ImageError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.tiles import MapBlender, Tiling, read_source, tiles_of
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector

TILE = 64
SETTINGS = {
    "patchcore": {"coreset": 400, "neighbors": 1},
    "padim": {"channels": 8},
}


def surface(height: int, width: int, seed: int) -> np.ndarray:
    """A grainy surface without any place that is special."""
    draw = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(draw.normal(size=(height, width)).astype(np.float32), (0, 0), 1.5)
    return np.repeat(np.clip(128 + 60 * grain, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def with_defect(image: np.ndarray, row: int, column: int, side: int = 12) -> np.ndarray:
    damaged = image.copy()
    damaged[row - side // 2 : row + side // 2, column - side // 2 : column + side // 2] = (250, 20, 20)
    return damaged


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "plate"
    for index in range(8):
        path = folder / "train" / "good" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), surface(200, 260, index))
    for kind, image in (("good", surface(200, 260, 50)), ("dent", with_defect(surface(200, 260, 51), 100, 130))):
        path = folder / "test" / kind / "0.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    truth = np.zeros((200, 260), np.uint8)
    truth[94:106, 124:136] = 255
    path = folder / "ground_truth" / "dent" / "0_mask.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), truth)
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiled")
    common = {"tile": TILE, "resize": 64, "stages": [1, 2], "sigma": 2.0, "held_out_minimum": 2, "held_out": 0.2}
    for method, method_settings in SETTINGS.items():
        config = build_config(method, {**common, **method_settings})[0]
        train_detector(config, open_dataset(root), folder / method)
        export_run(folder / method, folder / f"{method}.flaw", max_batch=4)
    return {method: folder / f"{method}.flaw" for method in SETTINGS}


# --- where tiles lie


@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    side=st.integers(16, 90),
    overlap=st.floats(0, 0.5, allow_nan=False),
)
def test_tiles_cover_an_image_and_overlap_as_asked(height: int, width: int, side: int, overlap: float) -> None:
    tiling = Tiling((side, side), overlap)
    seen = np.zeros((height, width), np.int64)
    corners = tiling.corners(height, width)
    for top, left in corners:
        assert 0 <= top <= max(0, height - side)
        assert 0 <= left <= max(0, width - side)
        seen[top : top + side, left : left + side] += 1
    assert seen.min() >= 1
    tops = sorted({top for top, _ in corners})
    for first, second in itertools.pairwise(tops):
        assert first + side - second >= int(side * overlap) - 1
    # As few as that overlap allows.
    step = max(1, int(side * (1 - overlap)))
    assert len(tops) == 1 + max(0, -(-(height - side) // step))


def test_a_tile_is_what_lies_there_and_small_images_are_continued_by_reflection() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)
    np.testing.assert_array_equal(Tiling((16, 16)).cut(image, (3, 9)), image[3:19, 9:25])
    padded = Tiling((24, 32)).cut(image, (0, 0))
    assert padded.shape == (24, 32, 3)
    np.testing.assert_array_equal(padded[:20, :30], image)
    np.testing.assert_array_equal(padded[20], padded[18])
    np.testing.assert_array_equal(padded[:, 31], padded[:, 27])


@settings(max_examples=30)
@given(st.integers(16, 120), st.integers(16, 120), st.floats(0, 0.5, allow_nan=False))
def test_equal_maps_blend_to_the_same_without_seams(height: int, width: int, overlap: float) -> None:
    tiling = Tiling((40, 32), overlap)
    blender = MapBlender((height, width), tiling)
    for corner in tiling.corners(height, width):
        blender.add(corner, np.full((10, 8), 3.5, np.float32))
    np.testing.assert_allclose(blender.finish(), 3.5, rtol=1e-5)


def test_maps_that_continue_each_other_blend_to_the_whole() -> None:
    # A ramp is the same whether it is cut or not; only enlarging it at a tile's edge is not.
    tiling = Tiling((64, 64), 0.5)
    ramp = np.add.outer(np.arange(150), 2 * np.arange(170)).astype(np.float32)
    blender = MapBlender(ramp.shape, tiling)
    for top, left in tiling.corners(*ramp.shape):
        blender.add((top, left), ramp[top : top + 64, left : left + 64])
    np.testing.assert_allclose(blender.finish(), ramp, rtol=1e-5, atol=1e-2)


def test_tiles_of_a_file(tmp_path: Path) -> None:
    image = surface(100, 140, 0)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    tiles = list(tiles_of(tmp_path / "a.png", Tiling((64, 64), 0.0)))
    assert [tile.corner for tile in tiles] == Tiling((64, 64), 0.0).corners(100, 140)
    np.testing.assert_array_equal(read_source(tiles[-1]), image[36:, 76:])
    assert str(tiles[-1]) == f"{tmp_path / 'a.png'} at row 36, column 76"
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b\.png: expected an image, got other or broken bytes"):
        list(tiles_of(tmp_path / "b.png", Tiling((64, 64))))
    with pytest.raises(ImageError, match=r"c\.png: could not be read"):
        list(tiles_of(tmp_path / "c.png", Tiling((64, 64))))


# --- a detector on tiles


@pytest.mark.parametrize("method", list(SETTINGS))
@pytest.mark.long
def test_a_defect_on_a_seam_scores_as_one_in_the_middle(bundles: dict[str, Path], method: str) -> None:
    plain = surface(200, 260, 60)
    with Inspector.load(bundles[method], "cpu") as inspector:
        tiling = inspector.manifest.tiling
        assert tiling == Tiling((TILE, TILE), 0.25)
        corners = tiling.corners(200, 260)
        tops, lefts = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
        places = {
            "middle": (tops[1] + TILE // 2, lefts[1] + TILE // 2),
            "edge": (tops[1], lefts[1] + TILE // 2),
            "corner": (tops[1], lefts[1]),
            "end": (tops[0] + TILE, lefts[1] + TILE // 2),
        }
        good = inspector(plain)
        results = {name: inspector(with_defect(plain, *place)) for name, place in places.items()}
    assert good.anomaly_map is not None
    assert good.anomaly_map.shape == (200, 260)
    assert good.score is not None
    scores = {name: result.score or 0.0 for name, result in results.items()}
    for name, result in results.items():
        assert scores[name] == pytest.approx(scores["middle"], rel=0.15), scores
        assert scores[name] > 1.5 * good.score
        assert result.anomaly_map is not None
        peak = np.unravel_index(int(result.anomaly_map.argmax()), result.anomaly_map.shape)
        assert np.hypot(*(np.array(peak) - places[name])) < 12


@pytest.mark.parametrize("method", list(SETTINGS))
def test_the_map_does_not_depend_on_the_batch(
    bundles: dict[str, Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = with_defect(surface(150, 130, 61), 70, 60)
    with Inspector.load(bundles[method], "cpu") as inspector:
        whole = inspector(image)
        real = inspector.infer
        sizes: list[int] = []

        def single(_: Inspector, prepared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sizes.append(len(prepared))
            parts = [real(prepared[index : index + 1]) for index in range(len(prepared))]
            return np.concatenate([maps for maps, _ in parts]), np.concatenate([scores for _, scores in parts])

        monkeypatch.setattr(Inspector, "infer", single)
        parted = inspector(image)
    assert max(sizes) <= 4
    assert whole.score == pytest.approx(parted.score, rel=1e-4)
    assert whole.anomaly_map is not None
    assert parted.anomaly_map is not None
    np.testing.assert_allclose(whole.anomaly_map, parted.anomaly_map, rtol=1e-3, atol=1e-4)


def test_every_verb_takes_tiles(
    bundles: dict[str, Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles["patchcore"]
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    assert "64x64 px of the image, neighbours share at least 25%" in capsys.readouterr().out
    assert cli.run(["calibrate", str(bundle), "--data", str(root)]) == 0
    assert cli.run(["evaluate", str(bundle), "--data", str(root), "--json", str(tmp_path / "e.json")]) == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["image_auroc"] == 1.0
    assert figures["pixel_auroc"] > 0.9
    capsys.readouterr()
    image = root / "test" / "dent" / "0.png"
    assert cli.run(["score", str(bundle), str(image), "--json", "--maps", str(tmp_path / "maps")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["decision"] == "reject"
    box = line["boxes"][0]
    assert box["x"] <= 130 <= box["x"] + box["width"]
    assert box["y"] <= 100 <= box["y"] + box["height"]
    drawn = next((tmp_path / "maps").rglob("*.png"))
    assert cv2.imread(str(drawn)).shape == (200, 260, 3)
    assert cli.run(["export-triton", str(bundle), "--out", str(tmp_path / "triton")]) == 0
    assert "tiles are not in the graph: only flawscope's client decides" in capsys.readouterr().out


def test_what_goes_wrong_in_a_tile_is_a_fault(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Inspector.load(bundles["patchcore"], "cpu") as inspector:
        calls = 0
        real = inspector.infer

        def failing(_: Inspector, prepared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise DeviceError("backend cpu: the device failed: broken")
            return real(prepared)

        monkeypatch.setattr(Inspector, "infer", failing)
        failed = inspector(surface(200, 260, 62))
        assert (failed.decision, failed.reason) == ("fault", "backend cpu: the device failed: broken")

        def without_a_score(_: Inspector, prepared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            maps, scores = real(prepared)
            scores[-1] = np.nan
            return maps, scores

        monkeypatch.setattr(Inspector, "infer", without_a_score)
        scoreless = inspector(surface(200, 260, 62))
        assert (scoreless.decision, scoreless.score, scoreless.reason) == (
            "fault",
            None,
            "inference gave NaN or infinity",
        )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"tile": 8}, "tile: expected height and width from 16 to 8192"),
        ({"tile": 64, "tile_overlap": 0.6}, "tile_overlap: expected a share from 0 to 0.5"),
        ({"tile": 64, "crop": 32, "resize": 64}, "crop: expected none with tiles"),
    ],
)
def test_wrong_tiles_are_refused(chosen: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_config("patchcore", chosen)


_PROBE = """
import resource, sys
import cv2, numpy as np
from flawscope.runtime import Inspector
sys.path.insert(0, sys.argv[2])
from test_tiles import surface, with_defect
inspector = Inspector.load(sys.argv[1], "cpu")
small = surface(300, 400, 70)
inspector(small)
image = with_defect(np.tile(surface(600, 800, 71), (5, 5, 1)), 1501, 2003)
good = inspector(surface(600, 800, 71)).score
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = inspector(image)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak = np.unravel_index(int(result.anomaly_map.argmax()), result.anomaly_map.shape)
print(result.anomaly_map.shape, result.score, good, [int(index) for index in peak], (after - before) // 1024)
"""


@pytest.mark.serial
def test_a_small_defect_on_a_large_image_is_found_within_bounded_memory(bundles: dict[str, Path]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _PROBE, str(bundles["patchcore"]), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    *_, row, column, more_mib = process.stdout.replace("[", "").replace("]", "").replace(",", "").split()
    shape, _, rest = process.stdout.partition(") ")
    score, good = (float(text) for text in rest.split()[:2])
    assert shape == "(3000, 4000"
    assert score > 1.5 * good
    assert np.hypot(int(row) - 1501, int(column) - 2003) < 12
    assert int(more_mib) < 1024
