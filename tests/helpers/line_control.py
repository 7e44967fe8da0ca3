"""A station as an output sees it: it numbers parts, and notes what it was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flawscope.runtime.line.outputs.output import Control


class NotingControl(Control):
    """Notes triggers, acknowledgements and whether the PLC reads; the first part has the number 1.

    Args:
        on_trigger: Called with the number of each new part, before `trigger` returns.
    """

    def __init__(self, on_trigger: Callable[[int], None] = lambda seq: None) -> None:
        self.part_ids: list[str] = []
        self.actors: list[str] = []
        self.reading: list[bool] = []
        self._on_trigger = on_trigger

    def trigger(self, part_id: str = "") -> int:
        self.part_ids.append(part_id)
        self._on_trigger(len(self.part_ids))
        return len(self.part_ids)

    def acknowledge(self, actor: str) -> None:
        self.actors.append(actor)

    def plc_reads(self, is_read: bool) -> None:
        self.reading.append(is_read)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return when the condition holds; fail when it does not within the time."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        pause.wait(0.005)
