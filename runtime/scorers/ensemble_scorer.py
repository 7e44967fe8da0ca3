"""Scorer of ensembles: each member scores as it would alone, and the maps and scores are added with fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, EnsembleHead, EnsembleMember
from flawscope.errors import BundleError
from flawscope.runtime.scorers.golden import check_golden
from flawscope.runtime.scorers.scorer import (
    MEMBERS,
    Part,
    Reconstructor,
    Scorer,
    ScorerOptions,
    check_no_kernel,
    open_scorer,
)

Term = tuple[float, float, float]
"""Weight, center and spread of one member."""


def weighted_sum(values: Sequence[Float32Array], terms: Sequence[Term]) -> Float32Array:
    """Return Σ weight · (value - center) / spread, float32 of the values' shape, in the members' order.

    It rises with every value, because weights and spreads are above 0, and is unbounded. NaN and infinity are passed
    on, and become a fault in `decide`.

    Args:
        values: Maps float32 [N, H, W], or scores float32 [N], one array per member.
        terms: Weight, center and spread, one per member.

    Raises:
        BundleError: If the shapes differ.
    """
    if len({value.shape for value in values}) != 1:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise BundleError(f"ensemble: expected maps and scores of one shape from every member, got {shapes}.")
    # Added one after the other, in the members' order, in float32: another order or np.sum would change last bits.
    total = np.zeros_like(values[0], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for value, (weight, center, spread) in zip(values, terms, strict=True):
            # The center is subtracted first (not folded into an offset): near it the difference is exact, and both
            # steps are monotonic, so the order of a member's values is kept.
            total += (value - np.float32(center)) * np.float32(weight / spread)
    return total


def map_terms(head: EnsembleHead) -> list[Term]:
    """Return the members' terms for maps."""
    return [(member.weight, member.map_center, member.map_spread) for member in head.members]


def score_terms(head: EnsembleHead) -> list[Term]:
    """Return the members' terms for scores."""
    return [(member.weight, member.score_center, member.score_spread) for member in head.members]


def sum_scale(head: EnsembleHead) -> float:
    """Return the size of an ordinary sum before the centers are subtracted: Σ weight · (|center| / spread + 1).

    The sum of a normal image is near 0 by design; its rounding errors are in proportion to this size instead.
    """
    sums = (
        sum(weight * (abs(center) / spread + 1.0) for weight, center, spread in terms)
        for terms in (map_terms(head), score_terms(head))
    )
    return max(sums)


class EnsembleScorer:
    """A scorer of scorers, all on one backend; see `Scorer` for the contract.

    Args:
        head: The members and their terms.
        path: Value of `Scorer.path`.
        open_member: Opens the scorer of a member.

    Attributes:
        members: Name -> scorer of the member.

    Raises:
        BackendError: If the backend cannot run a member.
        BundleError: If a member does not reproduce its golden scores.
    """

    reconstructor: Reconstructor | None = None

    def __init__(self, head: EnsembleHead, path: str, open_member: Callable[[EnsembleMember], Scorer]) -> None:
        self.path = path
        # The size of the terms, because the sum itself is near 0 for normal images.
        self.least_score = sum_scale(head)
        self._map_terms, self._score_terms = map_terms(head), score_terms(head)
        self._folders = {member.name: member.folder for member in head.members}
        self.members: dict[str, Scorer] = {}
        try:
            for member in head.members:
                self.members[member.name] = open_member(member)
        except BaseException:
            self.close()  # the members that were opened before the one that failed
            raise

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] of prepared images uint8 [N, H, W, 3].

        Raises:
            DeviceError: If the device fails in a member.
            BundleError: If the members' maps have different shapes.
        """
        maps, scores = zip(*(member.score(images) for member in self.members.values()), strict=True)
        return weighted_sum(maps, self._map_terms), weighted_sum(scores, self._score_terms)

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the sums: the outputs of the members' sessions are added on the host."""
        maps, scores = self.score(images)
        return {"anomaly_map": maps, "score": scores}

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the graphs of all members, by their file names in the ensemble."""
        return [
            replace(part, model=replace(part.model, file=f"{self._folders[name]}/{part.model.file}"))
            for name, member in self.members.items()
            for part in member.parts(images)
        ]

    def describe(self) -> str:
        """Return what computes maps and scores, member by member."""
        members = (f"{name}: {member.describe()}" for name, member in self.members.items())
        return f"the sum of its members, on the host; {'; '.join(members)}"

    def close(self) -> None:
        """Release the members; closing twice is harmless."""
        for member in self.members.values():
            member.close()
        self.members.clear()


class EnsembleMethod:
    """Opens ensembles: each member scores as it would alone, and must reproduce its own golden scores."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> EnsembleScorer:
        """Open the scorer of a bundle; see `open_scorer`."""
        head = bundle.manifest.head
        assert isinstance(head, EnsembleHead)  # the table names this scorer for such heads alone
        check_no_kernel(bundle, options.path)  # a member without a bank could not follow
        path = MEMBERS if options.path == "auto" else options.path

        def open_member(member: EnsembleMember) -> Scorer:
            member_options = replace(options, path="auto" if path == MEMBERS else path)
            member_bundle = bundle.member(member.name)
            scorer = open_scorer(member_bundle, member_options)
            # The ensemble's own golden images are not enough: errors of two members could cancel out in the sum.
            try:
                check_golden(member_bundle, scorer, member_options)
            except BaseException:
                scorer.close()
                raise
            return scorer

        return EnsembleScorer(head, path, open_member)


ENSEMBLE = EnsembleMethod()
