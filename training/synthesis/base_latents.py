"""Latents of normal images for training a small base model: encoded once, with centred latents."""

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
"""Shares of an image's sides that those of a random box have."""

_GREY = 127.5

_MEASURED = 256
"""Images on which the latents of a category are measured."""

_LEAST_DEVIATION = 0.01
"""Of a channel, as a part of the largest: one that says nothing must not become noise."""


@dataclass(frozen=True)
class Encoded:
    """Images as a UNet in latents learns them.

    Attributes:
        latents: What the autoencoder says of M images.
        texts: Number of the first of the texts that can be said of each, int64 [M].
        boxes: Where is drawn, float32 [M, K, 1, h, w], 1 inside; K is 0 where there are no boxes.
        rest: Latents of the images with the boxes blanked, float32 [M, K, C, h, w].
    """

    latents: Moments
    texts: Tensor
    boxes: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def beside(self, numbers: Tensor, box: Tensor) -> Tensor | None:
        """Return what an inpainting network is given beside x, for boxes int64 [N]: float32 [N, 1 + C, h, w]."""
        if self.boxes.shape[1] == 0:
            return None
        return torch.cat([self.boxes[numbers, box], self.rest[numbers, box]], dim=1)


def network_settings(autoencoder: AutoencoderKL) -> dict[str, Any]:
    """Return what an autoencoder is built from, but for its factor."""
    stock = settings_of(autoencoder)
    made = shape_settings(stock["block_out_channels"], int(stock["layers_per_block"]), int(stock["latent_channels"]))
    return {**made, "norm_num_groups": int(stock["norm_num_groups"])}


def centred_autoencoder(
    config: BaseConfig,
    autoencoder: AutoencoderKL,
    normalization: Normalization,
    groups: Sequence[ImageReader],
    device: torch.device,
) -> AutoencoderKL:
    """Return an autoencoder of the same images, whose latents have mean 0 and deviation 1 in every channel.

    Drawing starts from noise of mean 0, and the noise level it starts at is not all noise. Where latents have another
    mean, a network takes the missing part for that of a bright or dark image, and draws one. The change lies in the
    two 1 x 1 convolutions around the latents, so that decoding an encoded image gives what it gave.

    Args:
        config: Settings.
        autoencoder: It stays as it is.
        normalization: How it wants images.
        groups: Normal images of every category, each of which counts alike.
        device: Where images are encoded.

    Raises:
        RunError: If the latents are not finite, or all the same.
    """
    halves: Any = autoencoder
    encoder = Encoder(autoencoder, normalization).to(device)
    measured = []
    with torch.no_grad():
        for reader in groups:
            count = min(len(reader), _MEASURED)
            found = []
            for images in reader.batches(np.arange(count) * len(reader) // count, config.loop.batch_size):
                mean, deviation = _moments(encoder, torch.from_numpy(images).to(device))
                found.append(torch.stack([mean, mean.square() + deviation.square()]).double().mean(dim=(3, 4)).cpu())
            measured.append(torch.cat(found, dim=1).mean(dim=1))
    encoder.cpu()
    center, square = torch.stack(measured).mean(dim=0)
    spread = (square - center.square()).clamp_min(0.0).sqrt()
    if not bool(spread.isfinite().all()) or float(spread.max()) < 1e-6:
        raise RunError(f"{config.autoencoder}: expected latents that differ, got a deviation of {spread.tolist()}.")
    # Of latents as the network gives them, without their factor.
    spread = spread.clamp_min(_LEAST_DEVIATION * float(spread.max())) / encoder.scaling
    center = center / encoder.scaling
    state = {name: value.double() for name, value in halves.state_dict().items()}
    channels = len(center)
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    weight[:channels] /= spread.reshape(-1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - center) / spread
    bias[channels:] -= 2.0 * spread.log()  # what comes after the means is the logarithm of the variances
    weight, bias = state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    bias += weight[:, :, 0, 0] @ center
    weight *= spread.reshape(1, -1, 1, 1)
    single = {name: value.float() for name, value in state.items()}
    return fill_autoencoder(network_settings(autoencoder), single, 1.0, str(config.autoencoder))


def encode_images(
    config: BaseConfig, encoder: Encoder, reader: ImageReader, text: int, boxes: int, progress: Progress
) -> Encoded:
    """Return images in latents, each encoded once; for inpainting, with boxes and what lies around them.

    What lies around a box has latents of its own. To encode it anew in every step would make the step half as long
    again; so some boxes are drawn for each image beforehand, and a step takes one of them.

    Args:
        config: Settings; the seed is that of the boxes.
        encoder: On the device that it shall work on.
        reader: Normal images.
        text: Number of the first text that can be said of them.
        boxes: Boxes of each image; none are drawn without inpainting.
        progress: Told how many have been encoded.
    """
    size, device = config.preprocessing.size, next(encoder.parameters()).device
    count = boxes if config.inpainting else 0
    drawn = np.random.default_rng((config.seed, text, boxes))
    means, deviations, inside, rests = [], [], [], []
    done = 0
    for images in reader.batches(range(len(reader)), config.loop.batch_size):
        given = torch.from_numpy(images).to(device)
        with torch.no_grad():
            mean, deviation = _moments(encoder, given)
            means.append(mean.cpu())
            deviations.append(deviation.cpu())
            grid = (int(mean.shape[2]), int(mean.shape[3]))
            cells, around = [mean.new_zeros((len(images), 0, 1, *grid)).cpu()], [mean[:, None][:, :0].cpu()]
            for _ in range(count):
                masks = [random_box(size, drawn) for _ in images]
                cells.append(torch.from_numpy(1.0 - np.stack([keep_of(mask, grid) for mask in masks]))[:, None])
                around.append(encoder(_blanked(given, np.stack(masks))).cpu()[:, None])
        inside.append(torch.cat(cells, dim=1))
        rests.append(torch.cat(around, dim=1))
        done += len(images)
        progress("encoding images", done, len(reader))
    latents = Moments(torch.cat(means), torch.cat(deviations))
    return Encoded(latents, torch.full((len(reader),), text), torch.cat(inside), torch.cat(rests))


def _moments(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the posterior of images uint8 [N, H, W, 3], scaled, float32 [N, C, h, w] each."""
    mean, log_variance = encoder.moments(encoder.encoder(encoder.normalised(images))).chunk(2, dim=1)
    # The limits are those of AutoencoderKL.
    return mean * encoder.scaling, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * encoder.scaling


def random_box(size: tuple[int, int], drawn: np.random.Generator) -> BoolArray:
    """Return a box as bool [H, W]: sides of a tenth to six tenths of the image's, anywhere in it."""
    mask = np.zeros(size, np.bool_)
    sides = [max(1, round(side * drawn.uniform(*_BOX_SIDES))) for side in size]
    top, left = (int(drawn.integers(0, side - box + 1)) for side, box in zip(size, sides, strict=True))
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def _blanked(images: Tensor, masks: BoolArray) -> Tensor:
    """Return images uint8 [N, H, W, 3] with boxes bool [N, H, W] in grey, which is 0 in [-1, 1], as float32."""
    return images.float().masked_fill(torch.from_numpy(masks).to(images.device)[..., None], _GREY)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Return the images of all categories; where they have different numbers of boxes, the least."""
    least = min(part.boxes.shape[1] for part in parts)
    return Encoded(
        latents=Moments(
            torch.cat([part.latents.mean for part in parts]), torch.cat([part.latents.deviation for part in parts])
        ),
        texts=torch.cat([part.texts for part in parts]),
        boxes=torch.cat([part.boxes[:, :least] for part in parts]),
        rest=torch.cat([part.rest[:, :least] for part in parts]),
    )
