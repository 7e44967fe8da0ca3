"""The autoencoder: both halves as numbers and as graphs, its loss, its figures, and a training that learns."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from interrupted import Killed, killing_progress
from tiny_dataset import normal_images
from torch import Tensor, nn

from flawscope.config import AutoencoderConfig, build_config
from flawscope.datasets import hash_contents, open_dataset
from flawscope.errors import DataError, RunError
from flawscope.export.onnx_trace import OPSET, export_module
from flawscope.progress import Progress, no_progress
from flawscope.training.diffusion.autoencoder import (
    AutoencoderTask,
    Decoder,
    Encoder,
    Normalization,
    build_autoencoder,
    perceptual_distances,
    restore_autoencoder,
    train_autoencoder,
)
from flawscope.training.features.backbone import Backbone, untrained_backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader

SIDE = 32
SETTINGS = {
    "resize": SIDE,
    "widths": [8, 16],
    "layers": 1,
    "epochs": 4,
    "batch_size": 4,
    "accumulate": 1,
    "learning_rate": 3e-3,
    "preview_every": 2,
}
BOTH: tuple[Normalization, ...] = ("signed", "imagenet")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class TwoStages(nn.Module):
    """A feature network small enough for a test: two convolutions, two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 7, 3, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        stage = torch.tanh(self.first(image))
        return [stage, self.second(stage)]


def config(**changes: object) -> AutoencoderConfig:
    settings = build_config("autoencoder", {**SETTINGS, **changes})[0]
    assert isinstance(settings, AutoencoderConfig)
    return settings


def backbone() -> Backbone:
    torch.manual_seed(1)
    network = Backbone(TwoStages(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    network.eval().requires_grad_(False)
    return network


def autoencoder(seed: int = 0, **changes: object) -> Any:
    torch.manual_seed(seed)
    return build_autoencoder(config(**changes)).eval()


def images(count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))


def all_bytes() -> Tensor:
    """Every byte in every channel, uint8 [1, 16, 16, 3]."""
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3).contiguous()


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def train(
    root: Path, folder: Path, resume: bool = False, progress: Progress = no_progress, **changes: object
) -> FitResult:
    dataset = open_dataset(root, "steel")
    hashes = hash_contents([sample.path for sample in dataset.train_good])
    settings = config(**changes)
    return train_autoencoder(
        settings, untrained_backbone(config().features), dataset.train_good, hashes, folder, resume, progress
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> tuple[Path, FitResult]:
    """The folder of a training, and what came out of it."""
    folder = tmp_path_factory.mktemp("autoencoder")
    return folder, train(tiny_root, folder)


# --- the halves


def test_latents_are_the_scaled_mean_and_the_decoder_undoes_the_scale() -> None:
    network = autoencoder()
    encoder, decoder = Encoder(network, "signed"), Decoder(network, "signed")
    part_images = images()
    with torch.no_grad():
        latents, again = encoder(part_images), encoder(part_images)
        signed = (part_images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
        expected = 0.18215 * network.encode(signed).latent_dist.mean
        restored = decoder(latents)
        decoded = network.decode(latents / 0.18215).sample
    assert latents.shape == (3, 4, SIDE // 2, SIDE // 2)
    assert restored.shape == (3, 3, SIDE, SIDE)
    assert latents.dtype == restored.dtype == torch.float32
    assert torch.equal(latents, again)
    torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(restored, decoded.clamp(-1, 1), rtol=1e-6, atol=1e-7)


def test_signed_is_exact_for_every_byte() -> None:
    encoder, decoder = Encoder(autoencoder(), "signed"), Decoder(autoencoder(), "signed")
    expected = ((np.arange(256) - 127.5) / 127.5).astype(np.float32).reshape(16, 16)
    normalised = encoder.normalised(all_bytes())
    for channel in normalised[0]:
        np.testing.assert_array_equal(channel.numpy(), expected)
    assert (float(normalised.min()), float(normalised.max())) == (-1.0, 1.0)
    assert torch.equal(decoder.signed(normalised), normalised)  # nothing is left to convert


def test_imagenet_is_exact_both_ways() -> None:
    encoder, decoder = Encoder(autoencoder(), "imagenet"), Decoder(autoencoder(), "imagenet")
    levels = np.arange(256)[:, None] / 255
    normalised = encoder.normalised(all_bytes())
    expected = ((levels - MEAN) / STD).reshape(16, 16, 3).transpose(2, 0, 1)
    np.testing.assert_allclose(normalised[0].numpy(), expected, rtol=1e-6, atol=1e-7)
    back = decoder.signed(normalised)[0].numpy()
    np.testing.assert_allclose(back, np.broadcast_to((2 * levels - 1).reshape(16, 16), (3, 16, 16)), rtol=0, atol=5e-7)


@pytest.mark.parametrize("normalization", BOTH)
def test_images_are_limited_whatever_the_normalisation(normalization: Normalization) -> None:
    network = autoencoder()
    with torch.no_grad():
        network.decoder.conv_out.weight.mul_(100.0)
        image = Decoder(network, normalization)(torch.randn((2, 4, 16, 16)))
    assert (float(image.min()), float(image.max())) == (-1.0, 1.0)


@pytest.mark.long
def test_both_halves_are_graphs_that_give_what_torch_gives() -> None:
    network = autoencoder()
    encoder, decoder = Encoder(network, "imagenet"), Decoder(network, "imagenet")
    graph = export_module(encoder, (SIDE, SIDE), 8, ("latents",))
    taking = [node.op_type for node in graph.graph.node if "image" in node.input]
    assert taking == ["Cast"]
    example = torch.zeros((2, 4, SIDE // 2, SIDE // 2))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            decoder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["latents"],
            output_names=["picture"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1, max=8)},),
            verbose=False,
        )
    assert program is not None
    sessions = [session(model) for model in (graph, program.model_proto)]
    for count in (1, 2, 5):
        part_images = images(count)
        with torch.inference_mode():
            latents = encoder(part_images)
            restored = decoder(latents)
        output = sessions[0].run(None, {"image": part_images.numpy()})[0]
        np.testing.assert_allclose(output, latents.numpy(), rtol=1e-4, atol=1e-5)
        output = sessions[1].run(None, {"latents": latents.numpy()})[0]
        np.testing.assert_allclose(output, restored.numpy(), rtol=1e-4, atol=1e-5)
    names = {value.name for value in graph.graph.initializer}
    assert not any("decoder" in name for name in names)  # a half carries its own weights only


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


# --- the loss


def test_the_perceptual_distance_is_that_of_features_of_unit_length() -> None:
    network, part_images = backbone(), images()
    restored = torch.rand((3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1
    distances = perceptual_distances(network, part_images, restored)
    values = (restored.permute(0, 2, 3, 1).numpy() + 1) / 2
    normalised = (values - np.array(network.mean)) / np.array(network.std)
    with torch.no_grad():
        of_restored = network.network(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())
    expected = np.zeros(3)
    for first, second in zip(network(part_images), of_restored, strict=True):
        a, b = first.numpy().astype(np.float64), second.numpy().astype(np.float64)
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        expected += ((a - b) ** 2).sum(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-5)
    same = part_images.permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_allclose(perceptual_distances(network, part_images, same).numpy(), 0.0, atol=1e-9)


def loss_of(task: AutoencoderTask, batch: Tensor, seed: int) -> float:
    return float(task.loss(task.network, batch, torch.Generator().manual_seed(seed)).detach())


@pytest.mark.parametrize("normalization", BOTH)
def test_the_loss_is_the_sum_of_its_three_terms(tiny_root: Path, normalization: Normalization) -> None:
    part_images, batch = held_back(tiny_root), images()
    losses = {}
    for perceptual, kl in ((0.0, 0.0), (0.0, 0.5), (0.25, 0.0), (0.25, 0.5)):
        settings = config(normalization=normalization, backbone="resnet18", perceptual=perceptual, kl=kl)
        task = AutoencoderTask(settings, backbone(), part_images)
        losses[perceptual, kl] = loss_of(task, batch, 7)
    network = autoencoder(normalization=normalization)
    expected = Encoder(network, normalization).normalised(batch)
    with torch.no_grad():
        posterior = network.encode(expected).latent_dist
        decoded = network.decode(posterior.sample(torch.Generator().manual_seed(7))).sample
    differences = (decoded - expected).abs().sum(dim=(1, 2, 3))
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum(dim=(1, 2, 3))
    signed = Decoder(network, normalization).signed(decoded)
    distance = 3 * SIDE * SIDE * perceptual_distances(backbone(), batch, signed)
    for (perceptual, kl), loss in losses.items():
        terms = float((differences + perceptual * distance + kl * divergence).mean())
        assert loss == pytest.approx(terms, rel=1e-5)
    assert losses[0.25, 0.0] > losses[0.0, 0.0] < losses[0.0, 0.5]


def test_gradients_reach_the_whole_network_and_never_the_backbone(tiny_root: Path) -> None:
    features = backbone()
    task = AutoencoderTask(config(backbone="resnet18"), features, held_back(tiny_root))
    task.loss(task.network, images(), torch.Generator().manual_seed(0)).backward()
    for name, parameter in task.network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    assert all(parameter.grad is None for parameter in features.parameters())


def test_the_scattering_backbone_leaves_the_perceptual_loss_out(tiny_root: Path) -> None:
    part_images, batch = held_back(tiny_root), images()
    without, fixed = (
        AutoencoderTask(config(**changes), backbone(), part_images)
        for changes in ({"backbone": "resnet18", "perceptual": 0.0}, {"backbone": "scattering"})
    )
    first, second = (loss_of(task, batch, 0) for task in (without, fixed))
    assert first == second


def test_training_draws_its_latents_with_the_generator(tiny_root: Path) -> None:
    task = AutoencoderTask(config(), backbone(), held_back(tiny_root))
    first, again, other = (loss_of(task, images(), seed) for seed in (0, 0, 1))
    assert first == again != other


# --- what is told of it


def held_back(root: Path) -> ImageReader:
    return ImageReader(normal_images(root)[:5], config().preprocessing, 1, 100)


@pytest.mark.parametrize("normalization", BOTH)
def test_figures_and_preview_are_of_the_images_held_back(
    tiny_root: Path, tmp_path: Path, normalization: Normalization
) -> None:
    images = held_back(tiny_root)
    task = AutoencoderTask(config(normalization=normalization), backbone(), images)
    given_images = np.concatenate(list(images.batches(range(5), 5)))
    network = task.autoencoder
    encoder, decoder = Encoder(network, normalization), Decoder(network, normalization)
    with torch.inference_mode():
        latents = encoder(torch.from_numpy(given_images))
        restored = decoder(latents).permute(0, 2, 3, 1).numpy().astype(np.float64)
    difference = restored - (given_images / 127.5 - 1)
    figures = task.validate()
    assert figures["error"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    # On bytes the peak is 255.
    assert figures["psnr"] == pytest.approx(10 * np.log10(255**2 / ((127.5 * difference) ** 2).mean()), rel=1e-5)
    assert figures["latent_std"] == pytest.approx(latents.numpy().astype(np.float64).std() / 0.18215, rel=1e-5)
    task.preview(tmp_path / "preview.png")
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "preview.png")), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (2 * SIDE, 4 * SIDE, 3)
    for column in range(4):
        part = sheet[:, column * SIDE : (column + 1) * SIDE]
        np.testing.assert_array_equal(part[:SIDE], given_images[column])
        np.testing.assert_allclose(part[SIDE:], (restored[column] + 1) * 127.5, atol=0.51)


# --- training


@pytest.mark.long
def test_training_lowers_the_error_and_measures_the_scale(trained: tuple[Path, FitResult], tiny_root: Path) -> None:
    folder, fitted = trained
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    first, best = lines[0], min(lines, key=lambda line: line["error"])
    assert best["error"] < 0.7 * first["error"]
    assert best["psnr"] > first["psnr"]
    assert fitted.facts["best_epoch"] == best["epoch"]
    assert fitted.facts["validation_error"] == pytest.approx(best["error"], rel=1e-5)
    assert fitted.facts["psnr"] == pytest.approx(best["psnr"], rel=1e-5)
    assert fitted.facts["scaling"] == 1.0 / best["latent_std"]
    assert fitted.grid == (SIDE // 2, SIDE // 2)
    assert sorted(path.name for path in (folder / "previews").iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    # What the encoder gives has a deviation near 1 on other normal images too.
    restored = restore_autoencoder(config(), fitted.networks["autoencoder"], float(fitted.facts["scaling"]))
    images = np.concatenate(list(held_back(tiny_root).batches(range(5), 5)))
    with torch.inference_mode():
        assert float(Encoder(restored, "signed")(torch.from_numpy(images)).std()) == pytest.approx(1.0, abs=0.2)


def assert_same_training(first: tuple[Path, FitResult], second: tuple[Path, FitResult]) -> None:
    assert metrics(first[0]) == metrics(second[0])
    assert first[1].facts == second[1].facts
    state, other = first[1].networks["autoencoder"], second[1].networks["autoencoder"]
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.long
def test_the_same_seed_gives_the_same_losses_and_another_does_not(
    trained: tuple[Path, FitResult], tiny_root: Path, tmp_path: Path
) -> None:
    assert_same_training(trained, (tmp_path / "again", train(tiny_root, tmp_path / "again")))
    train(tiny_root, tmp_path / "other", epochs=1, seed=1)
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(trained[0])[0]["loss"]


@pytest.mark.parametrize("stop_at", [3, 12])
@pytest.mark.long
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    trained: tuple[Path, FitResult], tiny_root: Path, tmp_path: Path, stop_at: int
) -> None:
    with pytest.raises(Killed):
        train(tiny_root, tmp_path, progress=killing_progress(stop_at))
    assert (tmp_path / "checkpoints").is_dir() == (stop_at > 5)  # an epoch has five batches
    assert_same_training(trained, (tmp_path, train(tiny_root, tmp_path, resume=True)))


def test_too_few_images_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    samples = open_dataset(tiny_root, "steel").train_good[:3]
    with pytest.raises(DataError, match="autoencoder: expected at least 4 normal training images, got 3"):
        train_autoencoder(config(), backbone(), samples, {}, tmp_path, False, no_progress)


def test_latents_that_are_all_the_same_are_refused(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapsed(made: AutoencoderConfig) -> Any:
        network: Any = build_autoencoder(made)
        with torch.no_grad():
            network.quant_conv.weight.zero_()
            network.quant_conv.bias.zero_()
        network.quant_conv.requires_grad_(False)
        return network

    monkeypatch.setattr("flawscope.training.diffusion.autoencoder.build_autoencoder", collapsed)
    with pytest.raises(
        RunError, match=r"expected latents that differ, got a standard deviation of 0\..*--set kl=1e-07"
    ):
        train(tiny_root, tmp_path, epochs=1)


def test_what_was_trained_from_a_folder_keeps_its_scale_and_needs_it_no_more(tiny_root: Path, tmp_path: Path) -> None:
    start, stored = autoencoder(seed=3), tmp_path / "kl"
    start.register_to_config(scaling_factor=0.5)
    start.save_pretrained(stored)
    begun = config(base=str(stored))
    fitted = train(tiny_root, tmp_path / "training", epochs=1, base=str(stored))
    assert fitted.facts["scaling"] == 0.5
    shutil.rmtree(stored)
    restored: Any = restore_autoencoder(begun, fitted.networks["autoencoder"], 0.5)
    assert restored.config["scaling_factor"] == 0.5
    assert not restored.training
    # It has learned, from there.
    change = (restored.encoder.conv_in.weight - start.encoder.conv_in.weight).detach()
    assert 0 < float(change.abs().max()) < 0.05
