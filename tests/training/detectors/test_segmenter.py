"""The segmenter as a detector: training on mixtures, its run, its bundle, and what is kept of what it has seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from interrupted import Killed, killing_progress
from tiny_judged import SIDE, Drawing, Place, part, write_generated, write_place

from flawscope import cli
from flawscope.bundle import open_bundle, read_image_hashes
from flawscope.calibration.evaluation.evaluate import evaluate_bundle
from flawscope.calibration.thresholds.calibrate import calibrate_bundle
from flawscope.calibration.thresholds.combine import combine_bundles
from flawscope.config import SegmenterConfig, build_config
from flawscope.datasets import image_hash, open_dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.export.detectors.detector_export import export_run
from flawscope.runs import RunRecord, read_run_record
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.features.backbone import untrained_backbone
from flawscope.training.segmentation.segmenter_network import Segmenter, SegmenterScores

SETTINGS: dict[str, Any] = {
    "resize": SIDE,
    "stages": [1, 2],
    "batch_size": 8,
    "epoch_batches": 10,
    "epochs": 6,
    "learning_rate": 0.02,
    "warmup_steps": 5,
    "ema": 0.8,
    "width": 16,
    "top": 20,
    "num_workers": 1,
    "device": "cpu",
    "held_out": 0.25,
    "held_out_minimum": 3,
    "validation": 0.3,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("segmenter"))


def config(place: Place, **changes: Any) -> SegmenterConfig:
    sources = {"support": str(place.support), "drawn": str(place.helpful)}
    built, _ = build_config("segmenter", {**SETTINGS, **sources, **changes})
    assert isinstance(built, SegmenterConfig)
    return built


def train(place: Place, out: Path, **changes: Any) -> RunRecord:
    return train_detector(config(place, **changes), open_dataset(place.root), out, drawn_check=False)


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train_detector(config(place), open_dataset(place.root), out)
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "part.flaw"
    export_run(run, out, max_batch=2)
    return out


# ---- The network -----------------------------------------------------------------------------------------------------


def network(top: int = 20, sigma: float = 0.0) -> SegmenterScores:
    torch.manual_seed(0)
    encoder = untrained_backbone(build_config("segmenter", {"stages": [1, 2]})[0].features)  # type: ignore[attr-defined]
    segmenter = Segmenter(encoder, (SIDE, SIDE), 16)
    torch.nn.init.normal_(segmenter.head.weight)
    return SegmenterScores(segmenter, (SIDE, SIDE), sigma, top)


def test_the_map_rises_with_the_logit_without_bound_and_the_score_is_its_top() -> None:
    image = torch.from_numpy(np.stack([part(1)[0], part(2, "spot")[0]]))
    scores = network()
    with torch.inference_mode():
        maps, values = scores(image)
        logits = torch.nn.functional.interpolate(
            scores.segmenter(image), size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )[:, 0]
    assert (maps > 0).all()
    assert maps.shape == (2, SIDE, SIDE)
    order = logits.flatten().argsort()
    assert (maps.flatten()[order].diff() >= -1e-5).all()
    expected = 4.0 * np.log1p(np.exp(logits.double().numpy() / 4.0))
    assert np.allclose(maps.numpy(), expected, rtol=1e-4, atol=1e-5)
    highest = np.sort(maps.numpy().reshape(2, -1), axis=1)[:, -20:].mean(axis=1)
    assert np.allclose(values.numpy(), highest, rtol=1e-5)
    # Far out a map is the logit itself: nothing saturates, as a probability would.
    far = torch.tensor([50.0, 500.0])
    assert torch.allclose(4.0 * torch.nn.functional.softplus(far / 4.0), far, rtol=1e-4)


def test_smoothing_keeps_the_mean_of_the_logits_but_not_their_peaks() -> None:
    image = torch.from_numpy(part(2, "spot")[0][None])
    with torch.inference_mode():
        sharp, smooth = network()(image)[0], network(sigma=3.0)(image)[0]
    assert float(smooth.max()) < float(sharp.max())


# ---- The run ---------------------------------------------------------------------------------------------------------


def test_a_run_records_what_it_has_learned_from(place: Place, run: Path) -> None:
    record, _ = read_run_record(run)
    assert record.defects is not None
    shares = {source.name: source.share for source in record.defects.sources}
    assert shares == {"support": 0.5, "drawn": 0.5}
    assert record.defects.in_test == 1
    assert set(record.defect_images.values()) == {"a support image"}
    assert record.facts["validation_defects_are_new"] == "yes"
    # Of 24 drawings two lie on each normal image; those on held-out and validation images are not learned.
    assert record.defects.types["part/tint"] + record.defects.types["part/spot"] - 1 < 24
    assert record.drawn is not None
    assert not set(record.training) & set(record.held_out)


def test_a_run_says_what_it_is_again(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["config"]["drawn"]
    restored = read_run(run)
    image = part(7, "spot")[0]
    maps, _ = restored.module(torch.from_numpy(image[None]))
    assert maps.shape == (1, SIDE, SIDE)
    assert not restored.fitted.networks["segmenter"].keys() & {"encoder.mean"}


def test_it_finds_what_it_has_learned(place: Place, run: Path) -> None:
    module = read_run(run).module
    with torch.inference_mode():
        spots = module(torch.from_numpy(np.stack([part(number, "spot")[0] for number in range(700, 716)])))[1]
        normal = module(torch.from_numpy(np.stack([part(number)[0] for number in range(700, 716)])))[1]
    assert float(spots.median()) > float(normal.max())


def test_the_best_state_counts_misses_and_false_alarms(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["error"] == pytest.approx(line["false_alarms"] + line["misses"])
    best = min(lines, key=lambda line: line["error"])
    assert best["epoch"] == lines[-1]["best_epoch"]


def test_without_anything_new_to_miss_the_learned_defects_are_validated(place: Place, tmp_path: Path) -> None:
    record = train(place, tmp_path / "run", drawn=[], epochs=1)
    assert record.facts["validation_defects_are_new"] == "no"
    assert {source.name for source in record.defects.sources} == {"support"}  # type: ignore[union-attr]


def test_a_killed_training_ends_as_if_it_had_not_been(place: Place, tmp_path: Path) -> None:
    whole = train(place, tmp_path / "whole", epochs=3, flip_vertical=True)
    with pytest.raises(Killed):
        train_detector(
            config(place, epochs=3, flip_vertical=True),
            open_dataset(place.root),
            tmp_path / "killed",
            drawn_check=False,
            progress=killing_progress(25),
        )
    resumed = train_detector(
        config(place, epochs=3, flip_vertical=True),
        open_dataset(place.root),
        tmp_path / "killed",
        drawn_check=False,
        resume=True,
    )
    assert resumed.facts == whole.facts
    first, second = (read_run(tmp_path / name).fitted.networks["segmenter"] for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_resumes_only_with_the_same_defects(place: Place, tmp_path: Path) -> None:
    drawn = shutil.copytree(place.helpful, tmp_path / "drawn")
    settings = config(place, epochs=3, drawn=str(drawn))
    with pytest.raises(Killed):
        train_detector(settings, open_dataset(place.root), tmp_path / "run", progress=killing_progress(25))
    shutil.rmtree(drawn)
    write_generated(drawn, place.root, place.drawings[:20], place.seen)
    with pytest.raises(ArgumentError, match="expected the weights and labelled defects that the training was begun"):
        train_detector(settings, open_dataset(place.root), tmp_path / "run", resume=True)


def test_a_training_resumes_only_with_the_same_masks_of_training_images(place: Place, tmp_path: Path) -> None:
    root = shutil.copytree(place.root, tmp_path / "data" / "part")
    (root / "train" / "tint").mkdir()
    shutil.move(root / "test" / "tint" / "004.png", root / "train" / "tint" / "004.png")
    settings = config(place, epochs=3, support=None, drawn=(), train_defects=True)
    with pytest.raises(Killed):
        train_detector(settings, open_dataset(root), tmp_path / "run", progress=killing_progress(25))
    mask = root / "ground_truth" / "tint" / "004_mask.png"
    shutil.copyfile(mask, tmp_path / "kept.png")
    shutil.copyfile(mask.with_name("005_mask.png"), mask)
    with pytest.raises(ArgumentError, match="expected the labelled defects that the training was begun with"):
        train_detector(settings, open_dataset(root), tmp_path / "run", resume=True)
    shutil.copyfile(tmp_path / "kept.png", mask)
    assert train_detector(settings, open_dataset(root), tmp_path / "run", resume=True).facts["epochs"] == 3


def test_a_trained_encoder_belongs_to_the_run(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="backbone: expected a network that can be trained"):
        config(place, train_encoder=True)


def test_a_run_that_lacks_tensors_is_refused(place: Place, run: Path, tmp_path: Path) -> None:
    import safetensors.numpy

    copy = shutil.copytree(run, tmp_path / "run")
    tensors = safetensors.numpy.load_file(copy / "weights.safetensors")
    name = next(name for name in tensors if name.startswith("segmenter.laterals"))
    safetensors.numpy.save_file(
        {key: value for key, value in tensors.items() if key != name}, copy / "weights.safetensors"
    )
    with pytest.raises(RunError, match="expected the tensor laterals"):
        read_run(copy)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"support": None, "drawn": []}, ArgumentError, "expected at least one source, got none"),
        ({"support": "nowhere"}, DataError, "support: expected a folder of synth support"),
        ({"drawn": ["nowhere"]}, DataError, "drawn: expected a folder of synth generate"),
        ({"defects": ["hole"]}, DataError, r"defects: expected types that .* has \(part/spot\), got hole"),
    ],
)
def test_sources_are_checked_before_the_training(
    place: Place, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(place, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


# ---- The bundle ------------------------------------------------------------------------------------------------------


def test_a_bundle_scores_as_torch_does(run: Path, bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    assert manifest.method == "segmenter"
    assert manifest.graphs.keys() == {"score"}
    assert manifest.evidence.parity[0].score_max_relative < 1e-3
    assert len(manifest.golden) == 2
    assert manifest.evidence.drawn is not None
    with Inspector.load(bundle, "cpu") as inspector:
        images = np.stack([part(number, "spot")[0] for number in (801, 802)])
        maps, scores = inspector.infer(images)
    with torch.inference_mode():
        expected = read_run(run).module(torch.from_numpy(images))
    assert np.allclose(maps, expected[0].numpy(), rtol=1e-3, atol=1e-4)
    assert np.allclose(scores, expected[1].numpy(), rtol=1e-3)


def test_a_bundle_keeps_and_says_what_was_seen(place: Place, run: Path, bundle: Path) -> None:
    record, _ = read_run_record(run)
    with open_bundle(bundle) as opened:
        assert opened.manifest.learned_defects == record.defects
        hashes = read_image_hashes(opened)
    assert hashes.defects == record.defect_images
    assert set(hashes.defects) <= hashes.seen

    assert cli.run(["bundle", "info", str(bundle)]) == 0


def test_test_images_that_were_learned_from_are_left_out_of_the_figures(place: Place, bundle: Path) -> None:
    dataset = open_dataset(place.root)
    figures = evaluate_bundle(bundle, dataset, command="", resamples=10).figures
    assert figures.images == len(dataset.test) - 1
    assert any("1 of 18 test images are left out of all figures" in note for note in figures.notes)
    # A support set that is named is left out for itself, with the figures with leak.
    named = evaluate_bundle(bundle, dataset, command="", support=read_support(place.support), resamples=10).figures
    assert named.images == figures.images
    assert named.support is not None


def test_normal_images_that_defects_were_drawn_on_are_left_out_too(place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    good = next(sample for sample in dataset.test if not sample.is_anomalous)
    drawings = [*place.drawings, Drawing("spot", *part(900, "spot"), good.path)]
    drawn = write_generated(tmp_path / "drawn", place.root, drawings, place.seen)
    record = train(place, tmp_path / "run", drawn=[str(drawn)], support=None, epochs=1)
    assert record.defects.in_test == 2  # type: ignore[union-attr]
    export_run(tmp_path / "run", tmp_path / "part.flaw")
    figures = evaluate_bundle(tmp_path / "part.flaw", dataset, command="", resamples=10).figures
    assert figures.images == len(dataset.test) - 2


def test_thresholds_are_set_on_held_out_images_with_their_bound(place: Place, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "part.flaw")
    calibrate_bundle(copy, open_dataset(place.root), command="")
    with open_bundle(copy) as opened:
        thresholds = opened.manifest.thresholds
    assert thresholds is not None
    assert thresholds.image.value > 0


def test_an_ensemble_remembers_what_its_members_have_seen(place: Place, bundle: Path, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    plain, _ = build_config(
        "patchcore",
        {"resize": SIDE, "stages": [1, 2], "held_out": 0.25, "held_out_minimum": 3, "device": "cpu", "num_workers": 1},
    )
    train_detector(plain, dataset, tmp_path / "bank", drawn_check=False)
    export_run(tmp_path / "bank", tmp_path / "bank.flaw", max_batch=2)
    # More normal images that no member has learned from: an ensemble needs five.
    more = (msgspec.structs.replace(sample, split="train") for sample in dataset.test if not sample.is_anomalous)
    kept = msgspec.structs.replace(dataset, samples=(*dataset.samples, *more))
    combine_bundles([tmp_path / "bank.flaw", bundle], tmp_path / "both.flaw", kept)
    with open_bundle(tmp_path / "both.flaw") as opened:
        assert read_image_hashes(opened).defects.keys() == {*place.seen, image_hash(place.root / place.spot)}
    figures = evaluate_bundle(tmp_path / "both.flaw", dataset, command="", resamples=10).figures
    assert any("a support image 1" in note for note in figures.notes)


def test_every_verb_on_bundles_takes_it(
    place: Place, run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "part.flaw")
    calibrate_bundle(copy, open_dataset(place.root), command="")
    image = str(place.root / "test" / "spot" / "001.png")
    for arguments in (
        ["score", str(copy), image, "--backend", "cpu"],
        ["bench", str(copy), "--backend", "cpu", "--seconds", "0.2"],
        ["doctor", str(copy)],
        ["explain", str(run)],
        ["export-triton", str(copy), "--out", str(tmp_path / "models")],
    ):
        capsys.readouterr()
        # `score` says 1 where the image is rejected.
        assert cli.run(arguments) in ((0, 1) if arguments[0] == "score" else (0,)), capsys.readouterr()
    assert (tmp_path / "models" / "part").is_dir()


def test_it_scores_where_there_is_no_torch(place: Place, bundle: Path) -> None:
    import subprocess
    import sys

    image = place.root / "test" / "spot" / "001.png"
    code = f"""
import sys
for name in ("torch", "onnx", "scipy"):
    sys.modules[name] = None
from flawscope.runtime import Inspector
with Inspector.load({str(bundle)!r}, "cpu") as inspector:
    print(inspector({str(image)!r}).score)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0
