"""Whitening of patches: decorrelated channels of unit variance, cut to the principal axes that matter, and shrunk.

For the covariance Σ = V Λ Vᵀ of patches the matrix is V_k (Λ'_k + f I)^(-1/2): k principal axes, their variances shrunk
towards the mean variance, Λ' = (1 - ρ) Λ + ρ tr(Λ)/C I (Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices", 2004), and a floor f. Shrinkage keeps axes whose variance was measured too small
from outweighing all others; the axes themselves stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-4
"""Added to the variances of the principal axes, as a share of the largest, so that pure noise is not amplified.
Chosen on generated parts: the best mean AUROC of 1e-2, 1e-3 and 1e-4."""


def whitening_matrix(covariance: Tensor, count: int, components: float = 1.0, shrinkage: float | None = 0.0) -> Tensor:
    """Return the matrix that whitens patches, float64 [C, k].

    Args:
        covariance: Covariance of the channels, float64 [C, C].
        count: Number of patches it was measured on.
        components: Principal axes kept, those of the largest variance: a share of the variance up to 1 (all), or a
            count above 1, at most C.
        shrinkage: The coefficient ρ, 0 to 1, or None for `oracle_approximation`.
    """
    # Rounding can leave eigenvalues slightly below zero, hence the clamp. They rise: the largest is the last.
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0)
    kept = kept_axes(variances, components)
    if shrinkage is None:
        shrinkage = oracle_approximation(variances, count)
    if shrinkage > 0:
        variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
    floor = FLOOR * variances.max().clamp(min=1e-12)
    matrix: Tensor = axes / (variances + floor).sqrt()
    return matrix[:, len(variances) - kept :]


def kept_axes(variances: Tensor, components: float) -> int:
    """Return how many principal axes are kept, of variances that rise: at least 1, at most all."""
    if components > 1:
        return min(round(components), len(variances))
    if components == 1:
        return len(variances)
    shares = variances.flip(0).cumsum(0) / variances.sum().clamp(min=1e-300)
    # The first number of axes that has the share: those before it are below.
    return min(int((shares < components).sum()) + 1, len(variances))


def oracle_approximation(variances: Tensor, count: int) -> float:
    """Return the shrinkage coefficient for variances along the principal axes, measured on `count` patches; 0 to 1.

    OAS (Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance estimation", 2010, equation 23). It
    takes patches as independent, which those of one image are not: the true error, and the best coefficient, is larger.
    """
    size = len(variances)
    squares, square = float(variances.square().sum()), float(variances.sum()) ** 2
    distance = (count + 1 - 2 / size) * (squares - square / size)
    # No distance: the variances are equal, and shrinking changes nothing.
    return 1.0 if distance <= 0 else min(1.0, ((1 - 2 / size) * squares + square) / distance)
