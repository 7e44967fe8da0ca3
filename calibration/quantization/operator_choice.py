"""Which operators are quantised: all but the fewest of the most sensitive ones, within a budget of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flawscope.errors import ArgumentError


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
        sensitivities: Name -> sensitivity, the most sensitive first, infinite where there was no time to measure it;
            empty where all can be quantised.
        tries: How many candidates were tried.
        ended_early: Whether the search ended with the budget: fewer might have to stay.
    """

    quantised: tuple[str, ...]
    sensitivities: dict[str, float]
    tries: int
    ended_early: bool


_RANKING = 0.6
"""Share of the budget after which no more operators are ranked: the search in the ranking needs the rest."""


def choose_operators(
    operators: Sequence[str],
    is_good: Callable[[list[str]], bool],
    sensitivity: Callable[[str], float],
    is_spent: Callable[[float], bool] = lambda share: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OperatorChoice:
    """Return the operators to quantise: all except the fewest of the most sensitive ones with which `is_good` holds.

    All of them are tried first, because that is the usual result. Only then each is ranked, and a bisection finds how
    many stay in FP32, in log₂(n) tries. It assumes that more operators in FP32 never make the result worse; where that
    is wrong it may not find the fewest, but what it returns was tried and is good.

    Args:
        operators: All that can be quantised.
        is_good: Whether the result with these operators quantised is good enough.
        sensitivity: How far one operator alone moves the result.
        is_spent: Whether a share of the budget, 0 to 1, is over.
        progress: Told how many operators are ranked.
    """
    if not operators:
        return OperatorChoice((), {}, 0, False)
    if is_good(list(operators)):
        return OperatorChoice(tuple(operators), {}, 1, False)
    measured: dict[str, float] = {}
    for name in operators:
        # What nobody has measured counts as most sensitive: it stays in FP32 before anything that was.
        measured[name] = math.inf if is_spent(_RANKING) else sensitivity(name)
        progress(len(measured), len(operators))
    # By name among equals, so that the choice does not depend on the order of nodes.
    ranked = dict(sorted(measured.items(), key=lambda item: (-item[1], item[0])))
    names = list(ranked)
    low, high, tries = 1, len(names), 1  # keeping `high` is good: keeping all of them is the graph as it was
    while low < high and not is_spent(1.0):
        middle = (low + high) // 2
        tries += 1
        if is_good(names[middle:]):
            high = middle
        else:
            low = middle + 1
    chosen = set(names[high:])
    ended_early = low < high or math.inf in measured.values()
    return OperatorChoice(tuple(name for name in operators if name in chosen), ranked, tries, ended_early)
