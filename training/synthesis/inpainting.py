"""Few-shot training of an inpainting network on the defect types of a part.

Source: MvP-Diff, by the training script in the history of its repository. Differences: image, box and masked image are
mirrored together; the masked image is encoded to the mean of its posterior, as at run time, not to a sample; a latent
cell belongs to the box if any of its pixels does; latents are encoded once; the state with the smallest validation
error is kept, where MvP-Diff keeps the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.config import InpaintingConfig
from flawscope.diffusion.location_words import mirrored_words, without_location
from flawscope.diffusion.schedule import TRAINED_STEPS, Sampling, signal_shares
from flawscope.progress import Progress
from flawscope.runs import LearnedDefect
from flawscope.training.diffusion.noise import add_noise, noise_levels
from flawscope.training.loop.epoch_data import mean_error, training_facts
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.synthesis.generator_run import GeneratorFitResult
from flawscope.training.synthesis.generator_trainer import AdaptationStart, GeneratorRequest, GeneratorTrainer
from flawscope.training.synthesis.latent_cache import (
    Moments,
    TextTokens,
    check_base,
    encode_moments,
    latent_masks,
    preview_numbers,
    validation_plan,
    write_preview,
)
from flawscope.training.synthesis.lora import learning_unet, networks_of
from flawscope.training.synthesis.support_examples import Described, SupportExamples, describe

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase

GUIDANCE = 3.5
"""Guidance scale of previews, that of MvP-Diff."""

BLANK = 127.5
"""Grey level of the box in the masked image: 0 on the scale from -1 to 1."""


def train_inpainting(
    config: InpaintingConfig,
    base: SynthesisBase,
    support: SupportExamples,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> GeneratorFitResult:
    """Train an inpainting network on all defect types of a support set.

    The result has the group of tensors `lora` (see `flawscope.training.synthesis.lora.AdaptedUnet`), or all weights of
    the UNet as `unet`.

    Args:
        config: Settings.
        base: An inpainting network, whose weights do not change. It is moved to the device of the training.
        support: The support set.
        folder: Folder for metrics, previews and checkpoints.
        resume: Resume from the newest checkpoint there.
        progress: Told the finished steps.

    Raises:
        ArgumentError: If the base is of the wrong kind or size.
        DataError: If the descriptions do not fit the support set.
        MissingExtra: If peft is not installed.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    described = describe(support, None if config.descriptions is None else Path(config.descriptions))
    task = InpaintingTask(config, base, support, described)
    items = Numbers(len(support.examples) * config.adaptation.repeats)
    trained = run_loop(task, items, config, folder, resume=resume, progress=progress)
    return GeneratorFitResult(
        networks=networks_of(config, trained.state),
        facts={
            **training_facts(trained),
            "defect_types": len(support.types),
            "pictures": len(support.examples),
            "learned_numbers": sum(parameter.numel() for parameter in task.network.parameters()),
        },
        defects=learned_defects(support, described),
    )


def learned_defects(support: SupportExamples, described: Sequence[Described]) -> tuple[LearnedDefect, ...]:
    """Return every defect type with its training sentences, `{location}` in place of location words."""
    # Dicts as ordered sets: the sentences keep the order in which they were learned.
    texts: dict[tuple[str, str], dict[str, None]] = {defect_type: {} for defect_type in support.types}
    for example, description in zip(support.examples, described, strict=True):
        texts[example.category, example.defect].update(dict.fromkeys(map(without_location, description.texts)))
    return tuple(
        LearnedDefect(category, name, tuple(sentences), vectors=False, pictures=len(support.of(category, name)))
        for (category, name), sentences in texts.items()
    )


class InpaintingTask:
    """The training of an inpainting network; see `flawscope.training.loop.loop.Task`.

    An epoch has every image `repeats` times. With LoRA, the network's state holds the low-rank matrices alone.

    Args:
        config: Settings.
        base: An inpainting network, which is not changed.
        support: The support set.
        described: Box and sentences of every example.

    Attributes:
        network: The network that is trained.

    Raises:
        ArgumentError: If the base is of the wrong kind or size.
        MissingExtra: If peft is not installed.
    """

    def __init__(
        self, config: InpaintingConfig, base: SynthesisBase, support: SupportExamples, described: Sequence[Described]
    ) -> None:
        size = check_base(config, base, inpainting=True)
        fill = config.adaptation.crop_fill if config.adaptation.crop_defects else None
        self._config, self._base = config, base
        crops = [
            example.cut(size, fill, description.box)
            for example, description in zip(support.examples, described, strict=True)
        ]
        self._images, self._boxes = (list(column) for column in zip(*crops, strict=True))
        # A variant is an image in one way of mirroring: number of the image + position of the way here * images.
        self._ways = [
            (left_right, top_bottom)
            for top_bottom in (False, True)
            for left_right in (False, True)
            if (config.adaptation.flip > 0 or not left_right) and (config.flip_vertical > 0 or not top_bottom)
        ]
        # By variant: in a mirrored image "left" must become "right", or the network learns wrong location words.
        sentences = [
            [mirrored_words(text, left_right=left_right, top_bottom=top_bottom) for text in description.texts]
            for left_right, top_bottom in self._ways
            for description in described
        ]
        # Row 0 is the empty prompt, for images whose prompt is dropped (classifier-free guidance, arXiv:2207.12598).
        distinct = dict.fromkeys(["", *(text for variant_texts in sentences for text in variant_texts)])
        rows = {text: row for row, text in enumerate(distinct)}
        self._texts = TextTokens(base.prompts, list(rows))
        self._choices = [[rows[text] for text in variant_texts] for variant_texts in sentences]
        self._shares = torch.from_numpy(signal_shares(base.sampling)).float()
        self._weights = snr_weights(base.sampling, config.snr_gamma)
        self._cached: tuple[Moments, Tensor] | None = None
        self.network: nn.Module = learning_unet(base.unet, config)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the trained network."""
        config = self._config
        return build_optimizer(
            config.denoising,
            self.network.parameters(),
            rate=config.adaptation.rate(config.loop),
            epsilon=config.adaptation.epsilon,
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weighted error of the predicted noise, averaged over a batch of item numbers int64 [N].

        Random for each item: mirroring, one of its sentences or the empty prompt, noise level, sample of the latents,
        and noise.
        """
        config, device = self._config, images.device
        # All draws come from this generator, in this order: that is what makes a resumed training bit-identical.
        # On the CPU as a list: the rows of texts and variants are looked up in Python.
        chances = torch.rand((4, len(images)), generator=generator, device=device).tolist()
        variants, rows = [], []
        for image, left_right, top_bottom, text, drop in zip(images.tolist(), *chances, strict=True):
            way = self._ways.index((left_right < config.adaptation.flip, top_bottom < config.flip_vertical))
            variant = image % len(self._images) + way * len(self._images)
            variants.append(variant)
            rows.append(0 if drop < config.text_drop else self._row(variant, text))
        levels = noise_levels(len(images), TRAINED_STEPS, generator)
        return self._losses(network, torch.tensor(variants), torch.tensor(rows), levels, generator).mean()

    def _row(self, variant: int, chance: float) -> int:
        """Return the row of the text of a variant that a number from [0, 1) selects."""
        choices = self._choices[variant]
        # min: in floating point the product may round up to len(choices).
        return choices[min(int(chance * len(choices)), len(choices) - 1)]

    def _losses(
        self, network: nn.Module, variants: Tensor, rows: Tensor, levels: Tensor, generator: torch.Generator
    ) -> Tensor:
        config, device = self._config, levels.device
        moments, beside = self._latents(device)
        latents = moments.sample(variants, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        # Offset noise: one more number per channel, so that the network can learn to change the mean brightness.
        shift = torch.randn((*latents.shape[:2], 1, 1), generator=generator, device=device)
        noise = noise + config.noise_offset * shift
        noisy = add_noise(latents, noise, self._shares.to(device)[levels])
        condition = beside[variants].to(device)
        # The text encoder is frozen here, unlike in `embedding.py`, whose gradients flow through it.
        with torch.no_grad():
            self._base.text.to(device)
            context = self._texts.context(self._base, rows.to(device))
        predicted = network(torch.cat([noisy, condition], dim=1), levels, context)
        weights = self._weights.to(device)[levels]
        return inpainting_loss(predicted, noise, condition[:, :1], weights, config.mask_weight)

    def validate(self) -> dict[str, float]:
        """Return the weighted error at fixed noise levels, with fixed texts and noise.

        It is measured on the training images, not mirrored: of a handful of images none can be held back.
        """
        device, seed = next(self.network.parameters()).device, self._config.seed
        numbers, levels = validation_plan(len(self._images), seed)
        chances = np.random.default_rng(seed).random(len(numbers))
        rows = [self._row(number, chance) for number, chance in zip(numbers.tolist(), chances.tolist(), strict=True)]
        plan = torch.stack([torch.from_numpy(numbers), torch.tensor(rows), levels], dim=1)

        def errors(part: Tensor, generator: torch.Generator) -> Tensor:
            variants, texts, levels = part.unbind(dim=1)
            return self._losses(self.network, variants, texts, levels.to(device), generator)

        return mean_error(torch.split(plan, self._config.loop.batch_size), errors, device, seed)

    def preview(self, path: Path) -> None:
        """Write training images beside the same images with their boxes drawn anew."""
        device = next(self.network.parameters()).device
        moments, beside = self._latents(device)
        numbers = preview_numbers(len(self._images))
        with torch.no_grad():
            self._base.text.to(device)
            rows = torch.tensor([self._row(number, 0.0) for number in numbers], device=device)
            context = self._texts.context(self._base, rows)
            empty = self._texts.context(self._base, torch.zeros_like(rows))
        write_preview(
            path,
            self._base,
            "inpaint",
            self.network,
            self._images,
            self._boxes,
            moments.mean,
            (context, empty),
            guidance=GUIDANCE,
            seed=self._config.seed,
            beside=beside,
        )

    def _latents(self, device: torch.device) -> tuple[Moments, Tensor]:
        """Return the latents of all variants, and the other inputs of the network for them.

        The latter are float32 [K, 1 + C, h, w], on the CPU: the box and the latents of the masked image.
        """
        # Encoded at the first call, not in __init__: the device is known only when the training has moved the network.
        if self._cached is None:
            images = np.concatenate([_mirrored(self._images, *way) for way in self._ways])
            boxes = np.concatenate([_mirrored(self._boxes, *way) for way in self._ways])
            masked = np.where(boxes[..., None], np.float32(BLANK), images.astype(np.float32))
            surroundings = encode_moments(self._base, torch.from_numpy(masked), device).mean
            masks = latent_masks(self._base, list(boxes))
            moments = encode_moments(self._base, torch.from_numpy(images), device)
            self._cached = moments, torch.cat([masks, surroundings], dim=1)
        return self._cached


def _mirrored(
    images: Sequence[UInt8Array] | Sequence[BoolArray], left_right: bool, top_bottom: bool
) -> npt.NDArray[np.generic]:
    """Return images or masks, [K, H, W, ...], mirrored."""
    stacked = np.stack(images)
    return stacked[:, :: -1 if top_bottom else 1, :: -1 if left_right else 1]


def snr_weights(sampling: Sampling, gamma: float) -> Tensor:
    """Return the Min-SNR weight of every noise level, float32 [1000]: min(SNR, γ) / SNR, SNR = ᾱ / (1 − ᾱ).

    That is the weight for networks that predict the noise (arXiv:2303.09556). γ = 0 turns it off: 1 everywhere.
    """
    shares = signal_shares(sampling)  # ᾱ, float64: at the first levels 1 − ᾱ is small and would lose digits
    ratio = shares / (1.0 - shares)
    weights = np.where((ratio <= gamma) | (gamma == 0.0), 1.0, gamma / ratio)
    return torch.from_numpy(weights).float()


def inpainting_loss(predicted: Tensor, noise: Tensor, box: Tensor, weights: Tensor, mask_weight: float) -> Tensor:
    """Return the weighted squared error of the predicted noise, float32 [N]: the mean over all entries of an image.

    Args:
        predicted: [N, C, h, w].
        noise: Float32 [N, C, h, w].
        box: Float32 [N, 1, h, w], 1 inside the box.
        weights: Weights of the noise levels, float32 [N].
        mask_weight: Added to the weight of 1 inside the box.
    """
    # float(): under autocast the prediction is in half precision, whose squares and their mean would lose digits.
    squared = (predicted.float() - noise).square() * (1.0 + mask_weight * box)
    return squared.flatten(1).mean(dim=1) * weights


class InpaintingTrainer(GeneratorTrainer):
    """Trains an inpainting network on the defect types of a part."""

    inpaints = True

    def adapt(self, config: InpaintingConfig, base: SynthesisBase, support: SupportExamples) -> AdaptationStart:
        """Return base and support set with boxes and sentences; they are part of what a resumed training must match."""
        check_base(config, base, inpainting=True)
        descriptions = None if config.descriptions is None else Path(config.descriptions)
        return AdaptationStart(base, support, describe(support, descriptions))

    def fit(self, request: GeneratorRequest) -> GeneratorFitResult:
        """Train the network; see `train_inpainting`."""
        assert request.start is not None
        start = request.start
        return train_inpainting(
            request.config, start.base, start.support, request.workspace, request.resume, request.progress
        )


TRAINER = InpaintingTrainer()
