"""How far two stacks of feature stages are apart: the loss of STFPM and the perceptual loss of the autoencoder."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def stage_distances(teacher: list[Tensor], student: list[Tensor]) -> list[Tensor]:
    """Return for every stage half the squared distance of the normalised features, float32 [N, h, w] (equation 2)."""
    pairs = zip(teacher, student, strict=True)
    return [
        0.5 * (functional.normalize(first, dim=1) - functional.normalize(second, dim=1)).square().sum(dim=1)
        for first, second in pairs
    ]
