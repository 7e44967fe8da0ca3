"""Maps and scores of networks that have both as outputs, and the batches in which torch scores images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import Float32Array, UInt8Array

_BATCH = 8
"""Images at a time where speed counts."""


def network_scores(
    network: nn.Module, images: Sequence[UInt8Array], *, exact: bool = True
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N] of a network that has both as outputs.

    Args:
        network: The network.
        images: Prepared images, uint8 [H, W, 3].
        exact: Image by image; see `batches_of`.
    """
    tensor = next(itertools.chain(network.parameters(), network.buffers()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    with torch.inference_mode():
        results = [network(batch.to(device)) for batch in batches_of(images, exact)]
    maps, scores = (torch.cat(parts).cpu().numpy() for parts in zip(*results, strict=True))
    return maps, scores


def batches_of(images: Sequence[UInt8Array], exact: bool) -> Iterator[Tensor]:
    """Yield uint8 [N, H, W, 3] batches: one image at a time where it must be exact."""
    # Kernels for other batch sizes may round differently.
    size = 1 if exact else _BATCH
    for start in range(0, len(images), size):
        yield torch.from_numpy(np.stack(images[start : start + size]))
