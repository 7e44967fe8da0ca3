"""Images that are sent to the line over HTTP: all of a part in one request, so that they belong together."""

from __future__ import annotations

from flawscope.runtime.line.sources.source import FrameSink, Policy
from flawscope.runtime.line.sources.table import PushSource


class Push:
    """The source of a view whose images are sent: `Station.push` opens a part with the images of a request.

    It is there as long as the line is, and nobody can ask it for an image: a part that something else triggers, such as
    a PLC, gets none and is a fault (`missing_view`).

    Args:
        options: Its options.
        view: Name of its view.
    """

    policy: Policy = "every"
    is_triggered = False

    def __init__(self, options: PushSource, view: str) -> None:
        self._options, self._view = options, view

    def start(self, sink: FrameSink) -> None:
        """Say that images may come."""
        sink.source_up(self._view)

    def trigger(self, seq: int) -> None:
        """Do nothing: who sends images does so on its own."""

    def done(self, source: str) -> None:
        """Do nothing: an image that was sent is no file."""

    def stop(self, timeout_s: float) -> None:
        """Do nothing: the HTTP interface takes no images for a station that has stopped."""
