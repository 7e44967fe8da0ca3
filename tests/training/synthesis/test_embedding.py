"""Learned words: what is counted, what learns, where it starts, how it goes on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interrupted import Killed, killing_progress
from tiny_base import SIDE, tiny_base
from tiny_dataset import CATEGORY, DEFECTS
from torch import Tensor

from flawscope.config import EmbeddingConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import write_support
from flawscope.diffusion.schedule import signal_shares
from flawscope.errors import ArgumentError
from flawscope.progress import no_progress
from flawscope.training.synthesis.base_model import SynthesisBase
from flawscope.training.synthesis.embedding import EmbeddingTask, first_vectors, masked_loss, train_embedding
from flawscope.training.synthesis.generator_run import GeneratorFitResult
from flawscope.training.synthesis.prompt_templates import photo_texts
from flawscope.training.synthesis.support_examples import SupportExamples, read_support_examples

TYPES = [f"{CATEGORY}/{defect}" for defect in DEFECTS]


@pytest.fixture(scope="module")
def base() -> SynthesisBase:
    return tiny_base()


@pytest.fixture(scope="module")
def support(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SupportExamples:
    folder = tmp_path_factory.mktemp("support") / "set"
    write_support(open_dataset(tiny_root, CATEGORY), folder, shots=2, split="test")
    return read_support_examples(folder)


def config(**changes: Any) -> EmbeddingConfig:
    plain = {"resize": SIDE, "epochs": 2, "repeats": 4, "vectors": 2, "learning_rate": 0.01, "preview_every": 9}
    settings = build_config("embedding", {**plain, **changes})[0]
    assert isinstance(settings, EmbeddingConfig)
    return settings


def task_of(base: SynthesisBase, support: SupportExamples, **changes: Any) -> EmbeddingTask:
    return EmbeddingTask(config(**changes), base, support.of(CATEGORY, DEFECTS[0]))


def vectors_of(fitted: GeneratorFitResult) -> dict[str, Tensor]:
    return fitted.networks["vectors"]


# ---- The loss --------------------------------------------------------------------------------------------------------


def test_the_masked_loss_is_the_mean_of_squared_error_times_mask_over_all_entries() -> None:
    rng = np.random.default_rng(0)
    predicted, noise = (rng.standard_normal((2, 3, 4, 5)).astype(np.float32) for _ in range(2))
    mask = np.zeros((2, 1, 4, 5), np.float32)
    mask[0, 0, 1, 2:4] = 1.0  # 2 of 20 cells
    mask[1, 0, :, 0] = 1.0  # 4 of 20 cells
    tensors = [torch.from_numpy(array) for array in (predicted, noise, mask)]
    for index, inside in enumerate(([(1, 2), (1, 3)], [(row, 0) for row in range(4)])):
        total = sum(
            float(predicted[index, channel, row, column] - noise[index, channel, row, column]) ** 2
            for channel in range(3)
            for row, column in inside
        )
        assert float(masked_loss(*tensors, "mean")[index]) == pytest.approx(total / 60, rel=1e-6)
        assert float(masked_loss(*tensors, "area")[index]) == pytest.approx(total / (3 * len(inside)), rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "area"])
def test_a_step_counts_what_textual_inversion_counts(base: SynthesisBase, support: SupportExamples, kind: str) -> None:
    task = task_of(base, support, mask_loss=kind)
    numbers, count = torch.tensor([0, 3, 5, 6]), 2
    loss = task.loss(task.network, numbers, torch.Generator().manual_seed(4))

    generator = torch.Generator().manual_seed(4)
    is_mirrored = (torch.rand(4, generator=generator) < 0.5).tolist()
    rows = torch.randint(80, (4,), generator=generator).tolist()
    levels = torch.randint(1000, (4,), generator=generator)
    images, masks = [], []
    for number, turned in zip(numbers.tolist(), is_mirrored, strict=True):
        image, mask = support.examples[number % count].cut((SIDE, SIDE), 0.5)
        images.append(image[:, ::-1] if turned else image)
        masks.append(mask[:, ::-1] if turned else mask)
    assert len(set(is_mirrored)) == 2
    autoencoder: Any = base.autoencoder
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        posterior = autoencoder.encode(pixels).latent_dist
    drawn = torch.randn(posterior.mean.shape, generator=generator)
    latents = autoencoder.config.scaling_factor * (posterior.mean + posterior.std * drawn)
    noise = torch.randn(latents.shape, generator=generator)
    shares = torch.from_numpy(signal_shares(base.sampling)).float()[levels].reshape(-1, 1, 1, 1)
    cells = torch.from_numpy(np.stack(masks).reshape(4, 1, 8, 2, 8, 2).any(axis=(3, 5))).float()
    vectors = next(task.network.parameters()).detach().numpy()
    texts = [photo_texts("*")[row] for row in rows]
    tokens = base.prompts.tokens(texts, base.text.width, [vectors] * 4)
    with torch.no_grad():
        context = base.text(*(torch.from_numpy(array) for array in (tokens.tokens, tokens.vectors, tokens.placed)))
        noisy = shares.sqrt() * latents + (1 - shares).sqrt() * noise
        predicted = base.unet(noisy, levels, context, return_dict=False)[0]
    squared = (predicted - noise).square() * cells
    if kind == "mean":
        expected = squared.mean()
    else:
        expected = (squared.sum(dim=(1, 2, 3)) / (4 * cells.sum(dim=(1, 2, 3)))).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_gradients_reach_the_vectors_alone(base: SynthesisBase, support: SupportExamples) -> None:
    task = task_of(base, support)
    task.loss(task.network, torch.arange(4), torch.Generator().manual_seed(0)).backward()
    (vectors,) = task.network.parameters()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(dim=1) > 0).all()
    for part in (base.unet, base.text, base.autoencoder):
        parts: Any = part
        assert all(parameter.grad is None for parameter in parts.parameters())


def test_errors_are_measured_alike_every_time(base: SynthesisBase, support: SupportExamples) -> None:
    task = task_of(base, support)
    first = task.validate()
    task.loss(task.network, torch.arange(4), torch.Generator().manual_seed(0))
    assert task.validate() == first
    with torch.no_grad():
        # Turned round, not moved: what is added to all entries alike a LayerNorm takes away again.
        next(task.network.parameters()).neg_()
    # float32 rounds such a mean by about 1e-7 of it; words that say the opposite change it by 9e-4.
    assert task.validate()["error"] != pytest.approx(first["error"], rel=1e-4)


# ---- Where it starts -------------------------------------------------------------------------------------------------


def test_vectors_start_from_the_embedding_of_the_word(base: SynthesisBase) -> None:
    word = base.text.table[base.prompts.word("scratch")]
    assert first_vectors(config(vectors=1, init_word="scratch"), base).equal(word[None])
    several = first_vectors(config(vectors=3, init_word="scratch"), base)
    assert several[0].equal(word)
    assert several.equal(first_vectors(config(vectors=3, init_word="scratch"), base))
    assert not several.equal(first_vectors(config(vectors=3, init_word="scratch", seed=1), base))
    for vector in several[1:]:
        assert 0.0 < float((vector - word).norm()) < 0.1 * float(word.norm())
    assert not several[1].equal(several[2])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init_word": "unheardof"}, r"init_word: 'unheardof': expected a word that is a single token, got \d"),
        ({"vectors": 32, "placeholder": "?"}, r"text: expected the word '\*'"),
        ({"resize": 32}, r"resize: expected \[16, 16\], the images of the base, got \[32, 32\]"),
    ],
)
def test_settings_that_do_not_fit_the_base_are_one_sentence(
    base: SynthesisBase, support: SupportExamples, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ArgumentError, match=match) as raised:
        task_of(base, support, **changes)
    assert "\n" not in str(raised.value)


def test_vectors_that_no_text_has_room_for_are_refused(base: SynthesisBase, support: SupportExamples) -> None:
    rules = dataclasses.replace(base, prompts=type(base.prompts)(base.tokenizer, _short(base)))
    with pytest.raises(ArgumentError, match="vectors: expected so few that a text of 40 tokens has room"):
        EmbeddingTask(config(vectors=32), rules, support.of(CATEGORY, DEFECTS[0]))


def _short(base: SynthesisBase) -> Any:
    return type(base.prompts.rules)(length=40, pad=base.prompts.rules.pad)


def test_an_inpainting_base_is_refused(base: SynthesisBase, support: SupportExamples) -> None:
    inpainting: Any = type(base.unet).from_config({**base.unet.config, "in_channels": 9})  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match="base: expected a network that draws whole images, got an inpainting"):
        task_of(dataclasses.replace(base, unet=inpainting), support)


# ---- The training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    base: SynthesisBase, support: SupportExamples, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GeneratorFitResult, list[tuple[str, int, int]]]:
    """A folder of a training, what it gave, and what it told."""
    folder = tmp_path_factory.mktemp("trained")
    reports: list[tuple[str, int, int]] = []
    settings = config(preview_every=2)
    fitted = train_embedding(settings, base, support, folder, False, lambda *report: reports.append(report))
    return folder, fitted, reports


def test_every_defect_type_gets_vectors_and_a_folder_of_its_own(
    trained: tuple[Path, GeneratorFitResult, list[tuple[str, int, int]]],
) -> None:
    folder, fitted, reports = trained
    assert list(vectors_of(fitted)) == TYPES
    assert list(fitted.networks) == ["vectors"]
    for name in TYPES:
        assert vectors_of(fitted)[name].shape == (2, 8)
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [2, 4]  # 2 images, 4 times, in batches of 4
        assert lines[0]["learning_rate"] == pytest.approx(0.04)  # of an item times the batch
        image = cv2.imread(str(folder / name / "previews" / "epoch_0002.png"))
        assert image is not None
        assert image.shape == (2 * SIDE, 2 * SIDE, 3)
    assert [
        (
            learned_defect.category,
            learned_defect.name,
            learned_defect.texts,
            learned_defect.vectors,
            learned_defect.pictures,
        )
        for learned_defect in fitted.defects
    ] == [(CATEGORY, defect, ("*",), True, 2) for defect in DEFECTS]
    assert fitted.facts["pictures"] == 4
    assert [step for _, step, _ in reports] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert {total for _, _, total in reports} == {8}


def test_checkpoints_are_small(trained: tuple[Path, GeneratorFitResult, list[tuple[str, int, int]]]) -> None:
    sizes = [path.stat().st_size for path in trained[0].rglob("tensors.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 2000


@pytest.mark.parametrize("kill_after", [3, 7])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    base: SynthesisBase,
    support: SupportExamples,
    trained: tuple[Path, GeneratorFitResult, list[tuple[str, int, int]]],
    tmp_path: Path,
    kill_after: int,
) -> None:
    """Stopped in the second epoch of the first type, and in that of the second type."""

    with pytest.raises(Killed):
        train_embedding(config(), base, support, tmp_path, False, killing_progress(kill_after))
    steps: list[int] = []
    resumed = train_embedding(config(), base, support, tmp_path, True, lambda _, step, total: steps.append(step))
    for name in TYPES:
        assert vectors_of(resumed)[name].equal(vectors_of(trained[1])[name])
    assert resumed.facts == trained[1].facts
    # What was finished is not trained again, and what was begun goes on from its checkpoint.
    assert steps == ([2, 3, 4, 4, 5, 6, 7, 8] if kill_after == 3 else [4, 6, 7, 8])


def test_what_is_learned_of_a_type_does_not_depend_on_the_others(
    base: SynthesisBase,
    support: SupportExamples,
    trained: tuple[Path, GeneratorFitResult, list[tuple[str, int, int]]],
    tmp_path: Path,
) -> None:
    alone = read_support_examples(support.path, [DEFECTS[1]])
    fitted = train_embedding(config(), base, alone, tmp_path, False, no_progress)
    assert list(vectors_of(fitted)) == [TYPES[1]]
    assert vectors_of(fitted)[TYPES[1]].equal(vectors_of(trained[1])[TYPES[1]])


def test_the_loss_falls(base: SynthesisBase, support: SupportExamples) -> None:
    """On draws that stay the same: what a UNet of random weights says depends on its text, but never on much of it."""
    task = task_of(base, support)
    optimizer, losses = task.optimizer(), []
    for _ in range(30):
        loss = task.loss(task.network, torch.arange(4), torch.Generator().manual_seed(9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.996 * losses[0]


def test_a_training_in_half_precision_learns_too(base: SynthesisBase, support: SupportExamples, tmp_path: Path) -> None:
    alone = read_support_examples(support.path, [DEFECTS[0]])
    fitted = train_embedding(config(mixed_precision="bf16"), base, alone, tmp_path, False, no_progress)
    vectors = vectors_of(fitted)[TYPES[0]]
    assert vectors.dtype == torch.float32
    assert not vectors.equal(first_vectors(config(), base))
