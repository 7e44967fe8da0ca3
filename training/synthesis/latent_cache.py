"""Parts shared by the few-shot trainings: latents encoded once, tokenized prompts, and previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.config import AdaptedConfig
from flawscope.diffusion.latent_inpainting import Mode, classifier_free_guidance, draw_latents, draw_noise, keep_of
from flawscope.errors import ArgumentError
from flawscope.imaging.png import write_png
from flawscope.training.diffusion.autoencoder import Decoder, Encoder
from flawscope.training.loop import draws
from flawscope.training.loop.epoch_data import MOST_VALIDATED, spread_levels

if TYPE_CHECKING:
    from flawscope.diffusion.prompts import Prompts
    from flawscope.training.synthesis.base_model import SynthesisBase

PREVIEWS = 4
"""Images of a preview."""
_PREVIEW_STEPS = 20
_LEAST_VALIDATED = 16
"""Fewer images are measured several times, at different noise levels."""

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A UNet: latents float32 [N, C, h, w], timesteps int64 [N] and context float32 [N, L, D] → the noise."""


@dataclass(frozen=True)
class Moments:
    """Posteriors of images: the normal distributions of their latents, already scaled.

    Attributes:
        mean: Means, float32 [K, C, h, w], on the CPU.
        deviation: Standard deviations, float32 [K, C, h, w], on the CPU.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random sample for the images with these numbers, float32 [N, C, h, w] on the generator's device."""
        device = generator.device
        # Indexed on the CPU, where all of them are; only the batch is moved.
        mean, deviation = self.mean[numbers].to(device), self.deviation[numbers].to(device)
        return mean + deviation * draws.normal(mean.shape, generator)


@torch.no_grad()
def encode_moments(base: SynthesisBase, images: Tensor, device: torch.device) -> Moments:
    """Return the posteriors of images.

    Images are encoded one by one, so that the result for one does not depend on the batch it is in.

    Args:
        base: The base model, whose autoencoder is moved to the device.
        images: Images [K, H, W, 3] RGB from 0 to 255, uint8 or float32.
        device: Device for encoding.
    """
    encoder = Encoder(base.autoencoder, base.normalization).to(device)
    means, deviations = [], []
    # Without autocast: the autoencoders of Stable Diffusion may overflow in half precision.
    with torch.autocast(device.type, enabled=False):
        for image in images:
            normalised = encoder.normalised(image[None].to(device))
            mean, log_variance = encoder.moments(encoder.encoder(normalised)).chunk(2, dim=1)
            means.append((mean * encoder.scaling).cpu())
            # Clamped as in diffusers' AutoencoderKL.
            deviations.append((torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * encoder.scaling).cpu())
    return Moments(torch.cat(means), torch.cat(deviations))


def latent_masks(base: SynthesisBase, masks: Sequence[BoolArray]) -> Tensor:
    """Return the latent cells that masks bool [H, W] cover, float32 [K, 1, h, w]: 1 where any pixel of a cell is true.

    AnoGen resizes with a filter and takes every value above zero, which is the same up to a pixel at the edge. Nearest
    neighbour, as in Stable Diffusion's inpainting, would lose thin boxes.
    """
    return torch.from_numpy(np.stack([1.0 - keep_of(mask, base.latents[1:]) for mask in masks]))


class TextTokens:
    """Tokenized prompts of a training.

    Args:
        prompts: Turns texts into tokens.
        texts: T texts.
        vectors: Number of vectors that replace the placeholder, in every text but the empty one; 0 where it is an
            ordinary word.

    Attributes:
        tokens: int64 [T, L].
        slots: int64 [T, L]: number of the vector at each token, 0 where there is none.
        placed: Float32 [T, L]: 1 where there is a vector, else 0.

    Raises:
        ArgumentError: If a text lacks the placeholder, or has no room for the vectors.
    """

    def __init__(self, prompts: Prompts, texts: Sequence[str], vectors: int = 0) -> None:
        # Vectors of width 1 that hold their own numbers: the result tells which vector belongs at which token.
        numbers = np.arange(vectors, dtype=np.float32)[:, None]
        tokenized = prompts.tokens(texts, 1, [numbers if text else None for text in texts] if vectors else ())
        needed = np.array([vectors if text else 0 for text in texts])
        if (tokenized.placed.sum(axis=1) < needed).any():
            raise ArgumentError(
                f"vectors: expected so few that a text of {prompts.rules.length} tokens has room for them, got "
                f"{vectors}. Take fewer."
            )
        self.tokens = torch.from_numpy(tokenized.tokens)
        self.slots = torch.from_numpy(tokenized.vectors[..., 0].astype(np.int64))
        self.placed = torch.from_numpy(tokenized.placed)

    def context(
        self,
        base: SynthesisBase,
        rows: Tensor,
        place: Callable[[Tensor], Tensor] | None = None,
        text: nn.Module | None = None,
    ) -> Tensor:
        """Return the encoded texts with these rows, float32 [N, L, D].

        Args:
            base: The base model, whose text encoder is on the device of `rows`.
            rows: Rows of the texts, int64 [N].
            place: Slots int64 [N, L] → vectors float32 [N, L, W], with gradients; None without vectors.
            text: Text encoder in place of that of the base, or None.
        """
        tokens, slots, placed = (table[rows.cpu()].to(rows.device) for table in (self.tokens, self.slots, self.placed))
        no_vectors = torch.zeros((*tokens.shape, base.text.width), device=rows.device)
        vectors = no_vectors if place is None else place(slots)
        context: Tensor = (text or base.text)(tokens, vectors, placed)
        return context


def check_base(config: AdaptedConfig, base: SynthesisBase, *, inpainting: bool) -> tuple[int, int]:
    """Return height and width in pixels of the training images: those of the base.

    Args:
        config: Settings.
        base: The base model.
        inpainting: Whether it must be an inpainting network.

    Raises:
        ArgumentError: If it is of the wrong kind, or the settings have another size.
    """
    if base.is_inpainting != inpainting:
        kinds = ("a network that draws whole images", "an inpainting network, which takes the box as well")
        raise ArgumentError(
            f"base: expected {kinds[inpainting]}, got {kinds[not inpainting]} ({config.adaptation.base}). Take another "
            f"one: that of flawscope train base with --set inpainting={str(inpainting).lower()}, for example."
        )
    if config.preprocessing.size != base.size:
        height, width = base.size
        raise ArgumentError(
            f"resize: expected {list(base.size)}, the images of the base, got {list(config.preprocessing.size)}. "
            f"Give --set resize={height},{width} and no crop."
        )
    return base.size


def validation_plan(count: int, seed: int) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Return numbers of images, of `count`, and noise levels at which the error is measured, int64 [N] both.

    Few images are repeated, each time at another level; of many images some are chosen evenly.
    """
    measured = min(max(count, _LEAST_VALIDATED), MOST_VALIDATED)
    numbers = np.arange(measured) * count // measured if count > measured else np.arange(measured) % count
    return numbers.astype(np.int64), spread_levels(measured, seed)


def preview_numbers(count: int) -> list[int]:
    """Return the numbers of the images that a preview shows, evenly chosen from `count`."""
    number_shown = min(count, PREVIEWS)
    return [index * count // number_shown for index in range(number_shown)]


def write_preview(
    path: Path,
    base: SynthesisBase,
    mode: Mode,
    denoise: Denoise,
    images: Sequence[UInt8Array],
    masks: Sequence[BoolArray],
    latents: Tensor,
    contexts: tuple[Tensor, Tensor],
    *,
    guidance: float,
    seed: int,
    beside: Tensor | None = None,
) -> None:
    """Write some training images beside the same images with their boxes drawn anew; see `draw_anew`.

    Args:
        path: The PNG.
        base: Base model, for sampling and autoencoder.
        mode: Mode of drawing.
        denoise: The UNet.
        images: The images that `preview_numbers` chooses from, each uint8 [H, W, 3].
        masks: Their boxes.
        latents: Their latents, float32 [K, C, h, w].
        contexts: Context of the chosen images' texts and of the empty text, float32 [N, L, D].
        guidance: Scale of classifier-free guidance.
        seed: Seed of the noise.
        beside: Other inputs of an inpainting UNet, float32 [K, ., h, w], or None.
    """
    numbers = preview_numbers(len(images))
    drawn = draw_anew(
        base,
        mode,
        denoise,
        latents[numbers],
        [masks[number] for number in numbers],
        contexts,
        guidance=guidance,
        seed=seed,
        beside=None if beside is None else beside[numbers],
    )
    write_strip(path, [images[number] for number in numbers], list(drawn))


@torch.no_grad()
def draw_anew(
    base: SynthesisBase,
    mode: Mode,
    denoise: Denoise,
    clean: Tensor,
    masks: Sequence[BoolArray],
    contexts: tuple[Tensor, Tensor],
    *,
    guidance: float,
    seed: int,
    beside: Tensor | None = None,
) -> UInt8Array:
    """Return images with their boxes drawn anew, as at run time but in fewer steps, uint8 [N, H, W, 3].

    Args:
        base: Base model, for sampling and autoencoder.
        mode: Mode of drawing; see `flawscope.diffusion.latent_inpainting`.
        denoise: The UNet.
        clean: Latents of the images, float32 [N, C, h, w].
        masks: Boxes, each bool [H, W].
        contexts: Context of the texts and of the empty text, float32 [N, L, D] on the device of the network.
        guidance: Scale of classifier-free guidance.
        seed: Seed of the noise.
        beside: Other inputs of an inpainting UNet, float32 [N, ., h, w], or None.
    """
    # NumPy on the outside and torch inside `predict`: the sampling loop is the one of the runtime, without torch.
    device = contexts[0].device
    both_contexts = torch.cat(contexts)

    def predict(x: Float32Array, timestep: int) -> Float32Array:
        inputs = torch.from_numpy(np.ascontiguousarray(x)).to(device)
        if beside is not None:
            inputs = torch.cat([inputs, beside.to(device)], dim=1)
        levels = torch.full((2 * len(x),), timestep, device=device)
        # With the text and with the empty text in one batch, in the order of `both_contexts`.
        both = denoise(torch.cat([inputs, inputs]), levels, both_contexts).float().cpu().numpy()
        return classifier_free_guidance(both[: len(x)], both[len(x) :], guidance)

    sampling = msgspec.structs.replace(base.sampling, steps=min(_PREVIEW_STEPS, base.sampling.steps))
    keep = np.stack([keep_of(mask, base.latents[1:]) for mask in masks])
    # A seed per image, so that an image is drawn alike whatever else the preview shows.
    noise = np.stack([draw_noise(seed + index, mode, sampling, base.latents) for index in range(len(clean))])
    # The known surroundings are put back, as `synth generate` does.
    drawn = draw_latents(mode, clean.cpu().numpy(), keep, noise, sampling, predict, restore=True)
    decoder = Decoder(base.autoencoder, base.normalization).to(device)
    decoded = decoder(torch.from_numpy(drawn).to(device)).permute(0, 2, 3, 1).cpu().numpy()
    return np.asarray(np.rint((decoded + 1.0) * 127.5), np.uint8)


def write_strip(path: Path, *columns: Sequence[UInt8Array]) -> None:
    """Write a PNG with a row for each image and a column for each sequence of them, uint8 [H, W, 3] RGB each."""
    write_png(path, np.vstack([np.hstack(row) for row in zip(*columns, strict=True)]))
