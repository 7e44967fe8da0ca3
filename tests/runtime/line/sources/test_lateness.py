"""Images that come later and later, and what only looks like it."""

from __future__ import annotations

import pytest

from flawscope.runtime.line.sources.grabber import SourceLost
from flawscope.runtime.line.sources.lateness import Lateness


def test_a_queue_that_grows_is_noticed() -> None:
    late = Lateness()
    for number in range(900):  # 20 a second are sent, 19 are decoded
        late.check(5000 + number / 19, number / 20)
    with pytest.raises(SourceLost, match=r"images come 2\.[56] s later than at first"):
        late.check(5000 + 970 / 19, 970 / 20)


def test_a_pause_and_a_slow_clock_are_none() -> None:
    late = Lateness()
    for number in range(200_000):
        taken_s = number / 2
        # 100 millionths slower, after a day 8 seconds; now and then the network holds images back.
        late.check(5000 + taken_s * 1.0001 + (2.0 if number % 100 == 0 else 0), taken_s)


def test_a_clock_that_is_set_forwards_is_none() -> None:
    late = Lateness()
    for number in range(200):
        late.check(5000 + number / 20, number / 20 + (3600 if number > 100 else 0))


def test_images_without_a_time_are_never_late() -> None:
    late = Lateness()
    for now_s in (1.0, 2.0, 1000.0):
        late.check(now_s, None)


def test_who_allows_long_pauses_gets_them() -> None:
    late = Lateness(10.0)
    late.check(0.0, 0.0)
    late.check(20.0, 10.0)
    with pytest.raises(SourceLost, match=r"images come 11\.0 s later"):
        late.check(31.0, 20.0)
