"""The diagnosis: what it says, when, and that it says nothing where nothing is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundles import write_image, write_mask
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from flawscope import cli
from flawscope.bundle import Manifest, Threshold, open_bundle
from flawscope.calibration import evaluate_bundle
from flawscope.calibration.evaluation.diagnosis import contradicts, diagnose
from flawscope.calibration.evaluation.figures import Confusion, Decisions, SizeFigures
from flawscope.calibration.evaluation.intervals import Interval, images_needed, rate
from flawscope.datasets import open_dataset
from flawscope.drawn_check import DrawnCheck
from flawscope.imaging.tiles import Tiling


@pytest.fixture
def manifest(make_bundle) -> Manifest:
    with open_bundle(make_bundle(threshold=75.0)) as bundle:
        return bundle.manifest


def confusion(reject: int, n: int, threshold: Threshold, fault: int = 0) -> Confusion:
    good = Decisions(n=n, accept=n - reject - fault, reject=reject, fault=fault)
    bad = Decisions(n=10, accept=0, reject=10, fault=0)
    return Confusion(
        image_threshold=threshold,
        pixel_threshold=threshold,
        good=good,
        anomalous=bad,
        false_reject=rate(reject + fault, n),
        miss=rate(0, 10),
    )


def bounded(bound: float | None, *, asked: float = 0.2, images: int = 20) -> Threshold:
    return Threshold(75.0, "order-statistic", images, asked, 0.95, bound, "cpu")


def by_size(*groups: tuple[float, float, int, int]) -> list[SizeFigures]:
    return [SizeFigures(smallest_px=low, largest_px=high, detection=rate(found, n)) for low, high, found, n in groups]


@given(n=st.integers(1, 300), share=st.floats(0, 1), bound=st.floats(0.001, 0.999))
def test_a_bound_is_contradicted_exactly_where_so_many_rejects_are_improbable(
    n: int, share: float, bound: float
) -> None:
    rejects = round(share * n)
    probability = binom.sf(rejects - 1, n, bound)
    if abs(probability - 0.05) > 1e-9:
        assert contradicts(rejects, n, bound) == (probability < 0.05)


def test_a_contradicted_bound_is_said_with_its_numbers(manifest: Manifest) -> None:
    (text,) = diagnose(manifest, 0.95, Interval(0.9, 1.0, 0.95), confusion(31, 120, bounded(0.095)), ())
    assert "31 of 120 good parts (25.8%) were rejected, where 9.5% at most was stated with 95% confidence" in text
    assert "flawscope calibrate" in text


@pytest.mark.parametrize(
    "case",
    [
        confusion(12, 120, bounded(0.095)),  # 10 %: within chance
        confusion(0, 120, bounded(0.095)),
        confusion(60, 120, bounded(None)),  # set by hand: nothing was stated
        confusion(5, 120, bounded(0.095), fault=60),  # faults are no fault of the threshold
        confusion(0, 60, bounded(0.095), fault=60),
    ],
)
def test_a_bound_that_holds_or_that_nobody_stated_is_not_contradicted(manifest: Manifest, case: Confusion) -> None:
    assert diagnose(manifest, 0.95, Interval(0.9, 1.0, 0.95), case, ()) == ()


@pytest.mark.parametrize(
    ("auroc", "low", "is_said"),
    [(0.541, 0.43, True), (0.69, 0.6, True), (0.9, 0.45, True), (0.75, 0.6, False), (0.95, 0.9, False)],
)
def test_near_chance_is_said_with_what_to_look_at(manifest: Manifest, auroc: float, low: float, is_said: bool) -> None:
    found = diagnose(manifest, auroc, Interval(low, 0.97, 0.95), None, ())
    assert bool(found) == is_said
    if is_said:
        (text,) = found
        assert text.startswith(f"Near chance: image AUROC {auroc:.3f} ({low:.3f} to 0.970)")
        assert ("includes chance" in text) == (low <= 0.5)
        for word in ("weights", "mean, std and padding", "now 32x32 px", "stages", "now padim"):
            assert word in text


def test_worse_than_chance_is_no_question_of_weights(manifest: Manifest) -> None:
    (text,) = diagnose(manifest, 0.1, Interval(0.0, 0.3, 0.95), None, ())
    assert text.startswith("Worse than chance: image AUROC 0.100")
    assert "exchanged" in text


@pytest.mark.parametrize(("verdict", "said"), [("near chance", "begin with the weights"), ("told apart", "were seen")])
def test_near_chance_is_compared_with_the_drawn_check(manifest: Manifest, verdict: str, said: str) -> None:
    drawn = DrawnCheck(True, 8, 8, 1.0, (), 0.6, 0.5, 0.7, 0.9, verdict, 1.0)  # type: ignore[arg-type]
    evidence = msgspec.structs.replace(manifest.evidence, drawn=drawn)
    with_check = msgspec.structs.replace(manifest, evidence=evidence)
    (text,) = diagnose(with_check, 0.6, Interval(0.5, 0.7, 0.95), None, ())
    assert said in text


def test_a_check_on_images_that_were_learned_from_explains_nothing(manifest: Manifest) -> None:
    drawn = DrawnCheck(False, 8, 8, 1.0, (), 1.0, 1.0, 1.0, 1.0, "not judged", 1.0)
    evidence = msgspec.structs.replace(manifest.evidence, drawn=drawn)
    (text,) = diagnose(msgspec.structs.replace(manifest, evidence=evidence), 0.6, Interval(0.4, 0.7, 0.95), None, ())
    assert text.startswith("Near chance")
    assert "rawn" not in text


def test_a_threshold_at_the_edge_says_how_many_images_are_missing(manifest: Manifest) -> None:
    threshold = bounded(0.139, asked=0.01)
    (text,) = diagnose(manifest, None, None, confusion(0, 50, threshold), ())
    assert "set on 20 normal images, too few for the rate that was asked for (1.00%); they support 13.90%" in text
    missing = images_needed(0.01, 0.95) - 20
    assert text.endswith(f"14 in 100 good parts rejected until you add {missing} images and calibrate again.")


def test_images_that_are_kept_for_the_test_are_to_be_added_too(manifest: Manifest, tmp_path: Path) -> None:
    for name in ("dent", "good"):
        (tmp_path / name).mkdir()
        for number in range(25):
            (tmp_path / name / f"{number}.png").touch()
    # 20 of the 25 are training images: so many that 299 are.
    (text,) = diagnose(manifest, None, None, confusion(0, 50, bounded(0.139, asked=0.01)), (), open_dataset(tmp_path))
    assert text.endswith("until you add 349 images (of them 70 are kept for the test) and calibrate again.")


def test_an_estimated_bound_is_called_so(manifest: Manifest) -> None:
    threshold = msgspec.structs.replace(bounded(0.095, asked=0.01), guarantee="estimated")
    contradicted, edge = diagnose(manifest, None, None, confusion(31, 120, threshold), ())
    assert "an estimated 9.5% at most was stated" in contradicted
    assert "they support an estimated 9.50%" in edge
    assert "Expect up to an estimated 10 in 100 good parts rejected" in edge


def test_small_defects_that_are_missed_name_the_resolution_where_they_are_tiny(manifest: Manifest) -> None:
    tiny = by_size((1.5, 3.0, 2, 20), (3.0, 9.0, 18, 20), (9.0, 30.0, 20, 20))
    (text,) = diagnose(manifest, None, None, None, tiny)
    assert "of the 20 smallest (1.5 to 3.0 px across at the input) 2 were found, of the others 38 of 40" in text
    assert "resolution is too low" in text
    assert "--image-size" in text
    assert "tiles (tile), which keep" in text
    tiled = msgspec.structs.replace(manifest, tiling=Tiling((64, 64)))
    assert "smaller tiles" in diagnose(tiled, None, None, None, tiny)[0]
    larger = by_size((8.0, 12.0, 2, 20), (12.0, 20.0, 18, 20))
    (text,) = diagnose(manifest, None, None, None, larger)
    assert "resolution is too low" not in text


@pytest.mark.parametrize("found", [(18, 18), (4, 5), (0, 0)])
def test_small_defects_that_are_found_as_often_are_not_named(manifest: Manifest, found: tuple[int, int]) -> None:
    assert diagnose(manifest, None, None, None, by_size((1.0, 3.0, found[0], 20), (3.0, 9.0, found[1], 20))) == ()
    assert diagnose(manifest, None, None, None, by_size((1.0, 3.0, 0, 20))) == ()


def test_a_set_whose_small_defects_are_missed(make_bundle, tmp_path, capsys) -> None:
    root = tmp_path / "part"
    for index in range(10):
        write_image(root / f"test/small/{index}.png", 60, 70)  # the spot stays below the threshold
        small = np.zeros((32, 32), np.uint8)
        small[8:10, 8:10] = 255
        mask = root / f"ground_truth/small/{index}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), small)
        write_image(root / f"test/large/{index}.png", 60, 100)
        write_mask(root / f"ground_truth/large/{index}_mask.png")
    path = make_bundle(threshold=85.0)
    figures = evaluate_bundle(path, open_dataset(root), command="", resamples=50).figures
    assert sum(size.detection.n for size in figures.recall_by_size) == 28
    assert figures.recall_by_size[0].detection.count == 0
    assert figures.recall_by_size[-1].detection.value == 1.0
    assert any(text.startswith("Small defects are missed") for text in figures.diagnosis)
    assert cli.run(["evaluate", str(path), "--data", str(root), "--no-record"]) == 0
    out, err = capsys.readouterr()
    assert "diagnosis: Small defects are missed" in err
    assert re.search(r"defect size, px of the input +images +found", out)
