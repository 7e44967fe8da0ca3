"""Scene limits: a frozen, black, saturated or blurred image is a fault by name; a little drift is a note."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from flawscope.arrays import UInt8Array
from flawscope.runtime.line.line_config import SceneLimits
from flawscope.runtime.line.scene.limits import SceneCheck, measure_scene

CAMERA = SceneLimits(brightness=(60.0, 180.0), saturated_max=0.02, sharpness_min=200.0, frozen="fault")


def part(seed: int = 0, size: tuple[int, int] = (240, 320), level: float = 120.0, colour: bool = True) -> UInt8Array:
    """A grey surface with grain: its median is `level`, nothing of it is saturated."""
    grain = np.random.default_rng(seed).normal(level, 12.0, size)
    grey = np.clip(grain, 1, 254).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2) if colour else grey


def blurred(image: UInt8Array) -> UInt8Array:
    return cv2.GaussianBlur(image, (0, 0), 3.0).astype(np.uint8)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("size", [(240, 320), (1100, 900)])
def test_a_good_image_has_neither_problem_nor_notes(size: tuple[int, int], colour: bool) -> None:
    result = SceneCheck(CAMERA).check(part(size=size, colour=colour))
    assert (result.problem, result.detail, result.notes) == ("", "", ())
    assert result.values["brightness_p50"] == pytest.approx(120, abs=1)
    assert result.values["brightness_p1"] == pytest.approx(120 - 2.33 * 12, abs=3)
    assert result.values["brightness_p99"] == pytest.approx(120 + 2.33 * 12, abs=3)


@pytest.mark.parametrize("size", [(240, 320), (1100, 900)])
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (lambda size: np.zeros((*size, 3), np.uint8), "brightness (median): expected at least 60, got 0"),
        (lambda size: part(size=size, level=40), "brightness (median): expected at least 60, got 39"),
        (lambda size: part(size=size, level=200), "brightness (median): expected at most 180, got "),
        (lambda size: blurred(part(size=size)), "sharpness: expected at least 200, got "),
    ],
    ids=["black", "dark", "bright", "blurred"],
)
def test_an_image_outside_of_a_limit_is_a_fault_by_name(size: tuple[int, int], image: object, words: str) -> None:
    result = SceneCheck(CAMERA).check(image(size))  # type: ignore[operator]
    assert result.problem == "scene"
    assert words in result.detail
    assert "\n" not in result.detail


def test_a_reflection_is_saturated_though_the_median_is_right() -> None:
    image = part()
    image[:60, :80] = 255  # 6 % of the image
    result = SceneCheck(CAMERA).check(image)
    assert result.problem == "scene"
    assert result.detail.startswith("saturated share: expected at most 0.02, got 0.06")
    assert result.values["saturated"] == pytest.approx(60 * 80 / (240 * 320))


def test_an_image_that_is_equal_to_the_last_one_is_frozen() -> None:
    check = SceneCheck(CAMERA)
    assert check.check(part(1)).problem == ""
    result = check.check(part(1))
    assert (result.problem, result.detail) == ("frozen", "the image is equal, bit for bit, to the one before it")
    nearly = part(1)
    nearly[-1, -1, -1] ^= 1
    assert check.check(nearly).problem == ""
    assert check.check(nearly).problem == "frozen"
    assert check.check(part(1)).problem == ""


def test_the_last_image_is_kept_as_it_was_and_not_as_its_owner_changed_it() -> None:
    check = SceneCheck(CAMERA)
    image = part(1)
    check.check(image)
    image[100:] = 0
    assert check.check(part(1)).problem == "frozen"


def test_images_of_other_sizes_are_no_frozen_ones() -> None:
    check = SceneCheck(SceneLimits(frozen="fault"))
    assert [check.check(part(1, colour=colour)).problem for colour in (True, False, True)] == ["", "", ""]


def test_what_frozen_means_is_a_choice() -> None:
    note, allow = SceneCheck(SceneLimits(frozen="note")), SceneCheck(SceneLimits(frozen="allow"))
    for check in (note, allow):
        check.check(part(1))
    assert note.check(part(1))[:3] == ("", "", ("the image is equal, bit for bit, to the one before it",))
    assert allow.check(part(1))[:3] == ("", "", ())


def test_a_little_drift_near_a_limit_is_a_note_and_never_a_fault() -> None:
    base = part(1, level=174.0)
    limits = SceneLimits(brightness=(60.0, 176.0))
    before = SceneCheck(limits).check(part(1, level=165.0))
    after = SceneCheck(limits).check((base.astype(np.float64) * 1.01).astype(np.uint8))
    assert before[:3] == ("", "", ())
    assert after.problem == ""
    assert len(after.notes) == 1
    assert after.notes[0].startswith("brightness (median) 17")
    assert after.notes[0].endswith("is near its limit of 176")


@pytest.mark.parametrize(
    ("limits", "share", "words"),
    [
        (SceneLimits(saturated_max=0.0105), 0.01, "saturated share 0.01 is near its limit of 0.0105"),
        (SceneLimits(saturated_max=0.0105, warn_share=1.0), 0.01, None),
        (SceneLimits(saturated_max=0.02), 0.01, None),
    ],
)
def test_notes_begin_at_the_share_that_was_asked_for(limits: SceneLimits, share: float, words: str | None) -> None:
    image = part(size=(100, 100))
    image.reshape(-1, 3)[: round(share * 10_000)] = 255
    result = SceneCheck(limits).check(image)
    assert result.problem == ""
    assert result.notes == ((words,) if words else ())


def test_numbers_of_a_small_image_are_those_of_all_its_pixels() -> None:
    image = np.random.default_rng(3).integers(0, 256, (64, 48), np.uint8)
    values = measure_scene(image)
    ordered = np.sort(image.reshape(-1))
    for percent in (1, 50, 99):
        assert values[f"brightness_p{percent}"] == ordered[-(-ordered.size * percent // 100) - 1]
    assert values["saturated"] == ((image == 0) | (image == 255)).mean()
    grey = image.astype(np.float64)
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    # The first and last column mirror their neighbours; of 48 columns they change the variance a little.
    assert values["sharpness"] == pytest.approx(edges.var(), rel=0.1)


def test_sharpness_of_a_large_image_is_about_that_of_all_its_rows_and_seams_add_nothing() -> None:
    # Steps from band to band would be seen as edges if seams counted: brightness falls with the rows.
    ramp = np.repeat(np.linspace(0, 255, 4096).astype(np.uint8)[:, None], 1024, axis=1)
    assert measure_scene(ramp)["sharpness"] < 0.5
    image = part(size=(2048, 1024), colour=False)
    whole = cv2.Laplacian(image, cv2.CV_16S)[1:-1].astype(np.float64).var()
    assert measure_scene(image)["sharpness"] == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize("size", [(8, 8), (8, 60_000), (60_000, 8), (3, 300_000)])
def test_every_shape_is_measured(size: tuple[int, int]) -> None:
    image = part(size=size, colour=False)
    values = measure_scene(image)
    assert all(np.isfinite(value) for value in values.values())
    assert values["brightness_p50"] == pytest.approx(120, abs=5)


def test_threads_that_share_a_check_see_one_order_of_images() -> None:
    check = SceneCheck(SceneLimits(frozen="fault"))
    image = part(1, size=(64, 64))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: check.check(image).problem, range(40)))
    assert sorted(found) == ["", *["frozen"] * 39]
