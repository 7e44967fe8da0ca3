"""Scores by plain torch, the reference of the parity gate: the papers' formulas with torch's own distance functions.

Distances and scores share no code with graphs or kernels, or the gate would compare a mistake with itself. Only the
matrices of map upsampling are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bank_names import bank_names
from flawscope.bundle import BankHead, PadimHead, PatchcoreHead
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.training.diffusion.torch_reconstruction import Reconstruction
from flawscope.training.features.patch_features import PatchFeatures

Distances = Callable[[Tensor, Any, Mapping[str, Tensor]], tuple[Tensor, Tensor | None]]
"""The formula of a method: `(patches float64 [P, D], head, bank) -> (distances float64 [P], score or None)`."""


def torch_scores(
    features: PatchFeatures,
    head: BankHead,
    tensors: Mapping[str, npt.NDArray[Any]],
    size: tuple[int, int],
    images: Sequence[UInt8Array],
    distances_of: Distances,
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N], image by image, in float64 after the backbone.

    Args:
        features: The feature module.
        head: Method and parameters.
        tensors: The tensors of the run, such as its memory bank.
        size: Height and width of the anomaly map.
        images: Prepared images, uint8 [H, W, 3].
        distances_of: The method's formula.
    """
    # float64: the rounding of the reference must not count against the candidates.
    bank = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    rows, columns = (torch.from_numpy(matrix).double() for matrix in map_matrices(head.grid, size, head.sigma))
    maps, scores = [], []
    with torch.inference_mode():
        for image in images:
            patches = features(torch.from_numpy(image[None]).to(features.device))[0].cpu().double()
            distances, score = distances_of(patches, head, bank)
            anomaly_map = rows @ distances.reshape(head.grid) @ columns
            maps.append(anomaly_map.float().numpy())
            scores.append(float(anomaly_map.max() if score is None else score))
    return np.stack(maps), np.array(scores, np.float32)


def network_scores(network: nn.Module, images: Sequence[UInt8Array]) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N] of a network that has both as outputs."""
    with torch.inference_mode():
        # One image at a time: kernels for other batch sizes may round differently.
        results = [network(torch.from_numpy(image[None])) for image in images]
    maps, scores = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
    return maps, scores


def reconstruction_scores(
    reconstruction: Reconstruction, images: Sequence[UInt8Array]
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N] of torch networks, at the noise of the run."""
    results = [reconstruction(image[None]) for image in images]
    return np.concatenate([result.maps for result in results]), np.concatenate([result.scores for result in results])


def padim_distances(patches: Tensor, head: PadimHead, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the Mahalanobis distances of patches float64 [P, D], and no score: it is the map's maximum."""
    centred = (patches - tensors["mean"].double())[:, None]
    # Σ⁻¹ = W Wᵀ, so the norm of (x − μ) W is the Mahalanobis distance.
    return (centred @ tensors["whitening"].double())[:, 0].norm(dim=1), None


def patchcore_distances(
    patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the distances of patches float64 [P, D] to their nearest rows, and the score."""
    weights = _foreground(patches, head, tensors) if head.foreground else 1
    if head.banks > 1:
        nearest = weights * _mean_of_banks(patches, head, tensors)
        return nearest, nearest.sort(descending=True).values[: head.top].mean()
    bank = tensors["bank"].double()
    count = min(head.neighbors, len(bank))
    # Subtraction, not the product form: this is the reference the product form is measured against.
    distances = torch.cdist(patches, bank, compute_mode="donot_use_mm_for_euclid_dist")
    if head.metric == "cosine":
        # For vectors of length 1, |q - m|² = 2 - 2 cos.
        distances = distances.square() / 2
    nearest, matched = distances.min(dim=1)
    nearest = weights * nearest
    place = int(nearest.argmax())
    top = nearest[place]
    if head.top > 1:
        return nearest, nearest.sort(descending=True).values[: head.top].mean()
    if head.reweight == "none" or count == 1:
        return nearest, top
    if head.reweight == "paper":
        match = int(matched[place])
        around = torch.cdist(bank[match : match + 1], bank)[0].argsort()[:count]
        numerator = torch.exp(distances[place, match])
    else:
        around = distances[place].argsort()[:count]
        numerator = torch.exp(distances[place, around]).max()
    # Equation 7 of arXiv:2106.08265. No softmax as in the graph: float64 holds exp(d) up to d = 709.
    return nearest, top * (1 - numerator / torch.exp(distances[place, around]).sum())


def _mean_of_banks(patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the distances to several banks, each of its own channels, float64 [P]."""
    banks = [tensors[name] for name in bank_names(head.banks)]
    # Each bank as a head of its own, whose score is not used.
    alone = msgspec.structs.replace(head, banks=1, top=1, reweight="none", foreground=False)
    parts = torch.split(patches, [bank.shape[1] for bank in banks], dim=1)
    by_bank = [patchcore_distances(part, alone, {"bank": bank})[0] for part, bank in zip(parts, banks, strict=True)]
    return torch.stack(by_bank).mean(dim=0)


def _foreground(patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weights of patches float64 [P, D], float64 [P]."""
    offset, least = tensors["foreground_limits"].double()
    projected = (patches @ tensors["foreground"].double())[:, 0] + offset
    weights = functional.max_pool2d(projected.clamp(0, 1).reshape(1, 1, *head.grid), 3, stride=1, padding=1).flatten()
    return weights if float(weights.mean()) >= float(least) else torch.ones_like(weights)
