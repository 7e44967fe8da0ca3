"""One run over a plan: whole shards are skipped, the others are done, and all are merged once the last is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawscope.errors import DataError
from flawscope.files import locked, storage_errors
from flawscope.progress import CountProgress
from flawscope.runtime.scale.driver import Driver, Outcome
from flawscope.runtime.scale.executors import Placement, make_executor
from flawscope.runtime.scale.plan import REPORT, SHARDS, Plan, check_form, check_still_there, read_plan
from flawscope.runtime.scale.plan_items import check_items, check_size
from flawscope.runtime.scale.run_records import Recorder, RunRecord, WorkerDeath, read_records
from flawscope.runtime.scale.shards import place_of
from flawscope.runtime.scale.task import Done, Task
from flawscope.runtime.scale.work import Account, Work, encode_work, work_of
from flawscope.scratch import remove_leftovers


@dataclass(frozen=True)
class Ran:
    """What a run came to.

    Attributes:
        done: The shards of this run's part, those included that were whole before.
        skipped: How many of them were whole before.
        outcome: What was done now.
        missing: Shards of the whole plan that are not there yet; 0 where all are, and are merged.
    """

    done: list[Done]
    skipped: int
    outcome: Outcome
    missing: int

    def count(self, what: str) -> int:
        """Return how many items of this part came to something, such as `fault`."""
        return sum(done.counts.get(what, 0) + done.more.get(what, 0) for done in self.done)


def run_shards(
    out: Path,
    plan: Plan,
    work: Work,
    placement: Placement,
    *,
    part: tuple[int, int] = (0, 1),
    show: CountProgress,
    command: str = "",
) -> Ran:
    """Do the shards of a plan, or every N-th of them, and merge all once the last is whole.

    Args:
        out: Folder of the plan.
        plan: The plan.
        work: What is done.
        placement: Where, and by how many workers.
        part: Which part of how many, from 0; shards of the others are for others.
        show: Called with (items done, items in all) of this part.
        command: The command line, for the report.

    Raises:
        FlawscopeError: As `Driver.run`, `make_executor` and `Work.merge`. What is whole stays.
    """
    check_size(out, plan)
    with storage_errors(out):
        remove_leftovers(out / SHARDS)
    before, todo = Outcome(), list[Task]()
    for task in plan.tasks(part):
        if (done := work.whole(task)) is None:
            todo.append(task)
        else:
            before.add(done)
    items, known = sum(task.items for task in todo), sum(done.task.items for done in before.done.values())
    outcome = Outcome()
    if todo:
        if plan.items_sha256:
            check_items(out, plan)
        # No worker without a shard: each would load the bundle for nothing.
        threads = plan.fixed["threads"] or 1  # by which executors count cores
        seen = msgspec.structs.replace(placement, most=len(todo), folder=out / SHARDS, threads=threads)
        recorder = Recorder(out, plan, placement.on, command)
        with make_executor(encode_work(work), seen) as executor:

            def so_far() -> RunRecord:
                return _noted(recorder.record, outcome, executor.workers)

            def note(is_death: bool) -> None:
                recorder.note(so_far, at_once=is_death)

            with recorder.running(so_far):
                Driver(work, executor, lambda done, total: show(known + done, known + total), outcome, note).run(
                    todo, items
                )
    account = Account(on=placement.on, skipped=len(before.done), command=command)
    mine = Outcome(before.done | outcome.done)
    for each in (before, outcome):
        mine.took.add(each.took.took())
    own = [mine.done[number] for number in sorted(mine.done)]
    missing = _merge_if_whole(out, plan, work, mine, account)
    return Ran(own, len(before.done), outcome, missing)


def _noted(record: RunRecord, outcome: Outcome, workers: list[str]) -> RunRecord:
    return msgspec.structs.replace(
        record,
        workers=list(workers),
        shards=len(outcome.done),
        items=sum(done.task.items for done in outcome.done.values()),
        deaths=[WorkerDeath.of(died) for died in outcome.deaths],
        given_up=sorted(outcome.given_up),
    )


def merge(out: Path, *, command: str = "") -> Plan:
    """Merge the shards of a run that several jobs worked on, and return its plan.

    Raises:
        DataError: If there is no plan, a shard is missing or not whole, or it is of a kind that is not known.
        StorageError: If something cannot be written.
    """
    plan = read_plan(out)
    check_form(out, plan)
    check_size(out, plan)
    if missing := _merge_if_whole(out, plan, work_of(out, plan), Outcome(), Account(on="merge", command=command)):
        numbers = [str(task.shard) for task in plan.tasks() if not place_of(out, plan, task).is_file()][:10]
        named = f", such as {', '.join(numbers)}" if numbers else ""
        raise DataError(
            f"{out}: expected {plan.shards} whole shards, got {plan.shards - missing}: {missing} missing or not "
            f"whole{named}. Run the command of the run again with --resume."
        )
    return plan


def _merge_if_whole(out: Path, plan: Plan, work: Work, known: Outcome, account: Account) -> int:
    """Merge all shards if all are whole; return how many are not. `known` gets those that others made."""
    # Names first: of hundreds of jobs, each would otherwise read all that the others wrote.
    others = [task for task in plan.tasks() if task.shard not in known.done]
    if absent := sum(not place_of(out, plan, task).is_file() for task in others):
        return absent
    # Two jobs may end at once.
    with locked(out / REPORT):
        check_still_there(out, plan)
        for task in others:
            if (done := work.whole(task)) is not None:
                known.add(done)
        if len(known.done) == plan.shards:
            account = msgspec.structs.replace(account, took=known.took.took(), runs=read_records(out, plan))
            work.merge([known.done[number] for number in range(plan.shards)], account)
    return plan.shards - len(known.done)
