"""What a worker does with a task: the kinds of work, and how a worker process gets its own.

A kind of work is a row of `WORKS` and a struct that msgspec writes as JSON: executors carry those bytes, and no pickle.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from flawscope.errors import ArgumentError, DataError
from flawscope.runtime.scale.plan import Plan
from flawscope.runtime.scale.run_records import RunRecord
from flawscope.runtime.scale.task import Done, Task
from flawscope.runtime.scale.times import Took
from flawscope.stored_paths import stored_path
from flawscope.text import NOT_JSON, encode_json

WORKS: dict[str, str] = {
    "score": "flawscope.runtime.scale.score_work:ScoreWork",
    "generate": "flawscope.runtime.scale.generate_work:GenerateWork",
    "dataset": "flawscope.runtime.scale.dataset_work:DatasetWork",
    "evaluate": "flawscope.calibration.evaluation.sharded_measuring:EvaluateWork",
}
"""Kind -> `module:class` of its struct, whose tag (`kind`) it is. Its fields `out` (folder of the plan, absolute) and
`plan` (digest of the plan) are enough to look at shards and to merge them: all others have defaults."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a run took that its results do not say, for the report.

    Attributes:
        on: Where it ran.
        skipped: Shards that were whole before.
        command: The command line; empty from Python.
        took: Times of the items of all shards.
        runs: What all runs over the plan took and met, this one included, in the order in which they began.
    """

    on: str
    skipped: int = 0
    command: str = ""
    took: Took = Took()
    runs: list[RunRecord] = []


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

    def merge(self, shards: Sequence[Done], account: Account) -> None:
        """Write what is made of all shards, which are whole, and the report, `report.json`, as the last file.

        Args:
            shards: What became of each, in order, without times.
            account: What the run itself took.

        Raises:
            DataError: If the file of a shard is gone or changed, or the account does not close.
            StorageError: If something cannot be written.
        """


def encode_work(work: Work) -> bytes:
    """Return a work as JSON with its kind."""
    return encode_json(work)


def decode_work(data: bytes) -> Work:
    """Return the work that `encode_work` wrote.

    Raises:
        ArgumentError: If it is none, or of an unknown kind, as from another version of flawscope.
    """
    try:
        return cast(Work, msgspec.json.decode(data, type=_struct(msgspec.json.decode(data, type=_Kind).kind)))
    except (*NOT_JSON, KeyError) as err:
        raise ArgumentError(
            f"work: expected one of {', '.join(WORKS)} of this version, got what it cannot read: {err!r}. Install the "
            "same flawscope wherever workers run."
        ) from err


def work_of(out: Path, plan: Plan) -> Work:
    """Return the work of a plan, to look at its shards and to merge them; it opens no worker.

    Raises:
        DataError: If the plan is of a kind that this version does not have.
    """
    if plan.kind not in WORKS:
        raise DataError(
            f"{out}: expected a plan of {', '.join(WORKS)}, got one of {plan.kind}. Use the version that made it."
        )
    return cast(Work, _struct(plan.kind)(out=stored_path(out), plan=plan.digest))


def _struct(kind: str) -> Any:
    module, _, name = WORKS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


class _Kind(msgspec.Struct):
    kind: str
