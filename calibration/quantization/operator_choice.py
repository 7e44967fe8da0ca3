"""Which operators are quantised: as much of the compute as keeps the scores, within a budget of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flawscope.errors import ArgumentError
from flawscope.progress import Progress, no_progress


class Budget:
    """A time in which a search should end.

    Args:
        minutes: From now on; None for no end.

    Raises:
        ArgumentError: If it is no positive number.
    """

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and not 0 < minutes < math.inf:
            raise ArgumentError(f"--int8-budget: expected a number of minutes above 0, got {minutes}.")
        self.minutes = minutes
        self._started = time.monotonic()

    def is_spent(self, share: float = 1.0) -> bool:
        """Return whether this share of the time is over, 0 to 1."""
        return self.minutes is not None and time.monotonic() - self._started >= 60 * self.minutes * share


@dataclass(frozen=True)
class OperatorChoice:
    """Result of the search.

    Attributes:
        quantised: Operators to quantise, in the order given; empty if none can be.
        sensitivities: Name -> sensitivity of those that were ranked and of all that stay, the most sensitive first,
            infinite where there was no time to measure it; empty where all can be quantised.
        tries: How many candidates were tried.
        ended_early: Whether the search ended with the budget: fewer might have to stay.
        share: Share of the cost of all operators that the quantised ones have, 0 to 1.
    """

    quantised: tuple[str, ...]
    sensitivities: dict[str, float]
    tries: int
    ended_early: bool
    share: float


_SMALLEST = 16
"""A group with less than this part of the whole cost is not halved: ranking its operators tells more for the time."""

_HOPELESS = 3
"""Where nothing has held and no larger group than this part of the whole cost is left, the operators are ranked: of
smaller groups few hold in such a network, and there are many. Quarters, which are never quite equal, are below it."""

_GROUPING = 0.6
"""Share of the budget after which no more groups are tried: in a network where nearly all fail they would use it up."""

_RANKING = 0.8
"""Share of the budget after which no more operators are ranked: what was ranked has to be tried."""

_GROUPS, _BY_SENSITIVITY = "Groups of operators, % of the multiply-adds", "Operators by sensitivity"


def choose_operators(
    costs: Mapping[str, int],
    is_good: Callable[[list[str]], bool],
    sensitivity: Callable[[str], float],
    is_spent: Callable[[float], bool] = lambda share: False,
    progress: Progress = no_progress,
) -> OperatorChoice:
    """Return the operators to quantise: as much of the cost as `is_good` allows, wherever in the network it is.

    1. All of them, which is the usual result.
    2. Groups: neighbours in the network, halved by cost and the costliest first. Half a network that holds is in after
       one try, and what does not hold is halved again. Few tries bring most of the cost in. Where not even a quarter
       holds, and after a share of the budget, the ranking follows.
    3. Ranking, each operator alone: those that are not in yet before those that are, the costliest first. A bisection
       then finds how many of the most sensitive ones have to stay, in log2(n) tries. What was not ranked remains as
       the groups left it.

    The best that was tried counts, so a search may end at any time. Both ways assume that more operators in FP32 never
    make the result worse; where that is wrong they may not find the best, but what is returned was tried and is good.

    Args:
        costs: All operators that can be quantised, in the network's order -> what each costs in FP32.
        is_good: Whether the result with these operators quantised is good enough.
        sensitivity: How far one operator alone moves the result.
        is_spent: Whether a share of the budget, 0 to 1, is over.
        progress: Told what is being done.
    """
    search = _Search(costs, is_good)
    everything = frozenset(costs)
    if not costs:
        return OperatorChoice((), {}, 0, False, 0.0)
    progress("All operators", 0, 1)
    search.passes(everything)
    progress("All operators", 1, 1)
    ranked: dict[str, float] = {}
    ended_early = False
    if search.best != everything:
        ended_early = not _halve(search, is_spent, progress)
        ranked = _rank(search, sensitivity, is_spent, progress)
        ended_early |= len(ranked) < len(costs)
        ended_early |= not _bisect(search, ranked, is_spent, progress)
    left = {name: math.inf for name in costs if name not in ranked and name not in search.best}
    share = search.cost(search.best) / (search.cost(everything) or 1)
    quantised = tuple(name for name in costs if name in search.best)
    return OperatorChoice(quantised, left | ranked, search.tries, ended_early, share)


class _Search:
    """What was tried so far.

    Attributes:
        best: The costliest set of operators that was tried and is good; empty at first.
        tries: How many sets were tried.
    """

    def __init__(self, costs: Mapping[str, int], is_good: Callable[[list[str]], bool]) -> None:
        self.costs = costs
        self.best: frozenset[str] = frozenset()
        self.tries = 0
        self._is_good = is_good
        self._failed: list[frozenset[str]] = []

    def cost(self, names: Collection[str]) -> int:
        """Return what these operators cost together."""
        return sum(self.costs[name] for name in names)

    def size(self, names: Collection[str]) -> tuple[int, int]:
        """Return what a set is compared by: its cost, and among equals the number of operators."""
        return self.cost(names), len(names)

    def passes(self, names: frozenset[str]) -> bool:
        """Return whether a set is good; one with all of a set that was not is not tried."""
        if any(failed <= names for failed in self._failed):
            return False
        self.tries += 1
        if not self._is_good([name for name in self.costs if name in names]):
            self._failed.append(names)
            return False
        self.best = max(self.best, names, key=self.size)
        return True


def _halve(search: _Search, is_spent: Callable[[float], bool], progress: Progress) -> bool:
    """Add groups of operators to the best set; return whether that was not ended by the budget."""
    total = search.cost(search.costs)
    groups = [list(search.costs)]  # each is known to fail with the best set
    while groups:
        undecided = sum(search.cost(one) for one in groups)
        progress(_GROUPS, 100 - 100 * undecided // (total or 1), 100)
        group = groups.pop(max(range(len(groups)), key=lambda place: search.cost(groups[place])))
        if not search.best and search.cost(group) * _HOPELESS <= total:
            break  # it is the costliest of all that are left
        if len(group) == 1 or search.cost(group) * _SMALLEST <= total:
            continue
        for half in _halves(group, search):
            if is_spent(_GROUPING):
                return False
            if not search.passes(search.best | frozenset(half)):
                groups.append(half)
    progress(_GROUPS, 100, 100)
    return True


def _halves(group: list[str], search: _Search) -> tuple[list[str], list[str]]:
    """Cut a group of two or more into neighbours of nearly the same cost, the one with fewer operators first."""
    whole = search.cost(group)
    middle = min(range(1, len(group)), key=lambda cut: abs(whole - 2 * search.cost(group[:cut])))
    first, second = group[:middle], group[middle:]
    # Each operator adds to the errors: for the same cost fewer of them are the better half.
    return (second, first) if len(second) < len(first) else (first, second)


def _rank(
    search: _Search,
    sensitivity: Callable[[str], float],
    is_spent: Callable[[float], bool],
    progress: Progress,
) -> dict[str, float]:
    """Measure operators alone; return their sensitivities, the most sensitive first."""
    measured: dict[str, float] = {}
    # Those outside first: they decide what more comes in.
    for name in sorted(search.costs, key=lambda one: (one in search.best, -search.costs[one])):
        if is_spent(_RANKING):
            break
        measured[name] = sensitivity(name)
        progress("Sensitivity", len(measured), len(search.costs))
    # By name among equals, so that the choice does not depend on the order of nodes.
    return dict(sorted(measured.items(), key=lambda item: (-item[1], item[0])))


def _bisect(
    search: _Search, ranked: Mapping[str, float], is_spent: Callable[[float], bool], progress: Progress
) -> bool:
    """Try how few of the most sensitive operators have to stay; return whether it came to its end."""
    names = list(ranked)
    others = search.best - frozenset(names)  # in, and not ranked: they stay in
    largest = search.size(search.best)
    # From `high` on, keeping so many gives no more than the best set: there is nothing to try.
    low, high = 0, sum(search.size(others.union(names[start:])) > largest for start in range(len(names)))
    done, total = 0, high.bit_length()
    while low < high:
        progress(_BY_SENSITIVITY, done, total)
        if is_spent(1.0):
            return False
        done += 1
        middle = (low + high) // 2
        if search.passes(others.union(names[middle:])):
            high = middle
        else:
            low = middle + 1
    progress(_BY_SENSITIVITY, total, total)
    return True
