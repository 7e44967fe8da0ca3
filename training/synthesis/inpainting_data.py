"""Training data of an inpainting network: crops around defects, their latents, and what is hidden of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.config import InpaintingConfig
from flawscope.diffusion.location_words import mirrored_words
from flawscope.training.synthesis.inpainting_losses import random_mask
from flawscope.training.synthesis.latent_cache import Moments, check_base, encode_moments, latent_masks
from flawscope.training.synthesis.support_examples import Described, SupportExamples

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase

BLANK = 127.5
"""Grey level of what is hidden in the masked image: 0 on the scale from -1 to 1."""

_RANDOM_MASKS = 8
"""Random masks of every variant: their masked images are encoded before the training, not at every step."""


@dataclass(frozen=True)
class Latents:
    """What the network is shown of all variants; all on the CPU.

    Attributes:
        moments: Posteriors of the images.
        beside: The other inputs, float32 [K, 1 + C, h, w]: the box, and the latents of the image with the box hidden.
        defects: Latent cells of the defects themselves, float32 [K, 1, h, w].
        random: The other inputs with random masks in place of the box, float32 [K, R, 1 + C, h, w]; R is 0 where no
            loss asks for them.
    """

    moments: Moments
    beside: Tensor
    defects: Tensor
    random: Tensor


class InpaintingData:
    """Images of a support set in all ways of mirroring that the settings allow.

    A variant is an image in one way of mirroring: number of the image + position of the way in `ways` * images.

    Args:
        config: Settings.
        base: An inpainting network.
        support: The support set.
        described: Box and sentences of every example.

    Attributes:
        images: The crops, each uint8 [H, W, 3].
        boxes: The box in each, bool [H, W].
        ways: Ways of mirroring, (left to right, top to bottom).
        types: Number of the defect type of every variant, an index into `support.types`.
        texts: Sentences of every variant: in a mirrored image "left" is "right".

    Raises:
        ArgumentError: If the base is of the wrong kind or size.
    """

    def __init__(
        self, config: InpaintingConfig, base: SynthesisBase, support: SupportExamples, described: Sequence[Described]
    ) -> None:
        size = check_base(config, base, inpainting=True)
        fill = config.adaptation.crop_fill if config.adaptation.crop_defects else None
        self._config, self._base = config, base
        self.images: list[UInt8Array] = []
        self.boxes: list[BoolArray] = []
        self._masks: list[BoolArray] = []
        for example, description in zip(support.examples, described, strict=True):
            image, box, mask = example.cut_both(size, fill, description.box)
            self.images.append(image)
            self.boxes.append(box)
            self._masks.append(mask)
        self.ways = [
            (left_right, top_bottom)
            for top_bottom in (False, True)
            for left_right in (False, True)
            if (config.adaptation.flip > 0 or not left_right) and (config.flip_vertical > 0 or not top_bottom)
        ]
        of_example = [support.types.index((example.category, example.defect)) for example in support.examples]
        self.types = of_example * len(self.ways)
        self.texts = [
            [mirrored_words(text, left_right=left_right, top_bottom=top_bottom) for text in description.texts]
            for left_right, top_bottom in self.ways
            for description in described
        ]
        self._cached: Latents | None = None

    def __len__(self) -> int:
        """Number of images, without mirroring."""
        return len(self.images)

    def latents(self, device: torch.device) -> Latents:
        """Return what the network is shown, encoded on this device at the first call."""
        # Not in __init__: the device is known only when the training has moved the network.
        if self._cached is None:
            images, boxes, masks = (
                np.concatenate([_mirrored(stack, *way) for way in self.ways])
                for stack in (self.images, self.boxes, self._masks)
            )
            moments = encode_moments(self._base, torch.from_numpy(images), device)
            random = torch.zeros((len(images), 0, 1 + moments.mean.shape[1], *moments.mean.shape[2:]))
            if self._config.object_loss > 0:
                rng = np.random.default_rng(self._config.seed)
                hidden = [random_mask(images.shape[1:3], rng) for _ in range(len(images) * _RANDOM_MASKS)]
                repeated = np.repeat(images, _RANDOM_MASKS, axis=0)
                beside = self._beside(repeated, np.stack(hidden), device)
                random = beside.reshape(len(images), _RANDOM_MASKS, *beside.shape[1:])
            self._cached = Latents(
                moments, self._beside(images, boxes, device), latent_masks(self._base, list(masks)), random
            )
        return self._cached

    def _beside(self, images: npt.NDArray[np.generic], hidden: npt.NDArray[np.generic], device: torch.device) -> Tensor:
        """Return masks and latents of images with these parts hidden, float32 [K, 1 + C, h, w]."""
        masked = np.where(hidden[..., None], np.float32(BLANK), images.astype(np.float32))
        surroundings = encode_moments(self._base, torch.from_numpy(masked), device).mean
        return torch.cat([latent_masks(self._base, list(hidden)), surroundings], dim=1)


def _mirrored(
    images: Sequence[UInt8Array] | Sequence[BoolArray], left_right: bool, top_bottom: bool
) -> npt.NDArray[np.generic]:
    """Return images or masks, [K, H, W, ...], mirrored."""
    stacked = np.stack(images)
    return stacked[:, :: -1 if top_bottom else 1, :: -1 if left_right else 1]
