"""What a worker does with a task: the kinds of work, and how a worker process gets its own.

A kind of work is a row of `WORKS` and a struct that msgspec writes as JSON: executors carry those bytes, and no pickle.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import msgspec

from flawscope.errors import ArgumentError
from flawscope.runtime.scale.task import Done, Task
from flawscope.text import NOT_JSON

WORKS: dict[str, str] = {
    "score": "flawscope.runtime.scale.score_work:ScoreWork",
}
"""Kind -> `module:class` of its struct, whose tag (`kind`) it is."""


class Worker(Protocol):
    """What does the tasks of one process, one after the other. All tasks of a worker are of one plan."""

    def run(self, task: Task) -> Done:
        """Do a task: write its file below the folder of the plan (scratch, fsync, rename), and return the counts.

        A file of the task that lies there already is replaced: an earlier worker may have died just after it.

        Raises:
            FlawscopeError: If the task cannot be done, whatever items it has: the run ends with the message.
        """

    def close(self) -> None:
        """Release what `open` took."""


class Work(Protocol):
    """A msgspec struct with the tag field `kind`: what is to be done, and in which folder the plan lies.

    `open` is called once in each worker process; all else by the driver, which never loads a bundle.
    """

    def open(self) -> Worker:
        """Make a worker ready: load the bundle, and check it against the plan.

        Raises:
            FlawscopeError: If that fails; the run ends with the message.
        """

    @property
    def grain(self) -> int:
        """Items that are computed together: a shard is cut between such groups, as long as it has more than one."""

    def whole(self, task: Task) -> Done | None:
        """Return what the file of a task says; None if there is none, or it is not whole."""

    def give_up(self, task: Task, reason: str) -> Done:
        """Write the file of a task of one item, of which every worker dies; the reason says so."""

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        """Write the file of a shard from those of its parts, in order, and remove these."""


def encode_work(work: Work) -> bytes:
    """Return a work as JSON with its kind."""
    return msgspec.json.encode(work)


def decode_work(data: bytes) -> Work:
    """Return the work that `encode_work` wrote.

    Raises:
        ArgumentError: If it is none, or of an unknown kind, as from another version of flawscope.
    """
    try:
        kind = msgspec.json.decode(data, type=_Kind).kind
        module, _, name = WORKS[kind].partition(":")
        struct = getattr(importlib.import_module(module), name)
        return cast(Work, msgspec.json.decode(data, type=struct))
    except (*NOT_JSON, KeyError) as err:
        raise ArgumentError(
            f"work: expected one of {', '.join(WORKS)} of this version, got what it cannot read: {err!r}. Install the "
            "same flawscope wherever workers run."
        ) from err


class _Kind(msgspec.Struct):
    kind: str
