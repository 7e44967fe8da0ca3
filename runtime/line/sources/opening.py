"""Making the source of a view: in a child process, but for images that are pushed."""

from __future__ import annotations

from pathlib import Path

from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.sources.child import ChildSource
from flawscope.runtime.line.sources.grabber import SourcePlace
from flawscope.runtime.line.sources.push import Push
from flawscope.runtime.line.sources.source import Source
from flawscope.runtime.line.sources.table import PushSource


def open_source(options: ViewOptions, station: str, state: Path) -> Source:
    """Return the source of a view, not started.

    Args:
        options: The view.
        station: Name of its station.
        state: The line's state folder.
    """
    if isinstance(options.source, PushSource):
        return Push(options.source, options.name)
    place = SourcePlace(station, options.name, state, round(options.slot_mb * (1 << 20)))
    return ChildSource(options.source, place)
