"""Training of a small base model: UNet and text encoder jointly, on the latents of normal images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flawscope.arrays import UInt8Array
from flawscope.config import BaseConfig
from flawscope.config.diffusion_settings import check_widths
from flawscope.datasets import Sample
from flawscope.diffusion.prompts import PromptRules, Prompts
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.errors import ArgumentError
from flawscope.progress import Progress
from flawscope.runs import TEXT_EFFECT
from flawscope.training.diffusion.autoencoder import Encoder, Normalization
from flawscope.training.diffusion.autoencoder_network import settings_of
from flawscope.training.diffusion.diffusers_folder import SAMPLING
from flawscope.training.diffusion.diffusers_networks import group_count
from flawscope.training.diffusion.noise import add_noise, noise_levels
from flawscope.training.diffusion.unet import recompute_blocks
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop import draws
from flawscope.training.loop.epoch_data import MOST_VALIDATED, mean_error, split_images, spread_levels, training_facts
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.synthesis.base_autoencoder import autoencoder_identity, autoencoder_of, own_licence
from flawscope.training.synthesis.base_latents import (
    Encoded,
    centred_autoencoder,
    encode_images,
    joined,
    network_settings,
)
from flawscope.training.synthesis.base_model import BaseSettings, SynthesisBase, build_networks
from flawscope.training.synthesis.generator_run import GeneratorFitResult
from flawscope.training.synthesis.generator_trainer import AdaptationStart, GeneratorRequest, GeneratorTrainer
from flawscope.training.synthesis.latent_cache import PREVIEWS, draw_anew, write_strip
from flawscope.training.synthesis.text_effect import relative_change
from flawscope.training.synthesis.word_tokenizer import END, LENGTH, START, write_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TEXTS = (
    "a photo of a good {category}",
    "a photo of one good {category}",
    "an image of a good {category}",
    "a close photo of a good {category}",
    "a good {category}",
    "a photo of a {category} without a defect",
)
"""Prompts for normal images; validation and previews use the first. Another wording or order trains another network
from the same seed."""

_LEAST_BOXES, _BOXES_IN_ALL = 2, 4096
"""Fewest random boxes of an image, and boxes of all images together: with few images, each has more."""

_PREVIEW_GUIDANCE = 1.5


def train_base(
    config: BaseConfig,
    samples: Sequence[Sample],
    category: str,
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
) -> GeneratorFitResult:
    """Train a text-to-image model of good parts (arXiv:2112.10752), or an inpainting model of them.

    Args:
        config: Settings.
        samples: Normal images; a share of each category is held back to choose the best epoch.
        category: Category of samples that have none of their own.
        hashes: Content hash of every image.
        folder: Folder for metrics, previews and checkpoints.
        resume: Resume from the newest checkpoint there.
        progress: Told what is being done.

    Raises:
        ArgumentError: If no autoencoder is named, or sizes do not fit.
        DataError: If a category has too few images.
        RunError: If the autoencoder cannot be used, memory runs out, the loss is not finite, or a checkpoint does not
            fit.
    """
    autoencoder, normalization = autoencoder_of(config)
    # By category: each has its own prompts, its own share of validation images, and the same weight in the centring.
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.category or category, []).append(sample)
    names = sorted(groups)
    tokenizer = write_tokenizer(names)
    # For its checks alone, before images are read; the settings change with the centred autoencoder.
    base_settings(config, autoencoder, normalization, tokenizer)
    parts = [split_images("base", config, config.data, groups[name], hashes, progress) for name in names]
    device = choose_device(config.device)
    autoencoder = centred_autoencoder(config, autoencoder, normalization, [learned for learned, _ in parts], device)
    settings = base_settings(config, autoencoder, normalization, tokenizer)
    encoder = Encoder(autoencoder, normalization).to(device)
    learned, held_back = [], []
    for number, (images, validation) in enumerate(parts):
        first = 1 + number * len(TEXTS)  # row 0 is the empty prompt
        # An epoch uses one box of an image, so more boxes than epochs could not all be used.
        boxes = min(config.loop.epochs, max(_LEAST_BOXES, -(-_BOXES_IN_ALL // len(images))))
        learned.append(encode_images(config, encoder, images, first, boxes, progress))
        held_back.append(encode_images(config, encoder, validation, first, 1, progress))
    encoder.cpu()  # frees the memory of the device for the training
    preview_images = [
        next(validation.batches(range(min(PREVIEWS, len(validation))), PREVIEWS)) for _, validation in parts
    ]
    task = BaseTask(
        config,
        autoencoder,
        settings,
        tokenizer,
        names,
        joined(learned),
        joined(held_back),
        np.concatenate(preview_images),
    )
    trained = run_loop(task, Numbers(len(task.learned)), config, folder, resume=resume, progress=progress)
    halves: Any = autoencoder
    return GeneratorFitResult(
        networks={**_states_of_libraries(trained.state), "autoencoder": dict(halves.state_dict())},
        facts={
            **training_facts(trained),
            TEXT_EFFECT: task.text_effect(trained.state),
            "training_pictures": len(task.learned),
            "validation_pictures": len(task.held_back),
        },
        settings=msgspec.to_builtins(settings),
        tokenizer=tokenizer,
    )


def _states_of_libraries(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a `DrawingNetwork` by network, with the names that diffusers and transformers give them."""
    networks: dict[str, dict[str, Tensor]] = {"unet": {}, "text": {}}
    for name, value in state.items():
        network, _, rest = name.partition(".")
        # text.model.* is the CLIPTextModel inside TextEncoder.
        networks[network][rest.removeprefix("model.") if network == "text" else rest] = value
    return networks


def base_settings(
    config: BaseConfig, autoencoder: AutoencoderKL, normalization: Normalization, tokenizer: bytes
) -> BaseSettings:
    """Return the settings of a base model's networks.

    All levels of the UNet attend to the text except the finest, which has most positions: on a CPU, attention there
    would cost nearly as much as everything else, and texts about parts carry no fine detail.

    Args:
        config: Settings.
        autoencoder: Autoencoder of the latents.
        normalization: Normalization of its input images.
        tokenizer: Content of `tokenizer.json`, from `write_tokenizer`.

    Raises:
        ArgumentError: If sizes do not fit.
    """
    stock = settings_of(autoencoder)
    widths, channels = config.widths, int(stock["latent_channels"])
    levels = tuple(stock["block_out_channels"])
    check_widths(levels, config.preprocessing.size)
    latent = [side >> (len(levels) - 1) for side in config.preprocessing.size]
    coarsest = 2 ** (len(widths) - 1)
    if any(side % coarsest or side // coarsest < 2 for side in latent):
        raise ArgumentError(
            f"widths: expected levels that halve latents of {latent} evenly, down to 2 or more, got {len(widths)}. "
            "Take fewer widths or other images."
        )
    attended = len(widths) - 1
    vocabulary = msgspec.json.decode(tokenizer)["model"]["vocab"]
    return BaseSettings(
        unet={
            "sample_size": latent,
            "in_channels": 2 * channels + 1 if config.inpainting else channels,
            "out_channels": channels,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * attended,
            "up_block_types": ["CrossAttnUpBlock2D"] * attended + ["UpBlock2D"],
            "block_out_channels": list(widths),
            "layers_per_block": config.layers,
            "norm_num_groups": group_count(widths),
            "cross_attention_dim": config.context,
            "attention_head_dim": config.heads,  # in diffusers this is the number of heads, whatever its name says
        },
        text={
            "vocab_size": len(vocabulary),
            "hidden_size": config.context,
            "intermediate_size": 4 * config.context,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.heads,
            "max_position_embeddings": LENGTH,
            "bos_token_id": vocabulary[START],
            "eos_token_id": vocabulary[END],
            "pad_token_id": vocabulary[END],
        },
        autoencoder=network_settings(autoencoder),
        scaling=float(stock["scaling_factor"]),
        normalization=normalization,
        length=LENGTH,
        pad=vocabulary[END],
    )


# ---- The training ----------------------------------------------------------------------------------------------------


class DrawingNetwork(nn.Module):
    """UNet and text encoder as one module: `forward` predicts the noise in x.

    It takes x float32 [N, C, h, w], for inpainting [N, 2C+1, h, w], timesteps int64 [N], distinct texts as tokens
    int64 [U, L], and the row of each image's text, int64 [N].

    Args:
        settings: Settings of both.
    """

    def __init__(self, settings: BaseSettings) -> None:
        super().__init__()
        self.unet, self.text = build_networks(settings)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Return the predicted noise."""
        with _attention(x.device):
            predicted: Tensor = self.unet(x, t, self.encode(tokens)[chosen], return_dict=False)[0]
        return predicted

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the context of texts, float32 [U, L, D]."""
        placed = torch.zeros(tokens.shape, device=tokens.device)
        context: Tensor = self.text(tokens, placed[..., None].expand(-1, -1, self.text.width), placed)
        return context


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context that chooses the attention kernels.

    In bfloat16 on a CPU, the backward pass of torch's flash attention takes half of a step; plain products are faster.
    """
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


class BaseTask:
    """The training of a small base; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        autoencoder: Frozen autoencoder, for previews.
        settings: Settings of the networks.
        tokenizer: Content of `tokenizer.json`.
        names: Categories, in the order of their texts.
        learned: Normal images for training.
        held_back: Normal images for validation, which chooses the best epoch.
        preview_images: The first of those, uint8 [P, H, W, 3].

    Attributes:
        network: UNet and text encoder.
        tokens: All texts, int64 [1 + names · texts, L]; the first is empty.
    """

    def __init__(
        self,
        config: BaseConfig,
        autoencoder: AutoencoderKL,
        settings: BaseSettings,
        tokenizer: bytes,
        names: Sequence[str],
        learned: Encoded,
        held_back: Encoded,
        preview_images: UInt8Array,
    ) -> None:
        self._config, self._preview_images = config, preview_images[:PREVIEWS]
        self.learned, self.held_back = learned, held_back
        texts = ["", *(text.format(category=name.replace("_", " ")) for name in names for text in TEXTS)]
        prompts = Prompts(tokenizer, PromptRules(settings.length, settings.pad))
        self.tokens = torch.from_numpy(prompts.tokens(texts, config.context).tokens)
        # Right before the networks, whose weights are drawn from torch's global generator.
        torch.manual_seed(config.seed)
        network = DrawingNetwork(settings)
        recompute_blocks(
            network.unet, config.denoising.gradient_checkpointing, lambda: _attention(next(network.parameters()).device)
        )
        self.network: nn.Module = network
        self._base = SynthesisBase(
            autoencoder=autoencoder,
            normalization=settings.normalization,
            unet=network.unet,
            text=network.text,
            tokenizer=tokenizer,
            prompts=prompts,
            sampling=SAMPLING,
            size=config.preprocessing.size,
            licence="",
            identity="",
        )
        self._shares = torch.from_numpy(signal_shares(SAMPLING)).float()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of all parameters."""
        # Fused: with hundreds of small tensors, the update then takes only a twentieth of a step on a CPU.
        return build_optimizer(
            self._config.denoising, self.network.parameters(), rate=self._config.loop.learning_rate, fused=True
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise (arXiv:2112.10752, equation 3).

        Args:
            network: The network.
            images: Numbers of images, int64 [N].
            generator: Source of all random numbers: posterior, levels, texts, boxes and noise.
        """
        # The order of the draws is what makes a resumed training bit-identical.
        device, count, data = images.device, len(images), self.learned
        numbers = images.cpu()
        clean = data.latents.sample(numbers, generator)
        levels = noise_levels(count, TRAINED_STEPS, generator)
        texts = data.texts[numbers].to(device) + noise_levels(count, len(TEXTS), generator)
        # Dropped texts become the empty prompt of row 0 (classifier-free guidance, arXiv:2207.12598).
        is_dropped = draws.uniform((count,), generator) < self._config.text_drop
        texts = texts.masked_fill(is_dropped, 0)
        # Drawn even without inpainting, so that the random numbers after it stay the same.
        beside = data.beside(numbers, noise_levels(count, max(1, data.boxes.shape[1]), generator).cpu())
        noise = draws.normal(clean.shape, generator)
        return self._squared_errors(network, clean, levels, noise, texts, beside).mean()

    def validate(self) -> dict[str, float]:
        """Return the mean squared error of the predicted noise, at fixed levels and with fixed noise."""
        data, count = self.held_back, min(len(self.held_back), MOST_VALIDATED)
        size, seed = self._config.loop.batch_size, self._config.seed
        device = next(self.network.parameters()).device
        numbers = torch.arange(count) * len(data) // count  # evenly, because they are ordered by category
        levels = spread_levels(count, seed).to(device)

        def errors(part: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
            numbers, levels = part
            clean, texts = data.latents.mean[numbers].to(device), data.texts[numbers].to(device)
            noise = torch.randn(clean.shape, generator=generator, device=device)
            beside = data.beside(numbers, torch.zeros_like(numbers))
            return self._squared_errors(self.network, clean, levels, noise, texts, beside).mean(dim=(1, 2, 3))

        return mean_error(zip(torch.split(numbers, size), torch.split(levels, size), strict=True), errors, device, seed)

    @torch.no_grad()
    def text_effect(self, state: Mapping[str, Tensor]) -> float:
        """Return what an image's text changes in the predicted noise, against the empty text; see `relative_change`.

        Args:
            state: State of the network to measure, which it has afterwards.
        """
        self.network.load_state_dict(dict(state))
        data, device = self.held_back, next(self.network.parameters()).device
        count = min(len(data), MOST_VALIDATED)
        generator = torch.Generator(device).manual_seed(self._config.seed)

        def predicted() -> Iterator[tuple[Tensor, Tensor]]:
            numbers, levels = torch.arange(count) * len(data) // count, spread_levels(count, self._config.seed)
            size = self._config.loop.batch_size
            for chosen, part in zip(torch.split(numbers, size), torch.split(levels, size), strict=True):
                clean, texts = data.latents.mean[chosen].to(device), data.texts[chosen].to(device)
                noise = torch.randn(clean.shape, generator=generator, device=device)
                beside = data.beside(chosen, torch.zeros_like(chosen))
                first, second = (
                    self._predicted(self.network, clean, part.to(device), noise, rows, beside)
                    for rows in (texts, torch.zeros_like(texts))
                )
                yield first, second

        return relative_change(predicted())

    def preview(self, path: Path) -> None:
        """Write held-back normal images, each beside a drawn one, or beside itself with its box filled."""
        data, base = self.held_back, self._base
        unet: Any = base.unet
        numbers = torch.arange(len(self._preview_images))
        texts = torch.stack([data.texts[numbers], torch.zeros_like(numbers)])
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            contexts = [self._encode(self.tokens[row].to(device)) for row in texts]
            drawn = draw_anew(
                base,
                "inpaint" if base.is_inpainting else "blend",
                lambda x, t, context: unet(x, t, context, return_dict=False)[0],
                data.latents.mean[numbers],
                [np.ones(base.size, np.bool_)] * len(numbers),
                (contexts[0], contexts[1]),
                guidance=_PREVIEW_GUIDANCE,
                seed=self._config.seed,
                beside=data.beside(numbers, torch.zeros_like(numbers)),
            )
        write_strip(path, list(self._preview_images), list(drawn))

    def _encode(self, tokens: Tensor) -> Tensor:
        network: Any = self.network
        context: Tensor = network.encode(tokens)
        return context

    def _squared_errors(
        self, network: nn.Module, clean: Tensor, levels: Tensor, noise: Tensor, texts: Tensor, beside: Tensor | None
    ) -> Tensor:
        return (self._predicted(network, clean, levels, noise, texts, beside) - noise).square()

    def _predicted(
        self, network: nn.Module, clean: Tensor, levels: Tensor, noise: Tensor, texts: Tensor, beside: Tensor | None
    ) -> Tensor:
        noisy = add_noise(clean, noise, self._shares.to(clean.device)[levels])
        inputs = noisy if beside is None else torch.cat([noisy, beside.to(clean.device)], dim=1)
        # Many images share a text, so each distinct text is encoded once.
        used, chosen = torch.unique(texts, return_inverse=True)
        predicted: Tensor = network(inputs, levels, self.tokens.to(clean.device)[used], chosen)
        return predicted.float()  # under autocast the prediction is in half precision


class BaseTrainer(GeneratorTrainer):
    """Trains the small base from normal images alone."""

    learns = "normal images"

    def start(self, config: BaseConfig) -> None:
        """Return None: a base model is trained from scratch, but for its autoencoder."""

    def weights(self, config: BaseConfig, start: AdaptationStart | None) -> str:
        """Return the hash of the autoencoder."""
        return f"autoencoder sha256:{autoencoder_identity(config)}"

    def licence(self, config: BaseConfig, start: AdaptationStart | None) -> str:
        """Return the licence of the base, which depends on its autoencoder."""
        return own_licence(config)

    def fit(self, request: GeneratorRequest) -> GeneratorFitResult:
        """Train UNet and text encoder; see `train_base`."""
        dataset = request.dataset
        return train_base(
            request.config,
            dataset.train_good,
            dataset.category,
            request.hashes,
            request.workspace,
            request.resume,
            request.progress,
        )


TRAINER = BaseTrainer()
