"""Shared scoring: the earliest deadline first, batches where they pay, and nobody waits for what hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_stand_ins import WAIT_S, RuleInspector, grey, wait_until

from flawscope.errors import DeviceError
from flawscope.runtime.results import Result
from flawscope.runtime.shared_scoring import SharedScoring

FAR = 3600 * 10**9


@pytest.fixture
def inspector() -> RuleInspector:
    return RuleInspector()


@pytest.fixture
def scoring(inspector: RuleInspector) -> Iterator[SharedScoring]:
    shared = SharedScoring(inspector, "test")
    yield shared
    inspector.gate.set()
    assert shared.close()


def busy(inspector: RuleInspector, scoring: SharedScoring) -> Any:
    """Let the inspector be at one image, so that all others wait."""
    inspector.gate.clear()
    future = scoring.submit(grey(50), time.monotonic_ns() + FAR)
    wait_until(lambda: len(inspector.sizes) == 1)
    return future


def test_the_earliest_deadline_is_first(inspector: RuleInspector, scoring: SharedScoring) -> None:
    order: list[int] = []
    first = busy(inspector, scoring)
    now = time.monotonic_ns()
    futures = []
    for late in (5, 1, 3):
        future = scoring.submit(grey(late), now + FAR + late)
        future.add_done_callback(lambda done, late=late: order.append(late))
        futures.append(future)
    inspector.gate.set()
    assert [future.result(WAIT_S).score for future in [first, *futures]] == [50, 5, 1, 3]
    assert order == [1, 3, 5]


def test_batches_are_used_where_they_pay(inspector: RuleInspector, scoring: SharedScoring) -> None:
    scoring._took_ms = {1: 10.0, 2: 19.0, 4: 20.0}  # two at once gain nothing, four do
    futures = [busy(inspector, scoring)]
    futures += [scoring.submit(grey(n), time.monotonic_ns() + FAR) for n in range(6)]
    inspector.gate.set()
    assert [future.result(WAIT_S).score for future in futures[1:]] == [0, 1, 2, 3, 4, 5]
    # The times go on being measured, so what follows the batch is of this machine.
    assert inspector.sizes[:2] == [1, 4]
    assert sum(inspector.sizes) == 7


def test_no_batch_that_would_cost_the_deadline(inspector: RuleInspector, scoring: SharedScoring) -> None:
    scoring._took_ms = {1: 1e3, 4: 2e3}
    futures = [busy(inspector, scoring)]
    futures += [scoring.submit(grey(n), time.monotonic_ns() + 15 * 10**8) for n in range(4)]
    inspector.gate.set()
    for future in futures:
        future.result(WAIT_S)
    assert inspector.sizes == [1] * 5


def test_measure_takes_batches_up_to_the_largest(inspector: RuleInspector, scoring: SharedScoring) -> None:
    scoring.measure()
    assert sorted(scoring._took_ms) == [1, 2, 4]
    assert inspector.warmed == [1] * 3 + [2] * 3 + [4] * 3


def test_what_raises_costs_its_batch_alone(inspector: RuleInspector, scoring: SharedScoring) -> None:
    def rule(image: Any) -> Result:
        if image.max() == 7:
            raise MemoryError("none left")
        return Result("image", "accept", 1.0, 2.0)

    inspector.rule = rule
    assert scoring.submit(grey(7), time.monotonic_ns() + FAR).result(WAIT_S).decision == "fault"
    assert scoring.submit(grey(8), time.monotonic_ns() + FAR).result(WAIT_S).decision == "accept"


def test_a_panic_costs_its_batch_alone(inspector: RuleInspector, scoring: SharedScoring) -> None:
    class Panic(BaseException):
        """As extensions in Rust raise it."""

    def rule(image: Any) -> Result:
        if image.max() == 7:
            raise Panic
        return Result("image", "accept", 1.0, 2.0)

    inspector.rule = rule
    assert scoring.submit(grey(7), time.monotonic_ns() + FAR).result(WAIT_S).decision == "fault"
    assert scoring.submit(grey(8), time.monotonic_ns() + FAR).result(WAIT_S).decision == "accept"


def test_a_callback_that_raises_does_not_end_the_thread(scoring: SharedScoring) -> None:
    done = threading.Event()

    def callback(future: object) -> None:
        done.set()
        raise SystemExit

    scoring.submit(grey(1), time.monotonic_ns() + FAR).add_done_callback(callback)
    assert done.wait(WAIT_S)
    assert scoring.submit(grey(2), time.monotonic_ns() + FAR).result(WAIT_S).score == 2


def test_what_nobody_waits_for_is_not_scored(inspector: RuleInspector, scoring: SharedScoring) -> None:
    first = busy(inspector, scoring)
    late = [scoring.submit(grey(n % 200), time.monotonic_ns()) for n in range(300)]
    good = scoring.submit(grey(9), time.monotonic_ns() + FAR)
    # The inspector still hangs, and the queue does not grow.
    assert sum(not future.done() for future in late) <= 257
    inspector.gate.set()
    assert (first.result(WAIT_S).score, good.result(WAIT_S).score) == (50, 9)
    assert {future.result(WAIT_S).decision for future in late} == {"fault"}
    assert scoring.images == 2


def test_close_makes_faults_of_what_waits(inspector: RuleInspector) -> None:
    scoring = SharedScoring(inspector, "test")
    first = busy(inspector, scoring)
    second = scoring.submit(grey(2), time.monotonic_ns() + FAR)
    assert scoring.stuck_s() >= 0
    assert not scoring.close(0.05)
    inspector.gate.set()
    assert scoring.close(WAIT_S)
    assert (first.result(WAIT_S).decision, second.result(WAIT_S).decision) == ("accept", "fault")
    assert scoring.submit(grey(3), time.monotonic_ns() + FAR).result(0).decision == "fault"


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=40),
    threads=st.integers(1, 4),
    times=st.dictionaries(st.sampled_from([1, 2, 4]), st.floats(0.01, 5.0)),
)
def test_everyone_gets_his_own_result(values: list[int], threads: int, times: dict[int, float]) -> None:
    inspector = RuleInspector()
    scoring = SharedScoring(inspector, "test")
    scoring._took_ms = dict(times)
    results: dict[int, Result] = {}

    def ask(start: int) -> None:
        for place in range(start, len(values), threads):
            image = np.full((2, 2), values[place], np.uint8)
            results[place] = scoring.submit(image, time.monotonic_ns() + FAR + place * 10**6).result(WAIT_S)

    workers = [threading.Thread(target=ask, args=(start,)) for start in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_S)
    assert scoring.close()
    for place, value in enumerate(values):
        expected = "accept" if value <= 100 else "reject" if value <= 200 else "fault"
        assert results[place].decision == expected
        assert value > 200 or results[place].score == value
    assert scoring.images == len(values)


class TestWhatComesBack:
    """A server: it is looked for until it is back, and who asks meanwhile is answered at once."""

    class Away(RuleInspector):
        """Fails until it is allowed to work."""

        def __init__(self) -> None:
            super().__init__()
            self.device_failed, self.is_back = True, threading.Event()

        def score(self, sources: list[Any], color: str, in_force: Any = None) -> list[Result]:
            if self.device_failed:
                return [Result("image", "fault", reason="gone")] * len(sources)
            return super().score(sources, color, in_force)

        def warm(self, batch: int) -> None:
            if not self.is_back.is_set():
                raise DeviceError("gone")
            self.device_failed = False
            super().warm(batch)

    def test_images_and_calls_are_answered_while_it_is_away(self) -> None:
        inspector = self.Away()
        scoring = SharedScoring(inspector, "test", comes_back=True, away="gone")
        assert "gone" in scoring.problem
        results = [scoring.submit(grey(50), time.monotonic_ns() + FAR) for _ in range(3)]
        assert {result.result(WAIT_S).decision for result in results} == {"fault"}
        with pytest.raises(DeviceError, match="gone"):
            scoring.submit_last(lambda: None).result(WAIT_S)
        inspector.is_back.set()
        wait_until(lambda: not scoring.problem)
        assert scoring.submit(grey(50), time.monotonic_ns() + FAR).result(WAIT_S).decision == "accept"
        # How long batches take could not be measured before.
        assert set(scoring._took_ms) == {1, 2, 4}
        assert (scoring.lost, scoring.device_failures) == ("", 0)
        assert scoring.close()

    def test_one_that_goes_again_while_it_is_measured_is_measured_again(self) -> None:
        inspector = self.Away()
        warm, failures = inspector.warm, [DeviceError("gone again")]

        def goes(batch: int) -> None:
            if batch == 2 and failures:
                raise failures.pop()
            warm(batch)

        inspector.warm = goes  # type: ignore[method-assign]
        inspector.is_back.set()
        scoring = SharedScoring(inspector, "test", comes_back=True, away="gone")
        wait_until(lambda: not scoring.problem)
        assert set(scoring._took_ms) == {1, 2, 4}
        assert not failures
        assert scoring.close()

    def test_it_is_closed_while_it_is_away(self) -> None:
        scoring = SharedScoring(self.Away(), "test", comes_back=True, away="gone")
        assert scoring.close(WAIT_S)
        assert scoring.submit(grey(50), time.monotonic_ns() + FAR).result(WAIT_S).reason == "the inspector was closed"

    def test_whoever_gets_the_first_fault_sees_why(self) -> None:
        """Else the fault would count as one of the bundle: a swap would be taken back, or a challenge have failed."""
        inspector = self.Away()
        inspector.device_failed = False
        scoring = SharedScoring(inspector, "test", comes_back=True)
        inspector.device_failed = True
        seen: list[str] = []
        future = scoring.submit(grey(50), time.monotonic_ns() + FAR)
        future.add_done_callback(lambda done: seen.append(scoring.problem))
        assert future.result(WAIT_S).decision == "fault"
        wait_until(lambda: bool(seen))
        assert "gone" in seen[0]
        assert scoring.close()
