"""How long a worker may be silent: long for the first tasks, then by what tasks have taken."""

from __future__ import annotations

from flawscope.runtime.scale.task import Done, Task

OPEN_S = 3600.0
"""Seconds until a worker must be ready. Loading a bundle has a limit of its own (`FLAWSCOPE_LOAD_TIMEOUT`); this one is
for what that does not count, such as an engine that is built first, or for a process that hangs before."""

_LEAST_S = 300.0
_FIRST_ITEM_S = 300.0
_TIMES = 20.0


class Patience:
    """Limits for tasks; any executor may kill a worker that is over them.

    Args:
        least_s: Seconds that any task has.
        first_item_s: Seconds for each item before a task is done.
    """

    def __init__(self, least_s: float = _LEAST_S, first_item_s: float = _FIRST_ITEM_S) -> None:
        self._least_s, self._item_s = least_s, first_item_s
        self._slowest_s: float | None = None

    def note(self, done: Done) -> None:
        """Learn from a task how long an item takes."""
        pace = done.seconds / max(1, done.task.items)
        self._slowest_s = pace if self._slowest_s is None else max(self._slowest_s, pace)

    def limit_s(self, task: Task) -> float:
        """Return the seconds after which the worker of a task is taken for one that hangs."""
        item_s = self._item_s if self._slowest_s is None else min(self._item_s, _TIMES * self._slowest_s)
        return self._least_s + item_s * task.items
