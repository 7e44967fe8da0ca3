"""How progress is shown on stderr: bars on a terminal, elsewhere a line every few seconds; both say an estimate first.

Every command that takes long reports through `flawscope.terminal.progress_bars`, so this holds for each of them and for
every method.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from flawscope.progress import Progress

Say = Callable[..., None]
"""`flawscope.terminal.report`, handed over because that module calls this one."""

EVERY_S = 5.0
"""Seconds between two lines. After four minutes it is a fiftieth of the time so far, at most a minute: a training of a
day would fill a log otherwise."""
_SLOWEST_S = 60.0
_SETTLED_S = 1.0
_SHARE = 50
_LONG_S = 60.0  # what takes less needs no estimate
_MEASURED_S = 3.0
_MEASURED_STEPS = 2


def duration(seconds: float) -> str:
    """Return a time for people: `8 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


class Pace:
    """How fast one task goes, measured on itself.

    The first step is left out: it loads, allocates and compiles what later ones find ready. A training that goes on
    begins with the steps that were taken before, which cost nothing now.

    Args:
        completed: Steps at the beginning.
        now: Time in seconds, of any clock that only rises.
    """

    def __init__(self, completed: int, now: float) -> None:
        self.completed = completed
        self.began = now
        self.is_announced = False
        self._first = completed
        self._from: tuple[float, int] | None = None

    def reach(self, completed: int, now: float) -> None:
        """Take note of the steps that are done."""
        self.completed = completed
        if self._from is None and completed > self._first:
            self._from = now, completed

    def seconds_left(self, total: int, now: float) -> float | None:
        """Return the estimated seconds that the rest takes, or None while nothing is known."""
        if self._from is None or self.completed <= self._from[1]:
            return None
        since, first = self._from
        return (now - since) / (self.completed - first) * max(0, total - self.completed)

    def measured(self, now: float) -> float | None:
        """Return over how many seconds the pace was measured, or None while that is too short for an estimate."""
        if self._from is None or self.completed < self._from[1] + _MEASURED_STEPS:
            return None
        seconds = now - self._from[0]
        return seconds if seconds >= _MEASURED_S else None


class _Announcer:
    """Says once for every task that takes long how long it will take, as soon as that is measured."""

    def __init__(self, say: Say, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._say = say
        self._paces: dict[str, Pace] = {}

    def reach(self, task: str, completed: int, total: int) -> Pace:
        """Take note of a task's steps; return its pace."""
        now = self.clock()
        pace = self._paces.get(task)
        if pace is None or completed < pace.completed:  # a name that is used again
            pace = self._paces[task] = Pace(completed, now)
        pace.reach(completed, now)
        measured, left = pace.measured(now), pace.seconds_left(total, now)
        if not pace.is_announced and measured is not None and left is not None:
            pace.is_announced = True
            if (whole := now - pace.began + left) >= _LONG_S:
                self._say(
                    "estimate",
                    f"{task}: about {duration(whole)} in all (measured over {duration(measured)})",
                    task=task,
                    seconds=round(whole, 1),
                    measured_seconds=round(measured, 1),
                )
        return pace


@contextlib.contextmanager
def lines(say: Say, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Yield a callback that writes a line every few seconds, with the time left; nothing for what is done sooner."""
    announcer, lock = _Announcer(say, clock), threading.Lock()
    began = last = clock()
    told: set[str] = set()

    def show(task: str, completed: int, total: int) -> None:
        nonlocal last
        with lock:
            pace = announcer.reach(task, completed, total)
            now = clock()
            # Not for a task that has only begun: it may be done before anybody has read its line.
            is_due = now - pace.began >= _SETTLED_S and now - last >= max(
                EVERY_S, min(_SLOWEST_S, (now - began) / _SHARE)
            )
            is_end = completed >= total and task in told
            if not is_due and not is_end:
                return
            last = now
            (told.discard if is_end else told.add)(task)
            _say(say, task, pace, total, now)

    yield show


def _say(say: Say, task: str, pace: Pace, total: int, now: float) -> None:
    left = pace.seconds_left(total, now)
    words = [f"{pace.completed} of {total}", f"{duration(now - pace.began)} so far"]
    if left is not None and pace.completed < total:
        words.append(f"about {duration(left)} left")
    say(
        "progress",
        f"{task}: {', '.join(words)}",
        task=task,
        completed=pace.completed,
        total=total,
        seconds=round(now - pace.began, 1),
        seconds_left=None if left is None else round(left, 1),
    )


@contextlib.contextmanager
def bars(say: Say) -> Iterator[Progress]:
    """Yield a callback that draws a bar for every task."""
    # rich costs start-up time, and where stderr is no terminal nobody sees its bars.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    announcer = _Announcer(say, time.monotonic)
    # Where only stderr is a terminal, rich would draw what goes to stdout among the bars, where no pipe gets it.
    console, is_seen = Console(stderr=True), sys.stdout.isatty()
    with Bars(*columns, console=console, redirect_stdout=is_seen) as drawn:
        tasks: dict[str, TaskID] = {}

        def show(task: str, completed: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = drawn.add_task(task, total=total)
            drawn.update(tasks[task], completed=completed, total=total)
            announcer.reach(task, completed, total)

        yield show
