"""Loading ahead: as without a thread in everything but time, bounded, and no thread is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.runtime.reading_ahead import load_ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("flawscope-ahead")]


def outcome(items: Any, load: Any, ahead: int) -> tuple[list[Any], str | None]:
    """Return what is yielded, and the error after it."""
    got: list[Any] = []
    try:
        got.extend(load_ahead(items, load, ahead))
    except ArithmeticError as err:
        return got, str(err)
    return got, None


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 12),
    ahead=st.integers(1, 5),
    broken_item=st.none() | st.integers(0, 12),
    broken_load=st.none() | st.integers(0, 12),
)
def test_results_and_errors_are_those_without_a_thread(
    count: int, ahead: int, broken_item: int | None, broken_load: int | None
) -> None:
    def items() -> Iterator[int]:
        for number in range(count):
            if number == broken_item:
                raise ArithmeticError(f"item {number}")
            yield number

    def load(number: int) -> int:
        if number == broken_load:
            raise ArithmeticError(f"load {number}")
        return 10 * number

    assert outcome(items(), load, ahead) == outcome(items(), load, 0)
    assert readers() == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_taken_than_was_said_and_the_caller_takes_it(ahead: int) -> None:
    taken: list[tuple[int, threading.Thread]] = []

    def items() -> Iterator[int]:
        number = 0
        while True:  # an endless source
            taken.append((number, threading.current_thread()))
            yield number
            number += 1

    loaded = load_ahead(items(), lambda number: number, ahead)
    for position in range(5):
        assert next(loaded) == position
        assert len(taken) <= position + 1 + ahead
    assert {thread for _, thread in taken} == {threading.current_thread()}
    loaded.close()  # type: ignore[attr-defined]
    assert readers() == []


def test_the_next_item_is_loaded_while_the_caller_works() -> None:
    second_loaded = threading.Event()

    def load(number: int) -> int:
        if number == 1:
            second_loaded.set()
        return number

    loaded = load_ahead([0, 1], load, 1)
    assert next(loaded) == 0
    assert second_loaded.wait(timeout=60)  # before it is asked for
    assert list(loaded) == [1]


def test_what_nobody_asks_for_any_more_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on, loaded = threading.Event(), threading.Event(), []

    def load(number: int) -> int:
        if number == 1:
            begun.set()
            assert goes_on.wait(timeout=60)
        loaded.append(number)
        return number

    shutdown = ThreadPoolExecutor.shutdown

    def shutdown_then_go_on(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, False, cancel_futures=cancel_futures)
        goes_on.set()  # only now: the second item ends after the others were taken back
        shutdown(pool, wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown_then_go_on)
    results = load_ahead(range(100), load, 5)
    assert next(results) == 0
    assert begun.wait(timeout=60)
    results.close()  # type: ignore[attr-defined]  # waits for the one that is being loaded
    assert loaded == [0, 1]
    assert readers() == []
