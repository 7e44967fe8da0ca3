"""How long items took: a histogram that is added over workers, for percentiles without a time for each item."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from flawscope.text import storable

_STEPS = 32
"""Buckets of a doubling: a percentile is exact to 1.1 %, half of the width of one."""
_MOST = 64 * _STEPS
"""Buckets are not further from that of a millisecond than this, which is longer than any image takes."""


class Took(msgspec.Struct, frozen=True):
    """Times of items in milliseconds.

    Attributes:
        buckets: Number of a bucket -> items; bucket b is around `2 ** (b / 32)` milliseconds.
        total_ms: Sum of all.
        slowest: Name of the slowest item; empty without one.
        slowest_ms: Its time.
    """

    buckets: dict[int, int] = {}
    total_ms: float = 0.0
    slowest: str = ""
    slowest_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no clock gives, as of a file that was damaged."""
        if any(abs(bucket) > _MOST or items < 1 for bucket, items in self.buckets.items()):
            raise ValueError("expected buckets of times with an item each")

    @property
    def items(self) -> int:
        """Items with a time."""
        return sum(self.buckets.values())

    @property
    def mean_ms(self) -> float | None:
        """Mean time; None without items."""
        return self.total_ms / self.items if self.buckets else None

    def percentile(self, share: float) -> float | None:
        """Return the time in milliseconds that a share of the items, 0 to 1, took at most; None without items."""
        left = share * self.items
        for bucket, items in sorted(self.buckets.items()):
            left -= items
            if left <= 0:
                return float(2.0 ** (bucket / _STEPS))
        return None


class Stopwatch:
    """Adds up times of items, one after the other."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._total_ms, self._slowest, self._slowest_ms = 0.0, "", 0.0

    def add(self, name: str, ms: float) -> None:
        """Count an item and its time in milliseconds."""
        self._buckets[round(_STEPS * math.log2(max(ms, 1e-6)))] += 1
        self._total_ms += ms
        if ms > self._slowest_ms:
            # It travels as JSON, which has no bytes that are not UTF-8.
            self._slowest, self._slowest_ms = storable(name), ms

    def took(self) -> Took:
        """Return all so far."""
        return Took(dict(self._buckets), self._total_ms, self._slowest, self._slowest_ms)


class Total:
    """Adds up times of tasks, one after the other, in the memory of one."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._total_ms, self._slowest = 0.0, Took()

    def add(self, took: Took) -> None:
        """Add the times of a task."""
        self._buckets.update(took.buckets)
        self._total_ms += took.total_ms
        if took.slowest_ms > self._slowest.slowest_ms:
            self._slowest = Took(slowest=took.slowest, slowest_ms=took.slowest_ms)

    def took(self) -> Took:
        """Return all so far."""
        return Took(dict(self._buckets), self._total_ms, self._slowest.slowest, self._slowest.slowest_ms)


def add_up(each: Iterable[Took]) -> Took:
    """Return the times of several tasks as one."""
    total = Total()
    for took in each:
        total.add(took)
    return total.took()
