"""Ending a line by a signal, also while it is starting."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from flawscope.time_limit import is_left_behind


class StoppedAtStart(BaseException):
    """A signal came while the line was starting; no `Exception`, so that nobody on the way takes it for an error."""


class Stop(threading.Event):
    """Set by Ctrl-C and SIGTERM; a second one ends the process at once, even in code that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self._is_raised = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self.set()
        if self._is_raised:
            raise StoppedAtStart

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal raise `StoppedAtStart` in the block: loading takes minutes, and nobody looks at events then."""
        self._is_raised = True
        try:
            if self.is_set():
                raise StoppedAtStart
            yield
        finally:
            self._is_raised = False


def end_without_its_threads() -> int:
    """Return the exit status 0, or end at once where a bundle is still being loaded: the end could crash in it."""
    if is_left_behind():
        sys.stderr.flush()
        os._exit(0)
    return 0
