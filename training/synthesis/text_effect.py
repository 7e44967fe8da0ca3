"""What the text changes in the predicted noise: without an effect, neither prompts nor guidance draw anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flawscope.training.loop.epoch_data import rounded


@torch.no_grad()
def relative_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the root mean square of first - second, as a share of that of the first.

    Args:
        pairs: Noise that was predicted for the same images, levels and noise with two texts, float32, both of the same
            shape; the figure is over all pairs.
    """
    difference = total = 0.0
    for first, second in pairs:
        # In double: of two nearly equal predictions the difference has few digits left.
        difference += float((first.double() - second.double()).square().sum())
        total += float(first.double().square().sum())
    # Six digits: the figure is read for its order of magnitude, and its last ones differ between machines.
    return rounded((difference / total) ** 0.5) if total > 0.0 else 0.0
