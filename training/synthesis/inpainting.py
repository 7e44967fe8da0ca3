"""Few-shot training of an inpainting network on the defect types of a part.

Source: MvP-Diff, by the training script in the history of its repository. Differences: image, box and masked image are
mirrored together; the masked image is encoded to the mean of its posterior, as at run time, not to a sample; a latent
cell belongs to the box if any of its pixels does; latents are encoded once; the state with the smallest validation
error is kept, where MvP-Diff keeps the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.config import InpaintingConfig
from flawscope.diffusion.location_words import without_location
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.errors import ArgumentError
from flawscope.progress import Progress
from flawscope.runs import DEFECT_EFFECT, TEXT_EFFECT, LearnedDefect
from flawscope.training.diffusion.noise import add_noise, noise_levels
from flawscope.training.loop import draws
from flawscope.training.loop.epoch_data import mean_error, training_facts
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.synthesis.attention_maps import AttentionMaps
from flawscope.training.synthesis.generator_run import GeneratorFitResult
from flawscope.training.synthesis.generator_trainer import AdaptationStart, GeneratorRequest, GeneratorTrainer
from flawscope.training.synthesis.inpainting_data import InpaintingData, Latents
from flawscope.training.synthesis.inpainting_losses import attention_loss, defect_loss, inpainting_loss, snr_weights
from flawscope.training.synthesis.latent_cache import check_base, preview_numbers, validation_plan, write_preview
from flawscope.training.synthesis.learned_text import (
    TEXT_RATES,
    DefectTexts,
    InpaintingNetwork,
    placed_text,
    text_learning,
)
from flawscope.training.synthesis.support_examples import Described, SupportExamples, describe
from flawscope.training.synthesis.text_effect import relative_change

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase

GUIDANCE = 3.5
"""Guidance scale of previews, that of MvP-Diff."""


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
        networks=task.stored(trained.state, support.types),
        facts={
            **training_facts(trained),
            **task.text_effects(trained.state),
            "learn_text": task.learn,
            "defect_types": len(support.types),
            "pictures": len(support.real),
            "drawn_pictures": len(support.examples) - len(support.real),
            "learned_numbers": sum(parameter.numel() for parameter in task.network.parameters()),
        },
        defects=learned_defects(support, described, config.placeholder if task.learn == "vectors" else None),
    )


def learned_defects(
    support: SupportExamples, described: Sequence[Described], placeholder: str | None = None
) -> tuple[LearnedDefect, ...]:
    """Return every defect type with its training sentences, `{location}` in place of location words.

    Args:
        support: The support set.
        described: Sentences of every example.
        placeholder: Word that stands for the learned embeddings, or None where there are none.
    """
    # Dicts as ordered sets: the sentences keep the order in which they were learned.
    texts: dict[tuple[str, str], dict[str, None]] = {defect_type: {} for defect_type in support.types}
    for example, description in zip(support.examples, described, strict=True):
        sentences = [without_location(text) for text in description.texts]
        if placeholder is not None:
            sentences = [placed_text(text, placeholder) for text in sentences]
        texts[example.category, example.defect].update(dict.fromkeys(sentences))
    return tuple(
        LearnedDefect(
            category,
            name,
            tuple(of_type),
            vectors=placeholder is not None,
            pictures=support.shots(category, name),
        )
        for (category, name), of_type in texts.items()
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
        learn: What is learned of the text.
        texts: The texts of all defect types.
        network: The network that is trained.

    Raises:
        ArgumentError: If the base is of the wrong kind or size, or the settings contradict each other.
        MissingExtra: If peft is not installed.
    """

    def __init__(
        self, config: InpaintingConfig, base: SynthesisBase, support: SupportExamples, described: Sequence[Described]
    ) -> None:
        self._config, self._base = config, base
        self._data = data = InpaintingData(config, base, support, described)
        self.learn = text_learning(config, base)
        if config.attention_loss > 0 and self.learn != "vectors":
            raise ArgumentError(
                f"attention_loss: expected learn_text=vectors, an embedding to attend to, got {self.learn}. Set it."
            )
        # Row 0 is the empty prompt, for images whose prompt is dropped (classifier-free guidance, arXiv:2207.12598).
        by_type: list[list[str]] = [[] for _ in support.types]
        for defect_type, texts in zip(data.types, data.texts, strict=True):
            by_type[defect_type] += texts
        self.texts = DefectTexts(base, by_type, config, self.learn)
        rows = [iter(of_type) for of_type in self.texts.rows]
        self._choices = [
            [next(rows[defect_type]) for _ in texts] for defect_type, texts in zip(data.types, data.texts, strict=True)
        ]
        self._shares = torch.from_numpy(signal_shares(base.sampling)).float()
        self._weights = snr_weights(base.sampling, config.snr_gamma)
        self._learned = InpaintingNetwork(config, base, self.learn, self.texts)
        self.network: nn.Module = self._learned
        self._attention = AttentionMaps(self._learned.plain_unet) if config.attention_loss > 0 else None

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the trained network."""
        config = self._config
        rate = config.adaptation.rate(config.loop)
        return build_optimizer(
            config.denoising,
            self._learned.parameter_groups(rate, config.text_rate or TEXT_RATES[self.learn]),
            rate=rate,
            epsilon=config.adaptation.epsilon,
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weighted error of the predicted noise, averaged over a batch of item numbers int64 [N].

        Random for each item: mirroring, one of its sentences or the empty prompt, noise level, sample of the latents,
        and noise; where the settings ask for them, noise on the texts, and a random mask.
        """
        config = self._config
        # All draws come from this generator, in this order: that is what makes a resumed training bit-identical.
        # On the CPU as a list: the rows of texts and variants are looked up in Python.
        chances = draws.uniform((4, len(images)), generator, dim=1).tolist()
        variants, rows = [], []
        for image, left_right, top_bottom, text, drop in zip(images.tolist(), *chances, strict=True):
            way = self._data.ways.index((left_right < config.adaptation.flip, top_bottom < config.flip_vertical))
            variant = image % len(self._data) + way * len(self._data)
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
        latents = self._data.latents(device)
        clean = latents.moments.sample(variants, generator)
        noise = draws.normal(clean.shape, generator)
        # Offset noise: one more number per channel, so that the network can learn to change the mean brightness.
        shift = draws.normal((*clean.shape[:2], 1, 1), generator)
        noise = noise + config.noise_offset * shift
        noisy = add_noise(clean, noise, self._shares.to(device)[levels])
        weights = self._weights.to(device)[levels]
        rows = rows.to(device)
        if config.defect_loss == 0 and config.object_loss == 0:
            condition = latents.beside[variants].to(device)
            predicted = network(
                torch.cat([noisy, condition], dim=1), levels, rows, self._text_noise(len(rows), generator)
            )
            return inpainting_loss(predicted, noise, condition[:, :1], weights, config.mask_weight)
        mask = latents.defects[variants].to(device)
        placed = self.texts.tokens.placed[rows.cpu()].to(device)
        total = torch.zeros_like(weights)
        # A pass with the defect's box hidden, and one with a random mask: the latter must paint the whole part, and
        # find the defect's place in the text alone.
        for weight, ground, is_random in (
            (config.defect_loss, 0.0, False),
            (config.object_loss, config.object_ground, True),
        ):
            if weight == 0:
                continue
            condition = self._condition(latents, variants, is_random, generator).to(device)
            predicted = network(
                torch.cat([noisy, condition], dim=1), levels, rows, self._text_noise(len(rows), generator)
            )
            total = total + weight * defect_loss(predicted, noise, mask, weights, ground)
            if self._attention is not None and (is_random or config.object_loss == 0):
                attention = self._attention.take(placed, (mask.shape[2], mask.shape[3]))
                total = total + config.attention_loss * attention_loss(attention, mask, placed)
        return total

    def _condition(self, latents: Latents, variants: Tensor, is_random: bool, generator: torch.Generator) -> Tensor:
        """Return the other inputs of the network, float32 [N, 1 + C, h, w], with the box or a random mask hidden."""
        if not is_random:
            return latents.beside[variants]
        chosen = noise_levels(len(variants), latents.random.shape[1], generator).cpu()
        return latents.random[variants, chosen]

    def _text_noise(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return noise for encoded texts, float32 [N, L, D], or None (MAGIC, arXiv:2507.02314)."""
        if self._config.text_noise == 0:
            return None  # nothing is drawn: the random numbers of other settings stay the same
        shape = (count, self._base.prompts.rules.length, self._learned.context_width)
        return self._config.text_noise * draws.normal(shape, generator)

    def validate(self) -> dict[str, float]:
        """Return the weighted error at fixed noise levels, with fixed texts and noise.

        It is measured on the training images, not mirrored: of a handful of images none can be held back.
        """
        device, seed = self._device, self._config.seed
        numbers, levels = validation_plan(len(self._data), seed)
        chances = np.random.default_rng(seed).random(len(numbers))
        rows = [self._row(number, chance) for number, chance in zip(numbers.tolist(), chances.tolist(), strict=True)]
        plan = torch.stack([torch.from_numpy(numbers), torch.tensor(rows), levels], dim=1)

        def errors(part: Tensor, generator: torch.Generator) -> Tensor:
            variants, texts, levels = part.unbind(dim=1)
            return self._losses(self.network, variants, texts, levels.to(device), generator)

        return mean_error(torch.split(plan, self._config.loop.batch_size), errors, device, seed)

    def stored(self, state: Mapping[str, Tensor], types: Sequence[tuple[str, str]]) -> dict[str, dict[str, Tensor]]:
        """Return a trained state as a run stores it; see `InpaintingNetwork.groups`."""
        return self._learned.groups(self._config, types, state)

    def text_effects(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what the text changes in the predicted noise, at the levels of `validate`; see `relative_change`.

        `text_effect` is that of an image's own text against the empty one; `defect_effect`, where several defect types
        are learned, against the text of another type.

        Args:
            state: State of the network to measure, which it has afterwards.
        """
        self.network.load_state_dict(dict(state))
        device = self._device
        numbers, levels = validation_plan(len(self._data), self._config.seed)
        latents = self._data.latents(device)
        generator = torch.Generator(device).manual_seed(self._config.seed)
        clean = latents.moments.mean[numbers].to(device)
        levels = levels.to(device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        noisy = add_noise(clean, noise, self._shares.to(device)[levels])
        x = torch.cat([noisy, latents.beside[numbers].to(device)], dim=1)
        types = [self._data.types[number] for number in numbers.tolist()]
        count, size = len(self.texts.rows), self._config.loop.batch_size

        @torch.no_grad()
        def predicted(rows: list[int]) -> Tensor:
            parts = (torch.split(whole, size) for whole in (x, levels, torch.tensor(rows, device=device)))
            return torch.cat([self.network(*part).float().cpu() for part in zip(*parts, strict=True)])

        own = predicted([self._row(number, 0.0) for number in numbers.tolist()])
        effects = {TEXT_EFFECT: relative_change([(own, predicted([0] * len(types)))])}
        if count > 1:
            others = [self.texts.rows[(number + 1) % count][0] for number in types]
            effects[DEFECT_EFFECT] = relative_change([(own, predicted(others))])
        return effects

    def preview(self, path: Path) -> None:
        """Write training images beside the same images with their boxes drawn anew."""
        latents = self._data.latents(self._device)
        numbers = preview_numbers(len(self._data))
        rows = torch.tensor([self._row(number, 0.0) for number in numbers], device=self._device)
        with torch.no_grad():
            contexts = self._learned.encode(rows), self._learned.encode(torch.zeros_like(rows))
        write_preview(
            path,
            self._base,
            "inpaint",
            self._learned.unet,
            self._data.images,
            self._data.boxes,
            latents.moments.mean,
            contexts,
            guidance=GUIDANCE,
            seed=self._config.seed,
            beside=latents.beside,
        )

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


class InpaintingTrainer(GeneratorTrainer):
    """Trains an inpainting network on the defect types of a part."""

    inpaints = True

    def placeholder(self, config: InpaintingConfig) -> str:
        """Return the placeholder of the settings."""
        return config.placeholder

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
