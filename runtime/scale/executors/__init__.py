"""Executors: they place tasks on workers, and tell of workers that are gone. A file for each, a row in `EXECUTORS`.

An executor starts workers and replaces those that died; it never repeats a task. The driver
(`flawscope.runtime.scale.driver`) decides about that.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from flawscope.errors import ArgumentError
from flawscope.near_names import did_you_mean
from flawscope.runtime.scale.task import Died, Done, Failed, Task


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where workers run, and how many.

    Attributes:
        on: Name of an executor, or what one takes as an address: `local`, `ray`, `ray://HOST:PORT`, `HOST:PORT`.
        workers: Workers; None for the executor's own choice.
        gpus_per_worker: GPUs of a worker, perhaps a part of one; 0 for none.
        threads: Threads of a worker, which its graph and kernels use: the plan fixes them, so that all workers compute
            the same; an executor counts its cores by them.
        most: Most workers that have something to do, whatever `workers` says; None for any number.
        shares: Whether workers of one machine have packed memory banks in common, where the executor can tell that they
            are on one.
        folder: A folder of the run that all workers must see under this name; None if that need not be checked.
    """

    on: str = "local"
    workers: int | None = None
    gpus_per_worker: float = 0.0
    threads: int = 1
    most: int | None = None
    shares: bool = True
    folder: Path | None = None

    def count(self, room: int) -> int:
        """Return how many workers there are to be, where there is room for so many with nothing else said."""
        wanted = room if self.workers is None else self.workers
        return wanted if self.most is None else min(wanted, self.most)


class Executor(Protocol):
    """Workers at work. It is used in `with`: leaving it ends all of them, at once where an error is under way."""

    @property
    def slots(self) -> int:
        """Tasks that it takes at once: the driver submits no more before it has waited."""

    @property
    def workers(self) -> list[str]:
        """What its workers are called, those that were replaced too, for the report alone."""

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is or becomes free. It does not block for long."""

    def wait(self) -> list[Done | Died | Failed]:
        """Return what became of tasks, at least of one of those that were submitted; blocks until then.

        It can be interrupted (Ctrl-C). `Died` comes once for a task whose worker is gone, and the executor starts
        another worker by itself.

        Raises:
            FlawscopeError: If no worker can be started or reached at all: it never tries for ever.
        """

    def __enter__(self) -> Executor: ...

    def __exit__(self, *raised: object) -> None: ...


class Row(NamedTuple):
    """An executor.

    Attributes:
        place: `module:class`; made with `(work: bytes, placement: Placement)`, the bytes of `encode_work`. Its
            construction starts nothing, and raises ArgumentError for a placement that cannot be.
        address: Regular expression of addresses that mean it, too; empty for none.
        forms: What those look like.
    """

    place: str
    address: str = ""
    forms: str = ""


EXECUTORS: dict[str, Row] = {
    "local": Row("flawscope.runtime.scale.executors.local:LocalExecutor"),
    "ray": Row(
        "flawscope.runtime.scale.executors.ray:RayExecutor", r"ray://.+|[\w.-]+:\d+", "ray://HOST:PORT, HOST:PORT"
    ),
}
"""Name -> row."""


def executor_of(on: object) -> str:
    """Return the name of the executor that `--on` means.

    Raises:
        ArgumentError: If there is none.
    """
    if not isinstance(on, str):
        raise ArgumentError(f"on: expected the name of an executor or an address, got {on!r}.")
    for name, row in EXECUTORS.items():
        if on == name or (row.address and re.fullmatch(row.address, on)):
            return name
    known = [*EXECUTORS, *(row.forms for row in EXECUTORS.values() if row.forms)]
    raise ArgumentError(f"--on: expected one of {', '.join(known)}, got {on!r}.{did_you_mean(on, known)}")


def make_executor(work: bytes, placement: Placement) -> Executor:
    """Return the executor of a placement, not yet started.

    Args:
        work: What `encode_work` wrote.
        placement: Where workers run.

    Raises:
        ArgumentError: If there is no such executor, or it refuses the placement.
        MissingExtra: If what it needs is not installed.
    """
    module, _, name = EXECUTORS[executor_of(placement.on)].place.partition(":")
    make: Any = getattr(importlib.import_module(module), name)
    return cast(Executor, make(work, placement))
