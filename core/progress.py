"""Progress callbacks of long operations: commands show them as bars, the default is silent."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (task, completed, total)."""

CountProgress = Callable[[int, int], None]
"""Called with (completed, total) by an operation with a single task, which its caller names."""


def no_progress(task: str, completed: int, total: int) -> None:
    """Report nothing."""
