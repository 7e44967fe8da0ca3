"""Bundles of several detectors: each computes as it would alone, and their maps and scores are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.bundle import EnsembleHead, EnsembleMember
from flawscope.errors import BundleError

if TYPE_CHECKING:
    from flawscope.runtime.inspector import Inspector

Term = tuple[float, float, float]
"""Weight, center and spread of one member."""


def weighted_sum(values: Sequence[Float32Array], terms: Sequence[Term]) -> Float32Array:
    """Return Σ weight · (value - center) / spread, float32 of the values' shape, in the members' order.

    It rises with every value, because weights and spreads are above 0, and has no bounds. NaN and infinity stay: the
    decision makes a fault of them.

    Args:
        values: Maps float32 [N, H, W], or scores float32 [N], one array a member.
        terms: Weight, center and spread, one a member.

    Raises:
        BundleError: If the shapes differ.
    """
    if len({value.shape for value in values}) != 1:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise BundleError(f"ensemble: expected maps and scores of one shape from every member, got {shapes}.")
    total = np.zeros_like(values[0], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for value, (weight, center, spread) in zip(values, terms, strict=True):
            # The center first: near it the difference is exact, and both steps keep the order of the values.
            total += (value - np.float32(center)) * np.float32(weight / spread)
    return total


def map_terms(head: EnsembleHead) -> list[Term]:
    """Return the terms that maps are added up with."""
    return [(member.weight, member.map_center, member.map_spread) for member in head.members]


def score_terms(head: EnsembleHead) -> list[Term]:
    """Return the terms that scores are added up with."""
    return [(member.weight, member.score_center, member.score_spread) for member in head.members]


def sum_scale(head: EnsembleHead) -> float:
    """Return how large a sum ordinarily is before the centers are taken off: Σ weight · (|center| / spread + 1).

    The sum of a good picture is near 0 by design; what rounding and another processor change is in proportion to this.
    """
    sums = (
        sum(weight * (abs(center) / spread + 1.0) for weight, center, spread in terms)
        for terms in (map_terms(head), score_terms(head))
    )
    return max(sums)


class EnsembleSession:
    """All members of an ensemble, made ready on one backend; see `flawscope.runtime.backends.Session` for the contract.

    Args:
        head: The members and their terms.
        open_member: Makes one ready.

    Attributes:
        outputs: Names of what `infer` returns.
        members: Name → the member, made ready.

    Raises:
        BackendError: If the backend cannot take a member.
        BundleError: If a member does not reproduce its golden scores.
    """

    outputs: tuple[str, ...] = ("anomaly_map", "score")

    def __init__(self, head: EnsembleHead, open_member: Callable[[EnsembleMember], Inspector]) -> None:
        self._map_terms, self._score_terms = map_terms(head), score_terms(head)
        self.members: dict[str, Inspector] = {}
        try:
            for member in head.members:
                self.members[member.name] = open_member(member)
        except BaseException:
            self.close()
            raise

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Return maps float32 [N, H, W] and scores float32 [N] of prepared pictures uint8 [N, H, W, 3].

        Raises:
            DeviceError: If the device fails in a member.
            BundleError: If the members' maps have different shapes.
        """
        found = [member.infer(images) for member in self.members.values()]
        maps, scores = zip(*found, strict=True)
        return {
            "anomaly_map": weighted_sum(maps, self._map_terms),
            "score": weighted_sum(scores, self._score_terms),
        }

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return maps and scores of the input `image`."""
        return self.infer(inputs["image"])

    def close(self) -> None:
        """Release the members; closing twice is harmless."""
        for member in self.members.values():
            member.close()
        self.members.clear()
