"""Where workers run, from what a user says."""

from __future__ import annotations

from flawscope.errors import ArgumentError
from flawscope.runtime.backends.cores import usable_cores
from flawscope.runtime.scale.executors import Placement, executor_of

MOST_WORKERS = 4096
"""Of one driver; more is a slip of the keyboard, and would start that many processes. Job arrays have no limit."""


def threads_of_worker(placement: Placement) -> int:
    """Return the threads that each worker has: its share of this machine, where it is said how many share that."""
    if not placement.workers or placement.on != "local":
        return 1
    return max(1, usable_cores() // placement.workers)


def make_placement(on: str, workers: int | None, gpus_per_worker: float) -> Placement:
    """Return a placement.

    Raises:
        ArgumentError: If a value is out of range, or there is no such executor.
    """
    executor_of(on)
    if workers is not None and (isinstance(workers, bool) or workers not in range(1, MOST_WORKERS + 1)):
        raise ArgumentError(f"workers: expected 1 to {MOST_WORKERS:,}, got {workers!r}.")
    if not isinstance(gpus_per_worker, int | float) or not 0.0 <= gpus_per_worker < 1e6:
        raise ArgumentError(f"gpus_per_worker: expected 0 or more, such as 0.25, got {gpus_per_worker!r}.")
    return Placement(on=on, workers=workers, gpus_per_worker=float(gpus_per_worker))
