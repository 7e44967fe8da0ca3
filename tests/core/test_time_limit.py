"""Foreign code that does not return keeps nobody waiting, and what it makes afterwards is thrown away."""

from __future__ import annotations

import math
import threading
import time

import pytest

from flawscope import time_limit
from flawscope.errors import ArgumentError, LoadTimeout
from flawscope.time_limit import DEFAULT_S, is_left_behind, load_limit, unlimited, within


def forget(_: object) -> None:
    pass


def wait_until(is_so, seconds=10.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch):
    """Tests share the process: each begins without threads, and ends with those that it left behind."""
    monkeypatch.setattr(time_limit, "_left_behind", [])
    yield
    wait_until(lambda: not is_left_behind())


@pytest.mark.parametrize("limit", [5.0, math.inf])
def test_what_is_done_in_time_is_returned_or_raised(limit):
    assert within(limit, lambda: 7, forget, "x") == 7
    with pytest.raises(KeyError, match="inside"):
        within(limit, lambda: {}["inside"], forget, "x")
    assert not is_left_behind()


def test_what_does_not_return_is_left_behind_and_thrown_away_when_it_does():
    free, thrown_away = threading.Event(), []
    started = time.monotonic()

    def work():
        assert free.wait(60)
        return "late"

    with pytest.raises(LoadTimeout, match=r"^a\.flaw: expected the bundle to be ready within 0\.05 s, got no answer"):
        within(0.05, work, thrown_away.append, "a.flaw")
    assert time.monotonic() - started < 30
    assert is_left_behind()
    assert thrown_away == []
    free.set()
    wait_until(lambda: thrown_away == ["late"])
    wait_until(lambda: not is_left_behind())


def test_an_interrupt_does_not_wait_for_foreign_code(monkeypatch):
    free, thrown_away = threading.Event(), []

    def interrupted(watch):
        raise KeyboardInterrupt

    monkeypatch.setattr(time_limit._Watch, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        within(10, lambda: free.wait(10), thrown_away.append, "x")
    assert is_left_behind()
    free.set()
    wait_until(lambda: thrown_away == [True])


def test_building_does_not_count_and_what_follows_does():
    free = threading.Event()

    def builds():
        with unlimited():
            time.sleep(1.1)
        return 0

    def goes_on():
        with unlimited():
            pass
        free.wait(60)

    assert within(1.0, builds, forget, "x") == 0
    with pytest.raises(LoadTimeout):
        within(0.05, goes_on, forget, "x")
    free.set()
    with unlimited():  # outside of any limit
        pass


def test_within_one_limit_another_changes_nothing():
    assert within(5, lambda: within(0.01, lambda: time.sleep(0.1) or 3, forget, "in"), forget, "out") == 3


@pytest.mark.parametrize(
    ("variable", "given", "limit"),
    [
        (None, None, DEFAULT_S),
        ("", None, DEFAULT_S),
        ("7.5", None, 7.5),
        ("0", None, math.inf),
        ("7", 2, 2),
        ("7", 0, math.inf),
    ],
)
def test_the_limit_is_what_was_asked_for_or_the_variable(monkeypatch, variable, given, limit):
    monkeypatch.delenv(time_limit.VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(time_limit.VARIABLE, variable)
    assert load_limit(given) == limit


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "5s"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv(time_limit.VARIABLE, text)
    with pytest.raises(
        ArgumentError, match=f"^FLAWSCOPE_LOAD_TIMEOUT: expected seconds, or 0 for no limit, got '{text}'"
    ):
        load_limit()
    with pytest.raises(ArgumentError, match=r"^timeout_s: expected seconds"):
        load_limit(-1.0)
