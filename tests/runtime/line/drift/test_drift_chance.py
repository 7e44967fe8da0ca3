"""The limits of chance: passed as often as they say, whatever the values are, ties included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flawscope.runtime.line.drift.chance import bin_ranks, psi, psi_limit, rank_limit, shares
from flawscope.runtime.line.drift.quantity import Plan, Quantity
from flawscope.runtime.line.drift.watch import QUANTITIES, plan_of
from flawscope.runtime.line.line_config import DriftOptions

Draw = Callable[[np.random.Generator, int], np.ndarray]

DRAWS: dict[str, Draw] = {
    "continuous": lambda random, count: random.lognormal(size=count),
    "few values": lambda random, count: random.integers(0, 3, count).astype(float),
    "one value": lambda random, count: np.zeros(count),
    "rare ones": lambda random, count: (random.random(count) < 0.02).astype(float),
}


def looks(plan: Plan, draw: Draw, references: int, windows: int, shift: float = 0.0) -> tuple[int, int]:
    """Return how many looks there were and how many of them were alarms, over many references."""
    alarms = count = 0
    for number in range(references):
        random = np.random.default_rng(number)
        quantity = Quantity(plan, seed=number)
        values = draw(random, plan.reference + windows * plan.window)
        values[plan.reference :] += shift
        for seq, value in enumerate(values.tolist()):
            if (found := quantity.add(value, seq)) is not None:
                count += 1
                alarms += found.is_alarm
    return count, alarms


@pytest.mark.parametrize("name", DRAWS)
def test_alarms_of_chance_are_as_rare_as_they_must_be(name: str) -> None:
    plan = Plan(reference=60, window=24, step=24, bins=6, alpha=0.02)
    count, alarms = looks(plan, DRAWS[name], references=700, windows=1)
    assert count == 700
    # Two tests of 0.02 each; five standard deviations of the number above what is allowed.
    allowed = 2 * plan.alpha * count
    assert alarms <= allowed + 5 * np.sqrt(allowed)
    # A test that never alarms would hold any bound.
    assert looks(plan, DRAWS["continuous"], references=5, windows=1, shift=20.0)[1] == 5


@pytest.mark.parametrize("name", ["continuous", "few values"])
def test_the_rate_for_1000_images_with_windows_that_overlap(name: str) -> None:
    options = DriftOptions(window=40, reference=80, false_alarms=4.0, bins=8)
    plan = plan_of(options)
    # As if one quantity were watched alone, with the whole allowance: then the bound is near enough to be tested.
    plan = plan._replace(alpha=plan.alpha * len(QUANTITIES))
    references, windows = 250, 10
    _, alarms = looks(plan, DRAWS[name], references, windows)
    images = references * windows * options.window
    allowed = options.false_alarms * images / 1000
    # Looks of one reference depend on each other: the number spreads wider than independent ones would.
    assert alarms <= allowed + 3 * np.sqrt(allowed)
    assert alarms > allowed / 20


def test_the_plan_spends_what_is_allowed_and_no_more() -> None:
    options = DriftOptions(window=200, reference=500, false_alarms=0.01)
    plan = plan_of(options)
    assert (plan.step, plan.reference, plan.bins) == (50, 500, 10)
    assert 1000 / plan.step * plan.alpha * 2 * len(QUANTITIES) == pytest.approx(0.01)
    # What would be more than all looks is no probability.
    assert plan_of(DriftOptions(window=10_000, false_alarms=100.0)).alpha < 1


def test_bins_hold_equal_shares_of_the_reference() -> None:
    assert bin_ranks(99, 4).tolist() == [25, 50, 75]
    assert shares(99, 4).tolist() == [0.25] * 4
    assert shares(10, 4).sum() == pytest.approx(1.0)


def test_psi_by_hand() -> None:
    expected = np.array([0.5, 0.5])
    assert psi(np.array([50, 50]), expected) == pytest.approx(0.0)
    share = (80.5 / 101, 20.5 / 101)
    by_hand = sum((found - 0.5) * np.log(found / 0.5) for found in share)
    assert psi(np.array([80, 20]), expected) == pytest.approx(by_hand)


def test_limits_grow_with_rarer_alarms_and_smaller_windows() -> None:
    assert psi_limit(100, 50, 5, 0.001) > psi_limit(100, 50, 5, 0.05) > psi_limit(100, 200, 5, 0.05)
    assert rank_limit(0.05) == pytest.approx(1.96, abs=0.001)
