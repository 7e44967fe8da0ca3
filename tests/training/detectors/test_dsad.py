"""DSAD: autoencoder and guidance trained, resumed, exported, judged; one model for all categories; what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from interrupted import killed_at_checkpoint
from scipy.stats import spearmanr
from tiny_dataset import CATEGORY, anomalous_images, normal_images
from tiny_stable_diffusion import write_stable_diffusion

from flawscope import cli
from flawscope.bundle import DsadHead, OnnxModel, open_bundle
from flawscope.config import DsadConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, RunError
from flawscope.export.detectors import reconstruction_exporter
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.detectors.reconstruction_exporter import DSAD, reconstruction_graphs
from flawscope.imaging.images import prepare, read_image
from flawscope.runs import AUTOENCODER_KNOWS, read_run_record
from flawscope.runtime import Inspector
from flawscope.runtime.backends.ort import OrtSession
from flawscope.runtime.doctor.doctor_command import examine
from flawscope.runtime.engines import BuildOptions, build_engine, import_tensorrt, named_target
from flawscope.runtime.scorers.reconstruction_scorer import SessionNetworks
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.detectors.dsad import DsadTask, autoencoder_of
from flawscope.training.diffusion.torch_reconstruction import Reconstruction
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.run_notes import describe_run, image_notes
from flawscope.training.settings import read_settings

pytestmark = pytest.mark.long

COMMON: dict[str, Any] = {
    "backbone": "scattering",
    "resize": 32,
    "epochs": 2,
    "batch_size": 8,
    "accumulate": 1,
    "held_out_minimum": 5,
    "preview_every": 1,
    "checkpoint_every": 1,
}
SETTINGS: dict[str, Any] = {
    **COMMON,
    "stages": [1, 2],
    "widths": [16, 32],
    "layers": 1,
    "heads": 2,
    "context": 8,
    "hint_widths": [4, 8, 16],
    "learning_rate": 1e-3,
    "sketch_size": 16,
    "steps": 3,
    "pooling": 2,
    "sigma": 2.0,
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    settings = {**COMMON, "widths": [8, 16, 16], "layers": 1, "learning_rate": 1e-3}
    train_detector(build_config("autoencoder", settings)[0], open_dataset(tiny_root, CATEGORY), out)
    return out


def config(autoencoder: Path, **changes: object) -> DsadConfig:
    settings = build_config("dsad", {**SETTINGS, "autoencoder": str(autoencoder), **changes})[0]
    assert isinstance(settings, DsadConfig)
    return settings


def train(root: Path, autoencoder: Path, out: Path, resume: bool = False, **changes: object) -> Path:
    train_detector(config(autoencoder, **changes), open_dataset(root, CATEGORY), out, resume=resume)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, autoencoder: Path) -> Path:
    return train(tiny_root, autoencoder, tmp_path_factory.mktemp("dsad") / "run")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    out = tmp_path_factory.mktemp("dsad") / "dsad.flaw"
    export_run(run, out, max_batch=3)
    return out


def part_images(root: Path) -> np.ndarray:
    paths = [*normal_images(root)[:2], *anomalous_images(root)[:2]]
    preprocessing = build_config("dsad", {"resize": 32})[0].preprocessing
    return np.stack([prepare(read_image(path), preprocessing) for path in paths])


def task_of(tiny_root: Path, autoencoder: Path, **changes: object) -> DsadTask:
    from flawscope.training.features.backbone import build_backbone

    settings = config(autoencoder, **changes)
    validation = ImageReader(normal_images(tiny_root), settings.preprocessing, 1, 64)
    return DsadTask(settings, build_backbone(settings.features, None)[0], *autoencoder_of(settings), validation)


def test_both_trainings_learn_and_leave_what_they_measured(autoencoder: Path, run: Path) -> None:
    for folder in (autoencoder, run):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[1]["error"] < lines[0]["error"]
        assert len(list((folder / "previews").glob("*.png"))) == 2
    record = json.loads((autoencoder / "run.json").read_text())
    assert record["kind"] == "autoencoder"
    assert record["facts"]["scaling"] == pytest.approx(1 / record["facts"]["latent_std"], rel=1e-4)
    names = safetensors.numpy.load_file(autoencoder / "weights.safetensors")
    assert all(name.startswith("autoencoder.") for name in names)


def test_an_autoencoder_keeps_few_images_back_and_what_it_knows_of_the_held_out_ones_is_said(
    tiny_root: Path, run: Path, tmp_path: Path
) -> None:
    alike = read_run_record(run)[0]
    assert alike.facts[AUTOENCODER_KNOWS] == 0  # that autoencoder holds out as many
    assert not [note for note in image_notes(alike) if "autoencoder" in note]
    # No threshold is set with an autoencoder, so by itself it has no least number of images to hold out.
    settings = {**COMMON, "widths": [8, 16, 16], "layers": 1, "epochs": 1}
    del settings["held_out_minimum"]
    train_detector(build_config("autoencoder", settings)[0], open_dataset(tiny_root, CATEGORY), tmp_path / "knows")
    fitted = read_run_record(tmp_path / "knows")[0]
    assert len(fitted.held_out) == round(0.1 * (len(fitted.held_out) + len(fitted.training)))
    detector = read_run_record(train(tiny_root, tmp_path / "knows", tmp_path / "run", epochs=1))[0]
    known = set(fitted.training) & set(detector.held_out)
    assert detector.facts[AUTOENCODER_KNOWS] == len(known) > 0
    (note,) = [note for note in image_notes(detector) if "autoencoder" in note]
    assert f"{len(known)} images" in note
    assert "for calibration" not in describe_run("autoencoder", fitted)
    assert "held out for calibration" in describe_run("dsad", detector)


def test_what_starts_at_random_learns_and_the_autoencoder_does_not(
    tiny_root: Path, autoencoder: Path, run: Path
) -> None:
    before = task_of(tiny_root, autoencoder).network.state_dict()
    tensors = safetensors.numpy.load_file(run / "weights.safetensors")
    of_autoencoder = safetensors.numpy.load_file(autoencoder / "weights.safetensors")
    moved = [name for name, value in before.items() if not np.array_equal(value.numpy(), tensors[f"denoiser.{name}"])]
    for part in (
        "unet.down_blocks",
        "unet.up_blocks",
        "guidance.down_blocks",
        "sketch_encoder",
        "sketch_fusion",
        "fusion",
    ):
        assert any(name.startswith(part) for name in moved), part
    for name, value in of_autoencoder.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_a_sketch_that_is_partly_wrong_is_for_training_alone(tiny_root: Path, autoencoder: Path) -> None:
    images = torch.from_numpy(part_images(tiny_root))

    def sketches(drop: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the networks see in a step of training and in validation; in the loss it is lost in rounding."""
        task = task_of(tiny_root, autoencoder, sketch_drop=drop)
        seen: list[torch.Tensor] = []
        encode = task.denoiser.encode_hint

        def noting(image: torch.Tensor, sketch: torch.Tensor | None = None) -> torch.Tensor:
            assert sketch is not None
            seen.append(sketch)
            return encode(image, sketch)

        task.denoiser.encode_hint = noting  # type: ignore[method-assign]
        task.loss(task.network, images, torch.Generator().manual_seed(0))
        in_training = len(seen)
        task.validate()
        return torch.cat(seen[:in_training]), torch.cat(seen[in_training:])

    (dropped, validated), (whole, again) = sketches(1.0), sketches(0.0)
    assert float(whole.max()) > 0.05
    assert float(dropped.abs().max()) == 0.0
    assert torch.equal(validated, again)
    assert float(validated.max()) > 0.05


def test_augmentation_changes_what_is_learned(tiny_root: Path, autoencoder: Path) -> None:
    images = torch.from_numpy(part_images(tiny_root))
    losses = set()
    for changes in ({}, {}, {"flip": True}, {"rotate": 15.0}, {"color_jitter": 0.3}):
        task = task_of(tiny_root, autoencoder, **changes)
        loss = float(task.loss(task.network, images, torch.Generator().manual_seed(0)).detach())
        losses.add(round(loss, 4))  # coarser than rounding, and finer than what any of them changes
    assert len(losses) == 4  # the same settings twice give the same


def test_a_training_that_was_killed_ends_with_the_same_weights(
    tmp_path: Path, tiny_root: Path, autoencoder: Path, run: Path
) -> None:
    cut = tmp_path / "cut"
    with killed_at_checkpoint():
        train(tiny_root, autoencoder, cut)
    train(tiny_root, autoencoder, cut, resume=True)
    assert (cut / "weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()


def test_the_bundle_scores_as_torch_does(tiny_root: Path, run: Path, bundle: Path) -> None:
    images = part_images(tiny_root)
    expected = read_run(run).module(images)  # type: ignore[operator]
    with Inspector.load(bundle, "cpu") as inspector:
        maps, scores = inspector.infer(images[:3])
        rest = inspector.infer(images[3:])
        again = inspector.infer(images[:3])
    np.testing.assert_array_equal(again[0], maps)
    np.testing.assert_allclose(maps, expected.maps[:3], rtol=1e-3, atol=1e-5)
    scores = np.concatenate([scores, rest[1]])
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-3)
    assert spearmanr(scores, expected.scores).statistic >= 0.999


def test_the_bundle_has_four_networks_and_says_how_is_sampled(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    assert sorted(manifest.graphs) == ["compare", "decode", "denoise", "encode"]
    assert isinstance(manifest.head, DsadHead)
    sampling = manifest.head.sampling
    assert (sampling.start, sampling.steps, sampling.offset, sampling.final) == (1000, 3, 1, "first")
    assert (manifest.head.rule.pixel_factor, manifest.head.rule.pooling, manifest.head.edges) == (0.0, 2, "none")


@pytest.mark.parametrize("graph", ["encode", "denoise", "decode", "compare"])
def test_every_network_builds_as_an_engine(bundle: Path, graph: str) -> None:
    tensorrt = import_tensorrt("tensorrt-rtx")
    target = named_target("8.9", tensorrt.compute_capabilities())
    with open_bundle(bundle) as opened:
        built = build_engine(tensorrt, opened.path / opened.graph_file(graph), target, BuildOptions(1, 1, 3))
    assert len(built.plan) > 1000


@pytest.mark.slow  # test_labelled_detectors.py does so with the other methods
def test_every_verb_takes_the_bundle(tmp_path: Path, tiny_root: Path, bundle: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.flaw"))
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert cli.run(["calibrate", str(copy), *data, "--false-reject-rate", "0.3"]) == 0
    assert cli.run(["evaluate", str(copy), *data, "--backend", "cpu", "--report", str(tmp_path / "report")]) == 0
    source = str(anomalous_images(tiny_root)[0])
    assert cli.run(["score", str(copy), source, "--reconstructions", str(tmp_path / "pictures")]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6
    assert examine(copy, "cpu", "fp32")["graph"] == "encode.onnx, denoise.onnx, decode.onnx, compare.onnx"
    assert cli.run(["bench", str(copy), "--seconds", "0.2", "--no-cold-start"]) == 0
    built = ["engine", "build", str(copy), "--target", "8.9", "--cache", str(tmp_path / "engines")]
    assert cli.run(built) == 0
    assert cli.run([*built, "--no-build"]) == 0


def test_weights_too_large_for_one_message_lie_beside_their_graph(
    tmp_path: Path, tiny_root: Path, run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawscope.runtime.engines.ensure import model_hash

    monkeypatch.setattr(reconstruction_exporter, "INLINE_LIMIT", 100_000)
    with open_bundle(bundle) as opened:  # tracing takes seconds and is the same every time
        graphs = [(name, onnx.load(opened.path / opened.graph_file(name))) for name in opened.manifest.graphs]
    monkeypatch.setattr(reconstruction_exporter, "reconstruction_graphs", lambda *_: iter(graphs))
    manifest = export_run(run, tmp_path / "large.flaw", max_batch=3)
    assert "denoise.onnx.data" in manifest.files
    assert manifest.files["denoise.onnx"].size < manifest.files["denoise.onnx.data"].size
    images = part_images(tiny_root)[:2]
    with Inspector.load(bundle, "cpu") as small, Inspector.load(tmp_path / "large.flaw", "cpu") as large:
        np.testing.assert_array_equal(small.infer(images)[1], large.infer(images)[1])
    tensorrt = import_tensorrt("tensorrt-rtx")
    target = named_target("8.9", tensorrt.compute_capabilities())
    with open_bundle(tmp_path / "large.flaw") as opened:
        before = model_hash(opened, "denoise")
        assert (
            len(build_engine(tensorrt, opened.path / opened.graph_file("denoise"), target, BuildOptions(1, 1, 3)).plan)
            > 1000
        )
        entry = manifest.files["denoise.onnx.data"]
        manifest.files["denoise.onnx.data"] = type(entry)("0" * 64, entry.size)
        opened.manifest.files["denoise.onnx.data"] = manifest.files["denoise.onnx.data"]
        assert model_hash(opened, "denoise") != before


def test_a_model_on_stable_diffusion_needs_its_folder_no_more_once_it_is_trained(
    tmp_path: Path, tiny_root: Path
) -> None:
    pytest.importorskip("transformers", reason="the empty text's embedding needs transformers")
    base = write_stable_diffusion(tmp_path / "sd")
    settings = {**SETTINGS, "hint_widths": [4, 6], "base": str(base), "epochs": 1, "pooling": 0}
    train_detector(build_config("dsad", settings)[0], open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    weights = safetensors.torch.load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(base)
    module = read_run(tmp_path / "run").module
    state = module.networks.modules["denoise"].unet.state_dict()  # type: ignore[union-attr,operator]
    moved = {name.split(".")[0] for name, value in weights.items() if not torch.equal(state[name], value)}
    assert moved == {"up_blocks", "conv_norm_out", "conv_out"}  # the rest is frozen
    assert record_of(tmp_path / "run")["facts"]["scaling"] == 0.18215
    assert np.isfinite(module(part_images(tiny_root)[:1]).scores).all()  # type: ignore[operator]


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def test_cannys_edges_are_given_to_the_graph_on_the_line_as_in_training(
    tmp_path: Path, tiny_root: Path, autoencoder: Path
) -> None:
    run = read_run(train(tiny_root, autoencoder, tmp_path / "run", sketch="canny", epochs=1))
    module = run.module
    assert isinstance(module, Reconstruction)
    assert DSAD.head(run, list(part_images(tiny_root)[:1])).edges == "canny"  # type: ignore[union-attr]
    name, graph = next(reconstruction_graphs(module, (32, 32), 2))
    assert name == "encode"
    onnx.save(graph, tmp_path / "encode.onnx")
    images = part_images(tiny_root)[:2]
    latents, conditions = SessionNetworks(
        {"encode": OrtSession(OnnxModel.of_file(tmp_path / "encode.onnx"), "cpu")}, True
    ).encode(images)
    expected, (hint,) = module.networks.encode(images)[0], module.networks.encode(images)[1].values()
    np.testing.assert_allclose(latents, expected, atol=1e-3)
    np.testing.assert_allclose(conditions["hint"], hint, atol=1e-3)


def test_one_model_is_trained_on_all_categories(tmp_path: Path, tiny_root: Path, autoencoder: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_root / CATEGORY, root / "first")
    shutil.copytree(tiny_root / CATEGORY, root / "second")
    for path in (root / "second").rglob("*.png"):
        if "ground_truth" not in path.parts:  # other images, or they would be the same ones twice
            path.write_bytes(brighter(path))
    dataset = open_dataset(root, "all")
    train_detector(config(autoencoder, epochs=1), dataset, tmp_path / "run")
    record = read_run(tmp_path / "run").record
    assert record.category == "all"
    assert len(record.training) + len(record.held_out) == 48


def brighter(path: Path) -> bytes:
    import cv2

    image = cv2.imread(str(path))
    assert image is not None
    return bytes(cv2.imencode(".png", cv2.add(image, np.full_like(image, 9)))[1].tobytes())


# --- what is refused


def test_an_autoencoder_is_needed_and_it_has_to_fit(tmp_path: Path, tiny_root: Path, autoencoder: Path) -> None:
    dataset = open_dataset(tiny_root, CATEGORY)
    with pytest.raises(ArgumentError, match="autoencoder: expected a run of flawscope train autoencoder"):
        train_detector(build_config("dsad", SETTINGS)[0], dataset, tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"normalization: expected signed, with which .* was trained, got imagenet"):
        train(tiny_root, autoencoder, tmp_path / "run", normalization="imagenet")
    with pytest.raises(ArgumentError, match="hint_widths: expected one more than the autoencoder halves the sides"):
        train(tiny_root, autoencoder, tmp_path / "run", hint_widths=[4, 8])
    with pytest.raises(RunError):
        train(tiny_root, tmp_path / "nowhere", tmp_path / "run")
    assert list(tmp_path.glob("run*")) == []


def test_going_on_with_another_autoencoder_is_refused(tmp_path: Path, tiny_root: Path, autoencoder: Path) -> None:
    moved = Path(shutil.copytree(autoencoder, tmp_path / "autoencoder"))
    with killed_at_checkpoint():
        train(tiny_root, moved, tmp_path / "run")
    tensors = safetensors.numpy.load_file(moved / "weights.safetensors")
    safetensors.numpy.save_file({name: value * 1.01 for name, value in tensors.items()}, moved / "weights.safetensors")
    with pytest.raises(ArgumentError, match="expected the weights that the training was begun with, got other"):
        train(tiny_root, moved, tmp_path / "run", resume=True)


def test_the_run_of_an_autoencoder_is_no_detector(tmp_path: Path, autoencoder: Path) -> None:
    with pytest.raises(RunError, match="expected the run of a detector, got an autoencoder"):
        export_run(autoencoder, tmp_path / "x.flaw")


@pytest.mark.parametrize("network", ["denoiser", "autoencoder"])
def test_a_run_that_lacks_a_tensor_is_refused(tmp_path: Path, run: Path, network: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    tensors = safetensors.numpy.load_file(copy / "weights.safetensors")
    dropped = next(name for name in tensors if name.startswith(f"{network}."))
    remaining = {name: value for name, value in tensors.items() if name != dropped}
    safetensors.numpy.save_file(remaining, copy / "weights.safetensors")
    with pytest.raises(RunError, match=network):
        read_run(copy)


def test_the_presets_fix_the_references_values() -> None:
    seed = build_config("dsad", read_settings("diad-seed"))[0]
    assert isinstance(seed, DsadConfig)
    assert (seed.fusion, seed.control, seed.sketch, seed.normalization) == ("diad", "coarse", "none", "imagenet")
    assert (seed.sampling.start, seed.sampling.steps, seed.sampling.level) == (1000, 10, "start")
    assert (seed.loop.batch_size, seed.loop.accumulate, seed.loop.learning_rate) == (12, 4, 1e-5)
    assert (seed.maps.sigma, seed.pooling) == (5.0, 8)
    preset = build_config("dsad", read_settings("dsad"))[0]
    assert isinstance(preset, DsadConfig)
    assert (preset.fusion, preset.sketch, preset.normalization, preset.reconstruction.level) == (
        "live",
        "sobel",
        "signed",
        "first",
    )
