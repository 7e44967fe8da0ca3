"""Shared by few-shot trainings: latents encoded once, tokenized texts, and inpainted previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.config import AdaptedConfig
from flawscope.diffusion.latent_inpainting import Mode, classifier_free_guidance, draw_latents, draw_noise, keep_of
from flawscope.errors import ArgumentError
from flawscope.imaging.png import write_png
from flawscope.training.diffusion.autoencoder import Decoder, Encoder
from flawscope.training.loop.epoch_data import MOST_VALIDATED, spread_levels

if TYPE_CHECKING:
    from flawscope.diffusion.prompts import Prompts
    from flawscope.training.synthesis.base_model import SynthesisBase

PREVIEWS = 4
_PREVIEW_STEPS = 20
_LEAST_VALIDATED = 16

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What a UNet takes, float32 [N, C, h, w], timesteps int64 [N] and context float32 [N, L, D] → the noise."""


@dataclass(frozen=True)
class Moments:
    """What an autoencoder says of images: the normal distributions of their latents, already scaled.

    Attributes:
        mean: Float32 [K, C, h, w], on the CPU.
        deviation: Float32 [K, C, h, w], on the CPU.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents drawn for the images with these numbers, float32 [N, C, h, w] on the generator's device."""
        device = generator.device
        mean, deviation = self.mean[numbers].to(device), self.deviation[numbers].to(device)
        return mean + deviation * torch.randn(mean.shape, generator=generator, device=device)


@torch.no_grad()
def encode_moments(base: SynthesisBase, images: Tensor, device: torch.device) -> Moments:
    """Return the distributions of latents.

    Images are encoded one by one: what is found for one does not depend on its neighbours.

    Args:
        base: Its autoencoder is moved to the device.
        images: Images [K, H, W, 3] RGB from 0 to 255, uint8 or float32.
        device: Where the autoencoder works.
    """
    encoder = Encoder(base.autoencoder, base.normalization).to(device)
    means, deviations = [], []
    with torch.autocast(device.type, enabled=False):  # autoencoders of Stable Diffusion may overflow in half precision
        for image in images:
            given = encoder.normalised(image[None].to(device))
            mean, log_variance = encoder.moments(encoder.encoder(given)).chunk(2, dim=1)
            means.append((mean * encoder.scaling).cpu())
            # The limits are those of AutoencoderKL.
            deviations.append((torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * encoder.scaling).cpu())
    return Moments(torch.cat(means), torch.cat(deviations))


def latent_masks(base: SynthesisBase, masks: Sequence[BoolArray]) -> Tensor:
    """Return which latent cells masks bool [H, W] cover, float32 [K, 1, h, w]: 1 where any pixel of the cell is white.

    AnoGen resizes with a filter and takes all that is not zero, which is the same up to a pixel at the edge; a nearest
    pixel, as Stable Diffusion's inpainting takes it, would lose thin boxes.
    """
    return torch.from_numpy(np.stack([1.0 - keep_of(mask, base.latents[1:]) for mask in masks]))


class TextTokens:
    """Texts as tokens, ready to be drawn from.

    Args:
        prompts: Make tokens of texts.
        texts: T texts.
        vectors: How many vectors stand for the placeholder; 0 where it is a word as any other.

    Attributes:
        tokens: int64 [T, L].
        slots: int64 [T, L]: which of the vectors belongs there, 0 where none does.
        placed: Float32 [T, L]: 1 where one does, else 0.

    Raises:
        ArgumentError: If a text has no placeholder but should, or is too short for the vectors.
    """

    def __init__(self, prompts: Prompts, texts: Sequence[str], vectors: int = 0) -> None:
        # Vectors of width 1 that hold their own numbers: so the tokens tell which vector goes where.
        numbers = np.arange(vectors, dtype=np.float32)[:, None]
        found = prompts.tokens(texts, 1, [numbers] * len(texts) if vectors else ())
        if vectors and (found.placed.sum(axis=1) < vectors).any():
            raise ArgumentError(
                f"vectors: expected so few that a text of {prompts.rules.length} tokens has room for them, got "
                f"{vectors}. Take fewer."
            )
        self.tokens = torch.from_numpy(found.tokens)
        self.slots = torch.from_numpy(found.vectors[..., 0].astype(np.int64))
        self.placed = torch.from_numpy(found.placed)

    def context(self, base: SynthesisBase, rows: Tensor, place: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return what the text encoder says of some of the texts, float32 [N, L, D].

        Args:
            base: Has the text encoder.
            rows: Which texts, int64 [N]; the encoder works on their device.
            place: Slots int64 [N, L] → vectors float32 [N, L, W], with gradients; None where there are none.
        """
        tokens, slots, placed = (one[rows.cpu()].to(rows.device) for one in (self.tokens, self.slots, self.placed))
        nothing = torch.zeros((*tokens.shape, base.text.width), device=rows.device)
        vectors = nothing if place is None else place(slots)
        found: Tensor = base.text(tokens, vectors, placed)
        return found


def check_base(config: AdaptedConfig, base: SynthesisBase, *, inpainting: bool) -> tuple[int, int]:
    """Return the height and width in pixels that images are learned at: those of the base.

    Args:
        config: Settings.
        base: What is learned on.
        inpainting: Whether it has to fill boxes.

    Raises:
        ArgumentError: If it is of the wrong kind, or settings ask for another size.
    """
    if base.is_inpainting != inpainting:
        kinds = ("a network that draws whole images", "an inpainting network, which is given the box as well")
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
    """Return on which of `count` images, and at which noise levels, the error is measured, int64 [N] both.

    Few images come several times, at other levels each; of many some are taken, evenly.
    """
    taken = min(max(count, _LEAST_VALIDATED), MOST_VALIDATED)
    numbers = np.arange(taken) * count // taken if count > taken else np.arange(taken) % count
    return numbers.astype(np.int64), spread_levels(taken, seed)


def preview_numbers(count: int) -> list[int]:
    """Return which of `count` images a preview shows: a few, evenly."""
    taken = min(count, PREVIEWS)
    return [index * count // taken for index in range(taken)]


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
    """Write some images as they are learned from beside what is drawn in their boxes; see `draw_anew`.

    Args:
        path: The PNG.
        base: Sampling and autoencoder.
        mode: How boxes are drawn.
        denoise: Predicts the noise.
        images: The images that `preview_numbers` chooses from, each uint8 [H, W, 3].
        masks: Their boxes.
        latents: Theirs, float32 [K, C, h, w].
        contexts: Of the texts of the chosen ones and of the empty text, float32 [N, L, D].
        guidance: Scale of classifier-free guidance.
        seed: Of the noise.
        beside: What the network is given beside x, float32 [K, ., h, w], or None.
    """
    shown = preview_numbers(len(images))
    drawn = draw_anew(
        base,
        mode,
        denoise,
        latents[shown],
        [masks[number] for number in shown],
        contexts,
        guidance=guidance,
        seed=seed,
        beside=None if beside is None else beside[shown],
    )
    write_strip(path, [images[number] for number in shown], list(drawn))


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
    """Return images with their boxes drawn anew, as the line does it but in few steps, uint8 [N, H, W, 3].

    Args:
        base: Sampling and autoencoder.
        mode: How boxes are drawn; see `flawscope.diffusion.latent_inpainting`.
        denoise: Predicts the noise.
        clean: Latents float32 [N, C, h, w].
        masks: Boxes, each bool [H, W].
        contexts: Of the texts and of the empty text, float32 [N, L, D] on the device of the network.
        guidance: Scale of classifier-free guidance.
        seed: Of the noise.
        beside: What the network is given beside x, float32 [N, ., h, w], or None.
    """
    device = contexts[0].device
    both_contexts = torch.cat(contexts)

    def predict(x: Float32Array, timestep: int) -> Float32Array:
        given = torch.from_numpy(np.ascontiguousarray(x)).to(device)
        if beside is not None:
            given = torch.cat([given, beside.to(device)], dim=1)
        levels = torch.full((2 * len(x),), timestep, device=device)
        both = denoise(torch.cat([given, given]), levels, both_contexts).float().cpu().numpy()
        return classifier_free_guidance(both[: len(x)], both[len(x) :], guidance)

    sampling = msgspec.structs.replace(base.sampling, steps=min(_PREVIEW_STEPS, base.sampling.steps))
    keep = np.stack([keep_of(mask, base.latents[1:]) for mask in masks])
    noise = np.stack([draw_noise(seed + index, mode, sampling, base.latents) for index in range(len(clean))])
    drawn = draw_latents(mode, clean.cpu().numpy(), keep, noise, sampling, predict)
    decoder = Decoder(base.autoencoder, base.normalization).to(device)
    decoded = decoder(torch.from_numpy(drawn).to(device)).permute(0, 2, 3, 1).cpu().numpy()
    return np.asarray(np.rint((decoded + 1.0) * 127.5), np.uint8)


def write_strip(path: Path, *columns: Sequence[UInt8Array]) -> None:
    """Write a PNG with a row for each image and a column for each sequence of them, uint8 [H, W, 3] RGB each."""
    write_png(path, np.vstack([np.hstack(row) for row in zip(*columns, strict=True)]))
