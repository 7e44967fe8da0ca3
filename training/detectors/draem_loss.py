"""The loss of DRAEM (arXiv:2108.07610), with AnoGen's weights for coarse labels (arXiv:2505.09263)."""

from __future__ import annotations

import torch
from torch import Tensor

from flawscope.training.segmentation.ssim import ssim
from flawscope.training.segmentation.weak_loss import weak_focal_loss


def draem_loss(
    rebuilt: Tensor,
    logits: Tensor,
    clean: Tensor,
    labels: Tensor,
    *,
    is_paired: Tensor,
    is_coarse: Tensor,
    gamma: float,
    tau: float | None,
) -> Tensor:
    """Return the squared error and 1 minus the structural similarity of the rebuilt images, plus the focal loss.

    Where it is not known how an image would look without its defect, whatever was rebuilt inside the label counts as
    right: such an image teaches to keep the rest, and to tell the defect.

    Args:
        rebuilt: Images as rebuilt, float32 [N, 3, H, W].
        logits: Of a defect, float32 [N, 1, H, W].
        clean: Images without defects, float32 [N, 3, H, W] in [0, 1]; those that are not paired are as they are.
        labels: Bool [N, 1, H, W], true at the defect.
        is_paired: Bool [N], whether the image without its defect is known; so it is for a normal image.
        is_coarse: Bool [N], whether the label is a box; see `weak_focal_loss`.
        gamma: Exponent of the focal loss.
        tau: Threshold of the weights, or None to let every pixel count.

    Returns:
        Float32 scalar.
    """
    is_unknown = labels & ~is_paired.reshape(-1, 1, 1, 1)
    target = torch.where(is_unknown, rebuilt.detach(), clean)
    squared = (rebuilt - target).square().mean()
    structure = 1.0 - ssim(rebuilt, target).mean()
    return squared + structure + weak_focal_loss(logits, labels, is_coarse, gamma, tau)
