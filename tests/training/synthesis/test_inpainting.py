"""Inpainting networks: the loss, what the network is shown, low-rank changes, how it goes on, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inpainting_runs import run_of
from interrupted import Killed, killing_progress
from tiny_base import SIDE, tiny_base
from tiny_dataset import CATEGORY, DEFECTS
from torch import Tensor, nn

from flawscope.config import InpaintingConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.support_set import find_support, write_support
from flawscope.diffusion.location_words import mirrored_words
from flawscope.diffusion.schedule import Sampling, signal_shares
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.progress import no_progress
from flawscope.training.synthesis.base_model import SynthesisBase
from flawscope.training.synthesis.generator_run import GeneratorFitResult
from flawscope.training.synthesis.inpainting import InpaintingTask, inpainting_loss, snr_weights, train_inpainting
from flawscope.training.synthesis.lora import AdaptedUnet, restore_unet
from flawscope.training.synthesis.support_examples import SupportExamples, describe, read_support_examples

pytestmark = pytest.mark.long

LATENT_DIFFUSION = Sampling(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, start=1000, steps=50)


@pytest.fixture(scope="module")
def base() -> SynthesisBase:
    return tiny_base(inpainting=True)


@pytest.fixture(scope="module")
def folders(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A support set, and descriptions of it."""
    folder, dataset = tmp_path_factory.mktemp("support"), open_dataset(tiny_root, CATEGORY)
    record = write_support(dataset, folder / "set", shots=2, split="test")
    write_descriptions(dataset, find_support(dataset, record), folder / "described")
    return folder / "set", folder / "described"


@pytest.fixture(scope="module")
def support(folders: tuple[Path, Path]) -> SupportExamples:
    return read_support_examples(folders[0])


def config(**changes: Any) -> InpaintingConfig:
    plain = {"resize": SIDE, "epochs": 2, "repeats": 2, "batch_size": 4, "learning_rate": 0.01, "preview_every": 9}
    plain["learn_text"] = "frozen"  # as MvP-Diff; the base of these tests is small, for which vectors are the default
    settings = build_config("inpainting", {**plain, **changes})[0]
    assert isinstance(settings, InpaintingConfig)
    return settings


def task_of(base: SynthesisBase, support: SupportExamples, **changes: Any) -> InpaintingTask:
    return InpaintingTask(config(**changes), base, support, describe(support))


def shown(base: SynthesisBase) -> tuple[Tensor, Tensor, Tensor]:
    """What a UNet may be given."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 9, 8, 8), generator=generator)
    return x, torch.tensor([3, 700]), torch.randn((2, 5, 8), generator=generator)


# ---- The loss --------------------------------------------------------------------------------------------------------


def test_the_weight_of_a_noise_level_is_one_up_to_the_ratio_and_falls_beyond() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    shares = np.cumprod(1.0 - betas)
    ratio = shares / (1.0 - shares)
    weights = snr_weights(LATENT_DIFFUSION, 10.0).numpy()
    low = ratio <= 10.0
    assert 0 < low.sum() < 1000
    assert (weights[low] == 1.0).all()
    assert (weights[~low] == (10.0 / ratio[~low]).astype(np.float32)).all()
    assert (np.diff(weights) >= 0).all()
    assert [round(float(weights[level]), 2) for level in (0, 50, 120, 999)] == [0.01, 0.51, 1.0, 1.0]
    assert (snr_weights(LATENT_DIFFUSION, 0.0) == 1.0).all()


@given(st.floats(0.01, 1000.0))
def test_the_weight_is_the_smaller_of_ratio_and_gamma_over_the_ratio(gamma: float) -> None:
    shares = signal_shares(LATENT_DIFFUSION)
    ratio = shares / (1.0 - shares)
    np.testing.assert_allclose(
        snr_weights(LATENT_DIFFUSION, gamma).numpy(), np.minimum(ratio, gamma) / ratio, rtol=1e-6
    )


def test_the_loss_is_the_weighted_mean_over_all_entries_of_an_image() -> None:
    predicted, noise = torch.zeros((2, 2, 2, 2)), torch.zeros((2, 2, 2, 2))
    predicted[0, 0, 0, 0], predicted[0, 1, 1, 1] = 3.0, 1.0  # squares 9 inside the box and 1 outside
    noise[1, 0, 0, 1] = 2.0
    box = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]] * 2)
    weights = torch.tensor([0.5, 1.0])
    assert inpainting_loss(predicted, noise, box, weights, 0.0).tolist() == [0.5 * 10 / 8, 4 / 8]
    assert inpainting_loss(predicted, noise, box, weights, 2.0).tolist() == [0.5 * (27 + 1) / 8, 4 / 8]


class Spy(nn.Module):
    """Stands for the text encoder and keeps the tokens it was given."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.width: int = self.encoder.width
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, vectors: Tensor, placed: Tensor) -> Tensor:
        self.seen.append(tokens)
        context: Tensor = self.encoder(tokens, vectors, placed)
        return context


def spied(base: SynthesisBase) -> tuple[SynthesisBase, Spy]:
    spy = Spy(base.text)
    return dataclasses.replace(base, text=spy), spy  # type: ignore[arg-type]


@pytest.mark.parametrize("crop_defects", [True, False])
@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_step_counts_and_shows_what_mvp_diff_does(
    base: SynthesisBase, support: SupportExamples, flips: tuple[float, float], crop_defects: bool
) -> None:
    task = task_of(
        base,
        support,
        flip=flips[0],
        flip_vertical=flips[1],
        crop_defects=crop_defects,
        noise_offset=0.5,
        mask_weight=2.0,
    )
    numbers = torch.tensor([1, 4, 7])
    loss = task.loss(task.network, numbers, torch.Generator().manual_seed(2))

    generator = torch.Generator().manual_seed(2)
    chances = torch.rand((4, 3), generator=generator)
    levels = torch.randint(1000, (3,), generator=generator)
    described = describe(support)
    images, boxes, texts = [], [], []
    for number, chance in zip(numbers.tolist(), chances[2].tolist(), strict=True):
        description = described[number % 4]
        image, box = support.examples[number % 4].cut((SIDE, SIDE), 0.5 if crop_defects else None, description.box)
        for axis, chosen in ((1, flips[0]), (0, flips[1])):
            image, box = (np.flip(array, axis) if chosen else array for array in (image, box))
        images.append(image)
        boxes.append(box)
        sentence = description.texts[int(chance * len(description.texts))]
        texts.append(mirrored_words(sentence, left_right=bool(flips[0]), top_bottom=bool(flips[1])))
    autoencoder: Any = base.autoencoder
    scale = autoencoder.config.scaling_factor
    part_images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    inside = torch.from_numpy(np.stack(boxes))[:, None]
    with torch.no_grad():
        posterior = autoencoder.encode(part_images).latent_dist
        rest = scale * autoencoder.encode(torch.where(inside, 0.0, part_images)).latent_dist.mean
        tokens = base.prompts.tokens(texts, base.text.width)
        context = base.text(*(torch.from_numpy(array) for array in (tokens.tokens, tokens.vectors, tokens.placed)))
    latents = scale * (posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    noise = noise + 0.5 * torch.randn((3, 4, 1, 1), generator=generator)
    shares = torch.from_numpy(signal_shares(base.sampling)).float()[levels].reshape(-1, 1, 1, 1)
    cells = inside.reshape(3, 1, 8, 2, 8, 2).any(dim=5).any(dim=3).float()
    with torch.no_grad():
        noisy = shares.sqrt() * latents + (1 - shares).sqrt() * noise
        predicted = base.unet(torch.cat([noisy, cells, rest], dim=1), levels, context, return_dict=False)[0]
    ratio = (shares / (1 - shares)).flatten()
    errors = ((predicted - noise).square() * (1 + 2 * cells)).mean(dim=(1, 2, 3)) * ratio.clamp(max=10.0) / ratio
    assert float(loss.detach()) == pytest.approx(float(errors.mean()), rel=1e-4)


def test_texts_are_left_out_as_often_as_asked(base: SynthesisBase, support: SupportExamples) -> None:
    watched, spy = spied(base)
    task = task_of(watched, support, text_drop=0.5)
    empty = torch.from_numpy(base.prompts.tokens([""], 1).tokens[0])
    with torch.no_grad():
        task.loss(task.network, torch.arange(256), torch.Generator().manual_seed(0))
    dropped = sum(bool(row.equal(empty)) for row in spy.seen[0])
    assert 96 < dropped < 160


def test_gradients_reach_what_learns_alone(base: SynthesisBase, support: SupportExamples) -> None:
    task = task_of(base, support)
    task.loss(task.network, torch.arange(4), torch.Generator().manual_seed(0)).backward()
    grads = {name: weight.grad for name, weight in task.network.named_parameters()}
    assert all(grads[name] is not None for name in grads)
    # B is zero at the start, and so are the gradients of A.
    assert all(
        bool(weight.abs().sum() > 0) for name, weight in grads.items() if weight is not None and "lora_B" in name
    )
    for part in (base.unet, base.text, base.autoencoder):
        parts: Any = part
        assert all(parameter.grad is None for parameter in parts.parameters())


# ---- Low-rank changes ------------------------------------------------------------------------------------------------


def test_fresh_changes_change_nothing_and_only_attention_has_them(base: SynthesisBase) -> None:
    adapted = AdaptedUnet(base.unet, config(rank=3))
    x, levels, context = shown(base)
    with torch.no_grad():
        assert adapted(x, levels, context).equal(base.unet(x, levels, context, return_dict=False)[0])
    state = adapted.state_dict()
    attentions = [name for name, _ in base.unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    names = {
        f"{attention}.{target}.lora_{half}.weight"
        for attention in attentions
        for target in ("to_q", "to_k", "to_v", "to_out.0")
        for half in "AB"
    }
    assert set(state) == names == {name for name, _ in adapted.named_parameters()}
    assert all(value.shape[0 if "lora_A" in name else 1] == 3 for name, value in state.items())
    again, other = AdaptedUnet(base.unet, config(rank=3)), AdaptedUnet(base.unet, config(rank=3, seed=1))
    assert all(value.equal(again.state_dict()[name]) for name, value in state.items())
    assert not all(value.equal(other.state_dict()[name]) for name, value in state.items())


def test_merged_changes_say_what_the_changes_say(base: SynthesisBase) -> None:
    settings = config(alpha=8.0)
    adapted = AdaptedUnet(base.unet, settings)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    state = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in adapted.state_dict().items()}
    adapted.load_state_dict(state)
    merged = restore_unet(base, run_of(base, settings, {"lora": state}))
    x, levels, context = shown(base)
    with torch.no_grad():
        expected = adapted(x, levels, context)
        noise = merged(x, levels, context, return_dict=False)[0]
        plain = base.unet(x, levels, context, return_dict=False)[0]
    torch.testing.assert_close(noise, expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-2
    assert type(merged) is type(base.unet)
    assert set(merged.state_dict()) == set(before)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert not merged.training
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    change = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    torch.testing.assert_close(merged.state_dict()[f"{name}.weight"], before[f"{name}.weight"] + 8.0 / 4 * change)
    assert all(value.equal(before[name]) for name, value in base.unet.state_dict().items())


def test_runs_that_do_not_fit_the_base_are_one_sentence(base: SynthesisBase) -> None:
    settings = config()
    state = AdaptedUnet(base.unet, settings).state_dict()
    for wrong in (
        run_of(base, config(rank=2), {"lora": state}),
        run_of(base, settings, {"lora": dict(list(state.items())[1:])}),
        run_of(base, settings, {"lora": {**state, "more": torch.zeros(1)}}),
        run_of(base, settings, {}),
    ):
        with pytest.raises(RunError, match=r"run: lora: expected the \d+ tensors that the base and rank=\d ask"):
            restore_unet(base, wrong)
    with pytest.raises(RunError, match=r"run: unet: expected the \d+ tensors .* got 0"):
        restore_unet(base, run_of(base, config(adapt="full"), {}))
    elsewhere = run_of(base, settings, {"lora": state})
    elsewhere = dataclasses.replace(elsewhere, record=msgspec.structs.replace(elsewhere.record, base="f" * 64))
    with pytest.raises(RunError, match="expected the base that it was trained on"):
        restore_unet(base, elsewhere)
    embedding_config = build_config("embedding", {"resize": SIDE})[0]
    with pytest.raises(RunError, match="expected a run of train inpainting, got one of train embedding"):
        restore_unet(base, run_of(base, embedding_config, {}))


# ---- The training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    base: SynthesisBase, support: SupportExamples, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GeneratorFitResult]:
    folder = tmp_path_factory.mktemp("trained")
    settings = config(descriptions=str(folders[1]), preview_every=2)
    return folder, train_inpainting(settings, base, support, folder, False, no_progress)


def test_a_training_leaves_small_checkpoints_and_what_it_measured(trained: tuple[Path, GeneratorFitResult]) -> None:
    folder, fitted = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]  # 4 images, twice, in batches of 4
    assert list(fitted.networks) == ["lora"]
    numbers = sum(value.numel() for value in fitted.networks["lora"].values())
    assert fitted.facts["learned_numbers"] == numbers
    # The changes, the best of them, and the two averages of AdamW, of 4 bytes each; the rest is names.
    size = max(path.stat().st_size for path in folder.rglob("tensors.safetensors"))
    assert size < 4 * 4 * numbers + 50_000
    image = cv2.imread(str(folder / "previews" / "epoch_0002.png"))
    assert image is not None
    assert image.shape == (4 * SIDE, 2 * SIDE, 3)


def test_a_run_knows_the_sentences_of_every_defect_without_the_places(trained: tuple[Path, GeneratorFitResult]) -> None:
    defects = trained[1].defects
    assert [
        (learned_defect.category, learned_defect.name, learned_defect.vectors, learned_defect.pictures)
        for learned_defect in defects
    ] == [(CATEGORY, defect, False, 2) for defect in DEFECTS]
    for learned_defect in defects:
        assert len(learned_defect.texts) == 8
        assert all(text.count("{location}") == 1 for text in learned_defect.texts)
        name = learned_defect.name
        assert f"There is a {name} defect on the steel {{location}} of the image; steel_{name}" in learned_defect.texts


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    base: SynthesisBase,
    support: SupportExamples,
    folders: tuple[Path, Path],
    trained: tuple[Path, GeneratorFitResult],
    tmp_path: Path,
    adapt: str,
) -> None:
    settings = config(descriptions=str(folders[1]), adapt=adapt)
    with pytest.raises(Killed):
        train_inpainting(settings, base, support, tmp_path / "killed", False, killing_progress(3))
    resumed = train_inpainting(settings, base, support, tmp_path / "killed", True, no_progress)
    whole = trained[1]
    if adapt == "full":
        whole = train_inpainting(settings, base, support, tmp_path / "whole", False, no_progress)
        assert set(whole.networks["unet"]) == set(base.unet.state_dict())
        restored = restore_unet(base, run_of(base, settings, whole.networks))
        assert all(value.equal(whole.networks["unet"][name]) for name, value in restored.state_dict().items())
        assert not restored.conv_in.weight.equal(base.unet.state_dict()["conv_in.weight"])
    for group, state in whole.networks.items():
        assert all(value.equal(resumed.networks[group][name]) for name, value in state.items())
    assert resumed.facts == whole.facts


@pytest.mark.parametrize(("changes", "share"), [({}, 0.99), ({"mixed_precision": "bf16", "adapt": "full"}, 0.8)])
def test_the_loss_falls_and_the_base_stays(
    base: SynthesisBase, support: SupportExamples, tmp_path: Path, changes: dict[str, Any], share: float
) -> None:
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    settings = config(repeats=16, **changes)
    fitted = train_inpainting(settings, base, support, tmp_path, False, no_progress)
    task = InpaintingTask(settings, base, support, describe(support))

    def seeded() -> float:
        with torch.no_grad():
            return float(task.loss(task.network, torch.arange(32), torch.Generator().manual_seed(9)))

    first = seeded()
    ((group, state),) = fitted.networks.items()
    prefix = "unet" if group == "lora" else "unet.unet"
    task.network.load_state_dict({f"{prefix}.{name}": tensor for name, tensor in state.items()})
    assert seeded() < share * first
    assert all(value.equal(before[name]) for name, value in base.unet.state_dict().items())


def test_what_does_not_fit_is_one_sentence(base: SynthesisBase, support: SupportExamples, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected descriptions, which flawscope synth describe makes, got"):
        train_inpainting(config(descriptions=str(tmp_path)), base, support, tmp_path, False, no_progress)
    with pytest.raises(ArgumentError, match=r"resize: expected \[16, 16\], the images of the base, got \[32, 32\]"):
        task_of(base, support, resize=32)
    plain: Any = type(base.unet).from_config({**base.unet.config, "in_channels": 4})  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match=r"base: expected an inpainting network, .* got a network that draws whole"):
        task_of(dataclasses.replace(base, unet=plain), support)
