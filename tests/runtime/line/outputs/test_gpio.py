"""Lines of a GPIO chip, on a stand-in for the package gpiod; no real chip has been driven."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from gpiod_stand_in import Chip, gpiod_stand_in
from line_control import NotingControl, wait_for

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.outputs.gpio import GpioLines
from flawscope.runtime.line.outputs.output import Output, Signal
from flawscope.runtime.line.outputs.table import GpioOutput

READY, ACCEPT, REJECT, FAULT, ALIVE = 3, 4, 5, 6, 7


def options(**changes: object) -> GpioOutput:
    chosen = {"chip": "gpiochip0", "ready": READY, "accept": ACCEPT, "reject": REJECT, "fault": FAULT} | changes
    return GpioOutput(**chosen)  # type: ignore[arg-type]


def signal(seq: int, verdict: str) -> Signal:
    return Signal(seq, "", verdict, "deadline" if verdict == "fault" else "", None)  # type: ignore[arg-type]


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Chip:
    chip = Chip()
    package, line = gpiod_stand_in({"/dev/gpiochip0": chip})
    monkeypatch.setitem(sys.modules, "gpiod", package)
    monkeypatch.setitem(sys.modules, "gpiod.line", line)
    return chip


@pytest.fixture
def lines(chip: Chip) -> Iterator[GpioLines]:
    """Lines with pulses so long that no test sees their end."""
    lines = GpioLines(options(pulse_ms=600_000, alive=ALIVE), "top")
    lines.start(NotingControl())
    yield lines
    lines.stop()


def test_all_lines_are_low_at_the_start_and_ready_follows_the_state(chip: Chip, lines: Output) -> None:
    assert chip.consumer == "flawscope top"
    assert chip.levels == dict.fromkeys((READY, ACCEPT, REJECT, FAULT, ALIVE), 0)
    for state, level in (("starting", 0), ("ready", 1), ("halted", 0), ("ready", 1), ("error", 0)):
        lines.state(state)  # type: ignore[arg-type]
        assert chip.levels[READY] == level


def test_the_line_alive_changes_with_each_beat(chip: Chip, lines: Output) -> None:
    lines.beat()
    assert chip.levels[ALIVE] == 1
    lines.beat()
    assert chip.levels[ALIVE] == 0


@pytest.mark.parametrize(("verdict", "line"), [("accept", ACCEPT), ("reject", REJECT), ("fault", FAULT)])
def test_a_verdict_is_a_pulse_on_its_line_alone(chip: Chip, verdict: str, line: int) -> None:
    lines = GpioLines(options(pulse_ms=30), "top")
    lines.start(NotingControl())
    lines.verdict(signal(1, verdict))
    wait_for(lambda: len(chip.changes) == 2)
    lines.stop()
    (rose, *first), (fell, *second) = chip.changes
    assert (first, second) == ([line, 1], [line, 0])
    assert fell - rose >= 0.03


def test_pulses_of_different_lines_overlap(chip: Chip, lines: Output) -> None:
    lines.verdict(signal(1, "accept"))
    lines.verdict(signal(2, "reject"))
    lines.verdict(signal(3, "fault"))
    assert [chip.levels[line] for line in (ACCEPT, REJECT, FAULT)] == [1, 1, 1]


def test_an_accept_within_the_pulse_of_another_is_refused(chip: Chip, lines: Output) -> None:
    lines.verdict(signal(1, "accept"))
    with pytest.raises(OSError, match=r"^station top: part 2 has no signal: .*pulse_ms"):
        lines.verdict(signal(2, "accept"))
    assert chip.edges(ACCEPT) == 1


def test_an_accept_just_after_the_pulse_of_another_is_refused(chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flawscope.runtime.line.outputs.gpio.time.monotonic", lambda: now[0])
    lines = GpioLines(options(pulse_ms=50), "top")
    lines.start(NotingControl())
    lines.verdict(signal(1, "accept"))
    now[0] += 0.05
    lines.verdict(signal(2, "reject"))  # wakes the thread, which looks at the clock
    wait_for(lambda: chip.levels[ACCEPT] == 0)
    now[0] += 0.04
    with pytest.raises(OSError, match="part 3 has no signal"):
        lines.verdict(signal(3, "accept"))
    now[0] += 0.02
    lines.verdict(signal(4, "accept"))
    assert chip.edges(ACCEPT) == 2
    lines.stop()


def test_rejects_that_are_too_quick_share_a_longer_pulse(chip: Chip) -> None:
    lines = GpioLines(options(pulse_ms=60), "top")
    lines.start(NotingControl())
    lines.verdict(signal(1, "reject"))
    threading.Event().wait(0.03)
    lines.verdict(signal(2, "reject"))
    wait_for(lambda: chip.levels[REJECT] == 0)
    lines.stop()
    (rose, *_), *_, (fell, *_) = chip.changes
    assert fell - rose >= 0.09


def test_at_the_end_ready_falls_first_and_all_lines_are_low(chip: Chip, lines: Output) -> None:
    lines.state("ready")
    lines.beat()
    lines.verdict(signal(1, "accept"))
    lines.stop()
    assert not any(chip.levels.values())
    assert chip.changes[3][1:] == (READY, 0)
    with pytest.raises(OSError, match="not open"):
        lines.verdict(signal(2, "accept"))
    lines.state("ready")
    lines.beat()
    assert not any(chip.levels.values())


def test_a_line_that_does_not_fall_ends_all_signals(chip: Chip) -> None:
    lines = GpioLines(options(pulse_ms=1), "top")
    lines.start(NotingControl())
    chip.broken.add(REJECT)
    lines.verdict(signal(1, "reject"))

    def is_refused() -> bool:
        try:
            lines.verdict(signal(2, "fault"))
        except OSError as err:
            return f"line {REJECT} does not fall: Input/output error" in str(err)
        return False

    wait_for(is_refused)
    chip.broken.clear()
    wait_for(lambda: chip.levels[REJECT] == 0)
    lines.stop()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"chip": "gpiochip9"}, "No such file or directory"), ({"fault": 40}, "out of range")],
)
def test_lines_that_cannot_be_had_are_one_line(chip: Chip, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^station top: outputs, gpio: .*{reason}") as error:
        GpioLines(options(**changes), "top").start(NotingControl())
    assert "\n" not in str(error.value)


def test_two_signals_of_one_line_are_refused(chip: Chip) -> None:
    with pytest.raises(ArgumentError, match="expected a line for each signal"):
        GpioLines(options(fault=READY), "top")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(MissingExtra, match="line-gpio"):
        GpioLines(options(), "top")
