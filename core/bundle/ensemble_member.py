"""Manifest entry of one detector of an ensemble."""

from __future__ import annotations

import math
import re

import msgspec

from flawscope.errors import ArgumentError

# The name becomes a folder, so it has no separators and does not begin with a dot.
_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LEAST_FACTOR = 1e-30


class EnsembleMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One detector of an ensemble, and how its numbers enter the sum: weight · (value - center) / spread.

    Attributes:
        name: Its name in the ensemble: letters, digits, `.`, `_` and `-`.
        digest: Identity of its bundle, all of whose files lie in `folder`.
        method: Its method.
        weight: Its weight in the sum, above 0.
        map_center: Value of its anomaly maps that is mapped to 0.
        map_spread: Distance from the center that is mapped to 1, above 0.
        score_center: Score that is mapped to 0.
        score_spread: Distance from the center that is mapped to 1, above 0.
    """

    name: str
    digest: str
    method: str
    weight: float
    map_center: float
    map_spread: float
    score_center: float
    score_spread: float

    def __post_init__(self) -> None:
        if not _MEMBER_NAME.fullmatch(self.name):
            raise ArgumentError(
                "member name: expected letters, digits, '.', '_' and '-', the first a letter or digit, got "
                f"{self.name!r}."
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ArgumentError(f"weight of {self.name}: expected a number above 0, got {self.weight:g}.")
        for quantity, center, spread in (
            ("map", self.map_center, self.map_spread),
            ("score", self.score_center, self.score_spread),
        ):
            if not (math.isfinite(center) and math.isfinite(spread) and spread > 0):
                raise ArgumentError(
                    f"{quantity}s of {self.name}: expected a finite center and a spread above 0, got {center:g} and "
                    f"{spread:g}."
                )
            # The factor becomes a float32 in the sum: 0 would silence this member, infinity all others.
            if not _LEAST_FACTOR <= self.weight / spread <= 1 / _LEAST_FACTOR:
                raise ArgumentError(
                    f"{quantity}s of {self.name}: expected a weight of ordinary size for a spread of {spread:g}, got "
                    f"{self.weight:g}."
                )

    @property
    def folder(self) -> str:
        """The folder in the ensemble that holds its bundle."""
        return f"members/{self.name}"
