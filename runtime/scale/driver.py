"""The driver: it hands shards to an executor, tries again those whose worker died, and finds the item that kills.

A shard is tried again twice. After that it is cut in two, and each half of which a worker dies, until one item is left
of which every worker dies: that item is given up, and all others are done. Many deaths without a task done between them
end the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from flawscope.errors import DataError, FlawscopeError
from flawscope.progress import CountProgress
from flawscope.runtime.scale.executors import Executor
from flawscope.runtime.scale.task import Died, Done, Failed, Task
from flawscope.runtime.scale.times import Took, Total
from flawscope.runtime.scale.work import Work

RETRIES = 2
"""How often a shard is tried again before it is cut."""
RETRIES_ALONE = 1
"""How often an item that is alone, as the last of a shard that was cut, is tried again before it is given up."""
MOST_DEATHS = 48
"""Deaths in a row, without a task done between, that end a run. One item that kills, in a shard of 65,536, causes 20 in
a row at most: 3 of the shard, 15 of its halves, and 2 of itself; each of those right behind it, 2 more."""


@dataclass
class _Shard:
    """A shard that was cut: its parts, done or not, in order."""

    whole: Task
    parts: list[Task]
    done: dict[Task, Done] = field(default_factory=dict)

    def cut(self, task: Task, pieces: list[Task]) -> None:
        at = self.parts.index(task)
        self.parts[at : at + 1] = pieces

    @property
    def is_done(self) -> bool:
        return len(self.done) == len(self.parts)


@dataclass
class Outcome:
    """What a driver did.

    Attributes:
        done: What became of each shard, by number; without times, of which there may be 10^5 histograms.
        took: Times of all of them.
        deaths: Tasks whose worker died.
        given_up: Numbers of the items of which every worker died.
    """

    done: dict[int, Done] = field(default_factory=dict)
    took: Total = field(default_factory=Total)
    deaths: list[Died] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """Take a shard that is whole."""
        self.took.add(done.took)
        self.done[done.task.shard] = msgspec.structs.replace(done, took=Took())


class Driver:
    """Drives the shards of a plan.

    Args:
        work: What is done.
        executor: What it is done by, started.
        show: Called with (items done, items in all).
        outcome: Where what it does is noted; None for a new one.
        note: Called when that has changed, with whether it was a death.
    """

    def __init__(
        self,
        work: Work,
        executor: Executor,
        show: CountProgress,
        outcome: Outcome | None = None,
        note: Callable[[bool], None] = lambda is_death: None,
    ) -> None:
        self.outcome = Outcome() if outcome is None else outcome
        self._work, self._executor, self._show, self._note = work, executor, show, note
        self._tries: dict[Task, int] = {}
        self._cut: dict[int, _Shard] = {}
        self._again: deque[Task] = deque()
        self._suspects: deque[Died] = deque()
        self._deaths_in_a_row = 0
        self._has_done = False
        self._items, self._of = 0, 0

    def run(self, tasks: Iterable[Task], items: int) -> Outcome:
        """Do all tasks, and return what became of them.

        Args:
            tasks: Shards that are not whole; taken one at a time.
            items: Items of all of them.

        Raises:
            FlawscopeError: If a worker met what no repetition mends, workers die of everything, or none can be started.
        """
        self._of = items
        todo, at_work = iter(tasks), 0
        while True:
            while at_work < self._executor.slots and (task := self._next(todo)) is not None:
                self._executor.submit(task)
                at_work += 1
            if at_work == 0:
                # Nothing was ever done: there was nothing else to do, or the run would have ended.
                if not self._suspects:
                    return self.outcome
                self._give_up(self._suspects.popleft())
                continue
            for answer in self._executor.wait():
                at_work -= 1
                self._take(answer)

    def _next(self, todo: Iterator[Task]) -> Task | None:
        """Return what is to be done next; parts of a run that was killed may be whole already."""
        while self._again:
            task = self._again.popleft()
            if task.shard not in self._cut or (done := self._work.whole(task)) is None:
                return task
            self._finish(done)
        return next(todo, None)

    def _take(self, answer: Done | Died | Failed) -> None:
        if isinstance(answer, Failed):
            raise FlawscopeError(answer.message)
        if isinstance(answer, Done):
            self._has_done, self._deaths_in_a_row = True, 0
            self._finish(answer)
            while self._suspects:
                self._give_up(self._suspects.popleft())
            return
        self.outcome.deaths.append(answer)
        self._note(True)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= MOST_DEATHS:
            raise FlawscopeError(
                f"workers: expected tasks to be done, got {MOST_DEATHS} workers that died one after the other, the "
                f"last of items {answer.task.first} to {answer.task.stop - 1}: {answer.reason}. Look for too little "
                "memory (fewer --workers) or a device that fails; what is whole stays, and --resume goes on."
            )
        self._after_death(answer)

    def _after_death(self, died: Died) -> None:
        task = died.task
        is_part, is_one = task.shard in self._cut, task.items == 1
        tries = self._tries[task] = self._tries.get(task, 0) + 1
        # A part that is cut again needs no second try: its halves are that.
        if tries <= (RETRIES if not is_part else RETRIES_ALONE if is_one else 0):
            self._again.append(task)
        elif not is_one:
            pieces = halves(task, self._work.grain)
            self._cut.setdefault(task.shard, _Shard(task, [task])).cut(task, pieces)
            self._again.extendleft(reversed(pieces))
        elif self._has_done:
            self._give_up(died)
        else:
            # While nothing at all was done, it is rather the machine than the item that kills.
            self._suspects.append(died)

    def _give_up(self, died: Died) -> None:
        self.outcome.given_up.append(died.task.first)
        # Before the line of the item: whoever goes on finds that, and asks no more.
        self._note(True)
        self._finish(self._work.give_up(died.task, died.reason))

    def _finish(self, done: Done) -> None:
        shard = self._cut.get(done.task.shard)
        if shard is None:
            self.outcome.add(done)
        else:
            shard.done[done.task] = done
            if shard.is_done:
                parts = [shard.done[part] for part in shard.parts]
                self.outcome.add(self._joined(shard.whole, parts))
                del self._cut[done.task.shard]
        self._tries.pop(done.task, None)
        self._note(False)
        self._items += done.task.items
        self._show(self._items, self._of)

    def _joined(self, whole: Task, parts: list[Done]) -> Done:
        """Join a shard; a second driver of the same part may have done so before, and removed the parts."""
        try:
            return self._work.join(whole, parts)
        except DataError:
            if (done := self._work.whole(whole)) is None:
                raise
            return done


def halves(task: Task, grain: int) -> list[Task]:
    """Return a task in two, cut between groups of `grain` items, or within the one group that it is."""
    step = grain if task.items > grain else 1
    # Counted from the first item of the task, which is that of a group.
    middle = task.first + step * max(1, task.items // step // 2)
    return [Task(task.shard, task.first, middle), Task(task.shard, middle, task.stop)]
