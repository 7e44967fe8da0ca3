"""Scores by plain torch: the papers' formulas with torch's own distance functions.

They are the reference of the parity gate, and what a detector is checked with right after the fit. Distances and scores
share no code with graphs or kernels, or the gate would compare a mistake with itself. Only the matrices of map
upsampling are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bank_names import bank_names, place_names
from flawscope.bundle import BankHead, PadimHead, PatchcoreHead
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.training.diffusion.torch_reconstruction import Reconstruction
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.loop.network_scores import batches_of

Distances = Callable[[Tensor, Any, Mapping[str, Tensor]], tuple[Tensor, Tensor | None]]
"""The formula of a method: `(patches [P, D], head, bank) -> (distances [P], score or None)`, all of one float type."""


def torch_scores(
    features: PatchFeatures,
    head: BankHead,
    tensors: Mapping[str, npt.NDArray[Any]],
    size: tuple[int, int],
    images: Sequence[UInt8Array],
    distances_of: Distances,
    *,
    exact: bool = True,
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N].

    Args:
        features: The feature module.
        head: Method and parameters.
        tensors: The tensors of the run, such as its memory bank.
        size: Height and width of the anomaly map.
        images: Prepared images, uint8 [H, W, 3].
        distances_of: The method's formula.
        exact: Image by image, in float64 after the backbone: the rounding of the reference must not count against the
            candidates. Otherwise in batches and in float32, which is many times faster.
    """
    dtype = torch.float64 if exact else torch.float32
    bank = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    matrices = map_matrices(head.grid, size, head.sigma, head.places)
    rows, columns = (torch.from_numpy(matrix).to(dtype) for matrix in matrices)
    maps, scores = [], []
    with torch.inference_mode():
        for batch in batches_of(images, exact):
            for patches in features(batch.to(features.device)).cpu().to(dtype):
                distances, score = distances_of(patches, head, bank)
                anomaly_map = rows @ distances.reshape(head.grid) @ columns
                maps.append(anomaly_map.float().numpy())
                scores.append(float(anomaly_map.max() if score is None else score))
    return np.stack(maps), np.array(scores, np.float32)


def reconstruction_scores(
    reconstruction: Reconstruction, images: Sequence[UInt8Array], *, exact: bool = True
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N] of torch networks, at the noise of the run.

    Args:
        reconstruction: The networks.
        images: Prepared images, uint8 [H, W, 3].
        exact: Image by image; see `torch_scores`.
    """
    results = [reconstruction(batch.numpy()) for batch in batches_of(images, exact)]
    return np.concatenate([result.maps for result in results]), np.concatenate([result.scores for result in results])


def padim_distances(patches: Tensor, head: PadimHead, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the Mahalanobis distances of patches [P, D], and no score: it is the map's maximum."""
    centred = (patches - tensors["mean"].to(patches.dtype))[:, None]
    # Σ⁻¹ = W Wᵀ, so the norm of (x − μ) W is the Mahalanobis distance.
    return (centred @ tensors["whitening"].to(patches.dtype))[:, 0].norm(dim=1), None


def patchcore_distances(
    patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the distances of patches [P, D] to their nearest rows, and the score."""
    weights = _foreground(patches, head, tensors) if head.foreground else 1
    if head.banks > 1:
        nearest = weights * _mean_of_banks(patches, head, tensors)
        return nearest, nearest.sort(descending=True).values[: head.top].mean()
    bank = tensors["bank"].to(patches.dtype)
    count = min(head.neighbors, len(bank))
    # In float64 by subtraction, not the product form: it is the reference the product form is measured against.
    is_exact = patches.dtype == torch.float64
    mode = "donot_use_mm_for_euclid_dist" if is_exact else "use_mm_for_euclid_dist_if_necessary"
    distances = torch.cdist(patches, bank, compute_mode=mode)
    if head.metric == "cosine":
        # For vectors of length 1, |q - m|² = 2 - 2 cos.
        distances = distances.square() / 2
    within = distances if head.window is None else _within(distances, head.window, head.grid, tensors["places"])
    nearest, matched = within.min(dim=1)
    nearest = weights * nearest
    place = int(nearest.argmax())
    top = nearest[place]
    if head.top > 1:
        return nearest, nearest.sort(descending=True).values[: head.top].mean()
    if head.reweight == "none" or count == 1:
        return nearest, top
    # Equation 7 of arXiv:2106.08265. No softmax as in the graph: float64 holds exp(d) up to d = 709, float32 to 88.
    row = distances[place].double()
    if head.reweight == "paper":
        match = int(matched[place])
        around = torch.cdist(bank[match : match + 1], bank)[0].argsort()[:count]
        numerator = torch.exp(row[match])
    else:
        around = row.argsort()[:count]
        numerator = torch.exp(row[around]).max()
    return nearest, top * (1 - numerator / torch.exp(row[around]).sum())


def _mean_of_banks(patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the distances to several banks, each of its own channels, [P]."""
    banks = [tensors[name] for name in bank_names(head.banks)]
    # Each bank as a head of its own, whose score is not used.
    alone = msgspec.structs.replace(head, banks=1, top=1, reweight="none", foreground=False)
    parts = torch.split(patches, [bank.shape[1] for bank in banks], dim=1)
    places = [tensors.get(name) for name in place_names(head.banks)]
    by_bank = [
        patchcore_distances(part, alone, {"bank": bank} if place is None else {"bank": bank, "places": place})[0]
        for part, bank, place in zip(parts, banks, places, strict=True)
    ]
    return torch.stack(by_bank).mean(dim=0)


def _within(distances: Tensor, radius: int, grid: tuple[int, int], places: Tensor) -> Tensor:
    """Return distances [P, M] with infinity for rows from beyond the window; an empty one reaches to the nearest."""
    own = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    away = (own[:, None] - places[None]).abs().amax(dim=2)
    reach = away.amin(dim=1).clamp(min=radius)
    return distances.masked_fill(away > reach[:, None], math.inf)


def _foreground(patches: Tensor, head: PatchcoreHead, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weights of patches [P, D], [P]."""
    offset, least = tensors["foreground_limits"].to(patches.dtype)
    projected = (patches @ tensors["foreground"].to(patches.dtype))[:, 0] + offset
    weights = functional.max_pool2d(projected.clamp(0, 1).reshape(1, 1, *head.grid), 3, stride=1, padding=1).flatten()
    return weights if float(weights.mean()) >= float(least) else torch.ones_like(weights)
