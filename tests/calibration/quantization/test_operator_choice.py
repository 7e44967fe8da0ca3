"""The choice of operators: all if they can, else as much of the compute as holds, within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.calibration.quantization.operator_choice import Budget, OperatorChoice, choose_operators
from flawscope.errors import ArgumentError


class Chain:
    """Operators one after the other, whose squared errors add up, on a clock of their own.

    Args:
        errors: What each operator adds, in the order of the chain.
        costs: What each costs.
        limit: Largest sum.
        seconds: Budget; a try takes 4 of them, a measurement of one operator 2.
    """

    def __init__(self, errors: list[int], costs: list[int], limit: int, seconds: float = math.inf) -> None:
        self.errors = {f"node {number}": error for number, error in enumerate(errors)}
        self.costs = dict(zip(self.errors, costs, strict=True))
        self.limit, self.seconds, self.now = limit, seconds, 0.0
        self.good: list[set[str]] = []
        self.tried: list[list[str]] = []
        self.told: list[tuple[str, int, int]] = []

    def is_good(self, operators: list[str]) -> bool:
        self.now += 4
        self.tried.append(operators)
        if sum(self.errors[name] for name in operators) > self.limit:
            return False
        self.good.append(set(operators))
        return True

    def sensitivity(self, name: str) -> float:
        self.now += 2
        return math.sqrt(self.errors[name])

    def choose(self) -> OperatorChoice:
        choice = choose_operators(
            self.costs,
            self.is_good,
            self.sensitivity,
            lambda share: self.now >= self.seconds * share,
            lambda task, done, total: self.told.append((task, done, total)),
        )
        assert all(0 <= done <= total for _, done, total in self.told)
        assert choice.tries == len(self.tried)
        # In the order of the network, and never what did not pass.
        assert list(choice.quantised) == [name for name in self.costs if name in choice.quantised]
        assert not choice.quantised or set(choice.quantised) in self.good
        assert all(len(set(names)) == len(names) for names in self.tried)
        assert len({frozenset(names) for names in self.tried}) == len(self.tried)  # nothing twice
        kept = [name for name in self.costs if name not in choice.quantised]
        assert set(kept) <= set(choice.sensitivities) or not kept
        assert list(choice.sensitivities.values()) == sorted(choice.sensitivities.values(), reverse=True)
        assert choice.share == pytest.approx(self.cost(choice.quantised) / max(1, sum(self.costs.values())))
        return choice

    def cost(self, names: Iterable[str]) -> int:
        return sum(self.costs[name] for name in names)

    def by_ranking(self) -> set[str]:
        """What a bisection in the ranking alone finds, without end."""
        ranked = sorted(self.costs, key=lambda name: (-self.errors[name], name))
        for start in range(len(ranked)):
            if sum(self.errors[name] for name in ranked[start:]) <= self.limit:
                return set(ranked[start:])
        return set()


chains = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=40)


@given(chains, st.integers(0, 200))
def test_without_end_it_is_no_worse_than_the_ranking_of_all(chain: list[tuple[int, int]], limit: int) -> None:
    search = Chain([error for error, _ in chain], [cost for _, cost in chain], limit)
    choice = search.choose()
    assert not choice.ended_early
    assert search.cost(choice.quantised) >= search.cost(search.by_ranking())
    assert math.inf not in choice.sensitivities.values()
    # What takes longest is not done where everything is good at once.
    if sum(search.errors.values()) <= limit:
        assert choice.tries == min(1, len(chain))
        assert not choice.sensitivities
        assert choice.quantised == tuple(search.costs)


@given(chains, st.integers(0, 200), st.integers(1, 300))
def test_a_spent_budget_ends_the_search_with_what_was_tried(
    chain: list[tuple[int, int]], limit: int, seconds: int
) -> None:
    search = Chain([error for error, _ in chain], [cost for _, cost in chain], limit, seconds)
    choice = search.choose()
    assert search.now <= max(4.0, seconds + 4)
    if any(math.isinf(value) for value in choice.sensitivities.values()):
        assert choice.ended_early
    if search.now >= seconds and choice.quantised != tuple(search.costs) and chain:
        assert choice.ended_early or len(choice.sensitivities) == len(chain)


FLAT, FALLING = [10] * 43, [400 - 9 * number for number in range(43)]
PLACES = {"front": 0, "middle": 21, "end": 42}


@pytest.mark.parametrize("costs", [FLAT, FALLING, FALLING[::-1]], ids=["flat", "front costs", "end costs"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_small_budget_brings_in_nearly_everything_but_the_bad_one(costs: list[int], place: int) -> None:
    # A minute would rank 18 of the 43, wherever the bad one is.
    search = Chain([100 if number == place else 1 for number in range(43)], costs, limit=60, seconds=60)
    choice = search.choose()
    assert f"node {place}" in choice.sensitivities.keys() - set(choice.quantised)
    assert choice.quantised == tuple(name for name in search.costs if name != f"node {place}")
    # With half of it the groups alone are done.
    search = Chain(list(search.errors.values()), costs, limit=60, seconds=30)
    choice = search.choose()
    assert choice.ended_early
    assert 1 > choice.share >= 0.75


@pytest.mark.parametrize("costs", [FLAT, FALLING, FALLING[::-1]], ids=["flat", "front costs", "end costs"])
def test_errors_of_all_together_leave_out_what_costs_little(costs: list[int]) -> None:
    search = Chain([3] * 43, costs, limit=100, seconds=80)
    choice = search.choose()
    assert choice.ended_early
    # Any 33 of the 43 hold.
    assert len(choice.quantised) >= 28
    assert choice.share >= 0.65


def test_where_no_quarter_holds_the_budget_is_for_the_ranking() -> None:
    # No group of neighbours holds: every fifth operator is harmless, the others are not. All groups down to a sixteenth
    # are some thirty tries, 120 seconds.
    search = Chain([1 if number % 5 == 0 else 50 for number in range(43)], FLAT, limit=20, seconds=150)
    choice = search.choose()
    assert choice.quantised == tuple(name for name, error in search.errors.items() if error == 1)
    assert math.inf not in choice.sensitivities.values()
    assert choice.tries <= 7 + 6  # all, halves and quarters; the bisection


def test_groups_leave_time_for_the_ranking() -> None:
    # The first quarter holds, so groups go on, and nearly all of them fail.
    errors = [0] * 11 + [50 if number % 3 else 0 for number in range(32)]
    search = Chain(errors, FLAT, limit=20, seconds=60)
    choice = search.choose()
    assert choice.ended_early
    ranked = [name for name, value in choice.sensitivities.items() if math.isfinite(value)]
    assert len(ranked) >= 5
    assert {name for name in ranked if search.errors[name] == 0} <= set(choice.quantised)
    assert set(list(search.errors)[:11]) < set(choice.quantised)


def test_progress_says_what_is_done() -> None:
    search = Chain([1, 1, 90, 1, 1, 1], [5] * 6, limit=20)
    search.choose()
    tasks = list(dict.fromkeys(task for task, _, _ in search.told))
    assert tasks == [
        "All operators",
        "Groups of operators, % of the multiply-adds",
        "Sensitivity",
        "Operators by sensitivity",
    ]
    # Each comes to its end.
    assert {task: (done, total) for task, done, total in search.told if done == total}.keys() == set(tasks)


def test_where_nothing_can_be_quantised_nothing_is() -> None:
    search = Chain([9, 9, 9], [1, 2, 3], limit=8)
    choice = search.choose()
    assert choice.quantised == ()
    assert choice.share == 0.0
    assert list(choice.sensitivities.values()) == [3.0] * 3


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(ArgumentError, match=r"--int8-budget: expected a number of minutes above 0, got "):
        Budget(minutes)


def test_a_budget_is_spent_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    budget = Budget(2.0)
    assert not budget.is_spent()
    now += 60
    assert budget.is_spent(0.5)
    assert not budget.is_spent(0.6)
    now += 60
    assert budget.is_spent()
    assert not Budget().is_spent()
