"""A limit of time on work in foreign code: a graph can be so large, or so made, that loading it never returns.

Nothing can interrupt such code. It runs in a thread of its own, which is left behind when the time is up: it goes on
taking a core until it returns or the process ends, and what it makes by then is closed.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from flawscope.errors import ArgumentError, LoadTimeout

VARIABLE = "FLAWSCOPE_LOAD_TIMEOUT"
"""Environment variable with the seconds that loading a bundle may take; 0 is no limit."""
DEFAULT_S = 300.0
"""Seconds where nothing else is said: far above what bundles take on slow devices."""

_Made = TypeVar("_Made")
_THREAD = threading.local()
_left_behind: list[threading.Thread] = []


def load_limit(given: float | None = None) -> float:
    """Return the seconds that loading a bundle may take, infinite for no limit.

    Args:
        given: What the caller asked for; None takes `FLAWSCOPE_LOAD_TIMEOUT`, or the default. 0 is no limit.

    Raises:
        ArgumentError: If that is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "") if given is None else given
    try:
        seconds = float(text) if text != "" else DEFAULT_S
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        name = VARIABLE if given is None else "timeout_s"
        raise ArgumentError(f"{name}: expected seconds, or 0 for no limit, got {text!r}.")
    return seconds or math.inf


def within(limit_s: float, work: Callable[[], _Made], undo: Callable[[_Made], None], what: str) -> _Made:
    """Return what `work` returns, computed in another thread; raise what it raises.

    Args:
        limit_s: Seconds that it may take; infinite for no limit, and then no thread.
        work: What is done.
        undo: Called with the result where nobody waits for it any more.
        what: What is loaded, for the message.

    Raises:
        LoadTimeout: If it takes longer. The thread is left behind.
    """
    # Within work that has a limit already, that one holds.
    if math.isinf(limit_s) or getattr(_THREAD, "watch", None) is not None:
        return work()
    watch = _Watch(limit_s, work, undo)
    thread = threading.Thread(target=watch.run, name="flawscope-load", daemon=True)
    thread.start()
    is_done = False
    try:
        is_done = watch.wait()
    finally:
        # Ctrl-C, too: it cannot interrupt foreign code either.
        if not is_done:
            _left_behind.append(thread)
            watch.abandon()
    if not is_done:
        raise LoadTimeout(
            f"{what}: expected the bundle to be ready within {limit_s:g} s, got no answer. Its graphs are too much for "
            f"this device, or made to be: export it again, or give it more time with {VARIABLE}=SECONDS (0: no limit)."
        )
    return watch.result()


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Let the work in the block not count: building an engine takes minutes, and is no hang."""
    watch: _Watch[Any] | None = getattr(_THREAD, "watch", None)
    if watch is None:
        yield
        return
    watch.pause()
    try:
        yield
    finally:
        watch.resume()


def is_left_behind() -> bool:
    """Return whether foreign code still runs that nobody waits for: a process that ends by itself may crash in it."""
    return any(thread.is_alive() for thread in _left_behind)


class _Watch(Generic[_Made]):
    """One piece of work with a limit: what its thread and the one that waits tell each other."""

    def __init__(self, limit_s: float, work: Callable[[], _Made], undo: Callable[[_Made], None]) -> None:
        self._work, self._undo = work, undo
        self._changed = threading.Condition()
        self._deadline = time.monotonic() + limit_s
        self._paused_at: float | None = None
        self._is_done = self._is_abandoned = False
        self._made: list[_Made] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work, in its thread."""
        _THREAD.watch = self
        try:
            self._made.append(self._work())
        # All of them: they are raised again where somebody waits.
        except BaseException as err:
            self._error = err
        with self._changed:
            self._is_done = True
            self._changed.notify_all()
            is_abandoned = self._is_abandoned
        if is_abandoned:
            self._throw_away()

    def wait(self) -> bool:
        """Wait for the work: whether it was done in time."""
        with self._changed:
            while not self._is_done:
                left = None if self._paused_at is not None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def abandon(self) -> None:
        """Have the result thrown away as soon as there is one."""
        with self._changed:
            self._is_abandoned = True
            is_done = self._is_done
        if is_done:
            self._throw_away()

    def _throw_away(self) -> None:
        while self._made:
            with contextlib.suppress(Exception):
                self._undo(self._made.pop())

    def result(self) -> _Made:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._made.pop()

    def pause(self) -> None:
        """Stop the clock."""
        with self._changed:
            self._paused_at = time.monotonic()
            self._changed.notify_all()

    def resume(self) -> None:
        """Let the clock run again."""
        with self._changed:
            if self._paused_at is not None:
                self._deadline += time.monotonic() - self._paused_at
            self._paused_at = None
            self._changed.notify_all()
