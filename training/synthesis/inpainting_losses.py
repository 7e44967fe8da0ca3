"""Losses of the few-shot training of inpainting networks: MvP-Diff's, and those of DefectFill."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flawscope.arrays import BoolArray
from flawscope.diffusion.schedule import Sampling, signal_shares

_BOXES, _SIDES = 30, (0.03, 0.25)
"""Boxes of a random mask, and their least and largest side as a share of the image's: as in DefectFill."""


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


def defect_loss(predicted: Tensor, noise: Tensor, mask: Tensor, weights: Tensor, ground: float = 0.0) -> Tensor:
    """Return the weighted squared error of the predicted noise by the mask of a defect, float32 [N].

    The mean over all entries of |M' ⊙ (ε - ε_θ)|², M' = M + ground · (1 - M). With `ground` 0 it is DefectFill's defect
    loss, with 0.3 its object loss (arXiv:2503.13985, sections 4.1 and 4.2).

    Args:
        predicted: [N, C, h, w].
        noise: Float32 [N, C, h, w].
        mask: Float32 [N, 1, h, w], 1 at the defect.
        weights: Weights of the noise levels, float32 [N].
        ground: Weight of the error outside the defect, before it is squared.
    """
    counted = mask + ground * (1.0 - mask)
    return (counted * (predicted.float() - noise)).square().flatten(1).mean(dim=1) * weights


def attention_loss(attention: Tensor, mask: Tensor, placed: Tensor) -> Tensor:
    """Return the squared difference between the attention to a learned embedding and the defect's mask, float32 [N].

    It is 0 for the empty text, which has no embedding (arXiv:2503.13985, section 4.3).

    Args:
        attention: Float32 [N, 1, h, w], from 0 to 1.
        mask: Float32 [N, 1, h, w], 1 at the defect.
        placed: 1 at the tokens of the embedding, else 0, float32 [N, L].
    """
    return (attention - mask).square().flatten(1).mean(dim=1) * (placed.amax(dim=1) > 0)


def random_mask(size: tuple[int, int], rng: np.random.Generator) -> BoolArray:
    """Return a mask of random boxes, bool [H, W]: what DefectFill's object loss hides in place of the defect."""
    mask = np.zeros(size, np.bool_)
    for _ in range(_BOXES):
        height, width = (max(1, round(float(rng.uniform(*_SIDES)) * side)) for side in size)
        top, left = (
            int(rng.integers(0, side - length + 1)) for side, length in zip(size, (height, width), strict=True)
        )
        mask[top : top + height, left : left + width] = True
    return mask
