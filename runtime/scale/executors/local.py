"""Executor `local`: worker processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from multiprocessing.connection import wait as wait_for

from flawscope.errors import ArgumentError, BackendError, StorageError
from flawscope.runtime.backends.cores import usable_cores
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.executors.messages import FromWorker, encode_order
from flawscope.runtime.scale.executors.patience import Patience
from flawscope.runtime.scale.executors.seats import Gone, Seat, SeatedExecutor
from flawscope.runtime.scale.executors.shared_folder import shared_folder
from flawscope.runtime.scale.executors.worker_process import WorkerProcess

_log = logging.getLogger(__name__)

_GRACE_S = 10.0
"""Seconds between the end of a pipe and that of its process, which may write down why."""


class LocalExecutor(SeatedExecutor[WorkerProcess]):
    """Processes on this machine, each with the work opened once.

    On Linux a worker dies with the thread that started it, so that none is left behind when the driver is killed: the
    thread that enters the executor must outlive it.

    Args:
        work: What `encode_work` wrote.
        placement: How many, with how many threads and GPUs.
        patience: How long a task may take.

    Raises:
        ArgumentError: If there are fewer GPUs than that, or the number of workers is none.
    """

    def __init__(self, work: bytes, placement: Placement, patience: Patience | None = None) -> None:
        super().__init__(patience)
        count = placement.count(default_workers(placement))
        if count < 1:
            raise ArgumentError(f"--workers: expected at least 1, got {count}.")
        self._work, self._order = work, b""
        self._shares, self._shared = placement.shares and count > 1, contextlib.ExitStack()
        threads = {"OMP_NUM_THREADS": str(placement.threads)}
        self._variables = [threads | gpus for gpus in gpu_variables(count, placement.gpus_per_worker)]

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that work now."""
        return [seat.worker.pid for seat in self._seats if seat.worker is not None]

    def _count(self) -> int:
        return len(self._variables)

    def _connect(self) -> None:
        """Make the folder that the workers have in common; it goes with the last of them."""
        shared = ""
        if self._shares:
            try:
                shared = str(self._shared.enter_context(shared_folder()).absolute())
            except StorageError as err:
                _log.warning("%s Each worker has its own memory bank, which takes more memory.", err)
        self._order = encode_order(self._work, shared=shared)

    def _disconnect(self) -> None:
        self._shared.close()

    def _started(self, number: int) -> WorkerProcess:
        try:
            return WorkerProcess(f"local/{number}", self._order, self._variables[number])
        except OSError as err:
            raise BackendError(
                f"--workers: expected a process for worker {number + 1} of {self.slots}, the system refuses it: "
                f"{err.strerror or err}. Use fewer workers."
            ) from err

    def _hear(
        self, seats: list[Seat[WorkerProcess]], timeout_s: float
    ) -> list[tuple[Seat[WorkerProcess], FromWorker | Gone]]:
        processes = [(seat, seat.worker) for seat in seats if seat.worker is not None]
        ready = wait_for([handle for _, process in processes for handle in process.handles], timeout_s)
        heard: list[tuple[Seat[WorkerProcess], FromWorker | Gone]] = []
        for seat, process in processes:
            process.listen()
            if process.pipe in ready:
                heard.append((seat, process.answer() or Gone(process.ending(_GRACE_S))))
        return heard


def default_workers(placement: Placement) -> int:
    """Return how many workers there are where nobody says: one for the threads of each core, or by their GPUs.

    Processes with one thread each are faster than one with all threads, as `benchmarks/scale_throughput.py` measures.
    """
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
