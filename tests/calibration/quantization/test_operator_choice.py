"""The choice of operators: all if they can, else the fewest stay, within a budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.calibration.quantization.operator_choice import Budget, choose_operators
from flawscope.errors import ArgumentError


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0, 1))
def test_the_fewest_are_kept(values: list[float], limit: float) -> None:
    sensitivities = {f"node {number}": value for number, value in enumerate(values)}
    tried: list[list[str]] = []
    ranked: list[str] = []

    def is_good(operators: list[str]) -> bool:
        tried.append(operators)
        return all(sensitivities[name] <= limit for name in operators)

    def sensitivity(name: str) -> float:
        ranked.append(name)
        return sensitivities[name]

    choice = choose_operators(list(sensitivities), is_good, sensitivity)
    assert list(choice.quantised) == [name for name, value in sensitivities.items() if value <= limit]
    assert choice.tries == len(tried) <= 8
    assert not choice.ended_early
    assert not choice.quantised or set(choice.quantised) in [set(names) for names in tried]
    # What costs most is not done where everything is good at once.
    all_good = all(value <= limit for value in values)
    assert ranked == ([] if all_good else list(sensitivities))
    assert list(choice.sensitivities.values()) == sorted(choice.sensitivities.values(), reverse=True)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 40))
def test_a_spent_budget_ends_the_search_with_what_was_tried(count: int, after: int, limit: int) -> None:
    names = [str(number) for number in range(count)]
    steps = 0
    good: list[set[str]] = []

    def step() -> None:
        nonlocal steps
        steps += 1

    def is_good(operators: list[str]) -> bool:
        step()
        if len(operators) <= limit:
            good.append(set(operators))
            return True
        return False

    def sensitivity(name: str) -> float:
        step()
        return 1.0 / (1 + int(name))

    choice = choose_operators(names, is_good, sensitivity, lambda share: steps >= share * after)
    assert not choice.quantised or set(choice.quantised) in good
    measured = [name for name, value in choice.sensitivities.items() if value < math.inf]
    unknown = [name for name, value in choice.sensitivities.items() if value == math.inf]
    # What was not measured stays before anything that was.
    assert list(choice.sensitivities) == unknown + measured
    if unknown:
        assert choice.ended_early


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
