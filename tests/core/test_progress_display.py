"""Progress on stderr: lines where nobody watches a terminal, and an estimate that is measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flawscope import progress_display, terminal
from flawscope.progress_display import Pace, duration, lines


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (8, "8 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3599, "60 min"),
        (7200, "2 h"),
        (12060, "3 h 21 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_times_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_pace_leaves_out_the_first_step_and_what_was_done_before() -> None:
    pace = Pace(50, 0.0)  # a training that goes on after 50 steps
    assert pace.seconds_left(100, 0.0) is None
    pace.reach(51, 30.0)  # loading and compiling
    assert pace.seconds_left(100, 30.0) is None
    pace.reach(53, 34.0)
    assert pace.seconds_left(100, 34.0) == pytest.approx(2.0 * 47)
    assert pace.measured(34.0) == pytest.approx(4.0)


def test_what_is_done_in_five_seconds_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with lines(terminal.report, clock) as report:
        for step in range(50):
            clock.now += 0.09
            report("reading", step + 1, 50)
    assert capsys.readouterr() == ("", "")


def test_a_line_every_few_seconds_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with lines(terminal.report, clock) as report:
        report("training", 0, 40)
        for step in range(40):
            clock.now += 1.0
            report("training", step + 1, 40)
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert out == ""
    assert told[0] == "progress: training: 5 of 40, 5 s so far, about 35 s left"
    assert told[-1] == "progress: training: 40 of 40, 40 s so far"
    assert len(told) == 8
    assert "estimate" not in err  # less than a minute


def test_a_long_task_is_estimated_once_from_its_own_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with lines(terminal.report, clock) as report:
        report("training", 0, 1000)
        for step in range(30):
            clock.now += 10.0 if step == 0 else 2.0
            report("training", step + 1, 1000)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("estimate")]
    # 10 s for the first step, 2 s for each of 999.
    assert told == ["estimate: training: about 33 min in all (measured over 4 s)"]


def test_lines_of_a_training_of_hours_are_a_minute_apart(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with lines(terminal.report, clock) as report:
        for step in range(7200):
            clock.now += 1.0
            report("training", step + 1, 100_000)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("progress")]
    assert 100 < len(told) < 300
    assert told[-1].startswith("progress: training: 71")


def test_a_name_that_is_used_again_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with lines(terminal.report, clock) as report:
        for _ in range(2):
            report("scoring", 0, 10)
            for step in range(10):
                clock.now += 1.0
                report("scoring", step + 1, 10)
    told = capsys.readouterr().err.splitlines()
    assert told.count("progress: scoring: 10 of 10, 10 s so far") == 2


def test_as_json_progress_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with terminal.default_reporting():
        terminal.report_as(json=True)
        with lines(terminal.report, clock) as report:
            for step in range(40):
                clock.now += 3.0
                report("training", step, 100)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    first = next(line for line in told if line["level"] == "progress")
    assert set(first) == {"time", "level", "message", "task", "completed", "total", "seconds", "seconds_left"}
    assert (first["task"], first["completed"], first["total"]) == ("training", 1, 100)
    estimate = next(line for line in told if line["level"] == "estimate")
    assert estimate["seconds"] == pytest.approx(300.0, abs=5)


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "EVERY_S", 0.0)
    with terminal.default_reporting():
        terminal.report_as(quiet=True)
        with terminal.progress_bars() as report:
            report("training", 1, 2)
            report("training", 2, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", [(), ("--log-format", "json"), ("--quiet",), ("--no-progress",)])
def test_a_command_without_a_terminal_reports_as_it_was_told(tmp_path: Path, options: tuple[str, ...]) -> None:
    code = (
        "import sys; from flawscope import progress_display as shown; shown.EVERY_S = shown._SETTLED_S = 0.0;"
        "from flawscope.cli import main; main(sys.argv[1:])"
    )
    arguments = [*options, "data", "demo", str(tmp_path / "demo"), "--kind", "gear", "--size", "64", "--train", "60"]
    environment = {name: value for name, value in os.environ.items() if name != "FLAWSCOPE_NO_PROGRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith(f"dataset: {tmp_path / 'demo'}")
    told = done.stderr.splitlines()
    if options in (("--quiet",), ("--no-progress",)):
        assert told == []
    elif options:
        assert {json.loads(line)["task"] for line in told} == {"drawing parts"}
    else:
        pattern = r"progress: drawing parts: \d+ of \d+, \d+ s so far(, about \d+ s left)?"
        assert told
        assert [line for line in told if not re.fullmatch(pattern, line)] == []


def test_bars_have_an_estimate_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    with progress_display.bars(terminal.report) as report:
        for step in range(5):
            report("training", step, 1000)
            clock.now += 2.0
    assert capsys.readouterr().err.count("estimate: training: about ") == 1
