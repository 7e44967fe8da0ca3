"""An executor of threads in this process, whose workers can be made to die: what the driver is tested with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar

import pytest

from flawscope.errors import FlawscopeError
from flawscope.runtime.scale.executors import EXECUTORS, Placement, Row
from flawscope.runtime.scale.task import Died, Done, Failed, Task
from flawscope.runtime.scale.work import decode_work

Kills = Callable[[Task], bool]


class ThreadExecutor:
    """Workers as threads, each with its own work opened.

    Class attributes, which tests set through `use_threads`:
        kills: Whether a task kills its worker.
        tried: Every task that was submitted, in order.
    """

    kills: Kills = staticmethod(lambda task: False)
    tried: ClassVar[list[Task]] = []

    def __init__(self, work: bytes, placement: Placement) -> None:
        self._work, self.slots = work, placement.workers or 2
        self._free: deque[Any] = deque()
        self._opened: list[Any] = []
        self._pool = ThreadPoolExecutor(self.slots)
        self._pending: set[Future[Done | Died | Failed]] = set()

    @property
    def workers(self) -> list[str]:
        return [f"thread {number}" for number in range(len(self._opened))]

    def submit(self, task: Task) -> None:
        type(self).tried.append(task)
        self._pending.add(self._pool.submit(self._do, task))

    def _do(self, task: Task) -> Done | Died | Failed:
        try:
            worker = self._free.popleft()
        except IndexError:
            try:
                worker = decode_work(self._work).open()
            except FlawscopeError as err:
                return Failed(task, str(err))
            self._opened.append(worker)
        if type(self).kills(task):
            self._free.append(worker)
            return Died(task, "killed by signal 9")
        try:
            done = worker.run(task)
        except FlawscopeError as err:
            return Failed(task, str(err))
        self._free.append(worker)
        return done

    def wait(self) -> list[Done | Died | Failed]:
        ready, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
        return [future.result() for future in ready]

    def __enter__(self) -> ThreadExecutor:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for worker in self._opened:
            worker.close()


def use_threads(monkeypatch: pytest.MonkeyPatch, kills: Kills = lambda task: False) -> list[Task]:
    """Make `threads` an executor in a test; return the list that every task goes into."""
    tried: ClassVar[list[Task]] = []
    monkeypatch.setattr(ThreadExecutor, "kills", staticmethod(kills))
    monkeypatch.setattr(ThreadExecutor, "tried", tried)
    monkeypatch.setitem(EXECUTORS, "threads", Row(f"{__name__}:{ThreadExecutor.__name__}"))
    return tried
