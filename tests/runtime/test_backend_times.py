"""Which of several backends measured times say is faster, and how they are measured: in turns, few where it is slow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flawscope.runtime.faster_backend import fastest, in_turns, is_steady

RIVALS = ("cpu", "openvino")


@pytest.mark.parametrize(
    ("cpu", "rival", "expected"),
    [
        (10.0, 8.9, "openvino"),
        (10.0, 9.0, "cpu"),
        (10.0, 9.1, "cpu"),
        (10.0, 10.0, "cpu"),
        (10.0, 30.0, "cpu"),
        (0.01, 0.001, "openvino"),
    ],
)
def test_another_is_taken_only_if_it_is_faster_by_a_tenth(cpu: float, rival: float, expected: str) -> None:
    assert fastest({"cpu": cpu, "openvino": rival}, RIVALS) == expected
    assert fastest({"openvino": rival, "cpu": cpu}, RIVALS) == expected


def test_one_that_was_left_out_is_never_taken() -> None:
    assert fastest({"cpu": 10.0}, RIVALS) == "cpu"
    assert fastest({"cpu": 10.0, "b": 5.0, "c": 4.0}, ("cpu", "b", "c")) == "c"


class Clock:
    """A clock that runs only while something is run."""

    def __init__(self) -> None:
        self.now, self.ran = 100.0, list[str]()

    def run(self, name: str, seconds: list[float]) -> Callable[[], None]:
        def step() -> None:
            self.ran.append(name)
            self.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]

        return step


def test_inferences_take_turns_and_the_first_of_each_turn_do_not_count() -> None:
    clock = Clock()
    # 1 s in the first two of each turn, which are left out, and would end the measurement if they were not there.
    runs = {"a": clock.run("a", [0.04, 0.04, *[0.002] * 98]), "b": clock.run("b", [0.04, 0.04, *[0.001] * 98])}
    times = in_turns(runs, lambda: clock.now)
    assert times == {"a": [pytest.approx(2.0)] * 25, "b": [pytest.approx(1.0)] * 25}
    turns = [clock.ran[start : start + 7] for start in range(0, len(clock.ran), 7)]
    assert turns == [["a"] * 7, ["b"] * 7, ["b"] * 7, ["a"] * 7] * 2 + [["a"] * 7, ["b"] * 7]


def test_slow_inferences_are_few() -> None:
    clock = Clock()
    times = in_turns({"a": clock.run("a", [0.9]), "b": clock.run("b", [0.5])}, lambda: clock.now)
    assert times == {"a": [pytest.approx(900.0)], "b": [pytest.approx(500.0)]}
    assert clock.ran == ["a", "a", "b", "b"]


def test_times_of_a_busy_machine_are_not_steady() -> None:
    assert is_steady({"cpu": [3.0, 3.1, 9.0], "openvino": [2.0, 2.0, 2.9]})
    assert is_steady({"cpu": [3.0]})
    assert not is_steady({"cpu": [3.0, 3.1, 9.0], "openvino": [2.0, 4.0, 5.0]})
