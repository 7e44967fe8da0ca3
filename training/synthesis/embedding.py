"""Masked textual inversion: a learned embedding for each defect type.

Source: AnoGen (ECCV 2024, arXiv:2505.09263), after textual inversion (arXiv:2208.01618). Differences: latents are
encoded once, and every step draws a new sample from their posterior; the prompt templates are other ones; the state
with the smallest validation error is kept, where AnoGen keeps the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.config import EmbeddingConfig
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.progress import Progress
from flawscope.runs import TEXT_EFFECT, LearnedDefect
from flawscope.training.diffusion.noise import add_noise, noise_levels
from flawscope.training.diffusion.unet import recompute_blocks
from flawscope.training.loop import draws
from flawscope.training.loop.epoch_data import mean_error, rounded
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
from flawscope.training.synthesis.learned_text import first_vectors
from flawscope.training.synthesis.prompt_templates import photo_texts
from flawscope.training.synthesis.support_examples import SupportExample, SupportExamples
from flawscope.training.synthesis.text_effect import relative_change

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase

GUIDANCE = 10.0
"""Guidance scale of previews, that of AnoGen."""


def train_embedding(
    config: EmbeddingConfig,
    base: SynthesisBase,
    support: SupportExamples,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> GeneratorFitResult:
    """Train the vectors of every defect type of a support set, one type after the other.

    Each type is trained on its own in `folder`/CATEGORY/DEFECT, so that the result for one does not depend on which
    others are trained. The result has the tensors `vectors` -> CATEGORY/DEFECT -> float32 [V, W].

    Args:
        config: Settings.
        base: The base model, frozen. It is moved to the device of the training.
        support: The support set.
        folder: Folder for metrics, previews and checkpoints.
        resume: Resume from the newest checkpoint of every defect type; finished types are not trained again.
        progress: Told the finished steps of all defect types.

    Raises:
        ArgumentError: If the base is of the wrong kind or size, or `init_word` is not a single token.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    vectors: dict[str, Tensor] = {}
    errors, losses, effects, defects, epochs = [], [], [], [], 0
    for index, (category, defect) in enumerate(support.types):
        images = support.of(category, defect)
        task = EmbeddingTask(config, base, images)
        part_progress = _part_of(progress, index, len(support.types))
        items = Numbers(len(images) * config.adaptation.repeats)
        trained = run_loop(task, items, config, folder / category / defect, resume=resume, progress=part_progress)
        # `state` is that of the epoch with the smallest validation error, not the last one.
        vectors[f"{category}/{defect}"] = trained.state["vectors"]
        errors.append(trained.error)
        effects.append(task.text_effect(trained.state))
        losses.append(trained.losses[-1])
        epochs = max(epochs, len(trained.losses))
        defects.append(
            LearnedDefect(
                category,
                defect,
                (config.placeholder,),
                vectors=True,
                pictures=support.shots(category, defect),
            )
        )
    return GeneratorFitResult(
        networks={"vectors": vectors},
        facts={
            "epochs": epochs,
            "defect_types": len(defects),
            "pictures": len(support.real),
            "drawn_pictures": len(support.examples) - len(support.real),
            "validation_error": rounded(float(np.mean(errors))),
            "final_loss": rounded(float(np.mean(losses))),
            TEXT_EFFECT: rounded(float(np.mean(effects))),
            **trained.processes,
        },
        defects=tuple(defects),
    )


def _part_of(progress: Progress, index: int, count: int) -> Progress:
    """Return a progress callback that reports the steps of training `index` as part of `count` trainings."""

    def report(task: str, steps: int, total: int) -> None:
        progress(task, index * total + steps, count * total)

    return report


class LearnedVectors(nn.Module):
    """The trainable vectors of a learned embedding.

    `forward` takes slots int64 [N, L] and returns their vectors, float32 [N, L, W].

    Args:
        start: Vectors at the start, float32 [V, W].

    Attributes:
        vectors: The parameter.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.clone())

    def forward(self, slots: Tensor) -> Tensor:
        """Return the vectors of slots."""
        return self.vectors[slots]


class EmbeddingTask:
    """The training of the vectors of one defect type; see `flawscope.training.loop.loop.Task`.

    An epoch has every image `repeats` times. The base is no part of the network: checkpoints hold the vectors alone.

    Args:
        config: Settings.
        base: The base model.
        images: Examples of the defect type.

    Attributes:
        network: The vectors.

    Raises:
        ArgumentError: If the base is of the wrong kind or size, or `init_word` is not a single token.
    """

    def __init__(self, config: EmbeddingConfig, base: SynthesisBase, images: Sequence[SupportExample]) -> None:
        size = check_base(config, base, inpainting=False)
        fill = config.adaptation.crop_fill if config.adaptation.crop_defects else None
        self._config, self._base = config, base
        self._images, self._masks = zip(*(example.cut(size, fill) for example in images), strict=True)
        # All prompts are tokenized once; a step picks rows.
        self._texts = TextTokens(base.prompts, photo_texts(config.placeholder), config.vectors)
        self._shares = torch.from_numpy(signal_shares(base.sampling)).float()
        self._cached: tuple[Moments, Tensor] | None = None
        self.network: nn.Module = LearnedVectors(first_vectors(config, base))
        recompute_blocks(base.unet, config.denoising.gradient_checkpointing)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the vectors."""
        config = self._config
        return build_optimizer(
            config.denoising,
            self.network.parameters(),
            rate=config.adaptation.rate(config.loop),
            epsilon=config.adaptation.epsilon,
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the masked error of the predicted noise, averaged over a batch of item numbers int64 [N].

        Random for each item: mirroring, a prompt, noise level, sample of the latents, and noise.
        """
        # All draws come from this generator, in this order: that is what makes a resumed training bit-identical.
        numbers = images % len(self._images)
        is_mirrored = draws.uniform(images.shape, generator) < self._config.adaptation.flip
        rows = draws.integers(len(self._texts.tokens), images.shape, generator)
        levels = noise_levels(len(images), TRAINED_STEPS, generator)
        return self._losses(network, numbers, is_mirrored, rows, levels, generator).mean()

    def _losses(
        self,
        network: nn.Module,
        images: Tensor,
        is_mirrored: Tensor,
        rows: Tensor,
        levels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        device = images.device
        unet = self._moved(device)
        moments, masks = self._latents(device)
        # Mirrored images follow the others in the cache, in the same order.
        variants = (images + is_mirrored * len(self._images)).cpu()
        latents = moments.sample(variants, generator)
        noise = draws.normal(latents.shape, generator)
        noisy = add_noise(latents, noise, self._shares.to(device)[levels])
        context = self._texts.context(self._base, rows, network)
        predicted = unet(noisy, levels, context, return_dict=False)[0]
        return masked_loss(predicted, noise, masks[variants].to(device), self._config.mask_loss)

    def validate(self) -> dict[str, float]:
        """Return the masked error at fixed noise levels, with fixed texts and noise.

        It is measured on the training images, not mirrored: of a handful of images none can be held back.
        """
        device, seed = next(self.network.parameters()).device, self._config.seed
        numbers, levels = validation_plan(len(self._images), seed)
        rows = torch.arange(len(numbers)) % len(self._texts.tokens)
        plan = torch.stack([torch.from_numpy(numbers), rows, levels], dim=1).to(device)

        def errors(part: Tensor, generator: torch.Generator) -> Tensor:
            images, rows, levels = part.unbind(dim=1)
            not_mirrored = torch.zeros_like(images, dtype=torch.bool)
            return self._losses(self.network, images, not_mirrored, rows, levels, generator)

        return mean_error(torch.split(plan, self._config.loop.batch_size), errors, device, seed)

    @torch.no_grad()
    def text_effect(self, state: Mapping[str, Tensor]) -> float:
        """Return what the learned embedding changes in the predicted noise, against the empty text.

        It is measured at the levels of `validate`, on the training images; see `relative_change`.

        Args:
            state: State of the vectors to measure, which they have afterwards.
        """
        self.network.load_state_dict(dict(state))
        device = next(self.network.parameters()).device
        unet = self._moved(device)
        numbers, levels = validation_plan(len(self._images), self._config.seed)
        clean, levels = self._latents(device)[0].mean[numbers].to(device), levels.to(device)
        noise = torch.randn(
            clean.shape, generator=torch.Generator(device).manual_seed(self._config.seed), device=device
        )
        noisy = add_noise(clean, noise, self._shares.to(device)[levels])
        empty = TextTokens(self._base.prompts, [""])

        def predicted() -> Iterator[tuple[Tensor, Tensor]]:
            for part in torch.split(torch.arange(len(numbers), device=device), self._config.loop.batch_size):
                rows = torch.zeros_like(part)
                contexts = self._texts.context(self._base, rows, self.network), empty.context(self._base, rows)
                first, second = (unet(noisy[part], levels[part], text, return_dict=False)[0] for text in contexts)
                yield first.float(), second.float()

        return relative_change(predicted())

    def preview(self, path: Path) -> None:
        """Write training images beside the same images with the place of the defect drawn anew."""
        device = next(self.network.parameters()).device
        unet = self._moved(device)
        moments, _ = self._latents(device)
        texts = TextTokens(self._base.prompts, [self._config.placeholder], self._config.vectors)
        rows = torch.zeros(len(preview_numbers(len(self._images))), dtype=torch.int64, device=device)
        with torch.no_grad():
            context = texts.context(self._base, rows, self.network)
            empty = TextTokens(self._base.prompts, [""]).context(self._base, rows)
        write_preview(
            path,
            self._base,
            "blend",
            lambda x, levels, context: unet(x, levels, context, return_dict=False)[0],
            self._images,
            self._masks,
            moments.mean,
            (context, empty),
            guidance=GUIDANCE,
            seed=self._config.seed,
        )

    def _moved(self, device: torch.device) -> Any:
        """Move the base to the device and return its UNet."""
        self._base.text.to(device)
        unet: Any = self._base.unet.to(device)
        return unet

    def _latents(self, device: torch.device) -> tuple[Moments, Tensor]:
        """Return the latents and masks of all images, followed by those of all of them mirrored."""
        # Encoded at the first call, not in __init__: the device is known only when the training has moved the network.
        if self._cached is None:
            images, masks = np.stack(self._images), np.stack(self._masks)
            if self._config.adaptation.flip > 0:
                images = np.concatenate([images, images[:, :, ::-1]])
                masks = np.concatenate([masks, masks[:, :, ::-1]])
            moments = encode_moments(self._base, torch.from_numpy(images), device)
            self._cached = moments, latent_masks(self._base, list(masks))
        return self._cached


def masked_loss(predicted: Tensor, noise: Tensor, mask: Tensor, kind: Literal["mean", "area"]) -> Tensor:
    """Return the squared error of the predicted noise inside a mask, float32 [N].

    Args:
        predicted: [N, C, h, w].
        noise: Float32 [N, C, h, w].
        mask: Float32 [N, 1, h, w], 1 inside.
        kind: `mean` divides by all C · h · w entries, as AnoGen does, so that small defects give small gradients;
            `area` by those inside the mask.
    """
    # float(): under autocast the prediction is in half precision, whose squares and their mean would lose digits.
    squared = ((predicted.float() - noise).square() * mask).flatten(1)
    if kind == "mean":
        return squared.mean(dim=1)
    return squared.sum(dim=1) / (noise.shape[1] * mask.flatten(1).sum(dim=1))


class EmbeddingTrainer(GeneratorTrainer):
    """Trains an embedding for each defect type."""

    def placeholder(self, config: EmbeddingConfig) -> str:
        """Return the placeholder of the settings."""
        return config.placeholder

    def adapt(self, config: EmbeddingConfig, base: SynthesisBase, support: SupportExamples) -> AdaptationStart:
        """Return base and support set."""
        check_base(config, base, inpainting=False)
        return AdaptationStart(base, support)

    def fit(self, request: GeneratorRequest) -> GeneratorFitResult:
        """Train the embeddings; see `train_embedding`."""
        assert request.start is not None
        start = request.start
        return train_embedding(
            request.config, start.base, start.support, request.workspace, request.resume, request.progress
        )


TRAINER = EmbeddingTrainer()
