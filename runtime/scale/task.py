"""What travels between a driver and its workers: numbers of items, and counts; never pixels, results or paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from flawscope.runtime.scale.times import Took, add_up


class Task(msgspec.Struct, frozen=True):
    """Items of one shard of a plan, `first <= n < stop`; a part of it where a worker died of the whole.

    Attributes:
        shard: Number of the shard, from 0.
        first: Number of the first item in the plan, from 0.
        stop: Number behind the last.
    """

    shard: int
    first: int
    stop: int

    @property
    def items(self) -> int:
        """How many items it has."""
        return self.stop - self.first


class Done(msgspec.Struct, frozen=True):
    """A task is done: its file has its name.

    Attributes:
        task: The task.
        counts: What came of its items, such as `accept`, `reject` and `fault`; their sum is the number of items.
        seconds: Time of the task.
        more: Items by what else is counted of them, for the report alone, such as `near_threshold`.
        took: Times of the items.
    """

    task: Task
    counts: dict[str, int]
    seconds: float = 0.0
    more: dict[str, int] = {}
    took: Took = Took()


def joined(shard: Task, parts: Sequence[Done]) -> Done:
    """Return a shard as done, by what came of its parts."""
    counts, more = Counter[str](), Counter[str]()
    for part in parts:
        counts.update(part.counts)
        more.update(part.more)
    seconds = sum(part.seconds for part in parts)
    return Done(shard, dict(counts), seconds, dict(more), add_up(part.took for part in parts))


class Died(msgspec.Struct, frozen=True):
    """The worker of a task is gone: killed, out of memory, crashed in native code, or over its time.

    Attributes:
        task: The task.
        reason: What is known of its end, in a few words without a full stop, such as `killed by signal 9`.
    """

    task: Task
    reason: str


class Failed(msgspec.Struct, frozen=True):
    """The worker of a task met an error that no repetition mends, such as a full disk or another bundle: the run ends.

    Attributes:
        task: The task.
        message: Its message: what is wrong, what was expected, what to do.
    """

    task: Task
    message: str
