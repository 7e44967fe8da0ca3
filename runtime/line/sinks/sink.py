"""The seam of all sinks: they get the journal's parts and events in order, at least once, across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SinkError(Exception):
    """What was sent may not have arrived; it is sent again later. The message never holds a secret."""


class Sink(Protocol):
    """Sends entries of the journal somewhere. One thread calls it; it may block for its own time-outs, no longer."""

    batch: int
    """Most entries that `send` takes at once."""

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        """Send entries in this order; it returns when all are certain to have arrived.

        Args:
            entries: Each as `journal.rows.entry_of` makes it: `line`, `link` (place in the chain), `kind` (`part`,
                `event` or `head`), and the fields of `PartRecord` or `EventRecord`. A receiver drops `(line, link)`
                that it has seen before.

        Raises:
            SinkError: If any of them may not have arrived: all are sent again.
        """

    def close(self) -> None:
        """End, within a second; what is unsent stays in the journal.

        It may come from another thread while `send` waits: `send` then ends soon, with a SinkError. It never raises,
        and may come twice.
        """
