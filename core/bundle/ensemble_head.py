"""Manifest section of an ensemble: several detectors whose maps and scores are summed with fixed weights."""

from __future__ import annotations

import msgspec

from flawscope.bundle.ensemble_member import EnsembleMember
from flawscope.bundle.heads import Head
from flawscope.errors import ArgumentError
from flawscope.ranges import Count


class EnsembleHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ensemble"):
    """How the maps and scores of several detectors become one.

    Attributes:
        members: The detectors.
        images: Normal images, used in no member's training, on which centers and spreads were measured.
    """

    members: tuple[EnsembleMember, ...]
    images: Count

    def __post_init__(self) -> None:
        names = [
            member.name.casefold() for member in self.members
        ]  # members are folders, and some file systems ignore case
        if not names or len(set(names)) != len(names):
            raise ArgumentError(f"members: expected one or more, each with a name of its own, got {names}.")
