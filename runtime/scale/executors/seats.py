"""What all executors share: tasks wait in a queue, each worker has a seat, and whoever dies is replaced in its seat."""

from __future__ import annotations

import abc
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from flawscope.errors import BackendError
from flawscope.runtime.scale.executors.messages import Answer, FromWorker, Leaving, Opened, Refusal
from flawscope.runtime.scale.executors.patience import OPEN_S, Patience
from flawscope.runtime.scale.task import Died, Done, Failed, Task

_log = logging.getLogger(__name__)

_MOST_FAILED_STARTS = 3
"""Workers of a seat in a row that ended before they were ready; another one would, too."""
_GRACE_S = 10.0
_LOOK_S = 1.0


class Gone(NamedTuple):
    """A worker has ended.

    Attributes:
        reason: What is known of it, without a full stop.
    """

    reason: str


class Handle(Protocol):
    """A worker as its executor holds it."""

    @property
    def name(self) -> str:
        """What it is called."""

    def start(self, task: Task) -> None:
        """Give it a task; returns at once, also where it has ended already."""

    def let_go(self) -> None:
        """Let it end by itself, which has no task."""

    def kill(self) -> None:
        """Begin to end it by force; harmless where it has ended."""

    def end(self, grace_s: float) -> None:
        """Wait until it has ended, by force after so many seconds."""


H = TypeVar("H", bound=Handle)


@dataclass
class Seat(Generic[H]):
    """The place of a worker.

    Attributes:
        number: Its number.
        worker: Who sits there; None where no one could be started.
        task: The task the worker is at; None for none.
        is_open: Whether the worker is ready for tasks.
        until: When it must have said something, by the monotonic clock.
        failed_starts: Workers in a row that ended before they were ready.
    """

    number: int
    worker: H | None = None
    task: Task | None = None
    is_open: bool = False
    until: float = float("inf")
    failed_starts: int = 0


class SeatedExecutor(abc.ABC, Generic[H]):
    """Base of executors. It is used by one thread from its start to its end.

    Args:
        patience: How long a task may take.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._seats: list[Seat[H]] = []
        self._queue: deque[Task] = deque()
        self._outcomes: list[Done | Died | Failed] = []
        self._names: list[str] = []
        self._noted: set[str] = set()

    @abc.abstractmethod
    def _count(self) -> int:
        """Return how many workers there are to be; called once, after `_connect`."""

    @abc.abstractmethod
    def _started(self, number: int) -> H:
        """Start a worker, which opens the work. Raises BackendError where the system refuses."""

    @abc.abstractmethod
    def _hear(self, seats: list[Seat[H]], timeout_s: float) -> list[tuple[Seat[H], FromWorker | Gone]]:
        """Return what workers have said, at most one thing of each, waiting for the first; perhaps nothing."""

    def _connect(self) -> None:
        """Reach the machines. Raises FlawscopeError."""

    def _disconnect(self) -> None:
        """Leave them."""

    @property
    def slots(self) -> int:
        """Tasks that it takes at once."""
        return len(self._seats)

    @property
    def workers(self) -> list[str]:
        """Names of its workers, those that were replaced too."""
        return list(self._names)

    def __enter__(self) -> Self:
        try:
            self._connect()
            self._seats = [Seat(number) for number in range(self._count())]
            for seat in self._seats:
                self._fill(seat)
            # The first one that is ready shows that the work can be opened here, before a task is given out.
            while not any(seat.is_open for seat in self._seats):
                self._look()
        except BaseException:
            self._end(0.0)
            raise
        return self

    def _fill(self, seat: Seat[H]) -> None:
        seat.worker, seat.task, seat.is_open = None, None, False
        seat.worker = self._started(seat.number)
        seat.until = time.monotonic() + OPEN_S

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is or becomes free."""
        self._queue.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for seat in self._seats:
            if self._queue and seat.is_open and seat.task is None and seat.worker is not None:
                seat.task = self._queue.popleft()
                seat.until = time.monotonic() + self._patience.limit_s(seat.task)
                seat.worker.start(seat.task)

    def wait(self) -> list[Done | Died | Failed]:
        """Return what became of tasks, at least of one; at once with none where there is no task.

        Raises:
            BackendError: If no worker can be started.
            FlawscopeError: What a worker raised that was started anew.
        """
        while not self._outcomes and (self._queue or any(seat.task for seat in self._seats)):
            self._look()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _look(self) -> None:
        """Wait until a worker says something, ends or is over its time, and act on that."""
        taken = [seat for seat in self._seats if seat.worker is not None]
        left_s = min(seat.until for seat in taken) - time.monotonic()
        heard = self._hear(taken, max(0.0, min(left_s, _LOOK_S)))
        for seat, said in heard:
            self._act(seat, said)
        now, silent = time.monotonic(), {id(seat) for seat in taken} - {id(seat) for seat, _ in heard}
        for seat in taken:
            if id(seat) in silent and now > seat.until:
                what = "it was ready" if seat.task is None else "its answer was there"
                self._replace(seat, f"its time was over before {what}")
        self._hand_out()

    def _act(self, seat: Seat[H], said: FromWorker | Gone) -> None:
        match said:
            case Opened(notes=notes):
                assert seat.worker is not None
                # Each once, however many workers say it.
                for note in notes:
                    if note not in self._noted:
                        self._noted.add(note)
                        _log.warning("%s", note)
                seat.is_open, seat.until, seat.failed_starts = True, float("inf"), 0
                self._names.append(seat.worker.name)
            case Answer(done):
                self._patience.note(done)
                self._outcomes.append(done)
                seat.task, seat.until = None, float("inf")
            case Refusal() as refusal if seat.task is None:
                raise refusal.as_error()
            case Refusal(_, message):
                assert seat.task is not None
                self._outcomes.append(Failed(seat.task, message))
                seat.task, seat.until = None, float("inf")
            case Gone(reason) | Leaving(reason):
                self._replace(seat, reason)

    def _replace(self, seat: Seat[H], reason: str) -> None:
        """Start another worker in a seat; leave it empty where that has failed again and again."""
        assert seat.worker is not None
        seat.worker.kill()
        seat.worker.end(0.0)
        if seat.task is not None:
            self._outcomes.append(Died(seat.task, reason))
        if not seat.is_open:
            seat.failed_starts += 1
        if seat.failed_starts < _MOST_FAILED_STARTS:
            self._fill(seat)
            return
        seat.worker, seat.until = None, float("inf")
        _log.warning("worker %d of %d does not start: %s", seat.number + 1, self.slots, reason)
        if not any(other.worker for other in self._seats):
            raise BackendError(
                f"workers: expected one that starts, got {seat.failed_starts} in a row that did not: {reason}. Is "
                "there memory for that many --workers?"
            )

    def __exit__(self, *raised: object) -> None:
        # Whoever is at a task when an error is under way is ended in the middle: its file has no name yet.
        is_idle = not any(seat.task for seat in self._seats)
        self._end(_GRACE_S if is_idle and raised[0] is None else 0.0)

    def _end(self, grace_s: float) -> None:
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        self._seats = []
        try:
            until = time.monotonic() + grace_s
            for worker in workers:
                if grace_s:
                    worker.let_go()
                else:
                    worker.kill()
            for worker in workers:
                worker.end(max(0.0, until - time.monotonic()))
        finally:
            self._disconnect()
