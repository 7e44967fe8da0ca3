"""DDAD: trained, resumed, exported, judged; the scales of its maps; its extractor; what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from interrupted import killed_at_checkpoint
from published_weights import write_backbone_weights
from scipy.stats import spearmanr
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope import cli
from flawscope.bundle import DdadHead, open_bundle, rewrite_manifest
from flawscope.config import DdadConfig, build_config
from flawscope.datasets import image_hash, open_dataset
from flawscope.diffusion.reconstruction import MapRule, finish_maps
from flawscope.diffusion.schedule import Sampling, plan_steps, start_share
from flawscope.errors import ArgumentError, BundleError, DataError, RunError
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.runtime import Inspector
from flawscope.runtime.bench.measurement import bench
from flawscope.runtime.doctor.doctor_command import examine
from flawscope.runtime.engines import BuildOptions, build_engine, import_tensorrt, named_target
from flawscope.training.detectors.ddad import DenoiserTask, measure_scales
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.diffusion.comparison import Comparison
from flawscope.training.diffusion.diffusers_networks import group_count, head_width
from flawscope.training.diffusion.unet import Denoiser
from flawscope.training.loop.image_batches import ImageReader

pytestmark = pytest.mark.long

SETTINGS: dict[str, Any] = {
    "backbone": "scattering",
    "resize": 32,
    "stages": [1, 2],
    "widths": [8, 16],
    "layers": 1,
    "attention": [16],
    "epochs": 2,
    "batch_size": 8,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "held_out_minimum": 5,
    "preview_every": 1,
    "checkpoint_every": 1,
    "steps": 3,
    "eta": 1.0,
}


def config(**changes: object) -> DdadConfig:
    settings = build_config("ddad", {**SETTINGS, **changes})[0]
    assert isinstance(settings, DdadConfig)
    return settings


def train(root: Path, out: Path, weights: Path | None = None, resume: bool = False, **changes: object) -> Path:
    train_detector(config(**changes), open_dataset(root, CATEGORY), out, weights=weights, resume=resume)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    return train(tiny_root, tmp_path_factory.mktemp("ddad") / "run")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    out = tmp_path_factory.mktemp("ddad") / "ddad.flaw"
    export_run(run, out, max_batch=3)
    return out


def part_images(root: Path) -> np.ndarray:
    paths = [*normal_images(root)[:2], *anomalous_images(root)[:2]]
    return np.stack([prepare(read_image(path), config().preprocessing) for path in paths])


# --- the network


@pytest.mark.parametrize(("widths", "groups", "width"), [((8, 16), 8, 8), ((32, 64, 96), 32, 8), ((10, 15), 5, 5)])
def test_groups_and_heads_fit_the_widths(widths: tuple[int, ...], groups: int, width: int) -> None:
    assert group_count(widths) == groups
    assert head_width(8, widths) == width


def test_attention_is_where_the_references_have_it() -> None:
    network = Denoiser(config(resize=128, widths=[8, 8, 8, 8, 8])).network
    kinds = [type(block).__name__ for block in network.down_blocks]
    assert kinds == ["DownBlock2D"] * 3 + ["AttnDownBlock2D", "DownBlock2D"]
    assert [type(block).__name__ for block in network.up_blocks] == ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 3


def test_the_default_widths_are_those_of_the_two_sizes() -> None:
    assert build_config("ddad", {"resize": 128})[0].unet_widths == (128, 128, 256, 384, 512)  # type: ignore[attr-defined]
    assert build_config("ddad", {})[0].unet_widths == (128, 128, 256, 256, 512, 512)  # type: ignore[attr-defined]


# --- the maps


def comparison(**changes: object) -> Comparison:
    from flawscope.training.features.backbone import build_backbone

    settings = config(**changes)
    return Comparison(build_backbone(settings.features, None)[0], settings.pixel_map, settings.smoothing)


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8))


def as_signed(image: torch.Tensor) -> torch.Tensor:
    return (image.float() / 127.5 - 1).permute(0, 3, 1, 2)


def test_a_perfect_reconstruction_differs_nowhere() -> None:
    pixel, feature = comparison()(images(), as_signed(images()))
    assert pixel.shape == feature.shape == (2, 32, 32)
    assert float(pixel.abs().max()) < 1e-10
    assert float(feature.abs().max()) < 1e-5


def test_pixel_maps_are_the_references_formulas() -> None:
    image, other = images(), as_signed(images(seed=1))
    squared = comparison(pixel_map="squared")(image, other)[0]
    expected = ((image.float() / 255).permute(0, 3, 1, 2) - (other + 1) / 2).square().amax(dim=1)
    torch.testing.assert_close(squared, expected, atol=1e-6, rtol=1e-5)
    absolute = comparison(pixel_map="absolute")(image, other)[0]
    torch.testing.assert_close(absolute, (as_signed(image) - other).abs().mean(dim=1), atol=1e-6, rtol=1e-5)


def test_the_feature_map_is_the_sum_of_one_minus_cosine_over_the_stages() -> None:
    compare = comparison(smoothing=3)
    image, other = images(), images(seed=1)
    feature_map = compare(image, as_signed(other))[1]
    expected = torch.zeros(2, 32, 32)
    for first, second in zip(compare.backbone(image), compare.backbone(other), strict=True):
        smooth = [torch.nn.functional.avg_pool2d(stage, 3, 1, 1) for stage in (first, second)]
        away = 1 - torch.cosine_similarity(*smooth, dim=1)
        expected += torch.nn.functional.interpolate(away[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(feature_map, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("scale", "share"), [("quantile", 0.999), ("max", 1.0)])
def test_scales_are_measured_on_smoothed_maps_of_held_back_images(tiny_root: Path, scale: str, share: float) -> None:
    settings = config(map_scale=scale)
    validation = ImageReader(normal_images(tiny_root), settings.preprocessing, 1, 64)
    task = DenoiserTask(settings, comparison().backbone, validation)
    reconstruction = task.reconstruction(MapRule(1.0, 1.0, 0.0))
    reconstructed = reconstruction(next(validation.batches(range(len(validation)), len(validation))))
    measured = measure_scales(settings, reconstruction, validation, no_progress)
    for value, rule in zip(
        measured, (MapRule(1, 0, settings.maps.sigma), MapRule(0, 1, settings.maps.sigma)), strict=True
    ):
        expected = np.quantile(finish_maps(reconstructed.pixel, reconstructed.feature, rule)[0], share)
        assert value == pytest.approx(float(expected), rel=1e-4)
    fixed = measure_scales(config(pixel_threshold=0.029), reconstruction, validation, no_progress)
    assert fixed[0] == 0.029
    assert measure_scales(
        config(pixel_threshold=0.5, feature_threshold=0.25), reconstruction, validation, no_progress
    ) == (0.5, 0.25)


# --- the training


def test_the_denoiser_learns(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["error"] < lines[0]["error"]
    record = read_run(run).record
    assert record.facts["epochs"] == 2
    assert record.rule is not None
    assert record.rule.pixel_factor == pytest.approx(0.7 / float(record.facts["pixel_scale"]), rel=1e-4)
    assert record.rule.feature_factor == pytest.approx(0.7 / float(record.facts["feature_scale"]), rel=1e-4)


def test_previews_show_image_reconstruction_and_map(run: Path) -> None:
    preview = cv2.imread(str(run / "previews" / "epoch_0002.png"))
    assert preview is not None
    assert preview.shape[1] == 3 * 32
    assert preview.std() > 5


def test_the_loss_is_the_error_of_the_noise_and_its_sum_counts_every_value(tiny_root: Path) -> None:
    validation = ImageReader(normal_images(tiny_root), config().preprocessing, 1, 64)
    losses = []
    for kind in ("mean", "sum"):
        task = DenoiserTask(config(loss=kind), comparison().backbone, validation)
        losses.append(float(task.loss(task.network, images(4), torch.Generator().manual_seed(0)).detach()))
    assert losses[1] == pytest.approx(3 * 32 * 32 * losses[0], rel=1e-5)


def test_augmentation_and_simplex_noise_change_what_is_learned(tiny_root: Path) -> None:
    validation = ImageReader(normal_images(tiny_root), config().preprocessing, 1, 64)
    losses = set()
    for changes in ({}, {}, {"flip": True}, {"rotate": 15.0}, {"color_jitter": 0.3}, {"noise": "simplex"}):
        task = DenoiserTask(config(**changes), comparison().backbone, validation)
        loss = float(task.loss(task.network, images(4), torch.Generator().manual_seed(0)).detach())
        losses.add(round(loss, 5))  # coarser than rounding, and finer than what any of them changes
    assert len(losses) == 5  # the same settings twice give the same


@pytest.mark.parametrize("extractor", ["none", pytest.param("adaptation", marks=pytest.mark.slow)])
def test_a_training_that_was_killed_ends_with_the_same_weights(
    tmp_path: Path, tiny_root: Path, weights: Path, extractor: str
) -> None:
    changes: dict[str, Any] = {}
    if extractor != "none":
        changes = {**adapted(extractor), "weights": weights}
    whole = train(tiny_root, tmp_path / "whole", **changes)
    cut = tmp_path / "cut"
    with killed_at_checkpoint():
        train(tiny_root, cut, **changes)
    assert not cut.exists()
    if extractor != "none":  # its training is a part of its own: once more, in its second epoch
        with killed_at_checkpoint(2):
            train(tiny_root, cut, resume=True, **changes)
        assert not cut.exists()
    train(tiny_root, cut, resume=True, **changes)
    assert (cut / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert read_run(cut).record.facts == read_run(whole).record.facts


def test_too_few_images_are_refused(tmp_path: Path, tiny_root: Path) -> None:
    folder = tmp_path / "data" / "train" / "good"
    folder.mkdir(parents=True)
    for index, path in enumerate(normal_images(tiny_root)[:3]):
        (folder / f"{index}.png").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="ddad: expected at least 4 normal training images, got 3"):
        train_detector(config(held_out=0.0), open_dataset(tmp_path / "data"), tmp_path / "run")


# --- the extractor

NETWORK = "mobilenetv2_035"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone_weights(tmp_path_factory.mktemp("extractor") / "weights.safetensors", NETWORK)


def adapted(extractor: str) -> dict[str, Any]:
    return {"extractor": extractor, "extractor_epochs": 2, "backbone": NETWORK, "epochs": 1, "steps": 2}


@pytest.mark.parametrize("extractor", ["autoencoder", "diffusion", "adaptation"])
def test_the_extractor_learns_and_its_weights_are_those_of_the_run(
    tmp_path: Path, tiny_root: Path, weights: Path, extractor: str
) -> None:
    settings = config(**adapted(extractor), extractor_rate=1e-2)
    train_detector(settings, open_dataset(tiny_root, CATEGORY), tmp_path / "run", weights=weights)
    lines = (tmp_path / "run" / "extractor" / "metrics.jsonl").read_text().splitlines()
    errors = [json.loads(line)["error"] for line in lines]
    assert len(errors) == 2
    run = read_run(tmp_path / "run")
    assert run.record.facts["extractor_error"] == pytest.approx(min(errors), rel=1e-5)
    learned = run.module.networks.modules["compare"].backbone.network.state_dict()  # type: ignore[union-attr]
    start = safetensors.torch.load_file(weights)
    moved = [name for name in learned if name in start and not torch.equal(learned[name], start[name])]
    assert any("conv" in name for name in moved)
    statistics = [name for name in moved if name.endswith("running_mean")]
    assert (statistics == []) == (extractor == "adaptation")
    assert list((tmp_path / "run" / "extractor" / "previews").glob("*.png"))


def test_the_scattering_backbone_cannot_learn() -> None:
    with pytest.raises(ArgumentError, match="extractor: expected none for the backbone scattering"):
        config(extractor="adaptation")


# --- bundle and line


def test_the_bundle_scores_as_torch_does(tiny_root: Path, run: Path, bundle: Path) -> None:
    images = part_images(tiny_root)
    module = read_run(run).module
    expected = module(images)  # type: ignore[operator]
    with Inspector.load(bundle, "cpu") as inspector:
        maps, scores = inspector.infer(images[:3])
        rest = inspector.infer(images[3:])
    np.testing.assert_allclose(maps, expected.maps[:3], rtol=1e-3, atol=1e-4)
    scores = np.concatenate([scores, rest[1]])
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-3)
    assert spearmanr(scores, expected.scores).statistic >= 0.999


def test_scores_repeat_bit_for_bit_and_come_from_the_noise_of_the_bundle(tiny_root: Path, bundle: Path) -> None:
    images = part_images(tiny_root)[:1]
    with Inspector.load(bundle, "cpu") as first, Inspector.load(bundle, "cpu") as second:
        once = first.infer(images)
        for maps, scores in (first.infer(images), second.infer(images)):
            np.testing.assert_array_equal(maps, once[0])
            np.testing.assert_array_equal(scores, once[1])


def test_the_manifest_says_how_is_sampled(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    assert isinstance(manifest.head, DdadHead)
    assert manifest.head.sampling == Sampling(steps=3, eta=1.0, conditioning="ddad", weight=3.0)
    assert sorted(manifest.graphs) == ["compare", "denoise"]
    assert manifest.evidence.parity[0].score_spearman is None or manifest.evidence.parity[0].score_spearman >= 0.999


def test_noise_that_does_not_fit_the_sampling_is_refused(tmp_path: Path, bundle: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.flaw"))
    with open_bundle(copy) as opened:
        manifest = opened.manifest
    sampling = msgspec.structs.replace(manifest.head.sampling, steps=9)  # type: ignore[union-attr]
    rewrite_manifest(
        copy, msgspec.structs.replace(manifest, head=msgspec.structs.replace(manifest.head, sampling=sampling))
    )
    with pytest.raises(BundleError, match="noise: expected 9 arrays"):
        Inspector.load(copy, "cpu")


def test_every_verb_takes_the_bundle(tmp_path: Path, tiny_root: Path, bundle: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.flaw"))
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert cli.run(["calibrate", str(copy), *data, "--false-reject-rate", "0.3"]) == 0
    report = tmp_path / "report.json"
    assert cli.run(["evaluate", str(copy), *data, "--backend", "cpu", "--json", str(report)]) == 0
    assert 0.0 <= json.loads(report.read_text())["image_auroc"] <= 1.0
    source = str(anomalous_images(tiny_root)[0])
    assert cli.run(["score", str(copy), source, "--reconstructions", str(tmp_path / "pictures")]) == 0
    names = sorted(path.name.split("-")[1] for path in (tmp_path / "pictures").glob("*.png"))
    assert names == ["features.png", "heatmap.png", "input.png", "reconstruction.png", "samples.png", "strip.png"]
    strip = cv2.imread(str(next((tmp_path / "pictures").glob("*-strip.png"))))
    assert strip is not None
    assert strip.shape == (32, 96, 3)
    with Inspector.load(copy, "cpu") as inspector:
        figures = bench(inspector, batch=2, seconds=0.2)
    assert figures["latency_ms"]["infer"]["p50"] > 0
    examined = examine(copy, "cpu", "fp32")
    assert examined["graph"] == "denoise.onnx, compare.onnx"
    assert len(examined["nodes"]) > 20


def test_held_back_normal_images_stay_below_the_threshold_at_the_chosen_rate(
    tmp_path: Path, tiny_root: Path, bundle: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.flaw"))
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert cli.run(["calibrate", str(copy), *data, "--false-reject-rate", "0.3"]) == 0
    with Inspector.load(copy, "cpu") as inspector:
        held_out = set(read_held_out(copy))
        paths = [
            path
            for path in sorted((tiny_root / CATEGORY / "train" / "good").glob("*.png"))
            if image_hash(path) in held_out
        ]
        assert len(paths) == 5
        decisions = [result.decision for result in inspector(paths)]
    assert decisions.count("reject") <= 0.3 * len(paths)


def read_held_out(bundle: Path) -> list[str]:
    held_out: list[str] = json.loads((bundle / "images.json").read_text())["held_out"]
    return held_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["score", "{patchcore}", "{picture}", "--reconstructions", "{out}"],
            "expected a bundle that reconstructs images",
        ),
        (
            ["score", "{bundle}", "{picture}", "--path", "kernel"],
            "path kernel: expected a method with a bank, got ddad",
        ),
        (
            ["export", "{run}", "--out", "{out}", "--precision", "int8", "--calibration-data", "{data}"],
            r"expected one that ddad has (fp32, fp16, bf16), got int8",
        ),
        (["export-triton", "{bundle}", "--out", "{out}"], "expected a graph called score"),
        (["explain", "{run}"], "whose score is one graph"),
    ],
)
def test_what_a_reconstruction_cannot_do_is_refused_in_one_line(
    tmp_path: Path,
    tiny_root: Path,
    run: Path,
    bundle: Path,
    patchcore_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {
        "run": run,
        "bundle": bundle,
        "patchcore": patchcore_bundle,
        "picture": normal_images(tiny_root)[0],
        "out": tmp_path / "out",
        "data": tiny_root / CATEGORY,
    }
    assert cli.run([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not any("Traceback" in line for line in said)


def test_a_run_without_its_denoiser_is_refused(tmp_path: Path, run: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    tensors = safetensors.numpy.load_file(copy / "weights.safetensors")
    dropped = next(name for name in tensors if name.startswith("denoiser."))
    safetensors.numpy.save_file(
        {name: tensors[name] for name in tensors if name != dropped}, copy / "weights.safetensors"
    )
    with pytest.raises(RunError, match=r"denoiser: expected the \d+ tensors that its settings ask for"):
        read_run(copy)


@pytest.mark.parametrize("graph", ["denoise", "compare"])
def test_every_network_builds_as_an_engine(bundle: Path, graph: str) -> None:
    tensorrt = import_tensorrt("tensorrt-rtx")
    target = named_target("8.9", tensorrt.compute_capabilities())
    with open_bundle(bundle) as opened:
        built = build_engine(tensorrt, opened.path / opened.graph_file(graph), target, BuildOptions(1, 1, 3))
    assert len(built.plan) > 1000


@pytest.mark.slow
def test_large_images_are_reconstructed_in_tiles(tmp_path: Path, tiny_root: Path) -> None:
    out = train(tiny_root, tmp_path / "run", tile=32, epochs=1)
    export_run(out, tmp_path / "tiles.flaw", max_batch=4)
    with Inspector.load(tmp_path / "tiles.flaw", "cpu") as inspector:
        result = inspector(normal_images(tiny_root)[0])
    assert result.score is not None
    assert result.anomaly_map is not None
    assert result.anomaly_map.shape == (64, 64)


# --- the settings


def test_the_presets_fix_the_references_values() -> None:
    from flawscope.training.settings import read_settings

    seed = build_config("ddad", read_settings("dbad-seed"))[0]
    assert isinstance(seed, DdadConfig)
    assert seed.sampling == Sampling(eta=0.1, level="start", conditioning="blend", weight=0.1)
    assert (seed.pixel_threshold, seed.feature_threshold) == (0.029, 0.33)
    assert [step.timestep for step in plan_steps(seed.sampling)][:2] == [240, 230]
    assert start_share(seed.sampling) == pytest.approx(0.521, abs=5e-4)
    paper = build_config("ddad", read_settings("ddad-paper"))[0]
    assert isinstance(paper, DdadConfig)
    assert (paper.sampling.steps, paper.sampling.eta, paper.sampling.clip) == (10, 1.0, False)
    assert paper.unet_widths == (64, 64, 128, 128, 256, 256)
    assert (paper.loss, paper.denoising.optimizer, paper.denoising.weight_decay) == ("sum", "adam", 0.05)


@pytest.mark.parametrize(("conditioning", "weight"), [("ddad", 3.0), ("blend", 0.1), ("none", 0.0)])
def test_a_blend_never_copies_the_input_by_default(conditioning: str, weight: float) -> None:
    assert config(conditioning=conditioning).sampling.weight == weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 33}, "resize: expected sides that are multiples of 2"),
        ({"widths": [8]}, "widths: expected two or more"),
        ({"smoothing": 2}, "smoothing: expected an odd side"),
        ({"pixel_weight": 0.0, "feature_weight": 0.0}, "pixel_weight: expected above 0"),
        ({"steps": 300}, "steps: expected 1 to 250"),
        ({"pixel_threshold": 0.0}, "pixel_threshold: expected a positive number"),
        ({"betas": [0.9, 1.0]}, "betas: expected two decays"),
        ({"rotate": 200}, "rotate: expected 0 to 180 degrees"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        config(**changes)
