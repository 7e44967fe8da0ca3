"""Work on many images in threads: results in order, and never more of them begun than a few ahead."""

from __future__ import annotations

import pytest

from flawscope.datasets import fingerprints
from flawscope.datasets.fingerprints import map_in_threads


def test_results_come_in_order_and_threads_are_only_a_few_items_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_AHEAD", 5)
    begun: list[int] = []
    told: list[tuple[int, int]] = []

    def square(item: int) -> int:
        begun.append(item)
        return item**2

    results = map_in_threads(square, list(range(100)), lambda done, total: told.append((done, total)))
    for count, result in enumerate(results, 1):
        assert result == (count - 1) ** 2
        assert len(begun) <= count + 5
    assert sorted(begun) == list(range(100))
    assert told == [(count, 100) for count in range(1, 101)]
    assert list(map_in_threads(square, [])) == []


def test_an_error_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_AHEAD", 5)
    begun: list[int] = []

    def fail_at_three(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_in_threads(fail_at_three, list(range(1000))))
    assert len(begun) < 20
