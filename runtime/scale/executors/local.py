"""Executor `local`: worker processes on this machine."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait as wait_for

from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.backends.cores import usable_cores
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.executors.messages import Answer, Opened, Refusal, encode_order
from flawscope.runtime.scale.executors.patience import OPEN_S, Patience
from flawscope.runtime.scale.executors.worker_process import WorkerProcess
from flawscope.runtime.scale.task import Died, Done, Failed, Task

_MOST_FAILED_STARTS = 3
"""Processes in a row that ended before they had a task; another one would, too."""
_GRACE_S = 10.0
_LOOK_S = 1.0


class LocalExecutor:
    """Processes on this machine, each with the work opened once.

    It is used by one thread from its start to its end: on Linux a worker dies with the thread that started it, so that
    none is left behind when the driver is killed.

    Args:
        work: What `encode_work` wrote.
        placement: How many, with how many threads and GPUs.
        patience: How long a task may take.

    Raises:
        ArgumentError: If there are fewer GPUs than that, or the number of workers is none.
    """

    def __init__(self, work: bytes, placement: Placement, patience: Patience | None = None) -> None:
        count = placement.workers if placement.workers is not None else default_workers(placement)
        if count < 1:
            raise ArgumentError(f"--workers: expected at least 1, got {count}.")
        self._order = encode_order(work)
        self._patience = patience or Patience()
        threads = {"OMP_NUM_THREADS": str(placement.threads)}
        self._variables = [threads | gpus for gpus in gpu_variables(count, placement.gpus_per_worker)]
        self._processes: list[WorkerProcess] = []
        self._queue: deque[Task] = deque()
        self._outcomes: list[Done | Died | Failed] = []
        self._failed_starts = 0
        self._names: list[str] = []

    @property
    def slots(self) -> int:
        """Tasks that it takes at once."""
        return len(self._variables)

    @property
    def workers(self) -> list[str]:
        """Names of its processes, those that were replaced too."""
        return list(self._names)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that work now."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> LocalExecutor:
        try:
            for number in range(self.slots):
                self._processes.append(self._started(number))
            # The first one that is ready shows that the work can be opened here, before a task is given out.
            while not any(process.is_open for process in self._processes):
                self._look()
        except BaseException:
            self._end(0.0)
            raise
        return self

    def _started(self, number: int) -> WorkerProcess:
        try:
            process = WorkerProcess(f"local/{number}", self._order, self._variables[number])
        except OSError as err:
            raise BackendError(
                f"--workers: expected a process for worker {number} of {self.slots}, the system refuses it: "
                f"{err.strerror or err}. Use fewer workers."
            ) from err
        process.until = time.monotonic() + OPEN_S
        self._names.append(process.name)
        return process

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is or becomes free."""
        self._queue.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for process in self._processes:
            if self._queue and process.is_open and process.task is None:
                task = self._queue.popleft()
                process.until = time.monotonic() + self._patience.limit_s(task)
                process.start(task)

    def wait(self) -> list[Done | Died | Failed]:
        """Return what became of tasks, at least of one; at once with none where there is no task.

        Raises:
            BackendError: If no process can be started.
            FlawscopeError: What a worker raised that was started anew.
        """
        while not self._outcomes and (self._queue or any(process.task for process in self._processes)):
            self._look()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _look(self) -> None:
        """Wait until a process says something, prints, ends or is over its time, and act on that."""
        handles = [handle for process in self._processes for handle in process.handles]
        left_s = min(process.until for process in self._processes) - time.monotonic()
        ready = wait_for(handles, max(0.0, min(left_s, _LOOK_S)))
        for number, process in enumerate(self._processes):
            process.listen()
            if process.pipe in ready:
                self._hear(number, process)
            elif time.monotonic() > process.until:
                process.kill()
                what = "it was ready" if process.task is None else "its answer was there"
                self._replace(number, process, f"its time was over before {what}")
        self._hand_out()

    def _hear(self, number: int, process: WorkerProcess) -> None:
        match process.answer():
            case Opened():
                process.is_open, process.until = True, float("inf")
                self._failed_starts = 0
            case Answer(done):
                self._patience.note(done)
                process.task, process.until = None, float("inf")
                self._outcomes.append(done)
            case Refusal() as refusal if process.task is None:
                raise refusal.as_error()
            case Refusal(_, message):
                assert process.task is not None
                self._outcomes.append(Failed(process.task, message))
                process.task, process.until = None, float("inf")
            case None:
                self._replace(number, process, "")

    def _replace(self, number: int, process: WorkerProcess, reason: str) -> None:
        ending = process.end(0.0 if reason else _GRACE_S)
        reason = reason or ending
        if process.task is not None:
            self._outcomes.append(Died(process.task, reason))
        else:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise BackendError(
                    f"--workers: expected worker processes that start, got {self._failed_starts} in a row that did not:"
                    f" {reason}. Are memory and --workers right for this machine?"
                )
        self._processes[number] = self._started(number)

    def __exit__(self, *raised: object) -> None:
        # Whoever is at a task when an error is under way is ended in the middle: its file has no name yet.
        is_idle = not any(process.task for process in self._processes)
        self._end(_GRACE_S if is_idle and raised[0] is None else 0.0)

    def _end(self, grace_s: float) -> None:
        for process in self._processes:
            process.close()
            if grace_s == 0:
                process.kill()
        until = time.monotonic() + grace_s
        for process in self._processes:
            process.end(max(0.0, until - time.monotonic()))
        self._processes.clear()


def default_workers(placement: Placement) -> int:
    """Return how many workers there are where nobody says: by the cores, and one for each GPU where they have one."""
    if placement.gpus_per_worker:
        return max(1, int(len(visible_gpus()) / placement.gpus_per_worker))
    return max(1, usable_cores() // placement.threads)


def gpu_variables(count: int, each: float) -> Iterator[dict[str, str]]:
    """Yield for each worker the variable that gives it its GPUs: `each` of them, perhaps a part of one.

    Raises:
        ArgumentError: If there are not as many.
    """
    if not each:
        yield from ({} for _ in range(count))
        return
    if each < 0 or (each > 1 and each != int(each)):
        raise ArgumentError(f"--gpus-per-worker: expected a part of a GPU or a whole number of them, got {each:g}.")
    gpus = visible_gpus()
    # Whole workers of a GPU, so that none has parts of two.
    most = len(gpus) // int(each) if each >= 1 else len(gpus) * int(1 / each + 1e-9)
    if count > most:
        raise ArgumentError(
            f"--gpus-per-worker: expected GPUs for {count} workers with {each:g} each, got {len(gpus)} GPUs, enough "
            f"for {most}. Use fewer workers."
        )
    for number in range(count):
        first = number * int(each) if each >= 1 else number % len(gpus)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + max(1, int(each))])}


def visible_gpus() -> list[str]:
    """Return how the CUDA devices of this process are called; none where there is no driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() and name.strip() != "-1"]
    # Lazy: without GPUs nothing of CUDA is imported.
    from flawscope.runtime.engines.cuda_driver import DriverError, call

    try:
        call("cuInit", 0)
        return [str(number) for number in range(int(call("cuDeviceGetCount")))]
    except (BackendError, DriverError):
        return []
