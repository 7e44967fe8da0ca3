"""An executor without processes, for quick tests of works: it works where it is, and dies when it is told."""

from __future__ import annotations

from collections import deque

import pytest

from flawscope.runtime.scale import executors
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.task import Died, Done, Failed, Task
from flawscope.runtime.scale.work import Worker, decode_work

DEADLY: set[int] = set()
"""Items of which the worker dies, every time."""


class HereExecutor:
    """Does the tasks in this process, in the order that it gets them."""

    def __init__(self, work: bytes, placement: Placement) -> None:
        self._work = work
        self._worker: Worker | None = None
        self._tasks: deque[Task] = deque()
        self.slots = placement.workers or 1
        self.workers = ["here/0"]

    def __enter__(self) -> HereExecutor:
        self._worker = decode_work(self._work).open()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._worker is not None:
            self._worker.close()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> list[Done | Died | Failed]:
        # The last first: the order in which shards are done must not matter.
        task = self._tasks.pop()
        if DEADLY.intersection(range(task.first, task.stop)):
            return [Died(task, "killed by signal 9")]
        assert self._worker is not None
        return [self._worker.run(task)]


def use(monkeypatch: pytest.MonkeyPatch, *deadly: int) -> None:
    """Make `here` an executor for the rest of the test."""
    monkeypatch.setitem(executors.EXECUTORS, "here", executors.Row("here_executor:HereExecutor"))
    monkeypatch.setattr("here_executor.DEADLY", set(deadly))
