"""One quantity of a view: its reference, the window of its last values, and whether they differ by more than chance."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flawscope.runtime.line.drift.chance import bin_ranks, psi, psi_limit, rank_limit, rank_score, shares

_MOVED = 5
"""Parts that are named."""
_SEED = 7


class Plan(NamedTuple):
    """How a quantity is watched.

    Attributes:
        reference: Values of the reference.
        window: Values of a window.
        step: Values from one look at the window to the next.
        bins: Bins of the PSI.
        alpha: Most that each of the two tests of a look may alarm by chance, a fraction.
    """

    reference: int
    window: int
    step: int
    bins: int
    alpha: float


class Found(NamedTuple):
    """What a look at a window has found.

    Attributes:
        psi: Population stability index of the window.
        psi_limit: What chance alone passes in `alpha` of the looks.
        rank: By how many standard deviations of chance the window lies above the reference (rank sum).
        rank_limit: As `psi_limit`, of its size.
        mean_before: Mean of the reference.
        mean_now: Mean of the window.
        shift: Their difference in standard deviations of the reference; None where that has none.
        shares: Share of the window in each bin; bins hold the same share of the reference.
        first: Number of the first part of the window.
        last: Number of its last part.
        moved: Numbers of the parts that lie farthest off, the farthest first.
        sources: Names of their files, where they have some.
    """

    psi: float
    psi_limit: float
    rank: float
    rank_limit: float
    mean_before: float
    mean_now: float
    shift: float | None
    shares: tuple[float, ...]
    first: int
    last: int
    moved: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def is_alarm(self) -> bool:
        """Whether it is more than chance."""
        return self.psi > self.psi_limit or abs(self.rank) > self.rank_limit


class _Value(NamedTuple):
    value: float
    rank: int
    seq: int
    source: str


class Quantity:
    """Learns the reference from the first values, or takes one, and compares every window with it.

    Args:
        plan: How.
        reference: Values of the reference, in the order in which they came; the rest is learned.
        seed: Of the numbers by which equal values are told apart.

    Attributes:
        found: What the last look has found; None before the first.
        is_drifting: Whether it counts as drifting: since a look that was an alarm, and until all looks at a whole
            window of new values were none.
    """

    def __init__(self, plan: Plan, reference: Sequence[float] = (), seed: int = 0) -> None:
        self._plan = plan
        self._random = np.random.default_rng([_SEED, seed])
        self._reference: list[float] = []
        self._sorted: list[tuple[float, float]] = []
        self._window: deque[_Value] = deque(maxlen=plan.window)
        self._ends, self._expected = bin_ranks(plan.reference, plan.bins), shares(plan.reference, plan.bins)
        self._since_look = self._quiet = 0
        self._mean = self._deviation = 0.0
        self.found: Found | None = None
        self.is_drifting = False
        for value in reference[: plan.reference]:
            self._learn(value)

    @property
    def reference(self) -> Sequence[float]:
        """Values of the reference so far, in the order in which they came."""
        return self._reference

    @property
    def has_learned(self) -> bool:
        """Whether the reference is whole."""
        return len(self._reference) == self._plan.reference

    def add(self, value: float, seq: int, source: str = "") -> Found | None:
        """Take a value; returns what was found if it was time to look.

        Args:
            value: The value, finite.
            seq: Number of the part.
            source: Name of the image's file.
        """
        if not self.has_learned:
            self._learn(value)
            return None
        # Equal values are told apart by a number drawn for each: ranks have the same law as without them.
        rank = bisect.bisect_left(self._sorted, (value, self._random.random()))
        self._window.append(_Value(value, rank, seq, source))
        self._since_look += 1
        if len(self._window) < self._plan.window or self._since_look < self._plan.step:
            return None
        self._since_look = 0
        self.found = found = self._look()
        if found.is_alarm:
            self.is_drifting, self._quiet = True, 0
        else:
            self._quiet += self._plan.step
            self.is_drifting &= self._quiet < self._plan.window
        return found

    def _learn(self, value: float) -> None:
        self._reference.append(value)
        if not self.has_learned:
            return
        self._sorted = sorted(zip(self._reference, self._random.random(len(self._reference)).tolist(), strict=True))
        self._mean, self._deviation = float(np.mean(self._reference)), float(np.std(self._reference))

    def _look(self) -> Found:
        plan = self._plan
        ranks = np.array([item.rank for item in self._window], np.int64)
        # Value number r of the reference, from 1, ends a bin: what has r or more of it below lies beyond.
        counts = np.bincount(np.searchsorted(self._ends, ranks, side="right"), minlength=plan.bins)
        mean_now = math.fsum(item.value for item in self._window) / len(self._window)
        difference = mean_now - self._mean
        rank = rank_score(ranks, plan.reference)
        moved = self._moved(rank)
        return Found(
            float(psi(counts, self._expected)),
            psi_limit(plan.reference, plan.window, plan.bins, plan.alpha),
            rank,
            rank_limit(plan.alpha),
            self._mean,
            mean_now,
            difference / self._deviation if self._deviation > 0 else None,
            tuple((counts / len(self._window)).tolist()),
            self._window[0].seq,
            self._window[-1].seq,
            tuple(item.seq for item in moved),
            tuple(item.source for item in moved if item.source),
        )

    def _moved(self, rank: float) -> list[_Value]:
        """Return the values farthest from the middle of the reference: on the side to which the window has moved."""
        middle = self._sorted[len(self._sorted) // 2][0]
        is_one_sided, sign = abs(rank) > rank_limit(self._plan.alpha), 1 if rank > 0 else -1

        def off(item: _Value) -> float:
            return sign * (item.value - middle) if is_one_sided else abs(item.value - middle)

        return sorted(self._window, key=off, reverse=True)[:_MOVED]
