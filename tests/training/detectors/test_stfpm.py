"""STFPM: the maps of the paper, a student that learns, a run that is whole, and one that was killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from interrupted import Killed, killed_at_checkpoint, killing_progress
from published_weights import write_backbone_weights
from tiny_dataset import normal_images

from flawscope import cli
from flawscope.bundle import StfpmHead, open_bundle
from flawscope.config import StfpmConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, BundleError, DataError, GateError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.grid_places import GridPlaces, centred_places
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.runtime import Inspector
from flawscope.runtime.bench.measurement import bench
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.detectors.stfpm import StfpmNetwork, StfpmTask
from flawscope.training.features.backbone import Backbone, untrained_backbone
from flawscope.training.features.stage_distances import stage_distances
from flawscope.training.loop.image_batches import ImageReader

pytestmark = pytest.mark.long

NETWORK = "mobilenetv2_035"
SETTINGS = {
    "backbone": NETWORK,
    "resize": 64,
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.1,
    "held_out_minimum": 5,
    "preview_every": 2,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher, drawn at random."""
    return write_backbone_weights(tmp_path_factory.mktemp("teacher") / "weights.safetensors", NETWORK)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, weights: Path) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("stfpm") / "run"
    config = build_config("stfpm", SETTINGS)[0]
    train_detector(config, open_dataset(tiny_root, "steel"), out, weights=weights)
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    out = tmp_path_factory.mktemp("stfpm") / "stfpm.flaw"
    export_run(trained, out, max_batch=4)
    return out


def config(**changes: object) -> StfpmConfig:
    settings = build_config("stfpm", {**SETTINGS, **changes})[0]
    assert isinstance(settings, StfpmConfig)
    return settings


def pair(seed: int = 0) -> tuple[Backbone, Backbone]:
    torch.manual_seed(seed)
    return untrained_backbone(config().features), untrained_backbone(config().features)


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


# --- the network


def test_a_student_equal_to_its_teacher_gives_a_map_of_zeros() -> None:
    teacher, student = pair()
    student.load_state_dict(teacher.state_dict())
    maps, scores = StfpmNetwork(teacher, student, (64, 64), 0.0)(torch.from_numpy(images()))
    assert maps.shape == (3, 64, 64)
    assert not maps.any()
    assert not scores.any()


def test_stages_are_drawn_where_they_lie() -> None:
    teacher, student = pair()
    part_images = torch.from_numpy(images())
    grids = [(int(stage.shape[-2]), int(stage.shape[-1])) for stage in teacher(part_images)]
    centred = [centred_places(grid, (64, 64)) for grid in grids]
    plain = StfpmNetwork(teacher, student, (64, 64), 0.0)(part_images)[0]
    same = StfpmNetwork(teacher, student, (64, 64), 0.0, centred)(part_images)[0]
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-7)
    shifted = [GridPlaces((each.start[0] + 3, each.start[1] - 2), each.step) for each in centred]
    moved = StfpmNetwork(teacher, student, (64, 64), 0.0, shifted)(part_images)[0]
    torch.testing.assert_close(moved[:, 3:, :-2], plain[:, :-3, 2:], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(moved, plain, rtol=1e-2, atol=1e-7)


def test_a_run_keeps_the_places_of_its_teacher(trained: Path, bundle: Path) -> None:
    run = read_run(trained)
    assert run.record.places is not None
    assert len(run.record.places) == 3
    assert [places.step for places in run.record.places] == [(4.0, 4.0), (8.0, 8.0), (16.0, 16.0)]
    assert "px" in str(run.record.facts["alignment"])
    # The export has passed its parity gate with them; without them the same run gives other maps.
    image = prepare(read_image(run.samples[0]), run.record.config.preprocessing)
    with Inspector.load(bundle, "cpu") as inspector:
        drawn = inspector(image).anomaly_map
    aligned = run.module(torch.from_numpy(image[None]))[0][0].numpy()
    centred = StfpmNetwork(run.module.teacher, run.module.student, run.module.size, run.record.config.maps.sigma)
    np.testing.assert_allclose(drawn, aligned, rtol=1e-3, atol=1e-5)
    assert not np.allclose(centred(torch.from_numpy(image[None]))[0][0].numpy(), aligned, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 3.0])
def test_the_map_is_the_product_of_the_enlarged_stages(sigma: float) -> None:
    teacher, student = pair()
    part_images = torch.from_numpy(images())
    maps, scores = StfpmNetwork(teacher, student, (64, 64), sigma)(part_images)
    for index in range(3):
        product = np.ones((64, 64))
        for first, second in zip(teacher(part_images), student(part_images), strict=True):
            a, b = first[index].numpy().astype(np.float64), second[index].numpy().astype(np.float64)
            a, b = a / np.linalg.norm(a, axis=0), b / np.linalg.norm(b, axis=0)
            distance = 0.5 * ((a - b) ** 2).sum(axis=0)
            product *= cv2.resize(distance, (64, 64), interpolation=cv2.INTER_LINEAR)
        if sigma:
            product = cv2.GaussianBlur(product, (25, 25), sigma, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(maps[index].numpy(), product, rtol=2e-3 if sigma else 1e-4, atol=1e-7)
        assert float(scores[index]) == float(maps[index].max())


def test_the_distance_of_a_position_does_not_depend_on_the_length_of_its_features() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn((2, 5, 4, 4), generator=draw) for _ in range(2))
    plain = stage_distances([first], [second])[0]
    longer = stage_distances([3.0 * first], [0.2 * second])[0]
    torch.testing.assert_close(plain, longer)
    assert bool(((plain >= 0) & (plain <= 2)).all())
    torch.testing.assert_close(stage_distances([first], [-first])[0], torch.full((2, 4, 4), 2.0))


def test_the_loss_is_the_mean_distance_and_the_seeds_is_twice_that(tiny_root: Path) -> None:
    part_images = ImageReader(normal_images(tiny_root)[:4], config().preprocessing, 1, 100)
    teacher, _ = pair()
    batch, generator = torch.from_numpy(images()), torch.Generator()
    losses = {}
    for kind in ("paper", "seed"):
        task = StfpmTask(config(loss=kind), teacher, part_images)
        task.network.eval()
        losses[kind] = task.loss(task.network, batch, generator)
        expected = sum(float(d.detach().mean()) for d in stage_distances(teacher(batch), task.network(batch)))
        assert float(losses[kind].detach()) == pytest.approx(expected * (2 if kind == "seed" else 1), rel=1e-5)
    losses["paper"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --- the run


def test_a_run_has_teacher_student_metrics_and_previews(trained: Path) -> None:
    run = read_run(trained)
    assert isinstance(run.module, StfpmNetwork)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    best = min(lines, key=lambda line: line["error"])
    assert run.record.facts["best_epoch"] == best["epoch"]
    assert run.record.facts["validation_error"] == pytest.approx(best["error"], rel=1e-5)
    assert sorted(path.name for path in (trained / "previews").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]
    assert cv2.imread(str(trained / "previews" / "epoch_0003.png")).shape == (4 * 64, 2 * 64, 3)
    assert not trained.with_name("run.training").exists()
    # Images that chose the epoch count as learned; thresholds are set on others.
    assert len(run.record.training) + len(run.record.held_out) == len(set(run.record.training + run.record.held_out))
    assert run.record.facts["validation_pictures"] >= 2


def test_the_teacher_is_left_as_it_was(trained: Path, weights: Path) -> None:
    stored = safetensors.numpy.load_file(trained / "weights.safetensors")
    original = safetensors.numpy.load_file(weights)
    teacher = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    assert teacher
    for name, value in teacher.items():
        np.testing.assert_array_equal(value, original[name], err_msg=name)
    student = {name.removeprefix("student.") for name in stored if name.startswith("student.")}
    assert student == set(teacher)


def test_the_bundle_is_one_graph_and_scores_as_torch_does(bundle: Path, trained: Path, tiny_root: Path) -> None:
    run = read_run(trained)
    with Inspector.load(bundle, "cpu") as inspector:
        manifest = inspector.manifest
        assert (manifest.method, manifest.bank, set(manifest.graphs)) == ("stfpm", None, {"score"})
        assert isinstance(manifest.head, StfpmHead)
        assert inspector.path == "graph"
        prepared = np.stack([prepare(read_image(path), manifest.input) for path in normal_images(tiny_root)[:4]])
        maps, scores = inspector.infer(prepared)
    with torch.inference_mode():
        expected_maps, expected_scores = run.module(torch.from_numpy(prepared))
    np.testing.assert_allclose(maps, expected_maps.numpy(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-3)


@pytest.mark.slow
def test_every_verb_takes_the_bundle(
    bundle: Path, trained: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tiny_root), "--category", "steel"]
    assert cli.run(["calibrate", str(bundle), *data]) == 0
    assert cli.run(["evaluate", str(bundle), *data, "--report", str(tmp_path / "report")]) == 0
    assert "image AUROC" in capsys.readouterr().out
    assert cli.run(["score", str(bundle), str(normal_images(tiny_root)[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] in ("accept", "reject")
    assert cli.run(["bundle", "verify", str(bundle)]) == 0
    assert cli.run(["explain", str(trained)]) == 0
    assert cli.run(["explain", str(bundle), "--against", "plain"]) == 0
    assert cli.run(["doctor", str(bundle)]) == 0
    capsys.readouterr()
    with Inspector.load(bundle, "cpu") as inspector:
        figures = bench(inspector, seconds=0.2)
    assert (figures["backbone_ms"], figures["ratio_infer_to_backbone"]) == (None, None)
    assert cli.run(["bench", str(bundle), "--seconds", "0.2", "--no-cold-start"]) == 0
    assert "backbone" not in capsys.readouterr().out


def test_it_builds_as_an_engine(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    assert cli.run(["engine", "build", str(bundle), "--target", "8.9", "--cache", str(tmp_path)]) == 0


# --- interrupted


def command(root: Path, weights: Path, out: Path, *options: str) -> list[str]:
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 4}.items() if key != "backbone"]
    data = ["--data", str(root), "--category", "steel", "--backbone", NETWORK, "--weights", str(weights)]
    return [sys.executable, "-m", "flawscope", "train", "stfpm", *data, *settings, "--out", str(out), *options]


@pytest.mark.slow  # test_segmenter.py and test_ddad.py kill theirs in the same loop
@pytest.mark.parametrize("moment", [0.1, 0.6])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    tiny_root: Path, weights: Path, tmp_path: Path, moment: float
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tiny_root, weights, whole), check=True, capture_output=True)
    process = subprocess.Popen(
        command(tiny_root, weights, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "killed.training" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("epoch_*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not killed.exists():  # it may have ended before the signal came, on a fast machine
        refused = subprocess.run(command(tiny_root, weights, killed), capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "expected no unfinished training, got one. Go on with --resume latest" in refused.stderr
        subprocess.run(command(tiny_root, weights, killed, "--resume", "latest"), check=True, capture_output=True)
    first, second = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, killed)
    )
    assert [line.pop("seconds") > 0 for line in (*first, *second)]
    assert first == second
    before, after = (safetensors.numpy.load_file(run / "weights.safetensors") for run in (whole, killed))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert not (tmp_path / "killed.training").exists()


def test_going_on_with_other_settings_is_refused(tiny_root: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run.training"
    dataset = open_dataset(tiny_root, "steel")
    with pytest.raises(Killed):
        train_detector(config(), dataset, tmp_path / "run", weights=weights, progress=killing_progress(3))
    assert (folder / "begun.json").is_file()
    with pytest.raises(
        ArgumentError, match=r"expected learning_rate as the training was begun with \(0\.1\), got 0\.2"
    ):
        train_detector(config(learning_rate=0.2), dataset, tmp_path / "run", weights=weights, resume=True)
    other = write_backbone_weights(tmp_path / "other.safetensors", NETWORK, seed=1)
    with pytest.raises(ArgumentError, match="expected the weights that the training was begun with, got other"):
        train_detector(config(), dataset, tmp_path / "run", weights=other, resume=True)
    again = train_detector(config(num_workers=1), dataset, tmp_path / "run", weights=weights, resume=True)
    assert again.facts["epochs"] == 3
    assert not folder.exists()


def test_a_training_goes_on_from_the_checkpoint_that_is_named(tiny_root: Path, weights: Path, tmp_path: Path) -> None:
    out, dataset, settings = tmp_path / "run", open_dataset(tiny_root, "steel"), config(epochs=3, checkpoints_kept=3)
    whole = train_detector(settings, dataset, tmp_path / "whole", weights=weights)
    with killed_at_checkpoint(2):
        train_detector(settings, dataset, out, weights=weights)
    checkpoints = tmp_path / "run.training" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["epoch_000001", "epoch_000002"]
    for named, got in (
        (tmp_path / "nothing", "no such folder"),
        (tiny_root, "a checkpoint of another training or tool"),
        (checkpoints / "epoch_000003", "no such folder"),
    ):
        with pytest.raises(ArgumentError, match=f"--resume .*: expected latest, or a checkpoint in .*, got {got}"):
            train_detector(settings, dataset, out, weights=weights, resume=named)
    # A refusal takes nothing away, and neither do other settings.
    with pytest.raises(ArgumentError, match="expected learning_rate as the training was begun with"):
        train_detector(config(learning_rate=0.2), dataset, out, weights=weights, resume=checkpoints / "epoch_000001")
    assert (checkpoints / "epoch_000002").is_dir()
    with pytest.raises(ArgumentError, match="expected no unfinished training"):
        train_detector(settings, dataset, out, weights=weights)
    begun = []
    train_detector(
        settings,
        dataset,
        out,
        weights=weights,
        resume=checkpoints / "epoch_000001",
        progress=lambda what, done, total: begun.append(done) if what == "training" else None,
    )
    assert begun[0] == begun[-1] // 3
    before, after = (safetensors.numpy.load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "run"))
    assert all(np.array_equal(value, after[name]) for name, value in before.items())
    assert whole.facts["epochs"] == 3


def test_a_training_that_has_not_begun_goes_on_from_no_checkpoint(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["train", "stfpm", "--data", str(tiny_root), "--category", "steel", "--out", str(tmp_path / "run")]
    assert cli.run([*typed, "--backbone", "scattering", "--resume_from_checkpoint", "checkpoint-500"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


# --- refused


def test_wrong_requests_are_refused(bundle: Path, tiny_root: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_root, "steel")
    with pytest.raises(ArgumentError, match="backbone: expected a network that can be trained, with weights"):
        config(backbone="scattering")
    with pytest.raises(ArgumentError, match="expected a method that is trained in epochs, got one that is fitted"):
        train_detector(build_config("padim", {})[0], dataset, tmp_path / "x", resume=True)
    with (
        open_bundle(bundle) as opened,
        pytest.raises(BundleError, match="expected a method with a bank, got stfpm"),
    ):
        Inspector(opened, "cpu", "kernel")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_few_images_for_the_gate_are_refused(
    trained: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(trained), "--out", str(tmp_path / "y.flaw"), "--precision", "int8"]
    assert cli.run([*arguments, "--calibration-data", str(tiny_root), "--category", "steel"]) == 2
    assert "expected at least 20 normal images that the detector has not learned from, for the gate, got" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("validation", 0), ("ema", 1.0), ("momentum", 1.0), ("learning_rate", 0), ("schedule", "step")],
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=key):
        config(**{key: value})


def test_too_few_images_are_refused(tiny_root: Path, weights: Path, tmp_path: Path) -> None:
    from flawscope.training.detectors.stfpm import train_stfpm

    dataset = open_dataset(tiny_root, "steel")
    with pytest.raises(DataError, match="expected at least 4 normal training images, got 3"):
        train_stfpm(config(), pair()[0], dataset.train_good[:3], {}, tmp_path, False, no_progress)


def test_a_student_that_learned_nothing_is_still_gated(
    trained: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawscope.export.detectors import graph_exporter

    graph = onnx.load(bundle / "score.onnx")  # traced before
    monkeypatch.setattr(graph_exporter, "export_module", lambda *_: graph)

    real = graph_exporter.network_scores

    def other(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        maps, scores = real(*arguments)  # type: ignore[arg-type]
        return maps, 1.01 * scores

    monkeypatch.setattr(graph_exporter, "network_scores", other)
    with pytest.raises(GateError, match=r"torch"):
        export_run(trained, tmp_path / "z.flaw", max_batch=2)
    assert list(tmp_path.iterdir()) == []


def test_processes_do_not_inherit_threads() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"  # the two runs above are compared bit by bit
