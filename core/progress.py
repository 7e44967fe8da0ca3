"""Progress callback of long work: commands show it as bars; the default is silent."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, total)."""

CountProgress = Callable[[int, int], None]
"""Called with (done so far, total) by work of one kind, whose caller knows what it is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""
