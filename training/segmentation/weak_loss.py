"""AnoGen's weakly supervised loss: pixels in a box that are confidently predicted as normal are not penalised.

A box says that there is a defect in it, not that every pixel of it shows one. A network that is trained on boxes as if
they were outlines learns boxes. So a pixel inside the label counts only where the network already sees a defect:

    w(i) = 1   where p(i) > τ, or pixel i lies outside the label,   else 0

with p the probability of a defect, from which no gradient flows here; τ = 0.1 ignores what is good with a confidence
of 0.9 or more.

Source: AnoGen (ECCV 2024, arXiv:2505.09263), training of detectors on generated images; focal loss: Lin et al.,
arXiv:1708.02002, without class weights. Departures: one logit and a sigmoid in place of two classes; images say one
by one whether their label is coarse, so that real outlines always count in full; a label is true or false, so that
grey edges of a mask do not become good pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TAU = 0.1
"""The published threshold."""


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of every pixel, -(1 - q)^γ · log q, where q is the probability of the pixel's own label.

    1 - q and log q are taken from the logit itself, so that neither the loss nor its gradient overflows or loses its
    digits where the network is sure.

    Args:
        logits: Float32, any shape; the probability of a defect is their sigmoid.
        labels: Bool, of the same shape, true at the defect.
        gamma: At least 0; 0 is the cross entropy.

    Returns:
        Float32 of that shape, at least 0.
    """
    wrong = torch.where(labels, -logits, logits)  # logit of 1 - q
    return torch.exp(gamma * functional.logsigmoid(wrong)) * functional.softplus(wrong)


def weak_weights(probabilities: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Return which pixels count where labels are coarse.

    Args:
        probabilities: Of a defect, float, any shape; no gradient flows through them.
        labels: Bool, of the same shape, true inside the box.
        tau: Threshold; at it a pixel does not count yet.

    Returns:
        Of the probabilities' dtype and shape, 0 or 1.
    """
    return ((probabilities.detach() > tau) | ~labels).to(probabilities.dtype)


def weak_focal_loss(logits: Tensor, labels: Tensor, is_coarse: Tensor, gamma: float, tau: float | None) -> Tensor:
    """Return the mean over all pixels of weight times focal loss; pixels of weight 0 stay in the denominator.

    Args:
        logits: Float32 [N, 1, H, W].
        labels: Bool [N, 1, H, W].
        is_coarse: Bool [N], whether an image's label is a box; the others count in full.
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
