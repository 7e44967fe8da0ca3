"""Feature editing (LafitE, arXiv:2307.08059): every patch gives way to a mean of the bank rows nearest to it."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import Float32Array

MOST_EDITED = 63
"""Most rows in the place of a patch: the kernels find 64, and one more than these is looked at."""


def row_weights(squared: Float32Array, count: int, channels: int, temperature: float) -> Float32Array:
    """Return the weights of the nearest rows in the place of each patch, float32 [P, count], with sums of 1.

    A row at the squared distance d² has the weight exp(-d² / (D·t)) - exp(-d′² / (D·t)), where d′ is the distance of
    the first row that is left out. The paper says no more than a weighted mean of the nearest. Without the second part
    the last of them, as near as the first one left out, would make the features jump where rounding swaps the two.

    Args:
        squared: Squared distances to the nearest rows, nearest first, float32 [P, K]; the one after `count`, if there
            is one, is that of the row left out.
        count: Rows that are taken, 1 to K.
        channels: D, the channels of a patch.
        temperature: t. The smaller, the more the nearest row alone counts; a large one lets weights fall linearly.
    """
    scale = np.float32(channels * temperature)
    # From the nearest: exp of a large distance would be 0 for all rows.
    shares: Float32Array = np.exp((squared[:, :1] - squared[:, :count]) / scale)
    if squared.shape[1] > count:
        # The difference as a product: at a large temperature both exponentials are 1, rounding aside.
        shares *= -np.expm1((squared[:, :count] - squared[:, count : count + 1]) / scale)
    # Where all rows are equally near none is nearer than the one left out: all count alike.
    total = shares.sum(axis=1, keepdims=True)
    weights: Float32Array = np.where(total > 0.0, shares / np.where(total > 0.0, total, 1), np.float32(1.0 / count))
    # A NaN distance, of a patch that is not finite, must stay one.
    weights[np.isnan(squared).any(axis=1)] = np.nan
    return weights
