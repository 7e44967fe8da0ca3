"""Latents of normal images for the training of a small base model, encoded once; and the centring of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flawscope.arrays import BoolArray
from flawscope.config import BaseConfig
from flawscope.diffusion.latent_inpainting import keep_of
from flawscope.errors import RunError
from flawscope.progress import Progress
from flawscope.training.diffusion.autoencoder import Encoder, Normalization
from flawscope.training.diffusion.autoencoder_network import fill_autoencoder, settings_of, shape_settings
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.synthesis.latent_cache import Moments

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_BOX_SIDES = (0.1, 0.6)
"""Smallest and largest side of a random box, as a share of the image's side."""

_GREY = 127.5
"""Grey level of a box in the masked image: 0 on the scale from -1 to 1."""

_MEASURED = 256
"""Most images of a category on which mean and deviation of the latents are measured."""

_LEAST_DEVIATION = 0.01
"""Smallest deviation of a channel relative to the largest: a constant channel must not be scaled up to noise."""


@dataclass(frozen=True)
class Encoded:
    """Training images of a latent diffusion model, encoded.

    Attributes:
        latents: Posterior of M images.
        texts: Row of the first prompt of each image's category, int64 [M].
        boxes: Masks of the boxes, float32 [M, K, 1, h, w], 1 inside; K is 0 without inpainting.
        rest: Latents of the masked images, float32 [M, K, C, h, w].
    """

    latents: Moments
    texts: Tensor
    boxes: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def beside(self, numbers: Tensor, box: Tensor) -> Tensor | None:
        """Return the other inputs of an inpainting network for boxes int64 [N]: float32 [N, 1 + C, h, w]."""
        if self.boxes.shape[1] == 0:
            return None
        return torch.cat([self.boxes[numbers, box], self.rest[numbers, box]], dim=1)


def network_settings(autoencoder: AutoencoderKL) -> dict[str, Any]:
    """Return the settings of an autoencoder without its scaling factor."""
    stock = settings_of(autoencoder)
    shape = shape_settings(stock["block_out_channels"], int(stock["layers_per_block"]), int(stock["latent_channels"]))
    return {**shape, "norm_num_groups": int(stock["norm_num_groups"])}


def centred_autoencoder(
    config: BaseConfig,
    autoencoder: AutoencoderKL,
    normalization: Normalization,
    groups: Sequence[ImageReader],
    device: torch.device,
) -> AutoencoderKL:
    """Return an equivalent autoencoder whose latents have mean 0 and deviation 1 in every channel.

    Sampling starts from noise of mean 0, at a level where a trained network still expects a trace of the image. With
    latents of another mean, the missing trace looks like that of a bright or dark image, and the network draws one.
    Only the two 1 x 1 convolutions around the latents change, so that encoding and decoding give the same image.

    Args:
        config: Settings.
        autoencoder: The autoencoder, which is not changed.
        normalization: Normalization of its input images.
        groups: Normal images by category; every category has the same weight.
        device: Device for encoding.

    Raises:
        RunError: If the latents are not finite, or constant.
    """
    halves: Any = autoencoder
    encoder = Encoder(autoencoder, normalization).to(device)
    category_moments = []
    with torch.no_grad():
        for reader in groups:
            count = min(len(reader), _MEASURED)
            moments = []
            for images in reader.batches(np.arange(count) * len(reader) // count, config.loop.batch_size):
                mean, deviation = _moments(encoder, torch.from_numpy(images).to(device))
                # E[z] and E[z²] of the posterior, whose own spread counts too; float64 from here on.
                moments.append(torch.stack([mean, mean.square() + deviation.square()]).double().mean(dim=(3, 4)).cpu())
            category_moments.append(torch.cat(moments, dim=1).mean(dim=1))
    encoder.cpu()
    center, square = torch.stack(category_moments).mean(dim=0)
    spread = (square - center.square()).clamp_min(0.0).sqrt()
    if not bool(spread.isfinite().all()) or float(spread.max()) < 1e-6:
        raise RunError(f"{config.autoencoder}: expected latents that differ, got a deviation of {spread.tolist()}.")
    # Undo the scaling factor: the convolutions work on unscaled latents, and the new factor is 1.
    spread = spread.clamp_min(_LEAST_DEVIATION * float(spread.max())) / encoder.scaling
    center = center / encoder.scaling
    state = {name: value.double() for name, value in halves.state_dict().items()}
    channels = len(center)
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    weight[:channels] /= spread.reshape(-1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - center) / spread
    bias[channels:] -= 2.0 * spread.log()  # the second half of the channels is the log-variance
    weight, bias = state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    # The inverse, on the way into the decoder; the bias first, since it needs the unscaled weight.
    bias += weight[:, :, 0, 0] @ center
    weight *= spread.reshape(1, -1, 1, 1)
    single = {name: value.float() for name, value in state.items()}
    return fill_autoencoder(network_settings(autoencoder), single, 1.0, str(config.autoencoder))


def encode_images(
    config: BaseConfig, encoder: Encoder, reader: ImageReader, text: int, boxes: int, progress: Progress
) -> Encoded:
    """Return images as latents, each encoded once; for inpainting, with random boxes and the masked images.

    Every box needs an encoding of its own masked image. Encoding in every step would make a step half as long again,
    so some boxes are drawn for each image beforehand, and a step picks one of them.

    Args:
        config: Settings; their seed is also that of the boxes.
        encoder: The encoder, on the device to use.
        reader: Normal images of one category.
        text: Row of the first prompt of the category.
        boxes: Boxes of each image; unused without inpainting.
        progress: Told how many images are encoded.
    """
    size, device = config.preprocessing.size, next(encoder.parameters()).device
    count = boxes if config.inpainting else 0
    # A generator of its own: the boxes of a category do not depend on the other categories.
    rng = np.random.default_rng((config.seed, text, boxes))
    means, deviations, box_masks, rests = [], [], [], []
    encoded = 0
    for images in reader.batches(range(len(reader)), config.loop.batch_size):
        batch = torch.from_numpy(images).to(device)
        with torch.no_grad():
            mean, deviation = _moments(encoder, batch)
            means.append(mean.cpu())
            deviations.append(deviation.cpu())
            grid = (int(mean.shape[2]), int(mean.shape[3]))
            # Empty first entries, so that torch.cat has something to join where there are no boxes.
            cells, around = [mean.new_zeros((len(images), 0, 1, *grid)).cpu()], [mean[:, None][:, :0].cpu()]
            for _ in range(count):
                masks = [random_box(size, rng) for _ in images]
                cells.append(torch.from_numpy(1.0 - np.stack([keep_of(mask, grid) for mask in masks]))[:, None])
                around.append(encoder(_blanked(batch, np.stack(masks))).cpu()[:, None])
        box_masks.append(torch.cat(cells, dim=1))
        rests.append(torch.cat(around, dim=1))
        encoded += len(images)
        progress("encoding images", encoded, len(reader))
    latents = Moments(torch.cat(means), torch.cat(deviations))
    return Encoded(latents, torch.full((len(reader),), text), torch.cat(box_masks), torch.cat(rests))


def _moments(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the posterior of images uint8 [N, H, W, 3], scaled, float32 [N, C, h, w] each."""
    mean, log_variance = encoder.moments(encoder.encoder(encoder.normalised(images))).chunk(2, dim=1)
    # Clamped as in diffusers' AutoencoderKL.
    return mean * encoder.scaling, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * encoder.scaling


def random_box(size: tuple[int, int], rng: np.random.Generator) -> BoolArray:
    """Return a random box as bool [H, W]: sides of a tenth to six tenths of the image's, anywhere in it."""
    mask = np.zeros(size, np.bool_)
    sides = [max(1, round(side * rng.uniform(*_BOX_SIDES))) for side in size]
    top, left = (int(rng.integers(0, side - box + 1)) for side, box in zip(size, sides, strict=True))
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def _blanked(images: Tensor, masks: BoolArray) -> Tensor:
    """Return images uint8 [N, H, W, 3] with grey boxes bool [N, H, W], as float32: the grey is no whole number."""
    return images.float().masked_fill(torch.from_numpy(masks).to(images.device)[..., None], _GREY)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Return the images of all categories; of different numbers of boxes the smallest is kept."""
    least = min(part.boxes.shape[1] for part in parts)
    return Encoded(
        latents=Moments(
            torch.cat([part.latents.mean for part in parts]), torch.cat([part.latents.deviation for part in parts])
        ),
        texts=torch.cat([part.texts for part in parts]),
        boxes=torch.cat([part.boxes[:, :least] for part in parts]),
        rest=torch.cat([part.rest[:, :least] for part in parts]),
    )
