"""Patches of length 1, whose Euclidean distances order as the cosine of their angle does."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-6
"""Patches whose largest channel is below it have no direction: they shrink to zero instead of being drawn out to length
1. Half precision still holds it."""


def unit_length(patches: Tensor) -> Tensor:
    """Divide patches by their length: float32 [..., D] of the same shape.

    A patch of zeros stays zero; its squared distance to a patch of length 1 is 1.
    """
    # By the largest channel first: the sum of squares then lies between 1 and D, which half precision holds too.
    scaled = patches / patches.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1.0)
