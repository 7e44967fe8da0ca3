"""What is known of the drift of a view: for the state of the line, its page and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec


class QuantityDrift(msgspec.Struct, frozen=True):
    """One quantity by the last look at its window; numbers as `flawscope.runtime.line.drift.quantity.Found` has them.

    Attributes:
        name: Its name.
        is_drifting: Whether it drifts.
        psi: Population stability index of the window.
        psi_limit: What it may be by chance.
        rank: By how many standard deviations of chance the window lies above the reference.
        rank_limit: What its size may be by chance.
        mean_before: Mean of the reference.
        mean_now: Mean of the window.
        shift: Difference of the means in standard deviations of the reference; None where that has none.
        shares: Share of the window in each bin, of which all hold the same share of the reference.
        moved: Numbers of the parts that lie farthest off.
    """

    name: str
    is_drifting: bool
    psi: float
    psi_limit: float
    rank: float
    rank_limit: float
    mean_before: float
    mean_now: float
    shift: float | None
    shares: tuple[float, ...]
    moved: tuple[int, ...]

    def words(self, window: int) -> str:
        """Return it as a sentence, for a window of so many images."""
        by = "" if self.shift is None else f" ({self.shift:+.2f} standard deviations)"
        parts = ", ".join(str(seq) for seq in self.moved)
        return (
            f"{self.name}: mean {self.mean_before:.4g} before, {self.mean_now:.4g} in the last {window} images{by}; "
            f"PSI {self.psi:.3g}, by chance at most {self.psi_limit:.3g}; rank {self.rank:+.1f}, by chance at most "
            f"{self.rank_limit:.1f}; farthest off: parts {parts}"
        )


class ViewDrift(msgspec.Struct, frozen=True):
    """One view.

    Attributes:
        station: Name of the station.
        view: Name of the view.
        bundle: Digest of the bundle that the reference is of; empty before the first image.
        state: `learning` until the reference is there, `watching`, or `drift`.
        learned: Images of the reference so far, accepted ones.
        reference: Images that it needs.
        window: Images of a window.
        since: When the reference began, ISO 8601 in UTC; empty before the first image.
        quantities: What the last looks have found.
    """

    station: str
    view: str
    bundle: str
    state: Literal["learning", "watching", "drift"]
    learned: int
    reference: int
    window: int
    since: str = ""
    quantities: tuple[QuantityDrift, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What drifts, a sentence each."""
        return tuple(f"{self.view}: drift of {one.words(self.window)}" for one in self.quantities if one.is_drifting)


def warnings_of(views: Iterable[ViewDrift], station: str) -> tuple[str, ...]:
    """Return what drifts at a station, a sentence each."""
    return tuple(warning for view in views if view.station == station for warning in view.warnings)
