"""Where workers run, from what a user says."""

from __future__ import annotations

from flawscope.errors import ArgumentError
from flawscope.runtime.scale.executors import Placement, executor_of


def make_placement(on: str, workers: int | None, gpus_per_worker: float) -> Placement:
    """Return a placement.

    Raises:
        ArgumentError: If a value is out of range, or there is no such executor.
    """
    executor_of(on)
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ArgumentError(f"workers: expected at least 1, got {workers!r}.")
    if not isinstance(gpus_per_worker, int | float) or not 0.0 <= gpus_per_worker < 1e6:
        raise ArgumentError(f"gpus_per_worker: expected 0 or more, such as 0.25, got {gpus_per_worker!r}.")
    return Placement(on=on, workers=workers, gpus_per_worker=float(gpus_per_worker))
