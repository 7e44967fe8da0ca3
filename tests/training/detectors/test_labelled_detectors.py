"""DRAEM and DeSTSeg as detectors: training on labelled defects, the run, the bundle, and trainings that were killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from interrupted import Killed, killing_progress
from tiny_judged import SIDE, Place, part, write_place

from flawscope import cli
from flawscope.bundle import DestsegHead, DraemHead, open_bundle, read_image_hashes
from flawscope.calibration.thresholds.combine import combine_bundles
from flawscope.config import LabelledConfig, build_config, flatten
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.images import prepare, read_image
from flawscope.runs import read_run_record
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

METHODS = ("draem", "destseg")
COMMON: dict[str, Any] = {
    "resize": SIDE,
    "batch_size": 8,
    "epoch_batches": 8,
    "epochs": 4,
    "preview_every": 2,
    "num_workers": 1,
    "device": "cpu",
    "held_out": 0.25,
    "held_out_minimum": 3,
    "validation": 0.3,
    "procedural": False,
}
OWN: dict[str, dict[str, Any]] = {
    "draem": {
        "width": 4,
        "depth": 3,
        "segmentation_width": 8,
        "segmentation_depth": 2,
        "score_window": 5,
        "learning_rate": 3e-3,
    },
    "destseg": {
        "backbone": "scattering",
        "stages": [1, 2],
        "width": 8,
        "blocks": 1,
        "head_width": 16,
        "learning_rate": 0.1,
        "residual_rate": 0.2,
        "head_rate": 0.2,
        "top": 20,
    },
}
HEADS = {"draem": DraemHead, "destseg": DestsegHead}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("labelled"))


def config(method: str, place: Place, **changes: Any) -> LabelledConfig:
    sources = {"support": str(place.support), "drawn": str(place.helpful)}
    built, _ = build_config(method, {**COMMON, **OWN[method], **sources, **changes})
    assert isinstance(built, LabelledConfig)
    return built


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(str(request.param)) / "run"
    train_detector(config(str(request.param), place), open_dataset(place.root), out)
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "part.flaw"
    export_run(run, out, max_batch=2)
    return out


def method_of(run: Path) -> str:
    return str(flatten(read_run_record(run)[0].config)["method"])


# --- the run


def test_a_run_has_networks_metrics_previews_and_what_was_learned(run: Path) -> None:
    method, record = method_of(run), read_run_record(run)[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert line["error"] == pytest.approx(line["false_alarms"] + line["misses"])
    assert record.facts["best_epoch"] == min(lines, key=lambda line: line["error"])["epoch"]
    assert record.defects is not None
    assert {source.name for source in record.defects.sources} == {"support", "drawn"}
    assert record.facts["validation_defects_are_new"] == "yes"
    assert cv2.imread(str(run / "previews" / "epoch_0004.png")).shape == (4 * SIDE, 3 * SIDE, 3)
    stored = safetensors.numpy.load_file(run / "weights.safetensors")
    assert {name.partition(".")[0] for name in stored} == {method}  # scattering has no weights, DRAEM no backbone
    assert record.backbone.name == ("none" if method == "draem" else "scattering")
    assert not run.with_name("run.training").exists()


def test_it_tells_the_defects_that_it_was_taught(place: Place, tmp_path: Path) -> None:
    """Bright squares on grey: after a minute a detector that learns tells new ones from normal parts."""
    for method in METHODS:
        out = tmp_path / method
        train_detector(config(method, place, epochs=16), open_dataset(place.root), out, drawn_check=False)
        module = read_run(out).module
        images, masks = zip(*(part(5000 + number, "spot" if number % 2 else None) for number in range(24)), strict=True)
        with torch.inference_mode():
            maps, scores = module(torch.from_numpy(np.stack(images)))
        normal, anomalous = scores[::2].numpy(), scores[1::2].numpy()
        assert (anomalous[:, None] > normal[None]).mean() > 0.9, method
        inside = np.stack(masks)
        assert maps.numpy()[inside].mean() > 1.5 * maps.numpy()[~inside].mean(), method


def test_the_bundle_is_one_graph_and_scores_as_torch_does(bundle: Path, run: Path, place: Place) -> None:
    method, module = method_of(run), read_run(run).module
    with Inspector.load(bundle, "cpu") as inspector:
        manifest = inspector.manifest
        assert (manifest.method, manifest.bank, set(manifest.graphs)) == (method, None, {"score"})
        assert isinstance(manifest.head, HEADS[method])
        paths = [sample.path for sample in open_dataset(place.root).test][:2]
        prepared = np.stack([prepare(read_image(path), manifest.input) for path in paths])
        maps, scores = inspector.infer(prepared)
    with torch.inference_mode():
        expected_maps, expected_scores = module(torch.from_numpy(prepared))
    np.testing.assert_allclose(maps, expected_maps.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-3)


def test_a_graph_begins_with_the_cast_and_takes_any_batch(bundle: Path) -> None:
    graph = onnx.load(bundle / "score.onnx").graph
    assert graph.node[0].op_type == "Cast"
    assert [value.name for value in graph.output] == ["anomaly_map", "score"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    # Nothing asks for a shape of the image itself: TensorRT takes images of uint8 by a cast alone.
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def test_every_verb_takes_the_bundle(
    bundle: Path, run: Path, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(place.root)]
    assert cli.run(["calibrate", str(bundle), *data]) == 0
    assert cli.run(["evaluate", str(bundle), *data, "--report", str(tmp_path / "report")]) == 0
    assert "image AUROC" in capsys.readouterr().out
    image = str(open_dataset(place.root).test[0].path)
    assert cli.run(["score", str(bundle), image, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] in ("accept", "reject")
    for command in (["bundle", "verify", str(bundle)], ["explain", str(run)], ["doctor", str(bundle)]):
        assert cli.run(command) == 0, command
    assert cli.run(["bench", str(bundle), "--seconds", "0.2", "--no-cold-start"]) == 0


def test_it_builds_as_an_engine(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    arguments = ["engine", "build", str(bundle), "--runtime", "tensorrt-rtx", "--target", "8.9"]
    assert cli.run([*arguments, "--cache", str(tmp_path)]) == 0


def test_it_scores_where_nothing_of_the_training_can_be_imported(bundle: Path, place: Place) -> None:
    image = open_dataset(place.root).test[0].path
    with Inspector.load(bundle, "cpu") as inspector:
        expected = inspector(read_image(image)).score
    lean = """
import sys
for name in ("torch", "onnx", "scipy", "timm"):
    sys.modules[name] = None
from flawscope.imaging.images import read_image
from flawscope.runtime import Inspector
with Inspector.load(sys.argv[1], "cpu") as inspector:
    print(inspector(read_image(sys.argv[2])).score)
"""
    done = subprocess.run(
        [sys.executable, "-c", lean, str(bundle), str(image)], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


def test_it_is_combined_with_a_memory_bank(bundle: Path, place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    settings = {"resize": SIDE, "stages": [1, 2], "held_out": 0.25, "held_out_minimum": 3, "num_workers": 1}
    train_detector(build_config("patchcore", settings)[0], dataset, tmp_path / "bank", drawn_check=False)
    export_run(tmp_path / "bank", tmp_path / "bank.flaw", max_batch=2)
    # More normal images that no member has learned from: an ensemble needs five.
    more = (msgspec.structs.replace(sample, split="train") for sample in dataset.test if not sample.is_anomalous)
    kept = msgspec.structs.replace(dataset, samples=(*dataset.samples, *more))
    combine_bundles([tmp_path / "bank.flaw", bundle], tmp_path / "both.flaw", kept)
    with open_bundle(tmp_path / "both.flaw") as opened:
        # What one member has seen is seen by the ensemble.
        assert read_image_hashes(opened).defects.keys() == set(place.seen)
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        assert np.isfinite(inspector(read_image(dataset.test[0].path)).score)


# --- interrupted


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(method: str, place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    train_detector(config(method, place), dataset, tmp_path / "whole", drawn_check=False)
    with pytest.raises(Killed):
        train_detector(
            config(method, place), dataset, tmp_path / "run", drawn_check=False, progress=killing_progress(20)
        )
    again = {"dataset": dataset, "out": tmp_path / "run", "drawn_check": False, "resume": True}
    with pytest.raises(ArgumentError, match="expected the weights that the training was begun with, got other"):
        train_detector(config(method, place, drawn=str(place.noise)), **again)
    with pytest.raises(ArgumentError, match="expected gamma as the training was begun with"):
        train_detector(config(method, place, gamma=1.5), **again)
    train_detector(config(method, place), **again)
    before, after = (safetensors.numpy.load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "run"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


# --- refused


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("draem", {"score_window": 4}, "score_window: expected an odd number"),
        ("draem", {"depth": 6}, "depth: expected at most 5 halvings of 32 pixels, got 6"),
        ("draem", {"segmentation_depth": 0}, "segmentation_depth: expected 1 to 8"),
        ("draem", {"width": 0}, "width: expected 1 to 1024"),
        ("draem", {"backbone": "resnet18"}, "backbone: is no setting of draem"),
        ("destseg", {"top": 1025}, "top: expected 1 to 1024 pixels"),
        ("destseg", {"head_rate": 0}, "head_rate: expected a positive number"),
        ("destseg", {"momentum": 1.0}, "momentum: expected 0 to below 1"),
        ("destseg", {"blocks": 0}, "blocks: expected 1 to 8"),
        ("draem", {"gamma": -1}, "gamma: expected 0 to 10"),
        ("destseg", {"batch_size": 1}, "batch_size: expected at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(method: str, changes: dict[str, Any], message: str, place: Place) -> None:
    with pytest.raises(ArgumentError, match=message):
        config(method, place, **changes)


def test_a_head_that_does_not_fit_its_input_says_why() -> None:
    assert DraemHead(21, 1.0).problem((32, 32)) is None
    assert DraemHead(4, 1.0).problem((32, 32)) == "expected an odd score window, which has a middle, got 4"
    assert DestsegHead(1024, 1.0).problem((32, 32)) is None
    assert "at most the input's 1024 pixels, got 1025" in str(DestsegHead(1025, 1.0).problem((32, 32)))


@pytest.mark.parametrize("method", METHODS)
def test_wrong_requests_are_refused(method: str, place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    with pytest.raises(ArgumentError, match="expected at least one source, got none"):
        train_detector(config(method, place, support=None, drawn=[]), dataset, tmp_path / "run")
    with pytest.raises(ArgumentError, match="defects: expected types that a source has"):
        train_detector(config(method, place, defects=["spot", "hole"]), dataset, tmp_path / "run")
    with pytest.raises(DataError, match="drawn: expected a folder of synth generate"):
        train_detector(config(method, place, drawn=str(tmp_path)), dataset, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_draem_takes_no_weights_of_a_backbone(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--weights: expected none with draem, which has no backbone"):
        train_detector(config("draem", place), open_dataset(place.root), tmp_path / "run", weights=tmp_path / "x")


def test_a_run_without_a_tensor_of_its_networks_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    stored = safetensors.numpy.load_file(copy / "weights.safetensors")
    stored.pop(sorted(stored)[0])
    safetensors.numpy.save_file(stored, copy / "weights.safetensors")
    with pytest.raises(RunError, match=r"expected the \d+ tensors that its settings ask for"):
        read_run(copy)
