"""One quantity: what drifts is found within a window, named with its parts, and over again afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from flawscope.runtime.line.drift.quantity import Plan, Quantity

PLAN = Plan(reference=100, window=40, step=10, bins=8, alpha=1e-4)


def fed(quantity: Quantity, values: np.ndarray, first: int = 0) -> list[int]:
    """Add values; returns the numbers of those after which the quantity drifted."""
    drifting = []
    for seq, value in enumerate(values.tolist(), first):
        quantity.add(value, seq, f"{seq}.png")
        if quantity.is_drifting:
            drifting.append(seq)
    return drifting


@pytest.fixture
def quantity() -> Quantity:
    learned = Quantity(PLAN)
    assert fed(learned, np.random.default_rng(0).normal(10.0, 1.0, 200)) == []
    assert learned.has_learned
    return learned


def test_a_heavy_drift_is_found_within_a_window(quantity: Quantity) -> None:
    drifting = fed(quantity, np.random.default_rng(1).normal(14.0, 1.0, 40), 200)
    assert drifting
    found = quantity.found
    assert found is not None
    assert found.is_alarm
    assert found.mean_before == pytest.approx(10.0, abs=0.4)
    assert found.mean_now == pytest.approx(14.0, abs=0.6)
    assert found.shift == pytest.approx(4.0, abs=1.0)
    assert found.shares[-1] > 0.9


def test_another_spread_around_the_same_mean_is_found_by_its_bins(quantity: Quantity) -> None:
    fed(quantity, np.random.default_rng(2).normal(10.0, 5.0, 40), 200)
    found = quantity.found
    assert found is not None
    assert found.psi > found.psi_limit
    assert abs(found.rank) < found.rank_limit


def test_the_parts_that_lie_farthest_off_are_named(quantity: Quantity) -> None:
    values = np.random.default_rng(3).normal(12.5, 0.5, 40)
    values[[7, 21]] = (30.0, 25.0)
    values[30] = -40.0  # farther off, but not where the window has moved to
    fed(quantity, values, 200)
    found = quantity.found
    assert found is not None
    assert found.moved[:2] == (207, 221)
    assert 230 not in found.moved
    assert found.sources[:2] == ("207.png", "221.png")
    assert (found.first, found.last) == (200, 239)


def test_it_is_over_after_a_whole_window_without_an_alarm(quantity: Quantity) -> None:
    assert fed(quantity, np.full(40, 14.0), 200)
    back = fed(quantity, np.random.default_rng(4).normal(10.0, 1.0, 120), 240)
    assert not quantity.is_drifting
    # Old values are in the window for 40 more; then 40 without an alarm have to come.
    assert 240 + 40 <= back[-1] <= 240 + 90


def test_a_reference_that_is_given_is_the_one_that_was_learned() -> None:
    values = np.random.default_rng(5).integers(0, 4, 300).astype(float)
    learned = Quantity(PLAN)
    fed(learned, values)
    given = Quantity(PLAN, learned.reference)
    assert given.has_learned
    fed(given, values[100:])
    assert given.found is not None
    assert given.found.psi == learned.found.psi  # type: ignore[union-attr]


def test_a_reference_of_one_value_has_no_deviation() -> None:
    quantity = Quantity(PLAN)
    fed(quantity, np.full(100, 3.0))
    assert fed(quantity, np.full(40, 3.0), 100) == []
    assert fed(quantity, np.full(40, 3.5), 140)
    assert quantity.found is not None
    assert quantity.found.shift is None
