"""LafitE: features, bank, editing and denoising, from training to the line, and each part by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from interrupted import killed_at_checkpoint
from tiny_dataset import CATEGORY, anomalous_images, normal_images
from torch.nn import functional

from flawscope import cli
from flawscope.bundle import LafiteHead, open_bundle
from flawscope.config import LafiteConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BundleError, RunError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.runtime import Inspector
from flawscope.runtime.bench.measurement import bench
from flawscope.runtime.doctor.doctor_command import examine
from flawscope.runtime.engines import BuildOptions, build_engine, import_tensorrt, named_target
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.detectors.lafite import standardized_features
from flawscope.training.detectors.lafite_network import JoinedFeatures
from flawscope.training.features.backbone import untrained_backbone
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.settings import read_settings

pytestmark = pytest.mark.long

SETTINGS: dict[str, Any] = {
    "backbone": "scattering",
    "resize": 32,
    "stages": [1, 2],
    "grid": [8, 8],
    "widths": [16, 16],
    "layers": 1,
    "attention": [4],
    "head_width": 8,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "held_out_minimum": 5,
    "preview_every": 1,
    "steps": 3,
    "score_window": 4,
    "device": "cpu",
}
PARTS: dict[str, dict[str, Any]] = {
    "both": {},
    "editing": {"diffusion": False},
    "diffusion": {"editing": False},
}


def config(**changes: object) -> LafiteConfig:
    settings = build_config("lafite", {**SETTINGS, **changes})[0]
    assert isinstance(settings, LafiteConfig)
    return settings


def train(root: Path, out: Path, resume: bool = False, **changes: object) -> Path:
    train_detector(config(**changes), open_dataset(root, CATEGORY), out, resume=resume)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lafite")
    return {name: train(tiny_root, folder / f"run-{name}", **changes) for name, changes in PARTS.items()}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lafite")
    for name, run in runs.items():
        export_run(run, folder / f"{name}.flaw", max_batch=3)
    return {name: folder / f"{name}.flaw" for name in runs}


def part_images(root: Path) -> np.ndarray:
    paths = [*normal_images(root)[:2], *anomalous_images(root)[:2]]
    return np.stack([prepare(read_image(path), config().preprocessing) for path in paths])


# --- features


def test_stages_are_resampled_without_leaving_out_values_and_standardized() -> None:
    backbone = untrained_backbone(config().features)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    channels = JoinedFeatures(backbone, (4, 8), (32, 32)).channels
    offset, factor = torch.linspace(-1, 1, channels), torch.linspace(1, 2, channels)
    got = JoinedFeatures(backbone, (4, 8), (32, 32), offset, factor)(image)
    joined = torch.cat(
        [
            functional.interpolate(stage, size=(4, 8), mode="bilinear", align_corners=False, antialias=True)
            for stage in backbone(image)
        ],
        dim=1,
    )
    expected = (joined - offset[:, None, None]) * factor[:, None, None]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "channels"), [("efficientnet_b4", 24 + 32 + 56 + 160), ("convnext_atto", 40 + 80 + 160 + 320)]
)
def test_null_stages_are_those_of_strides_2_to_16_or_all_where_there_are_fewer(backbone: str, channels: int) -> None:
    settings = build_config("lafite", {"backbone": backbone})[0]
    assert isinstance(settings, LafiteConfig)
    assert LafiteConfig().features.backbone == "efficientnet_b4"
    assert JoinedFeatures(untrained_backbone(settings.features), (32, 32), (224, 224)).channels == channels


def test_scattering_takes_the_stages_that_it_has() -> None:
    settings = build_config("lafite", {"backbone": "scattering"})[0]
    assert isinstance(settings, LafiteConfig)
    given = build_config("lafite", {"backbone": "scattering", "stages": [1, 2, 3]})[0]
    assert isinstance(given, LafiteConfig)
    channels = [
        JoinedFeatures(untrained_backbone(chosen.features), (8, 8), (64, 64)).channels for chosen in (settings, given)
    ]
    assert channels[0] == channels[1]


def test_features_of_normal_images_have_mean_0_and_deviation_1(tiny_root: Path) -> None:
    settings = config()
    paths = normal_images(tiny_root)
    reader = ImageReader(paths, settings.preprocessing, 1, 64, no_progress)
    features = standardized_features(settings, untrained_backbone(settings.features), reader, no_progress)
    images = np.stack([prepare(read_image(path), settings.preprocessing) for path in paths])
    with torch.inference_mode():
        found = features(torch.from_numpy(images)).double()
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(features.channels).double(), rtol=0, atol=1e-3)
    deviations = found.std(dim=(0, 2, 3), correction=0)
    # Channels that hardly change are not blown up to 1.
    assert (deviations < 1 + 1e-3).all()
    assert (deviations > 1 - 1e-3).float().mean() > 0.5


# --- the whole way


@pytest.mark.parametrize("part", PARTS)
def test_the_bundle_scores_as_torch_does_and_holds_what_its_part_needs(
    tiny_root: Path, runs: dict[str, Path], bundles: dict[str, Path], part: str
) -> None:
    run, images = read_run(runs[part]), part_images(tiny_root)
    expected_maps, expected = run.module.scores(images)
    with Inspector.load(bundles[part], "cpu") as inspector:
        maps, scores = inspector.infer(images[:3])
        manifest = inspector.manifest
    np.testing.assert_allclose(scores, expected[:3], rtol=1e-4)
    np.testing.assert_allclose(maps, expected_maps[:3], rtol=0, atol=1e-3 * expected_maps.max())
    with open_bundle(bundles[part]) as bundle:
        tensors = set(bundle.tensors())
    has_editing, has_diffusion = part != "diffusion", part != "editing"
    assert ("bank" in tensors, "noise" in tensors) == (has_editing, has_diffusion)
    assert set(manifest.graphs) == {"encode", *(["denoise"] if has_diffusion else [])}
    assert isinstance(manifest.head, LafiteHead)
    assert (manifest.head.sampling is not None, manifest.head.neighbors > 0) == (has_diffusion, has_editing)
    assert len(manifest.golden) == 2
    assert manifest.evidence is not None


def test_fast_scores_are_those_of_the_reference(tiny_root: Path, runs: dict[str, Path]) -> None:
    module, images = read_run(runs["both"]).module, part_images(tiny_root)
    exact_maps, exact = module.scores(images)
    maps, scores = module.scores(images, exact=False)
    np.testing.assert_allclose(scores, exact, rtol=1e-3)
    np.testing.assert_allclose(maps, exact_maps, rtol=0, atol=1e-2 * exact_maps.max())


@pytest.mark.parametrize(
    ("changes", "rows"),
    [({}, 6.4), ({"coreset": 7}, "7"), ({"max_bank": 5}, "5"), ({"candidates": 1}, 1.0)],
)
def test_the_bank_is_a_tenth_of_all_patches_within_its_limits(
    tmp_path: Path, tiny_root: Path, changes: dict[str, Any], rows: float | str
) -> None:
    """Rows for each image as a number, in all as text."""
    run = read_run(train(tiny_root, tmp_path / "run", diffusion=False, **changes))
    bank = run.fitted.tensors["bank"]
    assert len(bank) == (int(rows) if isinstance(rows, str) else round(rows * len(run.record.training)))
    assert len(np.unique(bank, axis=0)) == len(bank)


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, tiny_root: Path, runs: dict[str, Path]
) -> None:
    with killed_at_checkpoint():
        train(tiny_root, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(tiny_root, tmp_path / "run", resume=True)
    resumed, whole = (folder / "weights.safetensors" for folder in (tmp_path / "run", runs["both"]))
    assert resumed.read_bytes() == whole.read_bytes()


def test_every_verb_takes_the_bundle(
    tmp_path: Path, tiny_root: Path, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [Path(shutil.copytree(bundles[name], tmp_path / f"{name}.flaw")) for name in ("both", "editing")]
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    for copy in copies:
        assert cli.run(["calibrate", str(copy), *data, "--false-reject-rate", "0.3"]) == 0
    report = tmp_path / "report.json"
    assert cli.run(["evaluate", str(copies[0]), *data, "--backend", "cpu", "--json", str(report)]) == 0
    assert 0.0 <= json.loads(report.read_text())["image_auroc"] <= 1.0
    source = str(anomalous_images(tiny_root)[0])
    assert cli.run(["score", str(copies[0]), source]) in (0, 1)
    with Inspector.load(copies[0], "cpu") as inspector:
        assert bench(inspector, batch=2, seconds=0.2)["latency_ms"]["infer"]["p50"] > 0
    assert examine(copies[0], "cpu", "fp32")["graph"] == "encode.onnx, denoise.onnx"
    combined = tmp_path / "combined.flaw"
    assert cli.run(["bundle", "combine", *map(str, copies), "--out", str(combined), *data]) == 0
    with Inspector.load(combined, "cpu") as inspector:
        assert inspector(Path(source)).score is not None
    capsys.readouterr()
    assert cli.run(["score", str(copies[0]), source, "--path", "kernel"]) == 2
    assert "path kernel: expected a method with a bank, got lafite" in capsys.readouterr().err


@pytest.mark.parametrize("graph", ["encode", "denoise"])
def test_every_network_builds_as_an_engine(bundles: dict[str, Path], graph: str) -> None:
    tensorrt = import_tensorrt("tensorrt-rtx")
    target = named_target("8.9", tensorrt.compute_capabilities())
    with open_bundle(bundles["both"]) as opened:
        built = build_engine(tensorrt, opened.path / opened.graph_file(graph), target, BuildOptions(1, 1, 3))
    assert len(built.plan) > 1000


def test_the_run_says_what_it_learned_and_the_drawn_check_is_made(runs: dict[str, Path]) -> None:
    record = read_run(runs["both"]).record
    assert record.facts["epochs"] == 2
    assert record.facts["bank_rows"] == len(read_run(runs["both"]).fitted.tensors["bank"])
    assert record.drawn is not None
    assert "epochs" not in read_run(runs["editing"]).record.facts
    assert (runs["both"] / "previews" / "epoch_0001.png").is_file()


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [8, 7]}, "grid: expected multiples of 2"),
        ({"grid": [64, 64]}, r"up to the input's \[32, 32\]"),
        ({"editing": False, "diffusion": False}, "editing: expected true if diffusion is false"),
        ({"neighbors": 64}, "neighbors: expected 1 to 63"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"temperature": float("nan")}, "temperature: expected a positive number"),
        ({"mix": 0.0}, "mix: expected a share above 0"),
        ({"score_window": 33}, "score_window: expected 1 to 32 pixels"),
        ({"coreset": -1}, "coreset: expected"),
        ({"candidates": 0}, "candidates: expected"),
        ({"steps": 500}, "steps: expected 1 to 300"),
        ({"widths": [16]}, "widths: expected two or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        config(**changes)


@pytest.mark.parametrize("missing", ["denoiser.network.conv_in.weight", "bank.bank", "bank.noise", "bank.factor"])
def test_a_run_without_a_part_is_refused(tmp_path: Path, runs: dict[str, Path], missing: str) -> None:
    copy = Path(shutil.copytree(runs["both"], tmp_path / "run"))
    tensors = safetensors.numpy.load_file(copy / "weights.safetensors")
    assert tensors.pop(missing) is not None
    safetensors.numpy.save_file(tensors, copy / "weights.safetensors")
    with pytest.raises(RunError, match="expected"):
        read_run(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank": None}, "expected the tensor bank"),
        ({"noise": None}, "expected the tensor noise"),
        ({"noise": (1, 3, 8, 8)}, "expected rows of the noise's 3 channels"),
        ({"noise": (1, 3, 8, 4)}, "noise: expected 1 arrays on a grid of"),
    ],
)
def test_a_bundle_whose_tensors_do_not_fit_is_refused(
    tmp_path: Path, bundles: dict[str, Path], changes: dict[str, Any], message: str
) -> None:
    from flawscope.bundle import decode_manifest, write_bundle

    source = bundles["both"]
    tensors = safetensors.numpy.load_file(source / "bank.safetensors")
    for name, shape in changes.items():
        del tensors[name]
        if shape is not None:
            tensors[name] = np.ones(shape, np.float32)
    manifest = decode_manifest((source / "manifest.json").read_bytes(), source)
    files: dict[str, Path | bytes] = {name: source / name for name in manifest.files}
    files["bank.safetensors"] = safetensors.numpy.save(tensors)
    write_bundle(tmp_path / "broken.flaw", manifest, files)
    with pytest.raises(BundleError, match=message):
        Inspector.load(tmp_path / "broken.flaw", "cpu")


# --- the preset


def test_the_preset_has_the_published_values() -> None:
    paper = build_config("lafite", read_settings("lafite-paper"))[0]
    assert isinstance(paper, LafiteConfig)
    assert paper.preprocessing.size == (224, 224)
    assert paper.grid == (32, 32)
    assert paper.widths == (256, 512, 768, 1024)
    assert (paper.loop.epochs, paper.loop.batch_size, paper.loop.learning_rate) == (1000, 64, 1e-4)
    assert (paper.loop.schedule, paper.denoising.weight_decay, paper.coreset) == ("drop", 1e-4, 0.1)
    assert paper.sampling == Sampling(betas="cosine", start=500, steps=10, clip=False)
    assert paper.maps.sigma == 4.0
