"""One thread for each sink: it reads the journal from the sink's cursor, sends, and moves the cursor afterwards.

So each entry arrives at least once and in order, whenever either side is killed: the cursor is behind what has arrived,
never before it. Nothing is held in memory but one batch.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sinks.sink import Sink, SinkError
from flawscope.runtime.line.sinks.table import SINKS, SinkBase, SinkOptions

_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 40.0  # with half of it as jitter: a minute
_JITTER = 0.5
_SLICE_S = 1.0
_IDLE_S = 0.5


class SinkJournal(Protocol):
    """What a sink needs of the journal."""

    @property
    def last_link(self) -> int:
        """Place in the chain of the last entry."""

    def cursor(self, sink: str) -> int:
        """Return the place of the last entry that the sink has sent, 0 for none."""

    def set_cursor(self, sink: str, link: int) -> None:
        """Keep the place of the last entry that the sink has sent."""

    def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return the entries that follow a place, in order."""

    def wait(self, after: int, timeout_s: float) -> bool:
        """Return whether there are entries after a place, at the latest after the time."""

    def event(self, action: str, *, object: str = "", new: str = "", reason: str = "") -> None:
        """Record an event."""


class SinkRunner:
    """Feeds one sink, from `start` to `stop`.

    Args:
        name: Name of its cursor.
        sink: The sink.
        journal: The journal.
        required: Whether `max_behind` counts.
        max_behind: Entries that a required sink may be behind.
        stops_line: Whether no part may be scored while it is further behind.
        wait: Waits for seconds, and returns whether the runner was stopped meanwhile; for tests.
        chance: Returns a number from 0 to 1; for tests.

    Attributes:
        sent: Entries that have arrived since the start.
        errors: Attempts that failed since the start.
        last_error: Why the last attempt failed; empty where it did not. It holds no secrets.
        stops_line: As above.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        journal: SinkJournal,
        *,
        required: bool = False,
        max_behind: int = 10_000,
        stops_line: bool = False,
        wait: Callable[[float], bool] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.sent = 0
        self.errors = 0
        self.last_error = ""
        self._sink, self._journal = sink, journal
        self._most = max_behind if required else None
        self.stops_line = stops_line
        self._ending = threading.Event()
        self._wait = self._ending.wait if wait is None else wait
        self._chance = chance
        self._cursor = journal.cursor(name)
        self._failures = 0
        self._is_told = self._is_against = False
        self._drain_until = 0.0
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)

    @property
    def behind(self) -> int:
        """Entries of the journal that have not been sent."""
        return max(self._journal.last_link - self._cursor, 0)

    @property
    def is_too_far_behind(self) -> bool:
        """Whether the sink is required, and more than `max_behind` entries behind."""
        return self._most is not None and self.behind > self._most

    def against(self) -> str:
        """Return why no part may be scored for its sake, in words; empty where one may. Called once a second."""
        behind, most = self.behind, self._most
        # Not by what was told: a sink that hangs tells nothing until its time is over.
        self._is_against = most is not None and behind > (most // 2 if self._is_against else most)
        return f"is {behind} entries behind" if self._is_against else ""

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """End within the time, whatever the sink waits for; what is unsent stays in the journal.

        A sink that works gets half of the time for what is left.

        Returns:
            Whether the thread has ended.
        """
        self._drain_until = time.monotonic() + timeout_s / 2
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s / 2)
        self._sink.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s / 2)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._turn()
            # A sink is code around a library around a network: whatever it raises, the next attempt comes, or entries
            # would stay unsent until somebody notices that a thread is missing.
            except BaseException as err:
                self.errors += 1
                # Only a SinkError has been written without secrets.
                self.last_error = str(err) if isinstance(err, SinkError) else f"the sink raised {type(err).__name__}"
                self._pause()
                self._failures += 1
            self._look()

    def _is_over(self) -> bool:
        if not self._ending.is_set():
            return False
        return bool(self._failures) or not self.behind or time.monotonic() > self._drain_until

    def _turn(self) -> None:
        """Send a batch, or wait for one."""
        entries = self._journal.entries(self._cursor, self._sink.batch)
        # A commit is seen by those who read a moment before the journal counts it, and takes a cursor to it.
        last_link = self._journal.last_link
        entries = [entry for entry in entries if entry["link"] <= last_link]
        if not entries:
            self._journal.wait(self._cursor, _IDLE_S)
            return
        self._tell_of_missing(entries[0]["link"])
        self._sink.send(entries)
        # A kill here sends the batch once more; the other order would lose it.
        last = entries[-1]["link"]
        self._journal.set_cursor(self.name, last)
        self._cursor = last
        self.sent += len(entries)
        self._failures = 0
        self.last_error = ""

    def _pause(self) -> None:
        """Wait before the next attempt: longer each time, and not the same for all lines of a factory."""
        # 2.0 ** 1024 would be no number any more.
        base = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures, 16), _LAST_PAUSE_S)
        left = base * (1.0 + _JITTER * self._chance())
        while left > 0.0:
            self._look()
            if self._wait(min(left, _SLICE_S)):
                return
            left -= _SLICE_S

    def _look(self) -> None:
        """Tell once that the sink is too far behind, and once that it no longer is."""
        if self.is_too_far_behind:
            if not self._is_told:
                self._is_told = True
                self._journal.event(
                    "sink_behind", object=f"sink {self.name}", new=f"{self.behind} entries", reason=self.last_error
                )
        elif self._is_told and self._most is not None and self.behind <= self._most // 2:
            # Not at the limit itself, where every entry would be news.
            self._is_told = False
            self._journal.event("sink_caught_up", object=f"sink {self.name}", new=f"{self.behind} entries")

    def _tell_of_missing(self, first: int) -> None:
        """Record that the journal no longer has what comes next: rows are dropped after `journal_days`."""
        if first > self._cursor + 1:
            self._journal.event(
                "sink_missed",
                object=f"sink {self.name}",
                new=f"links {self._cursor + 1} to {first - 1}",
                reason="the journal no longer has them",
            )
            self._cursor = first - 1


def sink_names(sinks: Sequence[SinkOptions]) -> list[str]:
    """Return the names of sinks: what they are called, or else their kind.

    Raises:
        ArgumentError: If two have the same.
    """
    names = [sink.name or str(sink.__struct_config__.tag) for sink in sinks]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ArgumentError(
                f"sinks: expected a name of its own for each sink, got {name} twice. Give one of them another `name`."
            )
    return names


def open_sink(options: SinkOptions, line: str) -> Sink:
    """Make the sink of some options; nothing is sent yet.

    Args:
        options: The options.
        line: Name of the line.

    Raises:
        ArgumentError: If something that they name cannot be used.
        MissingExtra: If the package that it needs is not installed.
    """
    module, _, attribute = SINKS[type(options)].place.partition(":")
    sink: Sink = getattr(importlib.import_module(module), attribute)(options, line)
    return sink


def sink_runners(sinks: Sequence[SinkOptions], line: str, journal: SinkJournal) -> list[SinkRunner]:
    """Return a runner for each sink of a line, none of them started.

    Raises:
        ArgumentError: If two have the same name, or as `open_sink`.
        MissingExtra: As `open_sink`.
    """
    names = sink_names(sinks)
    with contextlib.ExitStack() as stack:
        runners = []
        for name, options in zip(names, sinks, strict=True):
            sink = open_sink(options, line)
            # Where a later one cannot be made.
            stack.callback(sink.close)
            runners.append(_runner(name, options, sink, journal))
        stack.pop_all()
        return runners


def _runner(name: str, options: SinkBase, sink: Sink, journal: SinkJournal) -> SinkRunner:
    return SinkRunner(
        name,
        sink,
        journal,
        required=options.required,
        max_behind=options.max_behind,
        stops_line=options.on_behind == "stop",
    )
