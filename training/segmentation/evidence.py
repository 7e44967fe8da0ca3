"""From the logit of a defect to the anomaly map, for every detector that learns from labelled defects."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

SOFTNESS = 4.0
"""Logits over which the map bends from zero to rising with the logit."""


def evidence(logits: Tensor) -> Tensor:
    """Return s * log(1 + exp(x / s)) of logits x, with s = `SOFTNESS`.

    It is positive, unbounded and rises with the logit. Ordinary parts have values around 1, which a relative error can
    be measured on, as it could not on probabilities near 0 or on logits of either sign; and above, where a probability
    would be 1 for everything that a network is sure of, it is the logit itself.

    Args:
        logits: Any shape.

    Returns:
        Of that shape, above 0.
    """
    return SOFTNESS * functional.softplus(logits / SOFTNESS)
