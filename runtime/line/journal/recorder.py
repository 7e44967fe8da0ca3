"""What a station asks of the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flawscope.runtime.line.parts import PartRecord

Done = Callable[["Exception | None"], None]
"""Called by the writer when a record is on the disk, or with the reason why it is not."""


class TakesEvents(Protocol):
    """Takes events; see `EventRecord`."""

    def event(
        self,
        action: str,
        *,
        actor: str = "line",
        role: str = "",
        object: str = "",
        old: str = "",
        new: str = "",
        reason: str = "",
    ) -> None:
        """Queue an event."""


class Recorder(TakesEvents, Protocol):
    """Records parts and events."""

    @property
    def problem(self) -> str:
        """What is wrong with the journal; empty for nothing."""

    def record(self, part: PartRecord, done: Done | None = None) -> None:
        """Queue the record of a part."""

    def acknowledge(self, actor: str, role: str = "") -> None:
        """Record that somebody knows what was wrong when it was opened."""
