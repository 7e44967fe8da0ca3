"""The losses of DeSTSeg (arXiv:2211.11317), with AnoGen's weights for coarse labels (arXiv:2505.09263)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flawscope.training.segmentation.weak_loss import weak_focal_loss


def student_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], labels: Tensor, is_paired: Tensor) -> Tensor:
    """Return 1 minus the cosine of teacher and student, its mean over the positions of a stage, summed over stages.

    Where it is not known how an image would look without its defect, positions that the label reaches count as right.

    Args:
        teacher: Features of the images without defects, float32 [N, C, h, w] for each stage; of images that are not
            paired, those of the image as it is.
        student: Features that the student gives of the images as they are.
        labels: Bool [N, 1, H, W], true at the defect.
        is_paired: Bool [N], whether the image without its defect is known; so it is for a normal image.
    """
    is_unknown = (labels & ~is_paired.reshape(-1, 1, 1, 1)).float()
    total = torch.zeros((), device=labels.device)
    for expected, got in zip(teacher, student, strict=True):
        height, width = int(expected.shape[-2]), int(expected.shape[-1])
        # Whole cells: a cell that the label touches has seen the defect.
        counts = functional.adaptive_max_pool2d(is_unknown, (height, width))[:, 0] == 0
        distances = 1.0 - functional.cosine_similarity(expected, got, dim=1)
        total = total + (distances * counts).mean()
    return total


def segmentation_loss(logits: Tensor, labels: Tensor, is_coarse: Tensor, gamma: float, tau: float | None) -> Tensor:
    """Return the focal loss, weighted where labels are coarse, plus the mean absolute error of the probabilities.

    The second part is not weighted, as in AnoGen's training of DeSTSeg.

    Args:
        logits: Float32 [N, 1, H, W].
        labels: Bool [N, 1, H, W].
        is_coarse: Bool [N], whether the label is a box.
        gamma: Exponent of the focal loss.
        tau: Threshold of the weights, or None to let every pixel count.
    """
    error = (logits.sigmoid() - labels.to(logits.dtype)).abs().mean()
    return weak_focal_loss(logits, labels, is_coarse, gamma, tau) + error
