"""AnoGen's weakly supervised loss: pixels in a box that are confidently predicted as normal are not penalised.

A box says that there is a defect in it, not that every pixel of it shows one. A network that is trained on boxes as if
they were masks learns boxes. So a pixel inside the label counts only where the network already sees a defect:

    w(i) = 1   where p(i) > τ, or pixel i lies outside the label,   else 0

with p the probability of a defect, treated as a constant (no gradient); τ = 0.1 ignores pixels that are predicted as
normal with a confidence of 0.9 or more.

Source: AnoGen (ECCV 2024, arXiv:2505.09263), training of detectors on generated images; focal loss: Lin et al.,
arXiv:1708.02002, without class weights. Departures: one logit and a sigmoid instead of two classes; whether
a label is coarse is known for each image, so that real masks always count in full; labels are binary, so that grey
edges of a mask do not become normal pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TAU = 0.1
"""The published threshold."""


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of every pixel, -(1 - q)^γ · log q, where q is the probability of the pixel's own label.

    1 - q and log q are computed from the logit itself, so that neither the loss nor its gradient overflows or loses
    digits where the network is confident.

    Args:
        logits: Float32, any shape; the probability of a defect is their sigmoid.
        labels: Bool, of the same shape, true at the defect.
        gamma: At least 0; 0 is the cross entropy.

    Returns:
        Float32 of that shape, at least 0.
    """
    wrong = torch.where(labels, -logits, logits)  # logit of 1 - q
    # exp(γ·log(1 − q)), not a power: at q = 1 the gradient of 0^γ is infinite for γ below 1. softplus(wrong) is −log q.
    return torch.exp(gamma * functional.logsigmoid(wrong)) * functional.softplus(wrong)


def weak_weights(probabilities: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Return which pixels count where labels are coarse.

    Args:
        probabilities: Of a defect, float, any shape; no gradient flows through them.
        labels: Bool, of the same shape, true inside the box.
        tau: Threshold; a probability equal to it does not count.

    Returns:
        Of the probabilities' dtype and shape, 0 or 1.
    """
    return ((probabilities.detach() > tau) | ~labels).to(probabilities.dtype)


def weak_focal_loss(logits: Tensor, labels: Tensor, is_coarse: Tensor, gamma: float, tau: float | None) -> Tensor:
    """Return the mean over all pixels of weight times focal loss; pixels of weight 0 remain in the denominator.

    Args:
        logits: Float32 [N, 1, H, W].
        labels: Bool [N, 1, H, W].
        is_coarse: Bool [N], whether the label of an image is a box; other labels count in full.
        gamma: Exponent of the focal loss.
        tau: Threshold of the weights, or None to let every pixel count.

    Returns:
        Float32 scalar.
    """
    losses = focal_loss(logits, labels, gamma)
    if tau is None:
        return losses.mean()
    weights = weak_weights(logits.sigmoid(), labels, tau)
    return (torch.where(is_coarse.reshape(-1, 1, 1, 1), weights, torch.ones_like(weights)) * losses).mean()
