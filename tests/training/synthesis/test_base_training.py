"""The small base: its words, its images in latents, its loss, its training from end to end, and what it refuses."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from error_lines import reason
from hypothesis import given
from hypothesis import strategies as st
from interrupted import killed_at_checkpoint
from tiny_base import SIDE, tiny_autoencoder
from tiny_dataset import CATEGORY, normal_images, training_images
from tokenizers import Tokenizer, decoders
from torch import Tensor

from flawscope import cli
from flawscope.config import BaseConfig, build_config
from flawscope.datasets import Dataset, open_dataset
from flawscope.diffusion.latent_inpainting import keep_of
from flawscope.diffusion.prompts import PromptRules, Prompts
from flawscope.diffusion.schedule import signal_shares
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.progress import no_progress
from flawscope.runs import SynthesisRecord
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.diffusion.autoencoder import Encoder
from flawscope.training.diffusion.diffusers_folder import SAMPLING
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.synthesis.base_autoencoder import autoencoder_identity
from flawscope.training.synthesis.base_latents import Encoded, centred_autoencoder, encode_images, random_box
from flawscope.training.synthesis.base_model import open_base
from flawscope.training.synthesis.base_training import TEXTS, BaseTask, base_settings
from flawscope.training.synthesis.generator_run import read_synthesis_run
from flawscope.training.synthesis.generator_training import train_synthesis
from flawscope.training.synthesis.word_tokenizer import END, START, write_tokenizer
from flawscope.training.synthesis.word_tokenizer import LENGTH as WORDS

pytestmark = pytest.mark.long

# ---- Words -----------------------------------------------------------------------------------------------------------


def small_prompts(*names: str) -> Prompts:
    return Prompts(write_tokenizer(names), PromptRules(WORDS, 1))


def test_words_that_are_learned_or_told_are_single_tokens() -> None:
    prompts = small_prompts("magnetic_tile", "Zähler2")
    vocabulary = ["*", "defect", "scratch", "good", "a", "photo", "magnetic", "tile", "hler"]
    assert len({prompts.word(word) for word in vocabulary}) == len(vocabulary)
    assert prompts.word("Defect") == prompts.word("defect")
    tokenized = prompts.tokens(["a * (*) bottle_*."], 4, [np.ones((1, 4), np.float32)])
    assert tokenized.placed[0].sum() == 3
    assert set(tokenized.tokens[0][tokenized.placed[0] > 0].tolist()) == {prompts.word("*")}


PROMPTS = small_prompts(CATEGORY)
LETTERS = st.characters(exclude_categories=("Cc", "Cn", "Cs", "Zl", "Zp"))


@given(st.text(LETTERS, max_size=20))
def test_tokens_hold_all_of_a_text_but_case_and_spaces(text: str) -> None:
    tokens = TOKENIZER.encode(text).tokens
    assert (tokens[0], tokens[-1]) == (START, END)
    inside = "".join(token.removeprefix("##") for token in tokens[1:-1])
    lower = "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))
    assert decoders.ByteLevel().decode([inside]) == "".join(lower.split())


TOKENIZER = Tokenizer.from_buffer(write_tokenizer([CATEGORY]))


def test_the_tokenizer_is_the_same_for_the_same_names() -> None:
    assert write_tokenizer(["b", "a"]) == write_tokenizer(["a", "b"])
    assert write_tokenizer(["qwertz"]) != write_tokenizer(["asdf"])


# ---- The small base --------------------------------------------------------------------------------------------------


SETTINGS: dict[str, Any] = {
    "resize": SIDE,
    "widths": [8, 16],
    "heads": 2,
    "context": 8,
    "text_layers": 1,
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "preview_every": 2,
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    tiny_autoencoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tiny_root: Path) -> Dataset:
    return open_dataset(tiny_root, CATEGORY)


def config(autoencoder: Path | None, **changes: object) -> BaseConfig:
    named = {} if autoencoder is None else {"autoencoder": str(autoencoder)}
    settings = build_config("base", {**SETTINGS, **named, **changes})[0]
    assert isinstance(settings, BaseConfig)
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, autoencoder: Path, dataset: Dataset) -> tuple[Path, SynthesisRecord]:
    """A run that fills boxes, in half precision."""
    out = tmp_path_factory.mktemp("base") / "run"
    settings = config(autoencoder, inpainting=True, mixed_precision="bf16")
    return out, train_synthesis(settings, dataset, out)


def test_a_base_learns(run: tuple[Path, SynthesisRecord]) -> None:
    out, record = run
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["error"] < lines[0]["error"] < 1.5
    assert lines[2]["loss"] < lines[0]["loss"]
    assert record.facts["best_epoch"] == 3
    assert record.facts["training_pictures"] + record.facts["validation_pictures"] == 24  # type: ignore[operator]
    preview = cv2.imread(str(out / "previews" / "epoch_0002.png"))
    assert preview is not None
    assert preview.shape == (4 * SIDE, 2 * SIDE, 3)


def test_a_run_is_opened_as_it_was_trained(run: tuple[Path, SynthesisRecord], dataset: Dataset) -> None:
    base, stored = open_base(run[0]), read_synthesis_run(run[0])
    assert base.is_inpainting
    assert base.size == (SIDE, SIDE)
    assert base.latents == (4, 8, 8)
    assert base.autoencoder.config["scaling_factor"] == 1.0  # type: ignore[attr-defined]
    for network, group in ((base.unet, "unet"), (base.text.model, "text"), (base.autoencoder, "autoencoder")):
        state: dict[str, Tensor] = network.state_dict()  # type: ignore[assignment]
        assert state.keys() == stored.tensors[group].keys()
        assert all(torch.equal(state[name], value) for name, value in stored.tensors[group].items())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert base.prompts.word(CATEGORY)
    assert base.licence == "own, but for the autoencoder: unknown: see the model card of vae"
    assert len(stored.samples) == 8
    assert stored.record.defects == ()
    assert len(stored.record.training) == len(dataset.train_good)
    with pytest.raises(RunError, match="expected the run of a detector, got one of train base, which draws defects"):
        read_run(run[0])


def test_the_same_seed_gives_the_same_base_and_so_does_one_that_was_killed(
    tmp_path: Path,
    autoencoder: Path,
    dataset: Dataset,
    run: tuple[Path, SynthesisRecord],
) -> None:
    cut, settings = tmp_path / "cut", run[1].config
    with killed_at_checkpoint():
        train_synthesis(settings, dataset, cut)
    tiny_autoencoder(seed=9).save_pretrained(tmp_path / "vae")
    other = config(tmp_path / "vae", inpainting=True, mixed_precision="bf16")
    with pytest.raises(ArgumentError, match="expected the weights that the training was begun with, got other"):
        train_synthesis(other, dataset, cut, resume=True)
    record = train_synthesis(settings, dataset, cut, resume=True)
    assert (cut / "weights.safetensors").read_bytes() == (run[0] / "weights.safetensors").read_bytes()
    assert record.facts == run[1].facts
    assert not (tmp_path / "cut.training").exists()


def test_a_centred_autoencoder_decodes_the_same_from_latents_of_mean_0_and_deviation_1(
    tiny_root: Path, autoencoder: Path
) -> None:
    settings, network = config(autoencoder), tiny_autoencoder()
    part_images = ImageReader(training_images(tiny_root), settings.preprocessing, 1, 64)
    bright = ImageReader(normal_images(tiny_root), settings.preprocessing, 1, 64)
    centred: Any = centred_autoencoder(settings, network, "signed", [part_images, bright], torch.device("cpu"))
    assert torch.equal(network.quant_conv.bias, tiny_autoencoder().quant_conv.bias)
    totals = []
    for part in (part_images, bright):
        images = torch.from_numpy(np.concatenate(list(part.batches(range(len(part)), len(part)))))
        normalised = Encoder(network, "signed").normalised(images)
        with torch.inference_mode():
            before, after = network.encode(normalised).latent_dist, centred.encode(normalised).latent_dist
            mean, deviation = Encoder(centred, "signed")(images), after.std
            totals.append(torch.stack([mean, mean.square() + deviation.square()]).double().mean(dim=(1, 3, 4)))
            restored = centred.decode(after.mean).sample
            torch.testing.assert_close(restored, network.decode(before.mean).sample, atol=1e-4, rtol=1e-4)
            drawn = [posterior.sample(torch.Generator().manual_seed(3)) for posterior in (before, after)]
            restored = centred.decode(drawn[1]).sample
            torch.testing.assert_close(restored, network.decode(drawn[0]).sample, atol=1e-4, rtol=1e-4)
    # Both categories count alike, though one has more images.
    center, square = torch.stack(totals).mean(dim=0)
    np.testing.assert_allclose(center, 0.0, atol=1e-4)
    np.testing.assert_allclose(square, 1.0, atol=1e-3)


def test_latents_that_are_all_the_same_are_refused(tiny_root: Path, autoencoder: Path) -> None:
    settings, network = config(autoencoder), tiny_autoencoder()
    torch.nn.init.zeros_(network.quant_conv.weight)
    torch.nn.init.constant_(network.quant_conv.bias, -30.0)
    images = ImageReader(training_images(tiny_root)[:4], settings.preprocessing, 1, 64)
    with pytest.raises(RunError, match="expected latents that differ"):
        centred_autoencoder(settings, network, "signed", [images], torch.device("cpu"))


def encoded(root: Path, autoencoder: Path, boxes: int = 2, **changes: object) -> tuple[Encoded, np.ndarray]:
    settings = config(autoencoder, **changes)
    images = ImageReader(training_images(root)[:5], settings.preprocessing, 1, 64)
    pixels = np.concatenate(list(images.batches(range(5), 5)))
    return encode_images(settings, Encoder(tiny_autoencoder(), "signed"), images, 1, boxes, no_progress), pixels


def test_images_are_encoded_once_with_boxes_blanked_to_the_middle_grey(tiny_root: Path, autoencoder: Path) -> None:
    data, pixels = encoded(tiny_root, autoencoder, inpainting=True, batch_size=2)
    network: Any = tiny_autoencoder()
    images = (torch.from_numpy(pixels).float() / 127.5 - 1.0).permute(0, 3, 1, 2)
    with torch.inference_mode():
        posterior = network.encode(images).latent_dist
        torch.testing.assert_close(data.latents.mean, posterior.mean * 0.5, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(data.latents.deviation, posterior.std * 0.5, atol=1e-5, rtol=1e-4)
    assert data.boxes.shape == (5, 2, 1, 8, 8)
    assert set(data.boxes.unique().tolist()) == {0.0, 1.0}
    # The boxes come in the order of the batches: the first of two images, then their second.
    drawn = np.random.default_rng((0, 1, 2))
    for start in range(0, 5, 2):
        count = min(2, 5 - start)
        for box in range(2):
            for index in range(start, start + count):
                mask = random_box((SIDE, SIDE), drawn)
                assert torch.equal(data.boxes[index, box], torch.from_numpy(1.0 - keep_of(mask, (8, 8))))
                blanked = images[index].clone()
                blanked[:, torch.from_numpy(mask)] = 0.0
                with torch.inference_mode():
                    rest = 0.5 * network.encode(blanked[None]).latent_dist.mean[0]
                torch.testing.assert_close(data.rest[index, box], rest, atol=1e-5, rtol=1e-4)


def test_without_inpainting_there_are_no_boxes(tiny_root: Path, autoencoder: Path) -> None:
    data = encoded(tiny_root, autoencoder)[0]
    assert data.boxes.shape[1] == data.rest.shape[1] == 0
    assert data.beside(torch.arange(2), torch.zeros(2, dtype=torch.int64)) is None


@given(st.tuples(st.integers(2, 200), st.integers(2, 200)), st.integers(0, 99))
def test_random_boxes_are_rectangles_of_a_tenth_to_six_tenths_of_the_sides(size: tuple[int, int], seed: int) -> None:
    mask = random_box(size, np.random.default_rng(seed))
    assert mask.shape == size
    _, _, width, height = cv2.boundingRect(mask.astype(np.uint8))
    assert mask.sum() == width * height
    for side, whole in ((height, size[0]), (width, size[1])):
        assert max(1, round(0.1 * whole)) <= side <= max(1, round(0.6 * whole))


def task_of(root: Path, autoencoder: Path, **changes: object) -> BaseTask:
    base_config = config(autoencoder, **changes)
    data, pixels = encoded(root, autoencoder, **changes)
    tokenizer, network = write_tokenizer([CATEGORY]), tiny_autoencoder()
    settings = base_settings(base_config, network, "signed", tokenizer)
    return BaseTask(base_config, network, settings, tokenizer, [CATEGORY], data, data, pixels)


@pytest.mark.parametrize("inpainting", [False, True])
def test_the_loss_is_the_mean_error_of_the_noise_over_all_latents(
    tiny_root: Path, autoencoder: Path, inpainting: bool
) -> None:
    task = task_of(tiny_root, autoencoder, inpainting=inpainting, text_drop=0.3)
    numbers = torch.tensor([0, 3, 3, 1])
    loss = task.loss(task.network, numbers, torch.Generator().manual_seed(4))

    drawn = torch.Generator().manual_seed(4)
    data = task.learned
    shape = (4, 4, 8, 8)
    clean = data.latents.mean[numbers] + data.latents.deviation[numbers] * torch.randn(shape, generator=drawn)
    levels = torch.randint(1000, (4,), generator=drawn)
    texts = 1 + torch.randint(len(TEXTS), (4,), generator=drawn)
    texts[torch.rand(4, generator=drawn) < 0.3] = 0
    boxes = torch.randint(2 if inpainting else 1, (4,), generator=drawn)
    noise = torch.randn(shape, generator=drawn)
    share = torch.from_numpy(signal_shares(SAMPLING))[levels].float().reshape(4, 1, 1, 1)
    inputs = [share.sqrt() * clean + (1 - share).sqrt() * noise]
    if inpainting:
        inputs += [data.boxes[numbers, boxes], data.rest[numbers, boxes]]
    network: Any = task.network
    with torch.inference_mode():
        context = network.text.model(task.tokens[texts], return_dict=False)[0]
        predicted = network.unet(torch.cat(inputs, dim=1), levels, context).sample
    assert float(loss.detach()) == pytest.approx(float((predicted - noise).square().mean()), rel=1e-5)
    loss.backward()
    assert network.text.table.grad is not None
    assert all(parameter.grad is not None for parameter in network.unet.parameters())


def test_texts_are_of_good_parts_and_the_first_is_empty(tiny_root: Path, autoencoder: Path) -> None:
    task = task_of(tiny_root, autoencoder)
    expected = PROMPTS.tokens(["", *(text.format(category=CATEGORY) for text in TEXTS)], 8).tokens
    assert task.tokens.tolist() == expected.tolist()


def test_validation_says_the_same_every_time(tiny_root: Path, autoencoder: Path) -> None:
    task = task_of(tiny_root, autoencoder, inpainting=True)
    first = task.validate()["error"]
    torch.randn(3)
    assert task.validate()["error"] == first
    assert first == pytest.approx(1.0, abs=0.7)  # nothing is learned yet, and noise has a variance of 1


def test_all_categories_are_learned_together_each_with_its_own_texts(
    tmp_path: Path, tiny_root: Path, autoencoder: Path
) -> None:
    for name, images in (("big_gear", training_images(tiny_root)[:5]), ("cloth", normal_images(tiny_root)[:4])):
        folder = tmp_path / "data" / name / "train" / "good"
        folder.mkdir(parents=True)
        for path in images:
            shutil.copyfile(path, folder / path.name)
    out = tmp_path / "run"
    record = train_synthesis(config(autoencoder, epochs=1), open_dataset(tmp_path / "data", "all"), out)
    assert record.category == "all"
    assert record.facts["training_pictures"] == 5
    prompts = open_base(out).prompts
    assert len({prompts.word(word) for word in ("gear", "cloth", "defect")}) == 3


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_what_a_base_needs_is_said_before_anything_is_learned(
    tmp_path: Path, autoencoder: Path, dataset: Dataset
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ArgumentError, match=r"autoencoder: expected a run .* --set autoencoder=RUN") as raised:
        train_synthesis(config(None), dataset, out)
    reason(raised)
    with pytest.raises(ArgumentError, match=r"widths: expected levels that halve latents of \[8, 8\] evenly"):
        train_synthesis(config(autoencoder, widths=[8, 8, 8, 8]), dataset, out)
    with pytest.raises(ArgumentError, match="resize: expected sides that are multiples of 2"):
        train_synthesis(config(autoencoder, resize=17), dataset, out)
    (tmp_path / "data" / "train" / "good").mkdir(parents=True)
    for sample in dataset.train_good[:3]:
        shutil.copy(sample.path, tmp_path / "data" / "train" / "good")
    with pytest.raises(DataError, match="base: expected at least 4 normal training images, got 3"):
        train_synthesis(config(autoencoder), open_dataset(tmp_path / "data"), out)
    assert not out.exists()
    assert not (tmp_path / "run.training").exists()


def test_the_identity_of_an_autoencoder_is_that_of_its_weights_and_scale(tmp_path: Path) -> None:
    identities = set()
    for seed, scaling in ((5, 0.5), (6, 0.5), (5, 0.25), (5, 0.5)):
        network = tiny_autoencoder(seed)
        network.register_to_config(scaling_factor=scaling)
        network.save_pretrained(tmp_path / f"{seed} {scaling}")
        identities.add(autoencoder_identity(config(tmp_path / f"{seed} {scaling}")))
    assert len(identities) == 3


def test_a_base_is_trained_from_the_command_line(
    tmp_path: Path,
    tiny_root: Path,
    autoencoder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    options = {**SETTINGS, "epochs": 1, "autoencoder": autoencoder, "tile": 32}
    settings = [f"--set={name}={value}".replace(" ", "") for name, value in options.items() if name != "resize"]
    command = ["train", "base", "--data", str(tiny_root), "--category", CATEGORY, "--image-size", str(SIDE)]
    # The record has the command of the process, which pytest and its workers name in different ways.
    monkeypatch.setattr("sys.argv", ["/usr/bin/flawscope", *command])
    assert cli.run([*command, *settings, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"base trained on 24 normal images of {CATEGORY}" in said
    assert "training images 76, validation images 20" in said  # four tiles of each
    assert f"run: {out}" in said
    assert read_synthesis_run(out).record.command.startswith("flawscope train base ")
    assert cli.run([*command, *settings, "--weights", "w.safetensors", "--out", str(out)]) == 2
    assert "--weights: expected none with base" in capsys.readouterr().err
    assert cli.run([*command, "--out", str(out)]) == 2
    assert "expected a new name, got an earlier output" in capsys.readouterr().err
    assert cli.run([*command, "--out", str(tmp_path / "other")]) == 2
    assert "--set autoencoder=RUN" in capsys.readouterr().err
