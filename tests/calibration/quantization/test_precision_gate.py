"""The gate: figures of two precisions side by side, limits in words, and a verdict on speed."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flawscope.bundle import Gate, change_bundle, make_region
from flawscope.calibration.evaluation.measured_figures import overall_figures
from flawscope.calibration.evaluation.measurements import measure_images
from flawscope.calibration.quantization.gate_limits import LIMITS, Limits, failures, gate_rows, verdict
from flawscope.calibration.quantization.precision_gate import measure_gate
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.runtime import Inspector

GATE = Gate(
    backend="cpu",
    images=76,
    score_max_relative=0.04,
    map_max_relative=0.07,
    threshold=3.5,
    false_reject_shift=0.013,
    labelled=583,
    anomalous=392,
    image_auroc=0.9645,
    image_auroc_change=0.0001,
    pixel_auroc=0.82,
    pixel_auroc_change=-0.0041,
    score_spearman=0.996,
    images_per_second=89.0,
    images_per_second_fp32=160.0,
)


class Shifted:
    """An inspector whose scores are other numbers: `move` maps score and map to new ones."""

    def __init__(self, inspector: Inspector, move) -> None:
        self.inspector, self.move, self.precision = inspector, move, "int8"

    def infer(self, images):
        maps, scores = self.inspector.infer(images)
        return self.move(maps), self.move(scores)

    def __getattr__(self, name: str):
        return getattr(self.inspector, name)

    def stream(self, sources, batch: int = 1):
        for result in self.inspector.stream(sources, batch):
            yield dataclasses.replace(
                result, score=float(self.move(np.array(result.score))), anomaly_map=self.move(result.anomaly_map)
            )


@pytest.fixture(scope="module")
def dataset(tiny_root: Path):
    return open_dataset(tiny_root, "steel")


@pytest.fixture(scope="module")
def good(dataset, padim_bundle: Path):
    with Inspector.load(padim_bundle, "cpu") as inspector:
        spec = inspector.manifest.input
    return [prepare(read_image(sample.path), spec) for sample in dataset.train_good[:6]]


@pytest.mark.serial
def test_the_same_twice_changes_nothing(padim_bundle: Path, good, dataset) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        gate = measure_gate(inspector, inspector, good, dataset.test)
    assert (gate.score_max_relative, gate.map_max_relative, gate.false_reject_shift) == (0, 0, 0)
    assert (gate.image_auroc_change, gate.pixel_auroc_change) == (0, 0)
    assert gate.score_spearman == pytest.approx(1)
    assert (gate.images, gate.labelled) == (6, len(dataset.test))
    assert gate.anomalous == sum(sample.is_anomalous for sample in dataset.test)
    assert failures(gate, LIMITS["fp16"]) == []
    assert 0.2 < gate.images_per_second / gate.images_per_second_fp32 < 5


def test_what_moves_is_measured(padim_bundle: Path, good, dataset) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        larger = measure_gate(inspector, Shifted(inspector, lambda x: np.float32(1.25) * x), good)
        turned = measure_gate(inspector, Shifted(inspector, lambda x: 100 - x), good, dataset.test)
    assert larger.score_max_relative == pytest.approx(0.25, rel=1e-5)
    assert larger.map_max_relative == pytest.approx(0.25, rel=1e-5)
    assert 0.1 < larger.map_place_change < 0.25  # of the places' means, which are below the mean of the maxima
    assert larger.score_spearman == pytest.approx(1)
    assert 0 < larger.false_reject_shift <= 1
    assert (larger.labelled, larger.image_auroc, larger.image_auroc_change) == (0, None, None)
    assert turned.score_spearman == pytest.approx(-1)
    assert turned.image_auroc is not None
    assert turned.image_auroc_change == pytest.approx(1 - 2 * turned.image_auroc)


def test_pixel_figures_are_of_the_region_as_those_of_evaluate_are(tmp_path, padim_bundle: Path, good, dataset) -> None:
    shutil.copytree(padim_bundle, tmp_path / "region.flaw")
    with Inspector.load(padim_bundle, "cpu") as inspector:
        height, width = inspector.manifest.learned.heights[0], inspector.manifest.learned.widths[0]
        read = inspector.manifest
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 :, width // 4 :] = True
    change_bundle(tmp_path / "region.flaw", read, lambda now: msgspec.structs.replace(now, region=make_region(mask)))
    with Inspector.load(tmp_path / "region.flaw", "cpu") as inspector:
        gate = measure_gate(inspector, inspector, good, dataset.test)
        measured = measure_images(inspector, dataset.test, no_progress)
    expected = overall_figures(measured, None, 0, 10).values["pixel_auroc"]
    assert gate.pixel_auroc == pytest.approx(expected)


def test_a_gate_without_normal_images_is_none(padim_bundle: Path) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(DataError, match="gate: expected normal images that the detector has not learned from"),
    ):
        measure_gate(inspector, inspector, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_auroc_change": -0.006}, r"image AUROC changes by -0\.0060, limit 0\.005"),
        ({"image_auroc_change": 0.006}, r"image AUROC changes by \+0\.0060, limit 0\.005"),
        ({"pixel_auroc_change": -0.0079}, r"pixel AUROC changes by -0\.0079, limit 0\.005"),
        ({"score_spearman": 0.98}, r"is 0\.9800, limit 0\.99 \(583 labelled images\)"),
        (
            {"score_spearman": 0.7, "labelled": 0},
            r"\(76 normal images alone, whose scores differ little: give",
        ),
        ({"false_reject_shift": 0.06}, r"6\.0% of normal images score above every one of FP32, limit 5\.0%"),
        (
            {"map_place_change": 0.07},
            r"maps change by 7\.0% at one place in the mean of all normal images, limit 5\.0%",
        ),
        ({"map_place_change": float("nan")}, "maps change by nan%"),
        ({"score_max_relative": 0.2}, r"the score of a normal image changes by 20\.0%, limit 5\.0%"),
        ({"score_max_relative": float("nan")}, "changes by nan%"),
        ({"image_auroc_change": float("nan")}, "image AUROC changes by"),
    ],
)
def test_what_is_outside_a_limit_is_said(change, words) -> None:
    assert failures(GATE, LIMITS["int8"]) == []
    (failure,) = failures(msgspec.structs.replace(GATE, **change), LIMITS["int8"])
    assert re.search(words, failure)


def test_figures_that_are_undefined_fail_no_limit() -> None:
    bare = msgspec.structs.replace(GATE, image_auroc_change=None, pixel_auroc_change=None, score_spearman=None)
    assert failures(bare, LIMITS["int8"]) == []
    assert ("image AUROC", "0.9645", "-") in gate_rows(bare, "int8")
    # Of a gate that was measured before there was this figure.
    assert ("map at one place, mean change", "-", "-") in gate_rows(GATE, "int8")


def test_the_verdict_says_when_a_precision_is_not_faster() -> None:
    assert verdict(GATE, "int8") == "INT8 is not faster than FP32 on cpu (0.56 of its rate): keep FP16 or FP32 there"
    faster = msgspec.structs.replace(GATE, images_per_second=320.0)
    assert verdict(faster, "int8") == "INT8 takes 0.50 of the time of FP32 on cpu"
    assert verdict(GATE, "fp16").endswith("keep FP32 there")


@pytest.mark.parametrize(
    "limits",
    [
        Limits(-0.1, 0.1, 0.9, 0.1, 0.1),
        Limits(0.1, float("nan"), 0.9, 0.1, 0.1),
        Limits(0.1, 0.1, -1.5, 0.1, 0.1),
        Limits(0.1, 0.1, 0.9, 2.0, 0.1),
        Limits(0.1, 0.1, 0.9, 0.1, -1.0),
    ],
)
def test_a_limit_that_is_none_is_refused(limits: Limits) -> None:
    with pytest.raises(ArgumentError, match=r"limit .*: expected (0|-1) to 1, got "):
        limits.check()


def test_a_gate_without_images_is_no_limit() -> None:
    with pytest.raises(ArgumentError, match="limit images: expected at least 1, got 0"):
        Limits(0.1, 0.1, 0.9, 0.1, 0.1, images=0).check()
