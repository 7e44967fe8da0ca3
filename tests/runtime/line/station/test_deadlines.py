"""Calls at their times: each once, in order, none that was taken back, and nothing of those in memory."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from line_stand_ins import wait_until
from no_garbage import no_collections

from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.station.deadlines import Deadlines

HOUR_NS = 3600 * 10**9


class SetClock:
    """Shows the time that a test sets."""

    now = 0

    def mono_ns(self) -> int:
        return self.now

    def utc_ns(self) -> int:
        return self.now


@pytest.fixture
def deadlines() -> Iterator[Deadlines]:
    made = Deadlines(SystemClock())
    yield made
    made.close()


def come(deadlines: Deadlines, clock: SetClock, now: int) -> None:
    """Let it be so late, and wait until all that was due is called."""
    clock.now, called = now, threading.Event()
    deadlines.at(now, called.set)
    assert called.wait(30)


@given(times=st.lists(st.integers(1, 40), max_size=200), forgotten=st.sets(st.integers(0, 199)))
def test_what_is_not_taken_back_is_called_once_and_in_order(times: list[int], forgotten: set[int]) -> None:
    clock, called = SetClock(), list[tuple[int, int]]()
    deadlines = Deadlines(clock)
    try:
        waiting = [deadlines.at(at, partial(called.append, (at, number))) for number, at in enumerate(times)]
        for number in forgotten & set(range(len(times))):
            waiting[number].forget()
            waiting[number].forget()
        come(deadlines, clock, 20)
        assert all(at <= 20 for at, _ in called)
        for deadline in waiting[::2]:
            deadline.forget()
        come(deadlines, clock, 41)
    finally:
        deadlines.close()
    assert called == sorted(
        (at, number) for number, at in enumerate(times) if number not in forgotten and (at <= 20 or number % 2)
    )


def test_a_call_that_raises_or_takes_itself_back_stops_no_other() -> None:
    clock = SetClock()
    deadlines = Deadlines(clock)
    own = deadlines.at(1, lambda: own.forget())
    deadlines.at(2, lambda: 1 / 0)
    come(deadlines, clock, 3)
    deadlines.close()


def test_a_call_that_is_taken_back_is_let_go_of(deadlines: Deadlines) -> None:
    class Part:
        def late(self) -> None:
            raise AssertionError("it was taken back")

    with no_collections():
        part = Part()
        held, deadline = weakref.ref(part), deadlines.at(time.monotonic_ns() + HOUR_NS, part.late)
        del part
        assert held() is not None
        deadline.forget()
        wait_until(lambda: held() is None)


def test_calls_that_were_taken_back_do_not_pile_up(deadlines: Deadlines) -> None:
    called = threading.Event()
    kept = [deadlines.at(time.monotonic_ns() + HOUR_NS, called.set) for _ in range(10)]
    for _ in range(5000):
        deadlines.at(time.monotonic_ns() + HOUR_NS, called.set).forget()
        assert len(deadlines._waiting) < 200
    deadlines.at(time.monotonic_ns(), called.set)
    assert called.wait(30)
    assert sum(item[2].call is not None for item in deadlines._waiting) == len(kept)
